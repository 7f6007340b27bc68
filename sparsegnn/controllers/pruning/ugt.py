"""Untrained GNN tickets (Huang et al., LoG 2022): which random weights to keep, without training any."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparsegnn.controllers.pruning.scores import Scored
from sparsegnn.controllers.registry import register
from sparsegnn.controllers.settings import check_number
from sparsegnn.nn import SparseLinear


@register("ugt")
class UGT(Scored):
    """Keeps the weights of highest score, their number falling linearly until ``stop_at / 2``; weights stay random.

    The gradient of a score is ``g * w``, g that of the effective weight. Your optimizer gets no gradients, so that it
    neither trains nor decays anything in the model, after ``stop_at`` too, until :meth:`finalize` or ``detach``.

    Args:
        model, optimizer, sparsity, distribution, seed: as for :class:`Scored`.
        lr, weight_decay: of AdamW on the scores; 0.005 to 0.01 in the paper.
        redraw: draw the weights anew, Kaiming-uniform (bound ``gain * sqrt(3 / in)``); False keeps those of the model.
        gain: of the weights, which nothing will make larger: more where features are small (rows that sum to 1).
        train_rest: let your optimizer train what is no masked weight (biases, norms). Where random weights give small
            numbers, the biases drown them.
        stop_at: the step from which on the mask is fixed; its default is 2000.
    """

    paper = "Huang et al., LoG 2022"
    frozen = True

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, sparsity: float = 0.9,
                 distribution: str | Mapping[str, float] = "global", lr: float = 0.01, weight_decay: float = 0.0,
                 redraw: bool = True, gain: float = math.sqrt(2), train_rest: bool = False, stop_at: int | None = None,
                 seed: int = 0):  # fmt: skip
        for name, value in (("redraw", redraw), ("train_rest", train_rest)):
            if not isinstance(value, bool):
                raise TypeError(f"{self._name}: {name} must be True or False, got {type(value).__name__}")
        self.weight_decay = float(check_number(self._name, "weight_decay", weight_decay, 0, 1e31))
        self.gain = float(check_number(self._name, "gain", gain, 0, 1e31))
        self.redraw, self.train_rest = redraw, train_rest
        super().__init__(model, optimizer, sparsity=sparsity, distribution=distribution, lr=lr, stop_at=stop_at,
                         seed=seed)  # fmt: skip

    @property
    def settled_at(self) -> int:
        return math.ceil(self.stop_at / 2)

    @classmethod
    def recipe(cls, steps: int) -> dict:
        """For features whose rows sum to 1, in which random weights make little difference."""
        return {**super().recipe(steps), "stop_at": steps, "gain": 16.0}

    @torch.no_grad()
    def take_over(self) -> None:
        for name, layer in self.layers.items() if self.redraw else ():
            if layer._all_exist():
                layer.values.copy_(self._uniform(f"{name}/weights", layer, self.gain).flatten())
        super().take_over()

    def first_scores(self, name: str, layer: SparseLinear) -> Tensor:
        return self._uniform(f"{name}/scores", layer, math.sqrt(2))

    def make_scorer(self, scores: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(scores, lr=self.lr, weight_decay=self.weight_decay)

    def trained(self, name: str, gradient: Tensor) -> Tensor:
        return gradient  # nobody sees it

    def before_step(self) -> None:
        super().before_step()
        weights = {id(x.values) for x in self.layers.values()}
        for p in self.model.parameters():
            if id(p) in weights or not self.train_rest:
                p.grad = None

    def factors(self, names: list[str]) -> dict[str, Tensor]:
        return self.best(names, min(1.0, 2 * self.step / self.stop_at))

    def _uniform(self, name: str, layer: SparseLinear, gain: float) -> Tensor:
        device, bound = layer.values.device, gain * math.sqrt(3 / layer.in_features)
        numbers = torch.rand(layer.out_features, layer.in_features, generator=self.generator(name, device),
                             dtype=torch.float32, device=device)  # fmt: skip
        return (2 * numbers - 1) * bound
