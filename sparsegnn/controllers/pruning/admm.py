"""Alternating direction method of multipliers (Zhang et al., ECCV 2018)."""

from sparsegnn.controllers.pruning.penalty import Penalty
from sparsegnn.controllers.registry import register


@register("admm")
class ADMM(Penalty):
    """Train and prune; every ``update_every`` steps Z becomes the projection of W + L/rho, and L grows by rho (W - Z).

    Settings: those of :class:`Penalty`.
    """

    paper = "Zhang et al., ECCV 2018"

    @classmethod
    def recipe(cls, steps: int) -> dict:
        """Half of the steps dense, a quarter reweighting in ten rounds, as 20, 10 and 10 epochs."""
        every, stop = max(1, steps // 40), max(2, round(0.75 * steps))
        return {"update_every": every, "start_at": min(steps // 2, stop - every - 1), "stop_at": stop}

    def revise(self) -> None:
        self.targets = self.project()
        for name, w in self.weights.items():
            self.multipliers[name] += self.rho * (w - self.targets[name])
