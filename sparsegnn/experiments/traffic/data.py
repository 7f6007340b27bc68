"""Windows of a signal: what is known and what comes, split by time, and the errors of a forecast."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsegnn.data import SignalData

PARTS = (0.7, 0.1)  # of the times, for training and validation; the others are for the test
MISSING = 0.0  # what sensors report where they report nothing, as in METR-LA and PeMS


class Windows:
    """Windows of ``history`` steps and the values ``horizons`` minutes after them, each within one part of the time.

    Attributes:
        signal: float32 [T, N], less the mean and divided by the standard deviation of the training part; where a value
            is missing, 0.
        truth: float32 [T, N], as measured.
        starts: ``{"train", "val", "test"}``: int64, the first step of each window.
        ahead: int64 [H], steps from the first one of a window to those that are forecast.
    """

    def __init__(self, data: SignalData, history: int, horizons: tuple[int, ...],
                 parts: tuple[float, float] = PARTS):  # fmt: skip
        for minutes in horizons:
            if minutes % data.minutes:
                raise ValueError(f"horizons must be multiples of the {data.minutes} minutes of a step, got {minutes}")
        self.history, self.horizons, self.name = history, horizons, data.name
        steps, device = data.signal.size(0), data.signal.device
        self.ahead = torch.tensor([history - 1 + m // data.minutes for m in horizons], device=device)
        length = int(self.ahead[-1]) + 1
        ends = [0, round(parts[0] * steps), round((parts[0] + parts[1]) * steps), steps]
        self.starts = {}
        for name, first, end in zip(("train", "val", "test"), ends, ends[1:], strict=False):
            if end - first < length:
                raise ValueError(f"data: {data.name} must have at least {length} steps of {name}, got {end - first}: "
                                 "a shorter history or horizon needs fewer")  # fmt: skip
            self.starts[name] = torch.arange(first, end - length + 1, device=device)
        self.truth = data.signal
        past = data.signal[: ends[1]]
        known = past[past != MISSING].double()
        if known.numel() < 2 or not known.std() > 0:
            raise ValueError(f"data: {data.name} must have a training part that varies, got a constant one")
        self.mean, self.std = float(known.mean()), float(known.std())
        self.signal = ((data.signal - self.mean) / self.std).masked_fill(data.signal == MISSING, 0.0)

    def inputs(self, starts: Tensor) -> Tensor:
        """[B, history, N] of the signal."""
        return self.signal[starts[:, None] + torch.arange(self.history, device=starts.device)]

    def targets(self, starts: Tensor) -> Tensor:
        """[B, H, N], as measured."""
        return self.truth[starts[:, None] + self.ahead]

    def measured(self, forecast: Tensor) -> Tensor:
        """A forecast of the signal, in the units of the measurement."""
        return forecast * self.std + self.mean


def errors(forecast: Tensor, truth: Tensor, horizons: tuple[int, ...]) -> dict[str, float]:
    """``mae``, ``rmse`` and ``mape`` (in %) of each horizon, as ``mae_15``, and of all: their means over horizons.

    Args:
        forecast, truth: [B, H, N], in the units of the measurement. Where the truth is missing, 0, nothing counts, as
            is usual for these data. NaN where a horizon has no truth.
    """
    there = truth != MISSING
    off = (forecast.double() - truth.double()).abs()
    share = off / truth.double().abs().where(there, torch.ones_like(off))
    count = there.sum((0, 2)).double()
    total = {"mae": off, "rmse": off.square(), "mape": 100 * share}
    found = {}
    for name, each in total.items():
        mean = each.where(there, torch.zeros_like(each)).sum((0, 2)) / count
        mean = mean.sqrt() if name == "rmse" else mean
        found |= {f"{name}_{m}": float(v) for m, v in zip(horizons, mean, strict=True)}
        found[name] = float(mean.mean())
    return found


def persistence(windows: Windows, part: str = "test") -> dict[str, float]:
    """The :func:`errors` of the forecast that everything stays as it was last."""
    starts = windows.starts[part]
    last = windows.measured(windows.inputs(starts)[:, -1:]).expand(-1, len(windows.horizons), -1)
    return errors(last, windows.targets(starts), windows.horizons)
