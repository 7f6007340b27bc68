"""How wide a dense net is that costs what a sparse one costs: as many weights, the same time a step, or memory."""

from __future__ import annotations

import bisect
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sparsegnn.study import tasks

#: what is compared, as a key of a row, or a function of one
QUANTITIES: dict[str, Callable[[Mapping], float]] = {
    "weights": lambda row: row["weights"],
    "time": lambda row: row["seconds_training"] / row["steps"],
    "memory": lambda row: row["run_memory_bytes"],
}
NAMES = {"weights": "weights", "time": "seconds_per_step", "memory": "run_memory_bytes"}
SHARES = (1 / 64, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # of the full width, at which dense nets are measured
SHORT = 24  # steps of such a measurement


@dataclass
class Widths:
    """Finds widths; what it measures of a net it remembers.

    Args:
        train: ``train(config, data)``, as a task has it.
    """

    train: Callable[..., dict]
    _measured: dict[str, tuple[list[int], dict[str, list[float]]]] = field(default_factory=dict)

    def find(self, matches: str, rows: Sequence[Mapping], config: object, data: object) -> tuple[int, dict]:
        """The width, from 1 to that of ``config``, of a dense net that costs what the sparse ``rows`` of a case cost.

        Weights are counted, and the nearest width is taken. Time and memory are measured, in short trainings at a few
        widths, and interpolated between these. Only widths that the settings allow are taken, as multiples of the
        heads. Returns the width, and ``{"quantity", "aimed_at"}`` for the row.
        """
        aim = statistics.median(QUANTITIES[matches](row) for row in rows)
        allowed = [width for width in range(1, config.hidden + 1) if _allows(config, width)]
        if matches == "weights":
            width = self._of_weights(aim, allowed, config, data)
        else:
            widths, costs = self._costs(allowed, config, data)
            width = _nearest(interpolated(aim, widths, costs[matches]), allowed)
        return width, {"quantity": NAMES[matches], "aimed_at": aim}

    def _of_weights(self, aim: float, allowed: list[int], config: object, data: object) -> int:
        count = functools.cache(lambda width: dense_weights(replace(config, hidden=width), data))
        above = bisect.bisect_right(allowed, aim, key=count)
        return min(allowed[max(0, above - 1) : above + 1], key=lambda width: (abs(count(width) - aim), width))

    def _costs(self, allowed: list[int], config: object, data: object) -> tuple[list[int], dict[str, list[float]]]:
        """Of short trainings of a dense net, time of a step and memory at each of some widths."""
        key = repr(replace(config, seed=0))
        if key not in self._measured:
            widths = sorted({_nearest(config.hidden * share, allowed) for share in SHARES})
            rows = [self.train(short(replace(config, hidden=width)), data) for width in widths]
            self._measured[key] = widths, {k: [QUANTITIES[k](row) for row in rows] for k in ("time", "memory")}
        return self._measured[key]


def short(config: object) -> object:
    """The same training in few steps, with one look at the validation set."""
    epochs = min(config.epochs, SHORT) if getattr(config, "steps", config.epochs) == config.epochs else 1
    return replace(config, epochs=epochs, eval_every=epochs)


def _allows(config: object, width: int) -> bool:
    try:
        replace(config, hidden=width)
    except ValueError:
        return False
    return True


def _nearest(width: float, allowed: Sequence[int]) -> int:
    return min(allowed, key=lambda other: (abs(other - width), other))


def interpolated(aim: float, widths: Sequence[int], costs: Sequence[float]) -> float:
    """The width at which the cost, which does not fall with the width but for noise, is ``aim``; the ends beyond."""
    rising = np.maximum.accumulate(np.asarray(costs, dtype=float))
    at = np.flatnonzero(np.append(True, np.diff(rising) > 0))  # of a plateau the narrowest
    return float(np.interp(aim, rising[at], np.asarray(widths)[at]))


def dense_weights(config: object, data: object) -> int:
    """Weights of the linear maps of a dense net, by their shapes."""
    return sum(rows * columns for rows, columns in tasks.weight_shapes(config, data).values())
