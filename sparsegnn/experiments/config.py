"""What a training run is: its settings, their recipes, and what is refused before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch

from sparsegnn import _files, _native
from sparsegnn.controllers import Controller
from sparsegnn.experiments.method import DENSE as DENSE
from sparsegnn.experiments.method import MethodSettings, check, one_of
from sparsegnn.experiments.method import is_plain as is_plain
from sparsegnn.experiments.models import BACKENDS, MODELS, ROWWISE

DEFAULT = "rigl"  # where a sparsity is asked for and no method
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}

#: recipe of each model: what a published dense baseline uses on citation graphs
RECIPES = {
    "gcn": {"hidden": 64, "lr": 0.01, "dropout": 0.5},
    "gat": {"hidden": 8, "lr": 0.005, "dropout": 0.6},
    "sage": {"hidden": 64, "lr": 0.01, "dropout": 0.5},
    "gin": {"hidden": 64, "lr": 0.01, "dropout": 0.5},
    "sign": {"hidden": 64, "lr": 0.01, "dropout": 0.5},
    "mlp": {"hidden": 64, "lr": 0.01, "dropout": 0.5},
}


@dataclass
class TrainConfig(MethodSettings):
    """A training run. None means the recipe of the model or method, or a value that follows from the others.

    hidden          width of a hidden layer; for GAT the width per head, 8; of the others 64
    residual        add the input of a hidden layer to its output; needs three layers
    layer_norm      LayerNorm between each hidden layer and its activation
    maxk            features of a node that are kept in place of ReLU (MaxK-GNN); a GCN aggregates only these
    dtype           float32, or bfloat16: features and activations, by autocast; weights stay float32
    hops            powers of the adjacency that SIGN precomputes; 2
    method          dense, a method of `sparsegnn methods`, or a class of your own as module:Class
    sparsity        fraction of weights that do not exist (over all layers); that of the method, mostly 0.9
    distribution    how sparsity is spread over the layers: erk, er, uniform, or global where a method prunes; erk
    pattern         unstructured, fan_in, 2:4, grouped:8, block:16x16, in layers that can hold it; that of the method
    update_every    steps between mask updates; that of the method, mostly epochs / 20, which makes about 14 updates
    stop_at         no mask update after this step; that of the method, mostly 3/4 of the epochs
    drop_fraction   share of the weights moved at the first update, falling to 0; that of the method, mostly 0.5
    set             the method's own settings, by name, over all of these
    weight_decay    on the first layer; for GAT on all parameters
    input_dropout   dropout on the features; that of the hidden layers
    eval_every      epochs between looks at the validation set
    backend         sparsegnn, or pyg: PyTorch Geometric's own layers (dense only)
    cuda_graph      replay whole steps, mask updates too, as CUDA graphs (on a GPU, with backend sparsegnn)
    progress        progress bar on stderr: None shows one on a terminal after two seconds
    save            checkpoint written at the end: the weights of the selected epoch, the configuration, the result
    """

    data: str = "digits"
    model: str = "gcn"
    method: str = DENSE
    sparsity: float | None = None
    hidden: int | None = None
    layers: int = 2
    heads: int = 8
    residual: bool = False
    layer_norm: bool = False
    maxk: int | None = None
    dtype: str = "float32"
    hops: int | None = None
    epochs: int = 200
    lr: float | None = None
    weight_decay: float = 5e-4
    dropout: float | None = None
    input_dropout: float | None = None
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
    backend: str = "sparsegnn"
    cuda_graph: bool = False
    progress: bool | None = None
    save: str | None = None

    def __post_init__(self) -> None:
        one_of("model", self.model, MODELS)
        cls = self.controller
        one_of("backend", self.backend, BACKENDS)
        recipe = RECIPES[self.model]
        self.hidden = recipe["hidden"] if self.hidden is None else self.hidden
        self.lr = recipe["lr"] if self.lr is None else self.lr
        self.dropout = recipe["dropout"] if self.dropout is None else self.dropout
        self.input_dropout = self.dropout if self.input_dropout is None else self.input_dropout
        counts = ("hidden", "layers", "heads", "epochs", "eval_every")
        self._check_numbers(*counts, shares=("dropout", "input_dropout"))
        self._check_model()
        self._check_choice(cls)
        if self.backend == "pyg" and cls is not None:
            raise ValueError(f"method must be 'dense' for backend 'pyg', whose layers are dense, got {self.method!r}")
        for name in ("residual", "layer_norm", "cuda_graph"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.cuda_graph and self.backend != "sparsegnn":
            raise ValueError(f"cuda_graph must be used with backend 'sparsegnn', got {self.backend!r}")
        if self.cuda_graph and not self.device.startswith("cuda"):
            raise ValueError(f"cuda_graph must be used on a GPU, got device {self.device!r}: add --device cuda")

    def _check_model(self) -> None:
        """What the network is made of."""
        one_of("dtype", self.dtype, tuple(DTYPES))
        if self.model == "sign":
            self.hops = 2 if self.hops is None else self.hops
            check("hops", self.hops, int, 0, 33, "an integer in [0, 32]")
        elif self.hops is not None:
            raise ValueError(f"hops must be left out for model {self.model!r}, only sign has them, got {self.hops}")
        if self.residual and self.layers < 3:
            raise ValueError(f"residual must be used with at least 3 layers, got {self.layers}: in fewer no "
                             "hidden layer has an input of its own width")  # fmt: skip
        if self.layer_norm and self.layers < 2:
            raise ValueError(f"layer_norm must be used with at least 2 layers, got {self.layers}")
        if self.maxk is not None:
            width = self.hidden * (self.heads if self.model == "gat" else 1)
            check("maxk", self.maxk, int, 1, width + 1, f"in [1, {width}], the width of a hidden layer")
            if self.layers < 2:
                raise ValueError(f"maxk must be used with at least 2 layers, got {self.layers}")
        if self.backend == "pyg":
            for name, off in (("maxk", None), ("dtype", "float32")):
                if getattr(self, name) != off:
                    raise ValueError(f"{name} must be left out for backend 'pyg', got {getattr(self, name)!r}")
            if self.model in ROWWISE:
                raise ValueError(f"model must be one of PyG's graph layers for backend 'pyg', got {self.model!r}")

    def _check_method(self, cls: type[Controller]) -> None:
        if self.model in ROWWISE and "edges" in cls.target:
            raise ValueError(f"model must be one that aggregates in each step for method {self.method!r}, which "
                             f"removes edges, got {self.model!r}")  # fmt: skip
        if self.maxk is not None and any(word in cls.target for word in ("activations", "embeddings")):
            raise ValueError(f"maxk must be left out for method {self.method!r}, which puts MaxK into the model "
                             f"itself, got {self.maxk}")  # fmt: skip
        super()._check_method(cls)


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
    if device.type == "cuda" and (wrong := _native.gpu_error()):
        raise ValueError(f"device {name!r} cannot be used: {wrong}")
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
