"""What a run of temporal link prediction is: its settings, their recipes, and what is refused before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from sparsegnn.controllers import Controller
from sparsegnn.experiments.method import DENSE, BatchSettings, check, one_of

MODELS = ("walk", "gcn")
OPTIMIZERS = ("sgd", "adam")

#: recipe of each model: walk is that of the original, but for momentum, which its sparse runs have; gcn that of GAE
RECIPES = {
    "walk": {"hidden": 128, "features": 8, "optimizer": "sgd", "lr": 0.05, "lr_decay": 0.98, "weight_decay": 0.0,
             "batch": 1024, "epochs": 20},
    "gcn": {"hidden": 128, "features": 64, "optimizer": "adam", "lr": 0.01, "lr_decay": 1.0, "weight_decay": 0.0,
            "batch": 4096, "epochs": 40},
}  # fmt: skip


@dataclass
class LinkConfig(BatchSettings):
    """A run of temporal link prediction. None means the recipe of the model or method.

    Fields that TrainConfig has too mean what they mean there, except that steps are batches: ``update_every`` and
    ``stop_at`` count these, ``epochs`` and ``eval_every`` passes over the training pairs.

    data            `meetings`, the name of an `.npz` file of events, or its path
    model           walk: an MLP on embeddings of temporal random walks (Peng et al., ICCD 2022); gcn: a GCN over the
                    training events with an embedding per node, and an MLP on pairs of its rows, trained end to end
    hidden          width of a hidden layer; 128
    layers          walk: linear maps of the MLP; gcn: convolutions; 2
    features        width of a node's embedding: 8 of walks, which makes 16 for a pair; of gcn 64
    walks, length   random walks from each node, and how many nodes each visits at most
    passes          over the walks, to learn the embeddings by word2vec
    optimizer       sgd, with Nesterov's momentum 0.9, for walk; adam for gcn
    lr_decay        factor of the learning rate after each epoch
    batch           pairs in a step, with their labels: 1024 of walk, 4096 of gcn
    dropout         between hidden layers; 0
    seed            of weights, batches and the method
    split_seed      of the negative pairs and the walks: runs of other seeds have the same data
    """

    data: str = "meetings"
    model: str = "walk"
    method: str = DENSE
    sparsity: float | None = None
    hidden: int | None = None
    layers: int = 2
    features: int | None = None
    walks: int = 10
    length: int = 10
    passes: int = 10
    epochs: int | None = None
    optimizer: str | None = None
    lr: float | None = None
    lr_decay: float | None = None
    weight_decay: float | None = None
    batch: int | None = None
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
        for name, value in RECIPES[self.model].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        for name, least in (("features", 1), ("walks", 1), ("length", 2), ("passes", 1)):
            check(name, getattr(self, name), int, least, math.inf, f"an integer of at least {least}")
        check("lr_decay", self.lr_decay, float, 1e-6, 1.0 + 1e-9, "in [1e-6, 1]")
        self.check_shared()

    def _check_method(self, cls: type[Controller]) -> None:
        if self.model == "walk" and "edges" in cls.target:
            raise ValueError(f"model must be one that aggregates in each step for method {self.method!r}, which "
                             f"removes edges, got {self.model!r}")  # fmt: skip
        super()._check_method(cls)
