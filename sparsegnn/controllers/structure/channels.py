"""Gates on the features that a model reads, folded into the columns of the weight that reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sparsegnn.controllers.settings import check_names, check_tensors
from sparsegnn.controllers.structure.gates import Gates
from sparsegnn.nn import SparseLinear
from sparsegnn.pattern import top


class Channels:
    """One gate sigmoid(phi_j) for each input of ``layer``, phi = 1 at first.

    Multiplying x by gates is multiplying the columns of W: ``layer.values`` always hold the product, so that x may be
    sparse, a checkpoint of the model is complete, and there is nothing to undo. The optimizer moves that product; the
    gates then move by their own gradient, and scale their columns by how much they changed.
    """

    def __init__(self, op: str, layer: SparseLinear, lr: float):
        if layer.structure != "unstructured":
            raise ValueError(f"{op}: the layer that reads the features must have pattern 'unstructured', from which "
                             f"columns can go, got {layer.structure!r}: set feature_sparsity=0")  # fmt: skip
        self.op, self.layer = op, layer
        self.gate = Gates(torch.ones(1, layer.in_features, dtype=layer.values.dtype, device=layer.values.device), lr)
        self.alive = torch.ones(layer.in_features, dtype=torch.bool, device=layer.values.device)
        self._gradient: Tensor | None = None

    @property
    def value(self) -> Tensor:
        """[in] the gates; those of channels that are gone do not count."""
        return self.gate.theta[0].sigmoid()

    def count(self, sparsity: float) -> int:
        return max(1, round((1 - sparsity) * self.alive.numel()))

    def collect(self, scale: float | Tensor) -> None:
        """Take the gradient of the gates from that of the values."""
        values, self._gradient = self.layer.values, None
        if values.grad is not None and values.requires_grad:
            each = values.grad * values / scale
            summed = each.new_zeros(self.alive.numel()).index_add_(0, self.layer.col.long(), each)
            self._gradient = summed / self.value

    def forget(self) -> None:
        self._gradient = None

    @torch.no_grad()
    def learn(self) -> None:
        """Move the gates, and the columns with them, once per gradient."""
        gradient, self._gradient = self._gradient, None
        if gradient is not None:
            before = self.value
            self.gate.learn(lambda theta: (theta[0].sigmoid() * gradient).sum())
            self.layer.values.mul_((self.value / before)[self.layer.col.long()])

    def shrink(self, n: int) -> Tensor | None:
        """Let the ``n`` channels with the highest gates stay; returns the entries of ``layer.col`` that do, ascending.

        Channels that no weight reads go first, so that the layer keeps a weight. None where nothing goes.
        """
        if n >= int(self.alive.sum()):
            return None
        read = torch.zeros_like(self.alive)
        read[self.layer.col.long()] = True
        score = self.value + read.to(self.value.dtype)
        kept = top(score.masked_fill(~self.alive, -1), n)
        self.alive = torch.zeros_like(self.alive).index_fill_(0, kept, True)
        return self.alive[self.layer.col.long()].nonzero().view(-1)

    def state(self) -> dict:
        return {"alive": self.alive.clone(), "gates": self.gate.state()}

    def read(self, key: str, state: Mapping) -> Callable[[], None]:
        found = check_names(self.op, key, state, ["alive", "gates"])
        alive = check_tensors(self.op, key, {key: {"alive": found["alive"]}}, {"alive": self.alive})["alive"]
        gates = self.gate.read(self.op, "gates", found, alive.numel())

        def apply() -> None:
            self.alive, self._gradient = alive, None
            gates()

        return apply
