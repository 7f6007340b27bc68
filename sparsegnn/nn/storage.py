"""Parameters that change their size, and tensors that hooks know."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


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
