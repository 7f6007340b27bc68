"""Parameters that change their size, and checkpoints that must fit a sparse layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sparsegnn import pattern as patterns

SAVED = ("values", "crow", "col", "shape")


def resize_(parameter: nn.Parameter, shape: torch.Size) -> None:
    """The same Parameter object on new storage, without a gradient."""
    new = parameter.new_empty(shape)
    other = torch.float32 if parameter.dtype == torch.float64 else torch.float64
    # Autograd keeps the node of a parameter, with its old shape, while a loss of an earlier step is alive; only a
    # change of the dtype makes it forget that node.
    parameter.data = new.to(other)
    parameter.data, parameter.grad = new, None


def move_(tensor: Tensor | None, fn: Callable[[Tensor], Tensor]) -> Tensor | None:
    """The same Tensor object, which hooks know, after ``fn``, as Module._apply does; None where it cannot follow."""
    if tensor is None:
        return None
    with torch.no_grad():
        new, gradient = fn(tensor), tensor.grad
        if not torch._has_compatible_shallow_copy_type(tensor, new):  # to the meta device or from it
            return None
        tensor.grad = None
        tensor.data = new
        tensor.grad = None if gradient is None else fn(gradient)
    return tensor


def check_saved(layer, state_dict: Mapping[str, Tensor], prefix: str) -> Tensor:
    """``col`` of a checkpoint, once all that it holds fits ``layer``, a SparseWeight; else TypeError or ValueError."""
    op, mine = type(layer).__name__, [layer.out_features, layer.in_features]
    values, crow, col, shape = (state_dict.get(prefix + k, getattr(layer, k)) for k in SAVED)
    if not shape.is_meta and shape.tolist() != mine:
        raise ValueError(f"{op}: checkpoint '{prefix}shape' must be {mine}, got {shape.tolist()}")
    where = f"{op}: checkpoint '{prefix.rstrip('.')}'"
    patterns.check_pattern(crow, col, *layer.grid, where)
    patterns.check_regular(crow, col, layer.in_features, layer.structure, where)
    want = [col.numel() * layer.block[0] * layer.block[1]]
    if list(values.shape) != want:
        raise ValueError(f"{op}: checkpoint '{prefix}values' must have shape {want}, got {list(values.shape)}")
    return col
