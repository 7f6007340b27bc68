"""What ties a controller to an optimizer and its layers: which weights it may move, with which state and gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from sparsegnn.nn import SparseLinear


def check_free(op: str, layers: Mapping[str, SparseLinear], others: Iterable) -> None:
    """Raise unless no other controller of the optimizer moves the weights of one of the layers."""
    for other in others:
        theirs = {id(layer) for layer in other.layers.values()}
        if shared := [name for name, layer in layers.items() if id(layer) in theirs]:
            raise ValueError(
                f"{op}: model must have no layer that another controller of this optimizer moves, got {shared} of "
                f"{other}; detach() that one first, or give each controller its own part of the model"
            )


def check_held(op: str, layers: Mapping[str, SparseLinear], optimizer: torch.optim.Optimizer) -> None:
    """Raise unless the optimizer still trains the layers' values, and they are somewhere."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, layer in layers.items():
        if layer.values.is_meta:
            raise RuntimeError(f"{op}: layer {name!r} is on the meta device, where it has no weights to move")
        if id(layer.values) not in held:
            raise RuntimeError(
                f"{op}: optimizer no longer holds the values of layer {name!r}, which were replaced, by "
                "load_state_dict(assign=True) or to_empty(), say; make optimizer and controller after that"
            )


def twins(op: str, layers: Mapping[str, SparseLinear], model: nn.Module) -> dict[str, SparseLinear]:
    """The layers of ``model``, a copy or something around one, that are copies of ``layers``, at the same positions."""
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, SparseLinear)]
    twins = {}
    for name, layer in layers.items():
        near = [m for n, m in found if n == name or n.endswith("." + name) or not name]
        if len(near) != 1 or near[0] is layer:
            got = "the model itself" if near and near[0] is layer else f"{len(near)}"
            raise ValueError(f"{op}: copies must have one layer for {name!r}, got {got}; pass a copy of the model")
        pairs = zip(layer.pattern(), near[0].pattern(), strict=True)
        if not all(a.shape == b.shape and torch.equal(a, b.to(a.device)) for a, b in pairs):
            raise ValueError(f"{op}: copies must be at the positions of the model, got layer {name!r} at others; copy "
                             "the model again, now")  # fmt: skip
        twins[name] = near[0]
    return twins


class Accumulation:
    """Lets the gradient of a probe begin anew whenever that of the layer's values does.

    ``zero_grad()`` knows the values only: what it throws away, the NaN of a batch that is left out or of a step that a
    GradScaler skips, would stay in the dense gradient. So each backward pass looks, before its first gradient arrives,
    whether those of the values are None or, where others wrote to them, zero.
    """

    def __init__(self, values: nn.Parameter, probe: Tensor):
        self.values, self.probe, self.version = values, probe, None
        arrived = torch.autograd.graph.register_multi_grad_hook((values, probe), self._begin, mode="any")
        self.handles = arrived, values.register_post_accumulate_grad_hook(self._added)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _begin(self, _: Tensor) -> None:
        if self.probe.grad is None:
            return
        gradient = self.values.grad
        if gradient is None or (gradient._version != self.version and not gradient.any()):
            self.probe.grad = None

    def _added(self, values: Tensor) -> None:
        self.version = values.grad._version
