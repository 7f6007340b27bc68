"""Methods that train the weights behind a mask: the model has the masked ones, the controller those that it masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsegnn.controllers.attachment import check_held
from sparsegnn.controllers.base import Controller
from sparsegnn.controllers.interrupt import uninterrupted
from sparsegnn.controllers.optimizers import is_inner_step
from sparsegnn.controllers.processes import is_replicated
from sparsegnn.controllers.settings import UPDATES, check_int, check_tensors, shown
from sparsegnn.pattern import subset


class StraightThrough(Controller):
    """Base of methods with a mask, hard or soft, that is made anew at every step; they define :meth:`factors`.

    The layers start with all their weights. From ``start_at`` on the *latent* weights are here, and ``values`` of a
    layer are the *effective* ones, latent times factor: all that the model computes, its ``state_dict`` and averages
    see those. ``values.grad`` is the gradient of the effective weights. For the optimizer's step alone the latent ones
    are in ``values``, so that any optimizer trains them, its weight decay acts on them, and the gradient passes
    straight through the mask (:meth:`weight_gradient`). Who writes to ``values`` in between (``load_state_dict``, a
    constraint) writes to the latent weights; behind a soft mask they change by as much.

    At ``stop_at`` the mask is final, and what it leaves becomes a sparse layer, with the optimizer's state of these
    weights: the Parameter object stays, a compiled model is compiled again, and sparse kernels run from then on. Until
    then dense ones do. :meth:`finalize` does that at once where the mask is hard. An optimizer that evaluates its
    closure several times in a step, and a :class:`~sparsegnn.CapturedStep`, cannot be used.

    Args:
        model, optimizer, seed: as for :class:`Controller`.
        start_at: steps that are made before anything is masked.
        stop_at: the step from which on the mask is fixed; the default is ``start_at + 2000``.
    """

    family = "pruning"
    start = "dense"
    patterns = "unstructured"
    structures: ClassVar[tuple[str, ...]] = ("unstructured",)  # of the layers that it takes
    dense_gradient_need = "every step"
    keeps_size = False
    every_step = True
    frozen = False  # whether the method leaves the weights as they are

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, start_at: int = 0,
                 stop_at: int | None = None, seed: int = 0):  # fmt: skip
        start_at = check_int(self._name, "start_at", start_at, 0)
        stop_at = start_at + UPDATES * 100 if stop_at is None else check_int(self._name, "stop_at", stop_at, start_at)
        if stop_at == start_at:
            raise ValueError(f"{self._name}: stop_at must be above start_at, {start_at}, got {stop_at}")
        super().__init__(model, optimizer, update_every=1, start_at=start_at, stop_at=stop_at, seed=seed)

    def begin(self) -> None:
        self.latent: dict[str, Tensor] = {}  # of the layers that are masked, [out * in]
        self.factor: dict[str, Tensor] = {}  # of these: a mask or numbers
        self._written: dict[str, int] = {}  # version of the values after the effective weights were written
        self._kept: list[tuple[nn.Parameter, Tensor, Tensor]] = []  # gradients, and what is in their place in a step
        self._open = False  # whether the values hold the latent weights, within a step
        self._first = None
        if self.start_at == 0:
            self.take_over()
            self._mask([*self.latent])

    # --- to override ---

    def factors(self, names: list[str]) -> dict[str, Tensor]:
        """[out * in] of each layer after the current step: bool for a hard mask, else numbers."""
        raise NotImplementedError(f"{self._name} must define factors()")

    def masks(self, names: list[str]) -> dict[str, Tensor]:
        """The final masks; those of :meth:`factors` if they are hard."""
        return self.factors(names)

    def weight_gradient(self, name: str, gradient: Tensor, scale: float | Tensor) -> Tensor:
        """What the optimizer gets for the latent weights; ``gradient``, of the effective ones, is too large by scale.

        A new tensor if it is another one: the loop's own is not changed.
        """
        return gradient

    def learn(self) -> None:
        """Train what the method trains itself; gradients were taken by :meth:`weight_gradient`."""

    def forget(self, name: str | None) -> None:
        """A layer is masked no more, or the gradients of this step are of no use (None)."""

    def settled(self, name: str) -> None:
        """A layer has become sparse."""

    # --- what the frame calls ---

    def due(self, step: int) -> bool:
        return 0 < step and self.start_at <= step <= self.stop_at

    def update(self) -> None:
        """Nothing: :meth:`after_step` masks anew, also what was frozen while the others became sparse."""

    @torch.no_grad()
    def take_over(self) -> None:
        """The weights as they are become latent ones."""
        for name, layer in self.layers.items():
            if layer._all_exist():
                self.latent[name] = layer.values.detach().clone()
                self.factor[name] = torch.ones_like(self.latent[name], dtype=torch.bool)
                self._written[name] = layer.values._version

    def before_step(self) -> None:
        if self._open:
            self.skipped()
            raise RuntimeError(
                f"{self._name}: a step must evaluate its closure once and come to its end, got another evaluation, or "
                "a step after one that failed; the masked weights are in place again: zero_grad() and go on"
            )
        if self.step < self.stop_at and not all(x._all_exist() for x in self.layers.values()):
            lacking = [name for name, x in self.layers.items() if not x._all_exist()]
            raise RuntimeError(
                f"{self._name}: model must have all of its weights until step {self.stop_at}, got some missing in "
                f"{lacking}: begin with sparsify(model, 0.0), or load the state of the controller"
            )
        self._open = True
        try:
            self._exchange(self.gradient_scale())
        except BaseException:  # out of memory, say: the loop may go on
            self.skipped()
            raise

    def after_step(self) -> None:
        names = self._masked()
        for name in names:
            self._adopt_writes(name)  # of other hooks
        self.learn()
        if self.step == self.start_at:
            self.take_over()
            names = self._masked()
        if names and self.step >= self.stop_at:
            self.settle(self.masks(names))
        else:
            self._mask(names)

    def skipped(self) -> None:
        self._return_gradients()
        self.forget(None)
        if self._open:
            self._write(self._masked())
        self._open = False

    @torch.no_grad()
    def settle(self, masks: Mapping[str, Tensor]) -> None:
        """Let layers be sparse, with the weights of these masks."""
        check_held(self._name, self.layers, self.optimizer)
        self._check_single()
        for name, mask in masks.items():
            layer, slots = self.layers[name], mask.nonzero().squeeze(1)
            self.factor[name] = mask
            self._write([name])
            self.relocate(name, *subset(*layer.pattern(), slots), slots)
            self.forget(name)
            for kept in (self.latent, self.factor, self._written):
                del kept[name]
            self.settled(name)

    @torch.no_grad()
    def finalize(self) -> nn.Module:
        """End the method and return the model, with sparse layers of the same function; the optimizer goes on.

        RuntimeError while masks are soft, as cutting them would be another function.
        """
        if soft := [name for name, factor in self.factor.items() if factor.dtype != torch.bool]:
            raise RuntimeError(
                f"{self._name}: finalize() must come after step {self.stop_at}, when masks are hard, got step "
                f"{self.step}, where those of {soft} are soft; detach() leaves the masked weights as they are, dense"
            )
        for name in self.latent:
            self._follow(name)
            self._adopt_writes(name)
        self.settle(dict(self.factor))
        return super().finalize()

    # --- checkpoints ---

    def extra_state(self) -> dict:
        return {"latent": {name: t.clone() for name, t in self.latent.items()}}

    def read_state(self, state: Mapping) -> Callable[[], None]:
        names = self._names_in(state)
        like = {name: x.values.new_empty(x.out_features * x.in_features) for name, x in self.layers.items()}
        latent = check_tensors(self._name, "latent", state, {name: like[name] for name in names})

        @torch.no_grad()
        def apply() -> None:
            self.latent, self._written, self._open = latent, {}, False
            self.factor = {name: torch.ones_like(t, dtype=torch.bool) for name, t in latent.items()}
            self._mask([name for name in latent if self.layers[name]._all_exist()])

        return apply

    # --- inner works ---

    def _attach(self) -> None:
        super()._attach()
        self._first = self.optimizer.register_step_post_hook(self._absorb)
        # before hooks that are there already, which would see latent weights
        self.optimizer._optimizer_step_post_hooks.move_to_end(self._first.id, last=False)

    def detach(self) -> None:
        super().detach()
        if self._first is not None:
            self._first.remove()
        self._first = None

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_first": None}

    @torch._disable_dynamo
    @torch.no_grad()
    @uninterrupted
    def _absorb(self, optimizer, args, kwargs) -> None:
        """After the optimizer's step: take the latent weights; the effective ones, of the old mask, are back."""
        if not self._open or is_inner_step(optimizer):
            return
        for name in self._masked() if not self.frozen else ():
            self.latent[name].copy_(self.layers[name].values)
        self._return_gradients()
        self._write(self._masked())
        self._open = False

    def _exchange(self, scale: float | Tensor) -> None:
        """Let the optimizer see latent weights and their gradients."""
        for name in self._masked():
            values = self.layers[name].values
            self._follow(name)
            self._adopt_writes(name)
            if (gradient := values.grad) is not None:
                given = self.weight_gradient(name, gradient, scale)
                if given is not gradient:
                    self._kept.append((values, gradient, given))
                    values.grad = given
            values.copy_(self.latent[name])

    def _names_in(self, state: Mapping) -> list[str]:
        """The layers that a checkpoint has masked."""
        op, found = self._name, state["latent"]
        if not isinstance(found, Mapping):
            raise TypeError(f"{op}: state['latent'] must be a dict, got {type(found).__name__}")
        running = self.start_at <= state["step"] < self.stop_at
        if not found.keys() <= self.layers.keys() or (running and len(found) < len(self.layers)):
            raise ValueError(f"{op}: state['latent'] must be of the layers {[*self.layers]}, got {shown([*found])}")
        return list(found)

    def _masked(self) -> list[str]:
        return [name for name in self.latent if self.layers[name].values.requires_grad]

    @torch.no_grad()
    def _mask(self, names: list[str]) -> None:
        """Make the masks of the current step, and the effective weights."""
        self.factor.update(self.factors(names) if names else {})
        self._write(names)

    @torch.no_grad()
    def _write(self, names: Iterable[str]) -> None:
        """The effective weights become the values; this takes no memory."""
        for name in names:
            values = self.layers[name].values
            torch.mul(self.latent[name], self.factor[name], out=values)
            self._written[name] = values._version

    def _adopt_writes(self, name: str) -> None:
        """Where somebody wrote to the values since, that is the latent weight now; behind a soft mask the change is."""
        values, latent, factor = self.layers[name].values, self.latent[name], self.factor[name]
        if self._written.get(name) != values._version:
            effective, new = latent * factor, values
            if factor.dtype != torch.bool:
                new = torch.where(factor.frac() == 0, values, latent + (values - effective))
            latent.copy_(torch.where(values != effective, new, latent))

    def _follow(self, name: str) -> None:
        """Be where the layer is, in its type."""
        values = self.layers[name].values
        if self.latent[name].device != values.device or self.latent[name].dtype != values.dtype:
            soft = self.factor[name].dtype != torch.bool
            self.latent[name] = self.latent[name].to(values)
            self.factor[name] = self.factor[name].to(values.device, values.dtype if soft else torch.bool)

    def _return_gradients(self) -> None:
        for parameter, gradient, given in self._kept:
            if parameter.grad is given:
                parameter.grad = gradient
        self._kept.clear()

    def _failed(self) -> None:
        self.forget(None)
        self._write(self._masked())

    def _find_layers(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
        layers = super()._find_layers(model, optimizer)
        if other := {name: x.structure for name, x in layers.items() if x.structure not in self.structures}:
            raise ValueError(
                f"{self._name}: model must have layers of pattern {' or '.join(map(repr, self.structures))}, got "
                f"{other}: make them so, with all of their weights"
            )
        return layers

    def _check_state_of_optimizer(self) -> None:
        super()._check_state_of_optimizer()
        self._check_single()

    def _check_single(self) -> None:
        if is_replicated(self.layers):
            raise RuntimeError(
                f"{self._name}: model must not be in a DistributedDataParallel, which cannot follow values that get "
                "fewer: use RigL or SET, or average gradients with torch.distributed.all_reduce() yourself"
            )
