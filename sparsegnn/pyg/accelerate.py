"""accelerate: PyG's convolutions on this library's kernels, in a model that stays PyG's."""

from __future__ import annotations

import warnings

from torch import nn

from sparsegnn.pyg import layers
from sparsegnn.pyg.overrides import own_machinery
from sparsegnn.pyg.products import fused_of, is_pygs, product_of, pyg
from sparsegnn.pyg.route import Forward, install, remove, route_of


def accelerate(model: nn.Module, *, undo: bool = False) -> nn.Module:
    """Let the convolutions of an unmodified PyG model aggregate on this library's kernels.

    The model stays what it is: classes, ``state_dict``, ``repr``, hooks, explainers, ``to_hetero``, copies and pickles.
    Covered are GCNConv, SAGEConv, GATConv, GATv2Conv and every convolution whose message is ``x_j``, or that times one
    weight per edge, the user's own too. An ``edge_index`` is converted once, for all layers, until it changes. A call
    that needs what the kernels have not (an explainer's mask, a hook on messages, returned attention weights) takes
    PyG's own path, and so does a compiled or traced one; ``summary`` says which ran, and why.

    Args:
        undo: take it back.

    Returns:
        The model, changed in place.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be a torch.nn.Module, got {type(model).__name__}")
    if undo:
        remove_all(model)
        return model
    convolutions = convolutions_of(model)
    if not convolutions:
        raise ValueError("accelerate: model must have a convolution of PyG (torch_geometric.nn.MessagePassing), "
                         "got none")  # fmt: skip
    if not install_all(model):
        names = ", ".join(sorted({type(conv).__name__ for conv in convolutions}))
        warnings.warn(f"accelerate: none of the convolutions of this model is covered ({names}): it runs as before",
                      stacklevel=2)  # fmt: skip
    return model


def install_all(model: nn.Module) -> int:
    """Accelerate what is covered; how many convolutions that is."""
    covered = [conv for conv in convolutions_of(model) if is_covered(conv)]
    for conv in covered:
        if route_of(conv) is None:
            install(conv)
    return len(covered)


def remove_all(model: nn.Module) -> None:
    for conv in convolutions_of(model):
        remove(conv)


def convolutions_of(model: nn.Module) -> list[nn.Module]:
    """PyG's convolutions in a model, each once."""
    return [m for m in model.modules() if is_pygs(m)]


def is_covered(conv) -> bool:
    """Whether some call of this convolution can run on the kernels."""
    base, kind, own = pyg().MessagePassing, type(conv), vars(conv).get("propagate")
    pygs = (None, kind._jinja_propagate, kind._orig_propagate)  # what PyG itself puts on an instance
    forward = vars(conv).get("forward")
    if type(forward) is not Forward and (forward is not None or getattr(own, "__func__", own) not in pygs):
        return False
    if own_machinery(kind) is not None:
        return False
    plain = kind.aggregate is base.aggregate and kind.update is base.update and product_of(conv) is not None
    return plain or layers.of(kind) is not None or (kind.update is base.update and fused_of(conv) is not None)
