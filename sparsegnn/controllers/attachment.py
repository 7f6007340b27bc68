"""What ties a controller to an optimizer and its layers: which weights it may move, with which state and gradient."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparsegnn.nn import SparseLinear

#: layer -> the controller that moves its weights
_owners: weakref.WeakKeyDictionary[SparseLinear, weakref.ref] = weakref.WeakKeyDictionary()


def take(op: str, controller, layers: Mapping[str, SparseLinear]) -> None:
    """Make the layers those of ``controller``; raise if another one, of whatever optimizer, moves one of them."""
    if any(other.optimizer is not controller.optimizer for other in _taken(layers, controller).values()):
        gc.collect()  # of a function that has returned, say: controllers and optimizers refer to each other
    if taken := _taken(layers, controller):
        other = next(iter(taken.values()))
        whose = "this optimizer" if other.optimizer is controller.optimizer else "another optimizer"
        raise ValueError(
            f"{op}: model must have no layer that another controller of {whose} moves, got {list(taken)} of {other}; "
            "detach() that one first (in a notebook, before the cell is run again), or give each controller its own "
            "part of the model"
        )
    for layer in layers.values():
        _owners[layer] = weakref.ref(controller)


def _taken(layers: Mapping[str, SparseLinear], controller) -> dict:
    owners = {name: _owners[layer]() for name, layer in layers.items() if layer in _owners}
    return {name: x for name, x in owners.items() if x is not None and x is not controller and x.attached}


def check_own(op: str, layers: Mapping[str, SparseLinear]) -> None:
    """Raise unless the values of the layers are parameters of theirs, not made of something else at each call."""
    if made := [name for name, layer in layers.items() if "values" not in layer._parameters]:
        raise ValueError(
            f"{op}: model must have layers whose values are parameters, got {made}, where they are made at each call "
            "(nn.utils.prune, weight_norm, spectral_norm, a parametrization, functional_call): remove that first, or "
            "prune with GradualMagnitude"
        )


def check_held(op: str, layers: Mapping[str, SparseLinear], optimizer: torch.optim.Optimizer) -> None:
    """Raise unless the optimizer still trains the layers' values, and they are somewhere."""
    check_own(op, layers)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, layer in layers.items():
        if layer.values.is_meta:
            raise RuntimeError(f"{op}: layer {name!r} is on the meta device, where it has no weights to move")
        if id(layer.values) not in held:
            raise RuntimeError(
                f"{op}: optimizer no longer holds the values of layer {name!r}, which were replaced, by "
                "load_state_dict(assign=True), to_empty() or fully_shard(), say; make optimizer and controller then"
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
    GradScaler skips, would stay in the dense gradient. So each backward pass before its first gradient arrives, and
    each step, looks whether the gradients of the values are None or were made zero.
    """

    def __init__(self, values: nn.Parameter, probe: Tensor, recorded: bool):
        self.values, self.probe = values, probe
        self.discarded = False  # the last gradient
        self.waits = not recorded and not values.is_cuda
        self.last: tuple[int, int] | None = None  # gradient of the values that a backward pass left, and its version
        self.nonzero: Tensor | None = None  # whether any of that is
        arrived = torch.autograd.graph.register_multi_grad_hook((values, probe), self.settle, mode="any")
        self.handles = arrived, values.register_post_accumulate_grad_hook(self._added)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    @torch._disable_dynamo
    @torch.no_grad()
    def settle(self, _=None) -> None:
        """Forget the dense gradient if that of the values was thrown away."""
        if self.probe.grad is None:
            return
        gradient = self.values.grad
        if gradient is None:
            self.probe.grad = None
            return
        written = self.last != (id(gradient), gradient._version)  # .grad.data.zero_() does not count as that
        if self.nonzero is None or self.nonzero.device != gradient.device:
            stale = ~gradient.any()
        else:
            stale = ~gradient.any() if written else self.nonzero & ~gradient.any()
        if self.waits:
            self.discarded = bool(stale)
            self.probe.grad = None if stale else self.probe.grad
        else:
            self.probe.grad.masked_fill_(stale.to(self.probe.grad.device), 0)

    @torch._disable_dynamo
    @torch.no_grad()
    def _added(self, values: Tensor) -> None:
        self.discarded = False
        self.last, self.nonzero = (id(values.grad), values.grad._version), values.grad.any()
