"""A fixed random pattern: the baseline that any method which moves weights has to beat."""

from sparsegnn.controllers.registry import register
from sparsegnn.controllers.sparse.rewiring import Rewiring


@register("static")
class StaticSparse(Rewiring):
    """Counts steps and changes nothing, with the settings of the methods that it is compared with. Any pattern."""

    paper = "Mocanu et al., Nature Communications 2018, as a baseline"
    moves_weights = False

    def due(self, step: int) -> bool:
        return False

    @property
    def settled_at(self) -> int:
        return 0
