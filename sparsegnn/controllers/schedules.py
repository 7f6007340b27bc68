"""How a fraction changes over the steps of a training run: a schedule is any callable ``step -> float``."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Constant:
    """``value`` at every step."""

    value: float

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True)
class Cosine:
    """From ``start`` at step 0 down to ``end`` at ``stop_at`` along half a cosine (RigL, ICML 2020)."""

    start: float
    stop_at: int
    end: float = 0.0

    def __call__(self, step: int) -> float:
        time = min(max(step / self.stop_at, 0.0), 1.0)
        return self.end + (self.start - self.end) / 2 * (1 + math.cos(math.pi * time))


@dataclass(frozen=True)
class Cubic:
    """From ``initial`` at ``start_at`` to ``final`` at ``stop_at``, fast first (Zhu and Gupta, 2017)."""

    final: float
    start_at: int
    stop_at: int
    initial: float = 0.0

    def __call__(self, step: int) -> float:
        if step >= self.stop_at:
            return self.final
        time = max(step - self.start_at, 0) / (self.stop_at - self.start_at)
        return self.final + (self.initial - self.final) * (1 - time) ** 3


@dataclass(frozen=True)
class Halving:
    """``start``, half of it from ``half_at`` on, and 0 from ``stop_at`` on (MEST, NeurIPS 2021)."""

    start: float
    half_at: int
    stop_at: int

    def __call__(self, step: int) -> float:
        return 0.0 if step >= self.stop_at else self.start / 2 if step >= self.half_at else self.start
