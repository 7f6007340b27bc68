"""A fixed random pattern: the baseline that any method which moves weights has to beat."""

from sparsegnn.controllers.base import Controller


class StaticSparse(Controller):
    """Counts steps and changes nothing. Accepts every pattern."""

    moves_weights = False

    def due(self, step: int) -> bool:
        return False
