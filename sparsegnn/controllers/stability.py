"""Early-bird tickets: when a mask that is drawn again and again has stopped changing (You et al., ICLR 2020)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from sparsegnn.controllers.settings import check_int, check_names, check_number


class MaskStability:
    """Tells from masks, bool tensors of the same shapes each time, when they have settled::

        if stability.stop_when(edge_mask, weight_mask):
            prune()

    The distance of two masks is the fraction of entries that differ, the mean over the tensors, divided by the first
    distance that was seen: so 1 at first, whatever the sparsity. Settled: the largest of the distances to the last
    ``window`` masks is below ``eta``.

    Args:
        eta: bound of the distance. window: number of earlier masks that it must hold for.
    """

    def __init__(self, eta: float = 0.1, window: int = 3, op: str = "MaskStability"):
        self.op = op
        self.eta, self.window = check_number(op, "eta", eta, 0, 1e30), check_int(op, "window", window, 1)
        self.masks: list[Tensor] = []  # the last ones, all tensors of one after each other
        self.first = 0.0
        self.distance = float("inf")  # the largest at the last call

    def stop_when(self, *masks: Tensor) -> bool:
        """Whether the masks are as they were the last ``window`` times, about; remembers them."""
        sizes, new = [mask.numel() for mask in masks], torch.cat([mask.flatten() for mask in masks])
        if self.masks and self.masks[-1].shape != new.shape:
            raise ValueError(
                f"{self.op}: masks must have {self.masks[-1].numel()} entries as before, got {new.numel()}"
            )
        found = [_hamming(new, old, sizes) for old in self.masks]
        self.first = self.first or (found[-1] if found else 0.0)
        self.distance = max(found, default=0.0) / (self.first or 1.0) if found else float("inf")
        settled = len(found) == self.window and self.distance < self.eta
        self.masks = [*self.masks, new][-self.window :]
        return settled

    def state(self) -> dict:
        return {"first": self.first, "distance": self.distance, "masks": [m.clone() for m in self.masks]}

    def read(self, key: str, state: Mapping, entries: int, device: torch.device) -> Callable[[], None]:
        """Check ``state[key]``, of masks with so many entries; returns what makes it that of this."""
        found = check_names(self.op, key, state, ["first", "distance", "masks"])
        first = check_number(self.op, f"state['{key}']['first']", found["first"], 0, 1)
        distance = check_number(self.op, f"state['{key}']['distance']", found["distance"], 0, float("inf"))
        masks = found["masks"]
        fits = isinstance(masks, Sequence) and len(masks) <= self.window
        if not fits or any(not isinstance(m, Tensor) or m.dtype != torch.bool or m.shape != (entries,) for m in masks):
            raise ValueError(f"{self.op}: state['{key}']['masks'] must be up to {self.window} bool tensors [{entries}]")

        def apply() -> None:
            self.first, self.distance = float(first), float(distance)
            self.masks = [m.to(device, copy=True) for m in masks]

        return apply


def _hamming(a: Tensor, b: Tensor, sizes: Sequence[int]) -> float:
    parts = (a != b).double().split(list(sizes))
    return float(torch.stack([p.mean() for p in parts if p.numel()]).mean())
