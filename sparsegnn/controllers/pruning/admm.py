"""Alternating direction method of multipliers (Zhang et al., ECCV 2018)."""

from sparsegnn.controllers.pruning.penalty import Penalty
from sparsegnn.controllers.registry import register


@register("admm")
class ADMM(Penalty):
    """Train and prune; every ``update_every`` steps Z becomes the projection of W + L/rho, and L grows by rho (W - Z).

    Settings: those of :class:`Penalty`.
    """

    paper = "Zhang et al., ECCV 2018"

    def revise(self) -> None:
        self.targets = self.project()
        for name, w in self.weights.items():
            self.multipliers[name] += self.rho * (w - self.targets[name])
