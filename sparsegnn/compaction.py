"""Remove dead units from a model: the same function, in narrower layers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sparsegnn.controllers.attachment import check_free
from sparsegnn.controllers.optimizers import unwrapped
from sparsegnn.controllers.processes import in_replica
from sparsegnn.width.flow import OUTPUT, Flow
from sparsegnn.width.layers import GCNLayer
from sparsegnn.width.narrow import Edits, fold, narrow
from sparsegnn.width.trace import as_it_was


def compact(
    model: nn.Module,
    *example_inputs: object,
    optimizer: torch.optim.Optimizer | None = None,
    inplace: bool = True,
) -> nn.Module:
    """Make a model narrower by its dead units, with the same outputs in training and in evaluation.

    A unit is a channel of hidden features. It is dead where it is zero whatever the input (its incoming weights and
    bias are zero, or the weight and bias of its BatchNorm), or where nothing reads it (its outgoing weights are zero
    in all layers that see it). A unit that is constant but not zero, ``sigmoid(0)``, goes too if it is read by linear
    layers with a bias alone, which takes it up. Channels that are added to each other go together, the heads of an
    attention layer as a whole, and at least one channel of each layer stays. Inputs and outputs of the model keep their
    width. Units that are dead and must stay, before LayerNorm or :class:`~sparsegnn.nn.MaxK`, which look at all
    channels of a row, are named in a warning.

    Known are ``nn.Linear``, :class:`~sparsegnn.nn.SparseLinear`, this package's convolutions but GINConv and GCN2Conv,
    PyG's GCNConv and SAGEConv, BatchNorm1d, Embedding, elementwise activations, dropout, sums, products, concatenation,
    and products with an adjacency from the left, as torch.fx finds them in ``forward``. Around anything else all
    channels stay.

    Parameters stay the same objects, with smaller storage and no gradient, so optimizers and schedulers go on.

    Args:
        example_inputs: what ``forward`` is called with. Without, its optional arguments have their defaults. With
            them the outputs before and after are compared, too.
        optimizer: its state for each weight gets narrower with the weight; see
            :func:`~sparsegnn.controllers.register_state` for one that is not torch's. An optimizer that is not given
            here fails at its next step if it has such state.
        inplace: change ``model``; else a deep copy. For a copy of the optimizer copy both first.

    Returns:
        The model.
    """
    op = "compact"
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be a torch.nn.Module, got {type(model).__name__}")
    optimizer = None if optimizer is None else unwrapped(op, optimizer)
    if not inplace:
        if optimizer is not None:
            raise ValueError(f"{op}: optimizer must be None with inplace=False, got {type(optimizer).__name__}: copy "
                             "both with copy.deepcopy((model, optimizer)), then compact the copies")  # fmt: skip
        model = copy.deepcopy(model)
    while _narrowed(op, model, example_inputs, optimizer):
        pass  # of an attention layer that has one head left, single channels may go
    return model


def _narrowed(op: str, model: nn.Module, example_inputs: tuple, optimizer: torch.optim.Optimizer | None) -> bool:
    """Remove what can be seen to be dead now; whether that was anything."""
    flow = Flow(op, model, example_inputs)
    kept = flow.kept()
    edits, layers = Edits(op, optimizer), list(flow.layers.values())
    fold(edits, layers, kept)
    narrow(edits, layers, kept)
    changed = edits.parameters
    if not changed:
        _warn_of_dead(op, flow, kept)
        return False
    check_free(op, [x for x in model.modules() if any(p is q for p in x.parameters(recurse=False) for q in changed)])
    if in_replica(changed):
        raise RuntimeError(f"{op}: model must not be in a DistributedDataParallel, which cannot follow parameters that "
                           "get smaller: compact before it is made, or after the training")  # fmt: skip
    before = _outputs(model, example_inputs)
    edits.apply()
    for layer in layers:
        if isinstance(layer, GCNLayer) and hasattr(layer.module, "_kept"):
            layer.module._kept.clear()
    if before is not None:
        try:
            _compare(op, before, _outputs(model, example_inputs))
        except BaseException:
            edits.undo()
            raise
    return True


def dead_units(model: nn.Module, *example_inputs: object) -> dict[str, Tensor]:
    """Which outputs of each layer :func:`compact` would remove: name -> int64 indices, of the layers that have some."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"dead_units: model must be a torch.nn.Module, got {type(model).__name__}")
    flow = Flow("dead_units", model, example_inputs)
    kept = flow.kept()
    found = {name: (~kept[layer.out]).nonzero().view(-1) for name, layer in flow.layers.items()}
    return {name: index for name, index in found.items() if index.numel()}


def _warn_of_dead(op: str, flow: Flow, kept: Tensor) -> None:
    """Name the units that have no weights and stay all the same."""
    roots = flow.channels.roots()
    why, lines = flow.channels.reasons(roots), []
    for name, layer in flow.layers.items():
        dead = layer.dead()
        stuck = roots[layer.out[dead & kept[layer.out]]].tolist()
        reasons: dict[str, int] = {}
        for root in stuck:
            text = why(root) or "they are constant where no bias can take that up, or the last of a layer"
            reasons[text] = reasons.get(text, 0) + 1
        reasons.pop(OUTPUT, None)
        lines += [f"{n} of {name!r}, as {text}" for text, n in reasons.items()]
    if lines:
        warnings.warn(f"{op}: dead units stay: {'; '.join(lines)}", stacklevel=4)


@torch.no_grad()
def _outputs(model: nn.Module, example_inputs: tuple) -> list[Tensor] | None:
    if not example_inputs:
        return None
    with as_it_was(model):
        return [t for t in _tensors(model.eval()(*example_inputs))]


def _tensors(outputs: object) -> Iterable[Tensor]:
    found = outputs.values() if isinstance(outputs, dict) else outputs
    for part in [outputs] if isinstance(outputs, Tensor) else found if isinstance(found, Iterable) else []:
        yield from [part] if isinstance(part, Tensor) else _tensors(part)


def _compare(op: str, before: list[Tensor], after: list[Tensor]) -> None:
    for a, b in zip(before, after, strict=True):
        error = (a - b).double().norm() / a.double().norm().clamp(min=1e-30)
        if not error <= 100 * torch.finfo(a.dtype).eps ** 0.75 and not torch.equal(a, b):
            raise RuntimeError(f"{op}: outputs must stay the same, got a relative error of {error:.1e}; nothing has "
                               "changed: please report the model")  # fmt: skip
