"""What a training run is: its settings, their recipes, and what is refused before any work."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch

from sparsegnn import _files, _native
from sparsegnn.experiments.models import BACKENDS

METHODS = ("dense", "static", "set", "rigl", "gmp")
MODELS = ("gcn", "gat")

#: recipe of each model: what a published dense baseline uses on citation graphs
RECIPES = {
    "gcn": {"hidden": 64, "lr": 0.01, "dropout": 0.5},
    "gat": {"hidden": 8, "lr": 0.005, "dropout": 0.6},
}


@dataclass
class TrainConfig:
    """A training run. None means the recipe of the model, or a value that follows from the others.

    hidden          width of a hidden layer; for GAT the width per head. 64 (GCN), 8 (GAT)
    method          dense, static (random mask), set, rigl, gmp (gradual magnitude pruning)
    sparsity        fraction of weights that do not exist (over all layers); 0.9 unless the method is dense
    distribution    how sparsity is spread over the layers: erk or uniform
    update_every    steps between mask updates; epochs / 20, which makes about 14 updates
    stop_at         no mask update after this step; 3/4 of the epochs
    drop_fraction   share of the weights moved at the first update, falling to 0 by a cosine; 0.5, as updates are few
    weight_decay    on the first layer for GCN, on all parameters for GAT
    input_dropout   dropout on the features; that of the hidden layers
    eval_every      epochs between looks at the validation set
    backend         sparsegnn, or pyg: PyTorch Geometric's own layers (dense only)
    cuda_graph      replay whole steps, mask updates too, as CUDA graphs (on a GPU, with backend sparsegnn)
    progress        progress bar on stderr: None shows one on a terminal after two seconds
    save            checkpoint written at the end: the selected weights, the configuration, the result
    """

    data: str = "digits"
    model: str = "gcn"
    method: str = "dense"
    sparsity: float | None = None
    hidden: int | None = None
    layers: int = 2
    heads: int = 8
    epochs: int = 200
    lr: float | None = None
    weight_decay: float = 5e-4
    dropout: float | None = None
    input_dropout: float | None = None
    distribution: str = "erk"
    update_every: int | None = None
    stop_at: int | None = None
    drop_fraction: float = 0.5
    eval_every: int = 1
    seed: int = 0
    split_seed: int = 0
    device: str = "cpu"
    backend: str = "sparsegnn"
    cuda_graph: bool = False
    progress: bool | None = None
    save: str | None = None

    def __post_init__(self) -> None:
        _one_of("model", self.model, MODELS)
        _one_of("method", self.method, METHODS)
        _one_of("backend", self.backend, BACKENDS)
        _one_of("distribution", self.distribution, ("erk", "uniform"))
        recipe = RECIPES[self.model]
        self.hidden = recipe["hidden"] if self.hidden is None else self.hidden
        self.lr = recipe["lr"] if self.lr is None else self.lr
        self.dropout = recipe["dropout"] if self.dropout is None else self.dropout
        self.input_dropout = self.dropout if self.input_dropout is None else self.input_dropout
        if self.sparsity is None:
            self.sparsity = 0.0 if self.method == "dense" else 0.9
        self.update_every = max(1, self.epochs // 20) if self.update_every is None else self.update_every
        self.stop_at = max(1, int(0.75 * self.epochs)) if self.stop_at is None else self.stop_at
        for name in ("hidden", "layers", "heads", "epochs", "update_every", "eval_every"):
            _check(name, getattr(self, name), int, 1, math.inf, "a positive integer")
        for name in ("seed", "split_seed"):
            _check(name, getattr(self, name), int, 0, 2**63, "an integer in [0, 2^63)")
        _check("stop_at", self.stop_at, int, 1, self.epochs + 1, f"in [1, {self.epochs}], the number of epochs")
        _check("lr", self.lr, float, 0.0, 1e31, "in [0, 1e31)")
        _check("weight_decay", self.weight_decay, float, 0.0, 1e31, "in [0, 1e31)")
        for name in ("sparsity", "dropout", "input_dropout"):
            _check(name, getattr(self, name), float, 0.0, 1.0, "in [0, 1)")
        _check("drop_fraction", self.drop_fraction, float, 0.0, 1.0 + 1e-9, "in [0, 1]")
        if self.method == "dense" and self.sparsity:
            raise ValueError(f"sparsity must be 0 for method 'dense', got {self.sparsity}: choose another method")
        if self.method != "dense" and not self.sparsity:
            raise ValueError(f"sparsity must be above 0 for method {self.method!r}, got {self.sparsity}")
        if self.backend == "pyg" and self.method != "dense":
            raise ValueError(f"method must be 'dense' for backend 'pyg', whose layers are dense, got {self.method!r}")
        if not isinstance(self.cuda_graph, bool):
            raise TypeError(f"cuda_graph must be True or False, got {self.cuda_graph!r}")
        if self.cuda_graph and self.backend != "sparsegnn":
            raise ValueError(f"cuda_graph must be used with backend 'sparsegnn', got {self.backend!r}")
        if self.cuda_graph and not self.device.startswith("cuda"):
            raise ValueError(f"cuda_graph must be used on a GPU, got device {self.device!r}: add --device cuda")


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _check(name: str, value: object, kind: type, low: float, high: float, expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
        raise TypeError(f"{name} must be {expected}, got {value!r}")
    if not low <= value < high:  # False for NaN
        raise ValueError(f"{name} must be {expected}, got {value}")


def check_device(name: str) -> torch.device:
    """The device, or ValueError when this machine or this torch cannot use it."""
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as e:
        raise ValueError(f"device must be cpu or cuda[:index], got {name!r}") from e
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda[:index], got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r} is not there: torch {torch.__version__} sees {torch.cuda.device_count()} GPU(s)"
        )
    if device.type == "cuda" and not _native.status["cuda"] and (wrong := _native.unsupported_gpu(device)):
        raise ValueError(f"device must be one that the kernels run on, got {name!r}: {wrong}")
    return device


def check_writable(path: str | None) -> None:
    """TypeError or ValueError now rather than after the training when no checkpoint can be written there."""
    if path is not None:
        _files.check("save", path)


def field_docs() -> dict[str, str]:
    """The help text of each field, out of the docstring of TrainConfig."""
    lines = (TrainConfig.__doc__ or "").splitlines()
    words = (line.split(maxsplit=1) for line in lines if line.startswith("    ") and len(line.split()) > 1)
    known = {f.name for f in fields(TrainConfig)}
    return {name: text.strip() for name, text in words if name in known}
