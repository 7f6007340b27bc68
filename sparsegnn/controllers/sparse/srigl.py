"""Structured RigL: constant fan-in and neuron ablation (Lasby et al., ICLR 2024)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sparsegnn import pattern as patterns
from sparsegnn.controllers.processes import check_single
from sparsegnn.controllers.registry import register
from sparsegnn.controllers.settings import check_int, check_names, check_number
from sparsegnn.controllers.sparse.rigl import RigL


@register("srigl")
class SRigL(RigL):
    """RigL whose outputs all have as many inputs, but for those that it ablates: these have none, and cost nothing.

    At an update the smallest magnitudes of the whole layer are dropped, then every output grows where its gradient is
    largest until it has the fan-in again. A weight is salient that stays, or would be grown without that constraint;
    an output with less than ``gamma_sal`` of its fan-in salient is ablated, and the others share its weights: their
    fan-in is the largest at which the layer has no more weights than at the start. So it lacks less than one weight
    for each output that is left, and sizes change at such an update, as in :class:`Shrinking`. A bias of an ablated
    output stays, and an output returns once enough of its weights are salient.

    Args:
        model: whose layers have the pattern ``"fan_in"``.
        optimizer, update_every, start_at, stop_at, drop_fraction, sparsity, distribution, seed: as for
            :class:`Rewiring`.
        gamma_sal: share of the fan-in that must be salient, in [0, 1]; with 0 nothing is ablated.
    """

    paper = "Lasby et al., ICLR 2024"
    patterns = "fan_in"
    keeps_size = False
    ablates = True

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, update_every: int = 100,
                 start_at: int = 0, stop_at: int | None = None, drop_fraction: float | Callable[[int], float] = 0.3,
                 gamma_sal: float = 0.3, sparsity: float | None = None,
                 distribution: str | Mapping[str, float] = "erk", seed: int = 0):  # fmt: skip
        self.gamma_sal = check_number(self._name, "gamma_sal", gamma_sal, 0, 1)
        super().__init__(model, optimizer, update_every=update_every, start_at=start_at, stop_at=stop_at, seed=seed,
                         drop_fraction=drop_fraction, sparsity=sparsity, distribution=distribution)  # fmt: skip

    def begin(self) -> None:
        super().begin()
        if other := {name: x.structure for name, x in self.layers.items() if x.structure != "fan_in"}:
            raise ValueError(f"{self._name}: model must have layers of pattern 'fan_in' alone, got {other}: "
                             "sparsify(model, sparsity, pattern='fan_in')")  # fmt: skip
        if self.gamma_sal > 0:
            check_single(self._name, self.layers)

    def place(self) -> None:
        super().place()
        self.budget = {name: x.values.numel() for name, x in self.layers.items()}

    @property
    def ablated(self) -> dict[str, int]:
        """How many outputs of each layer have no weights. Waits for a GPU."""
        return {name: int((x.crow.diff() == 0).sum()) for name, x in self.layers.items()}

    def rewire(self, name: str, drop: Tensor, grow: Tensor, n: int | Tensor) -> Tensor:
        layer, none = self.layers[name], -torch.inf
        rows, cols = layer.grid
        at, nnz = patterns.flat(*layer.pattern(), cols), layer.col.numel()
        weight = torch.full((rows * cols,), none, dtype=drop.dtype, device=at.device).index_put_((at,), drop)
        exists, kept = (torch.zeros(rows * cols, dtype=torch.bool, device=at.device) for _ in range(2))
        exists[at] = kept[at[patterns.top(drop, nnz - n)]] = True
        exists, kept, weight = (t.view(rows, cols) for t in (exists, kept, weight))
        active, fan_in = self._divide(name, exists, kept, grow, n)
        # each output has first what it keeps, by magnitude, then what it grows, by gradient
        mask = patterns.top_mask(weight.masked_fill(~kept, none), kept.sum(1).clamp(max=fan_in) * active)
        mask |= patterns.top_mask(grow.masked_fill(mask, none), (fan_in - mask.sum(1)) * active)
        return self.move(name, *patterns.from_mask(mask))

    def _divide(self, name: str, exists: Tensor, kept: Tensor, grow: Tensor, n: int) -> tuple[Tensor, int]:
        """Which outputs are active, and the fan-in of these."""
        free, count = grow.masked_fill(exists, -torch.inf).view(1, -1), min(n, int((~exists).sum()))
        best = patterns.top_mask(free, torch.tensor([count], device=grow.device)).view_as(exists)
        salient, fan_in = (kept | best).sum(1), exists.sum(1).max()
        active = salient >= self.gamma_sal * fan_in
        active |= salient == salient.max()  # one at least
        return active, min(grow.size(1), self.budget[name] // int(active.sum()))

    def extra_state(self) -> dict:
        return {**super().extra_state(), "budget": dict(self.budget)}

    def read_state(self, state: Mapping) -> Callable[[], None]:
        apply_others = super().read_state(state)
        found = check_names(self._name, "budget", state, self.budget)
        budget = {name: check_int(self._name, f"budget[{name!r}]", n, 1) for name, n in found.items()}

        def apply() -> None:
            apply_others()
            self.budget = budget

        return apply
