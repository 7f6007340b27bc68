"""Sparse evolutionary training (Mocanu et al., Nature Communications 2018)."""

from torch import Tensor

from sparsegnn.controllers.registry import register
from sparsegnn.controllers.sparse.rewiring import Rewiring
from sparsegnn.nn import SparseLinear


@register("set")
class SET(Rewiring):
    """Drops the smallest magnitudes, grows at random. Never needs a dense gradient."""

    paper = "Mocanu et al., Nature Communications 2018"

    def grow_scores(self, name: str, layer: SparseLinear) -> Tensor:
        return self.random_scores(name, layer)
