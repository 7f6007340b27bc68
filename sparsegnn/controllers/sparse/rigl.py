"""Rigging the lottery (Evci et al., ICML 2020)."""

from torch import Tensor

from sparsegnn.controllers.registry import register
from sparsegnn.controllers.sparse.rewiring import Rewiring
from sparsegnn.nn import SparseLinear


@register("rigl")
class RigL(Rewiring):
    """Drops the smallest magnitudes, grows where the gradient of the dense weight is largest.

    The gradient is that of the update step itself, of all its micro-batches. Unlike in the paper that step's optimizer
    update is not skipped: it has been taken when the weights move.
    """

    paper = "Evci et al., ICML 2020"
    dense_gradient_need = "at updates"
    needs_dense_gradient = True

    def grow_scores(self, name: str, layer: SparseLinear) -> Tensor | None:
        gradient = self.dense_gradient(layer)
        return None if gradient is None else gradient.abs()
