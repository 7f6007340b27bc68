"""The baseline that sparse training is usually measured by: dense weights, multiplied by a mask at every forward."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsegnn.controllers import Controller
from sparsegnn.controllers.distributions import allocate
from sparsegnn.controllers.settings import check_number
from sparsegnn.nn import inner
from sparsegnn.nn.features import dense_features, is_sparse


class MaskedLinear(inner.Linear):
    """``x @ (weight * mask).T``: all the work of a dense layer, and the mask on top."""

    def product(self, x: Tensor) -> Tensor:
        """Without the bias."""
        weight = self.weight * self.mask
        return dense_features("MaskedLinear", x, weight.t()) if is_sparse(x) else nn.functional.linear(x, weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None or is_sparse(x):
            y = self.product(x)
            return y if self.bias is None else y + self.bias
        return nn.functional.linear(x, self.weight * self.mask, self.bias)


class MaskedDense(Controller):
    """Random masks that stay; aggregation and sparse features run on our kernels, as in the runs it is compared with.

    ``sparsegnn train --method sparsegnn.experiments.masked_dense:MaskedDense``.

    Args:
        sparsity: of all layers together.
    """

    family, start, paper = "sparse", "plain", "a baseline"
    moves_weights = False

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, sparsity: float = 0.9,
                 update_every: int = 1, stop_at: int = 1, seed: int = 0):  # fmt: skip
        self.sparsity = check_number(self._name, "sparsity", sparsity, 0, 1)
        super().__init__(model, optimizer, update_every=update_every, stop_at=stop_at, seed=seed)

    def _find_layers(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
        return {}

    def begin(self) -> None:
        linears = {n: m for n, m in self.model.named_modules() if type(m) in (nn.Linear, inner.Linear)}
        counts = allocate({n: tuple(m.weight.shape) for n, m in linears.items()}, self.sparsity)
        for name, linear in linears.items():
            scores = torch.rand(linear.weight.numel(), generator=self.generator(name))
            mask = torch.zeros(linear.weight.numel())
            mask[scores.topk(counts[name]).indices] = 1.0
            linear.register_buffer("mask", mask.view_as(linear.weight).to(linear.weight))
            linear.__class__ = MaskedLinear

    def due(self, step: int) -> bool:
        return False

    @property
    def settled_at(self) -> int:
        return 0

    @property
    def phase(self) -> str:
        return "dense"
