"""The tasks of a study: settings of a run, its training and its data, of modules that are imported when asked for."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

#: name -> the module of the settings, their class, and the module of ``train``
TASKS = {
    "nodes": ("sparsegnn.experiments.config", "TrainConfig", "sparsegnn.experiments.train"),
    "links": ("sparsegnn.experiments.links.config", "LinkConfig", "sparsegnn.experiments.links"),
    "traffic": ("sparsegnn.experiments.traffic.config", "TrafficConfig", "sparsegnn.experiments.traffic"),
}
LOADERS = {"links": "load_events", "traffic": "load_signal"}  # of sparsegnn.data, which load by name or path
#: settings that the study itself gives a run
GIVEN = ("data", "model", "method", "sparsity", "hidden", "seed", "progress", "save")


@dataclass(frozen=True)
class Task:
    """What the study needs of a task."""

    name: str
    config: type
    train: Callable[..., dict]

    @property
    def settings(self) -> list[str]:
        """Names of the settings that a configuration file may give."""
        return [f.name for f in fields(self.config) if f.name not in GIVEN]


def find(name: str) -> Task:
    """The task of that name; ValueError if it is none, or not in this version."""
    if name not in TASKS:
        raise ValueError(f"must be one of {', '.join(TASKS)}, got {name!r}")
    module, cls, runner = TASKS[name]
    try:
        config, train = getattr(importlib.import_module(module), cls), importlib.import_module(runner).train
        if isinstance(train, ModuleType):
            train = train.train
    except (ImportError, AttributeError) as e:
        raise ValueError(f"must be a task that this version has, got {name!r}: {e}") from None
    return Task(name, config, train)


def weight_shapes(config: object, data: object) -> dict[str, tuple[int, int]]:
    """``{name: (outputs, inputs)}`` of every linear map of the net of these settings on these data."""
    package = type(config).__module__.rpartition(".")[0]  # beside the settings of a task are its models
    sizes = (data.num_features, data.num_classes) if isinstance(config, find("nodes").config) else ()
    return importlib.import_module(f"{package}.models").weight_shapes(config, *sizes)


@dataclass(frozen=True)
class Facts:
    """What a graph says of the cost of a run: its sizes, 0 where not known; and a digest of its numbers."""

    nodes: int = 0
    edges: int = 0
    features: int = 0
    classes: int = 0
    digest: str = ""


def load(task: str, source: Mapping, split_seed: int = 0) -> object:
    """The data of a set, as the training of the task takes it.

    ``source`` has ``kind`` and what belongs to it: ``name``, ``file``, or ``edges``, ``features``, ``labels`` and
    ``directed``. ValueError names the file and what is wrong in it.
    """
    from sparsegnn import data

    kind = source["kind"]
    if task != "nodes":
        if kind not in ("name", "npz"):
            raise ValueError(f"must be a name or an .npz file for task {task!r}, got kind {kind!r}")
        return getattr(data, LOADERS[task])(source.get("file", source["name"]))
    if kind == "edges":
        files = {key: source.get(key) for key in ("edges", "features", "labels")}
        directed = source.get("directed", False)
        return data.load_tables(**files, name=source["name"], directed=directed, split_seed=split_seed)
    if kind == "npz":
        return data.load_npz(source["file"], split_seed)
    if kind == "pyg":
        key = source["name"].lower().replace("-", "_")
        if key not in data.SETS:
            raise ValueError(f"must be a set that PyG downloads, {', '.join(data.SETS)}, got {source['name']!r}")
        return data.load_pyg(key, split_seed)
    return data.load(source["name"], split_seed=split_seed)


def facts(data: object) -> Facts:
    names = ("num_nodes", "num_edges", "num_features", "num_classes")
    return Facts(*(getattr(data, name, 0) for name in names), _digest(data))


def _digest(data: object) -> str:
    """The same for the same numbers, whatever file they are from."""
    found = hashlib.blake2b(digest_size=6)
    for name in sorted({f.name for f in fields(data)} - {"name", "notes"}) if is_dataclass(data) else ():
        value = getattr(data, name)
        sparse = isinstance(value, Tensor) and value.layout == torch.sparse_csr
        parts = (value.crow_indices(), value.col_indices(), value.values()) if sparse else (value,)
        for part in parts:
            array = np.ascontiguousarray(part) if isinstance(part, Tensor | np.ndarray) else np.array(repr(part))
            found.update(f"{name} {array.dtype} {array.shape}".encode())
            found.update(array.reshape(-1).view(np.uint8))
    return found.hexdigest()


def named(folder: str | Path, text: str) -> str:
    """A path of the configuration file, which is relative to its folder."""
    return str(Path(folder) / Path(text).expanduser())
