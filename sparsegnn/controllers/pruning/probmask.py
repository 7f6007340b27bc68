"""ProbMask (Zhou et al., CVPR 2021): the probability of each weight to stay is trained under one global budget."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparsegnn.controllers.pruning.scores import Scored
from sparsegnn.controllers.registry import register
from sparsegnn.controllers.schedules import Cubic
from sparsegnn.controllers.settings import check_int
from sparsegnn.nn import SparseLinear
from sparsegnn.pattern import top

TINY = 1e-20  # keeps the logarithms of 0 finite
BISECTIONS = 20


@register("probmask")
class ProbMask(Scored):
    """Weights times a soft random mask, whose probabilities are trained and projected onto the budget at every step.

    The mask is ``sigmoid(T (logit(p) + logistic noise))``, for probabilities p that begin at 1 and a temperature T that
    rises from 1 to 33 at ``stop_at``. After each step of Adam on p, ``p = clip(p - v, 0, 1)`` with the v that brings
    their sum to the budget: all weights at ``start_at``, what ``sparsity`` leaves at ``sparse_at``, a cubic between.
    At ``stop_at`` the weights of highest p stay (ties: the largest), an exact number, and train on.

    One mask is drawn for each step, which evaluation sees as well until ``stop_at``; the paper averages the gradients
    of two, which takes another forward pass of your loop, and draws the last mask.

    Args:
        model, optimizer, sparsity, distribution, stop_at, seed: as for :class:`Scored`.
        lr: of Adam on the probabilities, down to 0 at ``stop_at`` along a cosine. 0.006 in the paper, for some ten
            thousand steps.
        start_at, sparse_at: steps; the defaults are 16 % and 60 % of ``stop_at``.
    """

    paper = "Zhou et al., CVPR 2021"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, sparsity: float = 0.9,
                 distribution: str | Mapping[str, float] = "global", lr: float = 0.006, start_at: int | None = None,
                 sparse_at: int | None = None, stop_at: int | None = None, seed: int = 0):  # fmt: skip
        stop_at = 2000 if stop_at is None else check_int(self._name, "stop_at", stop_at, 1)
        start_at = int(0.16 * stop_at) if start_at is None else start_at
        super().__init__(model, optimizer, sparsity=sparsity, distribution=distribution, lr=lr, start_at=start_at,
                         stop_at=stop_at, seed=seed)  # fmt: skip
        sparse_at = max(start_at + 1, int(0.6 * stop_at)) if sparse_at is None else sparse_at
        self.sparse_at = check_int(self._name, "sparse_at", sparse_at, start_at + 1)
        if sparse_at > stop_at:
            raise ValueError(f"{self._name}: sparse_at must be at most stop_at, {stop_at}, got {sparse_at}")

    @classmethod
    def recipe(cls, steps: int) -> dict:
        return {**super().recipe(steps), "lr": 2.0 / steps}

    def first_scores(self, name: str, layer: SparseLinear) -> Tensor:
        return torch.ones(layer.out_features, layer.in_features, device=layer.values.device)

    def score_lr(self, step: int) -> float:
        return self.lr / 2 * (1 + math.cos(math.pi * step / self.stop_at))

    def temperature(self) -> float:
        return 1 / (0.97 * (1 - self.step / self.stop_at) + 0.03)

    def score_gradient(self, name: str, gradient: Tensor) -> Tensor:
        p = self.scores[name]
        m = self.factor[name].to(p)
        slope = self.temperature() * m * (1 - m) * (1 / (p + TINY) + 1 / (1 - p + TINY))
        return super().score_gradient(name, gradient) * slope

    def factors(self, names: list[str]) -> dict[str, Tensor]:
        return {name: self._draw(name) for name in names}

    def masks(self, names: list[str]) -> dict[str, Tensor]:
        return {k: m for group, n in self.budgets(names, 1.0) for k, m in self._largest(group, n).items()}

    def learn(self) -> None:
        super().learn()
        names = list(self.scores)
        share = Cubic(1.0, self.start_at, self.sparse_at)(self.step)
        for group, n in self.budgets(names, share) if names else ():
            project_([self.scores[name] for name in group], n)

    def _draw(self, name: str) -> Tensor:
        p = self.scores[name]
        noise = torch.rand(p.shape, generator=self.generator(name, p.device), dtype=p.dtype, device=p.device)
        noise = noise.clamp_(TINY, 1 - torch.finfo(p.dtype).eps).logit_()
        logit = (p + TINY).log_() - (1 - p + TINY).log_()
        return (logit + noise).mul_(self.temperature()).sigmoid_().to(self.latent[name].dtype)

    def _largest(self, names: list[str], n: int) -> dict[str, Tensor]:
        """Masks of the highest probabilities; among equals the largest weights come first."""
        size = torch.cat([self.latent[name].abs() for name in names])
        order = top(size, size.numel())
        p = torch.cat([self.scores[name] for name in names])
        for t in torch.arange(p.numel(), device=p.device).split([self.scores[name].numel() for name in names]):
            p[t[p[t].argmax()]] = 2  # a layer keeps one at least
        mask = torch.zeros(p.numel(), dtype=torch.bool, device=p.device)
        mask[order[top(p[order], max(n, len(names)))]] = True
        return dict(zip(names, mask.split([self.scores[name].numel() for name in names]), strict=True))


def project_(scores: list[Tensor], budget: int) -> None:
    """``clip(scores - v, 0, 1)`` with the least v >= 0 for which they sum to ``budget`` at most, by bisection."""
    flat = torch.cat(scores)
    low, high = flat.new_zeros(()), flat.max()
    over = flat.clamp(0, 1).sum() > budget
    for _ in range(BISECTIONS):
        v = (low + high) / 2
        more = (flat - v).clamp_(0, 1).sum() > budget
        low, high = torch.where(more, v, low), torch.where(more, high, v)
    v = torch.where(over, high, 0)
    for t in scores:
        t.sub_(v).clamp_(0, 1)
