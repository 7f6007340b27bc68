"""What a training run is: its settings, their recipes, and what is refused before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch

from sparsegnn import _files, _native
from sparsegnn.controllers import Controller, registry
from sparsegnn.controllers.distributions import DISTRIBUTIONS
from sparsegnn.controllers.settings import shown
from sparsegnn.experiments.models import BACKENDS, MODELS, ROWWISE
from sparsegnn.pattern import PATTERNS

DENSE = "dense"  # the method that is none
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
#: settings that methods share, which have an option each
COMMON = ("sparsity", "distribution", "update_every", "stop_at", "drop_fraction")


@dataclass
class TrainConfig:
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
        _one_of("model", self.model, MODELS)
        cls = self.controller
        _one_of("backend", self.backend, BACKENDS)
        recipe = RECIPES[self.model]
        self.hidden = recipe["hidden"] if self.hidden is None else self.hidden
        self.lr = recipe["lr"] if self.lr is None else self.lr
        self.dropout = recipe["dropout"] if self.dropout is None else self.dropout
        self.input_dropout = self.dropout if self.input_dropout is None else self.input_dropout
        for name in ("hidden", "layers", "heads", "epochs", "eval_every"):
            _check(name, getattr(self, name), int, 1, math.inf, "a positive integer")
        for name in ("seed", "split_seed"):
            _check(name, getattr(self, name), int, 0, 2**63, "an integer in [0, 2^63)")
        _check("lr", self.lr, float, 0.0, 1e31, "in [0, 1e31)")
        _check("weight_decay", self.weight_decay, float, 0.0, 1e31, "in [0, 1e31)")
        for name in ("dropout", "input_dropout"):
            _check(name, getattr(self, name), float, 0.0, 1.0, "in [0, 1)")
        self._check_model()
        self._check_common()
        self._check_set(cls)
        if cls is None:
            self._check_dense()
        else:
            self._check_method(cls)
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
        _one_of("dtype", self.dtype, tuple(DTYPES))
        if self.model == "sign":
            self.hops = 2 if self.hops is None else self.hops
            _check("hops", self.hops, int, 0, 33, "an integer in [0, 32]")
        elif self.hops is not None:
            raise ValueError(f"hops must be left out for model {self.model!r}, only sign has them, got {self.hops}")
        if self.residual and self.layers < 3:
            raise ValueError(f"residual must be used with at least 3 layers, got {self.layers}: in fewer no "
                             "hidden layer has an input of its own width")  # fmt: skip
        if self.layer_norm and self.layers < 2:
            raise ValueError(f"layer_norm must be used with at least 2 layers, got {self.layers}")
        if self.maxk is not None:
            width = self.hidden * (self.heads if self.model == "gat" else 1)
            _check("maxk", self.maxk, int, 1, width + 1, f"in [1, {width}], the width of a hidden layer")
            if self.layers < 2:
                raise ValueError(f"maxk must be used with at least 2 layers, got {self.layers}")
        if self.backend == "pyg":
            for name, off in (("maxk", None), ("dtype", "float32")):
                if getattr(self, name) != off:
                    raise ValueError(f"{name} must be left out for backend 'pyg', got {getattr(self, name)!r}")
            if self.model in ROWWISE:
                raise ValueError(f"model must be one of PyG's graph layers for backend 'pyg', got {self.model!r}")

    @property
    def controller(self) -> type[Controller] | None:
        """The class of the method, None for a dense run."""
        if not isinstance(self.method, str):
            raise TypeError(f"method must be a name or 'module:Class', got {type(self.method).__name__}")
        return None if self.method == DENSE else registry.find(self.method, others=(DENSE,))

    def common(self) -> dict:
        """What the options say of the settings that methods share; the rest is the method's recipe."""
        given = {name: value for name in COMMON if (value := getattr(self, name)) is not None}
        start = self.controller.recipe(self.epochs).get("start_at", 0)
        stop = self.set.get("stop_at", self.stop_at)
        if isinstance(stop, int) and start > stop:
            given["start_at"] = stop
        return {**given, "seed": self.seed}

    def _check_common(self) -> None:
        if self.update_every is not None:
            _check("update_every", self.update_every, int, 1, math.inf, "a positive integer")
        if self.stop_at is not None:
            _check("stop_at", self.stop_at, int, 1, self.epochs + 1, f"in [1, {self.epochs}], the number of epochs")
        if self.sparsity is not None:
            _check("sparsity", self.sparsity, float, 0.0, 1.0, "in [0, 1)")
        if self.drop_fraction is not None:
            _check("drop_fraction", self.drop_fraction, float, 0.0, 1.0 + 1e-9, "in [0, 1]")
        if self.distribution is not None and not isinstance(self.distribution, Mapping):
            _one_of("distribution", self.distribution, DISTRIBUTIONS)
        if self.pattern is not None:
            _one_of("pattern", self.pattern, PATTERNS)

    def _check_set(self, cls: type[Controller] | None) -> None:
        if not isinstance(self.set, Mapping):
            raise TypeError(f"set must be a dict of settings, got {type(self.set).__name__}")
        if cls is None and self.set:
            raise ValueError(f"set must be empty for method 'dense', which has no settings, got {shown(self.set)}")
        for name, value in self.set.items():
            registry.check_setting(cls, name)
            if not is_plain(value):
                raise TypeError(f"set must have numbers, texts, lists and dicts, got {name}={shown(value)}")
        for name in {"sparsity", "distribution"} & self.set.keys():  # of which the model is made too
            if getattr(self, name) not in (None, self.set[name]):
                raise ValueError(f"{name} must be given once, got {getattr(self, name)} and, in set, {self.set[name]}")
            setattr(self, name, self.set[name])
        self._check_common()

    def _check_dense(self) -> None:
        self.sparsity = 0.0 if self.sparsity is None else self.sparsity
        if self.sparsity:
            raise ValueError(f"sparsity must be 0 for method 'dense', got {self.sparsity}: choose another method")
        if self.pattern not in (None, "unstructured"):
            raise ValueError(f"pattern must be 'unstructured' for method 'dense', got {self.pattern!r}")

    def _check_method(self, cls: type[Controller]) -> None:
        known = registry.settings(cls)
        if self.model in ROWWISE and "edges" in cls.target:
            raise ValueError(f"model must be one that aggregates in each step for method {self.method!r}, which "
                             f"removes edges, got {self.model!r}")  # fmt: skip
        if self.maxk is not None and any(word in cls.target for word in ("activations", "embeddings")):
            raise ValueError(f"maxk must be left out for method {self.method!r}, which puts MaxK into the model "
                             f"itself, got {self.maxk}")  # fmt: skip
        builds = ("sparsity", "distribution") if cls.start == "sparse" else ()  # of which the model is made
        for name in COMMON:
            if getattr(self, name) is not None and name not in (*known, *builds):
                has = ", ".join(n for n in COMMON if n in known) or "none of the others"
                raise ValueError(f"{name} must be left out for method {self.method!r}, which has no such setting (of "
                                 f"these it has {has}; all: sparsegnn methods {self.method})")  # fmt: skip
        if self.sparsity == 0:
            raise ValueError(f"sparsity must be above 0 for method {self.method!r}, got {self.sparsity}")
        if self.pattern is not None and cls.start == "plain":
            raise ValueError(f"pattern must be left out for method {self.method!r}, which takes the model as it is")
        if self.pattern is None and cls.start != "plain":
            self.pattern = cls.patterns if cls.patterns in PATTERNS else "unstructured"
        if cls.start == "sparse":
            if self.distribution == "global":
                raise ValueError(f"distribution must not be 'global' for method {self.method!r}, which starts sparse, "
                                 "without magnitudes to compare: use erk, er or uniform")  # fmt: skip
            own = {n: p.default for n, p in known.items()} | cls.recipe(self.epochs)
            default = 0.5 if self.pattern == "2:4" else own.get("sparsity") or 0.9
            self.sparsity = default if self.sparsity is None else self.sparsity
            self.distribution = own.get("distribution") or "erk" if self.distribution is None else self.distribution


def is_plain(value: object) -> bool:
    """Whether a value can be written down: in JSON, and in a checkpoint that is loaded as weights only."""
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and is_plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


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
