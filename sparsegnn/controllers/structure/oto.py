"""Only train once: whole units become zero while they train (Chen et al., NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sparsegnn import compaction  # which is of these methods' parts
from sparsegnn.controllers.attachment import take
from sparsegnn.controllers.base import Controller
from sparsegnn.controllers.optimizers import fresh, slots
from sparsegnn.controllers.registry import register
from sparsegnn.controllers.settings import check_number, check_tensors
from sparsegnn.width.units import Member, Units


@register("oto")
class OTO(Controller):
    """Half-space stochastic projected gradient (HSPG) on zero-invariant groups; ``finalize()`` makes a narrower model.

    A group is all that makes one hidden unit, in every layer that adds to it: rows of weights, biases, the weight and
    bias of a BatchNorm; a head of attention is one unit (see :func:`sparsegnn.compact`, which finds them). At first
    the gradient of ``penalty * ||x_g||`` is added to that of the loss. After ``start_at`` steps, a group whose step
    goes so far that ``<x_new, x_old> < epsilon ||x_old||^2`` becomes zero, and stays so. Every ``update_every`` steps
    ``epsilon`` grows by 0.1, to 0.999 at most, while there are too few zeros. Other than in the paper it ends exactly:
    no more groups become zero than ``sparsity`` asks for, at ``stop_at`` those of smallest norm do that are missing,
    the penalty ends with the last of them, and the strongest unit of a layer stays.

    Any optimizer makes the steps. A step in which groups may become zero waits for a GPU once.

    Args:
        model: with layers that :func:`sparsegnn.compact` knows, dense or sparse.
        optimizer, seed: as for :class:`Controller` (nothing here is random).
        sparsity: fraction of all units that become zero.
        distribution: ``"uniform"``: the same share of each layer; ``{name: sparsity}`` of layers; or ``"global"``:
            units compete across layers by their norms, which may leave a layer a single unit.
        penalty: weight of the sum of norms in the loss.
        epsilon: of the half-space, in [0, 1), at first.
        start_at: steps before the first group may become zero. update_every: steps before ``epsilon`` grows.
        stop_at: step after which all are zero that shall be; the default is ``start_at + 20 * update_every``.
    """

    family = "structure"
    target = "units"
    start = "plain"
    paper = "Chen et al., NeurIPS 2021"
    every_step = True

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, sparsity: float = 0.5,
                 distribution: str | Mapping[str, float] = "uniform", penalty: float = 1e-3, epsilon: float = 0.0,
                 start_at: int = 0, update_every: int = 200, stop_at: int | None = None, seed: int = 0):  # fmt: skip
        op = self._name
        self.sparsity = float(check_number(op, "sparsity", sparsity, 0, 1))
        self.penalty = float(check_number(op, "penalty", penalty, 0, float("inf")))
        self.epsilon = float(check_number(op, "epsilon", epsilon, 0, 0.999))
        self.distribution = distribution
        super().__init__(model, optimizer, update_every=update_every, start_at=start_at, stop_at=stop_at, seed=seed)

    @classmethod
    def recipe(cls, steps: int) -> dict:
        settings = super().recipe(steps)
        return {**settings, "start_at": min(steps // 4, settings["stop_at"])}

    def begin(self) -> None:
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        self.units = Units(self._name, self.model, held)
        if not self.units.count:
            raise ValueError(f"{self._name}: model must have hidden units that its optimizer trains and "
                             "sparsegnn.compact() can remove, got none")  # fmt: skip
        self.targets = self.units.targets(self._name, self.sparsity, self.distribution)
        self.dead = torch.zeros(self.units.count + 1, dtype=torch.bool, device=self.units.members[0].parameter.device)
        self._zeros = 0
        self._old: list[Tensor] | None = None  # weights before the step
        take(self._name, self, self.units.modules)

    def due(self, step: int) -> bool:
        return step == self.stop_at or (step != self.start_at and super().due(step))

    def before_step(self) -> None:
        self._old, missing = None, self._missing()
        if missing and self.step < self.stop_at:
            norms = self._norms()
            pull = (self.penalty / norms).masked_fill(self._absent() | (norms == 0), 0.0) * self.gradient_scale()
            for member in self.units.members:
                if (gradient := member.parameter.grad) is not None:
                    gradient.addcmul_(member.parameter, member.spread(pull).to(gradient.dtype))
            if self.step >= self.start_at:
                self._old = [m.parameter.detach().clone() for m in self.units.members]
        for member in self.units.members:
            if member.parameter.grad is not None:
                member.parameter.grad.masked_fill_(member.spread(self.dead), 0.0)

    def skipped(self) -> None:
        self._old = None

    def update(self) -> None:
        """Widen the half-space, or at the end take the weakest groups that are missing."""
        if self.step >= self.stop_at:
            self._remove(~self._absent())
        elif self._missing():
            self.epsilon = min(0.999, self.epsilon + 0.1)

    def after_step(self) -> None:
        old, self._old = self._old, None
        if old is not None and self._missing():
            device = self.dead.device
            along = self.units.sums((m.parameter * x for m, x in zip(self.units.members, old, strict=True)), device)
            length = self.units.sums((x.square() for x in old), device)
            self._remove((along < self.epsilon * length) & ~self._absent())
        for member in self.units.members:  # whatever the optimizer did: zero groups stay zero
            member.parameter.masked_fill_(member.spread(self.dead), 0.0)

    def finalize(self) -> nn.Module:
        """The model without the units that are zero by now; parameters stay the same objects, as does the optimizer."""
        self.detach()
        return compaction.compact(self.model, optimizer=self.optimizer)

    # --- checkpoints ---

    def extra_state(self) -> dict:
        return {"epsilon": self.epsilon, "dead": {"units": self.dead.clone()}}

    def read_state(self, state: Mapping) -> Callable[[], None]:
        epsilon = float(check_number(self._name, "epsilon", state["epsilon"], 0, 0.999))
        dead = check_tensors(self._name, "dead", state, {"units": self.dead})["units"]

        def apply() -> None:
            self.epsilon, self._old = epsilon, None
            self.dead.copy_(dead)
            self._zeros = int(dead.sum())

        return apply

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        if self._handle is not None:
            take(self._name, self, self.units.modules)

    # --- inner works ---

    def _find_layers(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
        return {}  # units may be of layers of any kind

    def _norms(self) -> Tensor:
        return self.units.sums((m.parameter.square() for m in self.units.members), self.dead.device).sqrt_()

    def _absent(self) -> Tensor:
        """Groups that cannot become zero any more, and what is of no group."""
        absent = self.dead.clone()
        absent[-1] = True
        return absent

    def _missing(self) -> int:
        """How many groups are to become zero."""
        return sum(n for _, n in self.targets.values()) - self._zeros

    @torch.no_grad()
    def _remove(self, chosen: Tensor) -> None:
        """Make groups zero, the weakest first, as many as may; and their state what a new weight has."""
        if not chosen.any():
            return
        norms, new = self._norms(), torch.zeros_like(self.dead)
        chosen = chosen.clone()
        chosen[self.units.strongest(norms.masked_fill(self.dead, -1.0))] = False
        for groups, n in self.targets.values():
            groups = groups.to(new.device)
            left, mine = n - int(self.dead[groups].sum()), groups[chosen[groups]]
            new[mine[norms[mine].argsort(stable=True)[: max(0, left)]]] = True
        self.dead |= new
        self._zeros = int(self.dead.sum())
        for member in self.units.members:
            self._clear(member, member.spread(new))

    def _clear(self, member: Member, gone: Tensor) -> None:
        parameter = member.parameter
        parameter.masked_fill_(gone, 0.0)
        start = fresh(self._name, self.optimizer, parameter)
        for key, slot in slots(self._name, self.optimizer, parameter).items():
            slot.masked_fill_(gone, start[key])
