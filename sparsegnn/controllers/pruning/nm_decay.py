"""N:M sparsity by decaying masks (Kao et al., 2022): N of every M inputs of an output stay."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sparsegnn import pattern as patterns
from sparsegnn.controllers.pruning.straight_through import StraightThrough
from sparsegnn.controllers.registry import register
from sparsegnn.controllers.settings import check_int, check_number
from sparsegnn.nn import SparseLinear

DECAYS = ("linear", "exponential", "structure", "geometric")
REMAINDERS = ("refuse", "keep")


@register("nm-decay")
class NMDecay(StraightThrough):
    """Fades out all but the ``n`` largest of every ``m`` weights of an output, or asks for that in stages.

    ``"linear"`` and ``"exponential"`` multiply the others by beta, ``max(1 - rate t, 0)`` or ``exp(-rate t)``, t steps
    after ``start_at``. ``"structure"`` cuts them, M-1 of M first, then M/2, M/4, down to N of M, ``"geometric"`` 8N of
    8M, 4N of 4M, down to N of M, all for equally long. The largest are chosen anew at every step, and the gradient
    passes straight through: weights that are out may come back until ``stop_at``. From then on the layer is sparse; one
    of 2:4 that was "unstructured" has the pattern ``"2:4"``, and its kernels on a GPU in 16 bit.

    Args:
        model, optimizer, seed: as for :class:`Controller` (nothing here is random).
        n, m: what stays of how many consecutive inputs.
        decay: ``"linear"``, ``"exponential"``, ``"structure"`` or ``"geometric"``.
        rate: of beta, per step; the default reaches 0 (exponential: 0.001) at ``stop_at``.
        stages: of ``"geometric"``; inputs must be a multiple of ``m * 2^(stages - 1)``.
        sr_ste: adds ``sr_ste * w`` to the gradients of weights that are out (SR-STE: 2e-4).
        remainder: ``"keep"`` keeps the last inputs that are no whole group, where ``"refuse"`` raises ValueError.
        start_at: steps of dense training before. stop_at: from this step on the mask is fixed.
    """

    paper = "Kao et al., 2022"
    patterns = "N:M"
    structures = ("unstructured", "fan_in", "2:4")

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, n: int = 2, m: int = 4,
                 decay: str = "linear", rate: float | None = None, stages: int = 4, sr_ste: float = 0.0,
                 remainder: str = "refuse", start_at: int = 0, stop_at: int | None = None, seed: int = 0):  # fmt: skip
        op = self._name
        self.n, self.m = check_int(op, "n", n, 1), check_int(op, "m", m, 2)
        if n >= m:
            raise ValueError(f"{op}: n must be below m, {m}, got {n}")
        for name, value, known in (("decay", decay, DECAYS), ("remainder", remainder, REMAINDERS)):
            if value not in known:
                raise ValueError(f"{op}: {name} must be {' or '.join(map(repr, known))}, got {value!r}")
        self.decay, self.remainder = decay, remainder
        self.rate = None if rate is None else float(check_number(op, "rate", rate, 0, 1e31))
        self.sr_ste = float(check_number(op, "sr_ste", sr_ste, 0, 1e31))
        self.stages = frames(op, decay, n, m, check_int(op, "stages", stages, 1))
        super().__init__(model, optimizer, start_at=start_at, stop_at=stop_at, seed=seed)

    def begin(self) -> None:
        largest = max(m for _, m in self.stages)
        for name, layer in self.layers.items():
            if layer.in_features % largest and (self.remainder == "refuse" or layer.in_features < largest):
                raise ValueError(
                    f"{self._name}: layer {name!r} must have a multiple of {largest} inputs for {self.n}:{self.m}, got "
                    f"{layer.in_features}: pad them, leave the layer out (sparsify(..., exclude=[name])), or "
                    "remainder='keep'"
                )
        super().begin()

    @classmethod
    def recipe(cls, steps: int) -> dict:
        return {**super().recipe(steps), "start_at": steps // 10, "remainder": "keep"}

    def beta(self) -> float:
        """What weights that are out are multiplied by after the current step."""
        t, span = self.step - self.start_at, self.stop_at - self.start_at
        if self.decay == "linear":
            return max(1 - t * (1 / span if self.rate is None else self.rate), 0.0)
        if self.decay == "exponential":
            return math.exp(-t * (math.log(1000) / span if self.rate is None else self.rate))
        return 0.0

    def largest(self, name: str, n: int, m: int) -> Tensor:
        """Mask [out * in] of the ``n`` largest of every ``m`` weights; ties to the earlier."""
        weight = self.latent[name].view(-1, self.layers[name].in_features)
        whole = weight.size(1) // m * m
        groups = weight[:, :whole].abs().reshape(-1, m)
        kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, patterns.top(groups, n), True)
        return nn.functional.pad(kept.view(-1, whole), (0, weight.size(1) - whole), value=True).flatten()

    def factors(self, names: list[str]) -> dict[str, Tensor]:
        share = (self.step - self.start_at) / (self.stop_at - self.start_at)
        stage, beta = self.stages[min(int(share * len(self.stages)), len(self.stages) - 1)], self.beta()
        found = {name: self.largest(name, *stage) for name in names}
        if beta == 0:
            return found
        return {k: torch.full_like(self.latent[k], beta).masked_fill_(mask, 1) for k, mask in found.items()}

    def masks(self, names: list[str]) -> dict[str, Tensor]:
        return {name: self.largest(name, self.n, self.m) for name in names}

    def weight_gradient(self, name: str, gradient: Tensor, scale: float | Tensor) -> Tensor:
        if self.sr_ste == 0:
            return gradient
        out = self.latent[name].masked_fill(self.factor[name] == 1, 0)
        return gradient + self.sr_ste * scale * out

    def settled(self, name: str) -> None:
        layer = self.layers[name]
        if self._wants_2_4(layer) and patterns.two_of_four(*layer.pattern(), layer.in_features):
            layer.restructure_("2:4")

    def arm(self) -> None:
        """A layer that was loaded has the pattern again."""
        for name, layer in self.layers.items():
            if self.step >= self.stop_at and self._wants_2_4(layer):
                self.settled(name)

    def _wants_2_4(self, layer: SparseLinear) -> bool:
        half = 2 * layer.col.numel() == layer.in_features * layer.out_features
        return (self.n, self.m, layer.structure) == (2, 4, "unstructured") and half


def frames(op: str, decay: str, n: int, m: int, stages: int) -> list[tuple[int, int]]:
    """The N:M of each stage; ValueError where structure decay cannot get from M to N by halves."""
    if decay == "geometric":
        return [(n * 2**i, m * 2**i) for i in reversed(range(stages))]
    if decay != "structure":
        return [(n, m)]
    halvings = round(math.log2(m / n))
    if n * 2**halvings != m:
        raise ValueError(f"{op}: m must be n times a power of 2 for structure decay, got {n}:{m}")
    return list(dict.fromkeys([(m - 1, m), *((m // 2**i, m) for i in range(1, halvings + 1))]))
