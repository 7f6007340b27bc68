"""Sparse evolutionary training (Mocanu et al., Nature Communications 2018)."""

from torch import Tensor

from sparsegnn.controllers.base import Controller
from sparsegnn.nn import SparseLinear


class SET(Controller):
    """Drops the smallest magnitudes, grows at random. Never needs a dense gradient."""

    def grow_scores(self, name: str, layer: SparseLinear) -> Tensor:
        return self.random_scores(name, layer)
