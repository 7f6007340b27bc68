"""What a run of traffic forecasting is: its settings, their recipes, and what is refused before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sparsegnn.controllers import Controller
from sparsegnn.experiments.method import DENSE, BatchSettings, check, one_of

MODELS = ("stgcn", "stgat")
WINDOW = 3  # steps that a temporal convolution sees


@dataclass
class TrafficConfig(BatchSettings):
    """A run of traffic forecasting. None means the recipe of the method, or a value that follows from the others.

    Fields that TrainConfig has too mean what they mean there, except that steps are batches: ``update_every`` and
    ``stop_at`` count these, ``epochs`` and ``eval_every`` passes over the training windows.

    data        `ringroad`, the name of an `.npz` file with `signal`, or its path
    model       stgcn or stgat: blocks of a gated temporal convolution, a GCN or GAT, and another temporal convolution
    hidden      features of a sensor at a time, between all layers
    layers      blocks
    heads       attention heads of stgat, which share the features
    history     steps that are known
    stride      steps from one window of the first temporal convolution to the next: 3 leaves a third of the work
    horizons    minutes ahead of the last of them
    batch       windows in a step
    split_seed  nothing: the split is by time
    """

    data: str = "ringroad"
    model: str = "stgcn"
    method: str = DENSE
    sparsity: float | None = None
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    history: int = 12
    stride: int = 1
    horizons: Sequence[int] = (15, 30, 45)
    epochs: int = 10
    lr: float = 0.003
    weight_decay: float = 0.0
    batch: int = 32
    dropout: float = 0.0
    distribution: str | Mapping[str, float] | None = None
    pattern: str | None = None
    update_every: int | None = None
    stop_at: int | None = None
    drop_fraction: float | None = None
    set: dict = field(default_factory=dict)
    eval_every: int = 1
    seed: int = 0
    split_seed: int = 0
    device: str = "cpu"
    progress: bool | None = None

    def __post_init__(self) -> None:
        one_of("model", self.model, MODELS)
        for name in ("heads", "history", "stride"):
            check(name, getattr(self, name), int, 1, math.inf, "a positive integer")
        self.check_shared()
        if self.model == "stgat" and self.hidden % self.heads:
            raise ValueError(f"hidden must be a multiple of heads {self.heads}, got {self.hidden}")
        if self.remaining < 1:
            least = WINDOW + self.stride * (2 * self.layers - 1) * (WINDOW - 1)
            raise ValueError(f"history must be at least {least} for {self.layers} layers, got {self.history}")
        if isinstance(self.horizons, str) or not isinstance(self.horizons, Sequence):
            raise TypeError(f"horizons must be a list of minutes, got {self.horizons!r}")
        for minutes in self.horizons:
            check("horizons", minutes, int, 1, math.inf, "positive integers, minutes")
        if not self.horizons or list(self.horizons) != sorted(dict.fromkeys(self.horizons)):
            raise ValueError(f"horizons must be different minutes, ascending, got {list(self.horizons)}")
        self.horizons = tuple(self.horizons)

    @property
    def remaining(self) -> int:
        """Times that the blocks, two temporal convolutions each, leave."""
        first = (self.history - WINDOW) // self.stride + 1
        return first - (2 * self.layers - 1) * (WINDOW - 1)

    def _check_method(self, cls: type[Controller]) -> None:
        if "edges" in cls.target:
            raise ValueError(f"method must be one that leaves the edges, got {self.method!r}: the graph of the sensors "
                             "is there once for each time of a batch")  # fmt: skip
        super()._check_method(cls)
