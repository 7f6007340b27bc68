"""GraphData: one graph with node labels and a split, as the training run takes it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MAX_DENSE_BYTES = 2 << 30  # features larger than this as dense float32 are refused: x is held dense


@dataclass(frozen=True)
class GraphData:
    """A graph for transductive node classification.

    x           float32 [N, F], dense
    edge_index  int64 [2, E], row 0 source, row 1 target
    y           int64 [N], classes 0..C-1, -1 where a node has no label (never in a mask)
    masks       bool [N] each: train_mask, val_mask, test_mask
    edge_weight float32 [E] or None
    notes       what was done to the source data: normalisation, split, download
    """

    x: Tensor
    edge_index: Tensor
    y: Tensor
    train_mask: Tensor
    val_mask: Tensor
    test_mask: Tensor
    num_classes: int
    name: str
    edge_weight: Tensor | None = None
    notes: tuple[str, ...] = ()

    @property
    def num_nodes(self) -> int:
        return self.x.size(0)

    @property
    def num_edges(self) -> int:
        return self.edge_index.size(1)

    @property
    def num_features(self) -> int:
        return self.x.size(1)

    def to(self, device: str | torch.device) -> GraphData:
        """The same graph with every tensor on `device`."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def random_split(y: np.ndarray, seed: int, parts: tuple[float, float] = (0.6, 0.2)) -> dict[str, np.ndarray]:
    """Train, validation and test masks over the labelled nodes: 60/20/20 unless `parts` says otherwise.

    The split has a seed of its own, so that runs with different training seeds see the same split.
    """
    nodes = np.random.default_rng(seed).permutation(np.flatnonzero(y >= 0))
    if nodes.size < 5:
        raise ValueError(f"data: a split needs at least 5 labelled nodes, got {nodes.size}")
    first, second = round(parts[0] * nodes.size), round((parts[0] + parts[1]) * nodes.size)
    masks = {}
    for name, chosen in zip(("train_mask", "val_mask", "test_mask"), np.split(nodes, [first, second]), strict=True):
        masks[name] = np.zeros(y.size, dtype=bool)
        masks[name][chosen] = True
    return masks


def normalize_rows(x: np.ndarray) -> np.ndarray:
    """Divides each row by its sum, in place, as is customary for bag-of-words features; rows of zero sum stay."""
    total = x.sum(axis=1, keepdims=True)
    total[np.abs(total) < 1e-12] = 1
    return np.divide(x, total, out=x)


def check_dense_size(num_nodes: int, num_features: int, name: str) -> None:
    """Features are held as one dense float32 matrix; larger ones than MAX_DENSE_BYTES are refused."""
    size = 4 * num_nodes * num_features
    if size > MAX_DENSE_BYTES:
        raise ValueError(
            f"{name}: features must fit {MAX_DENSE_BYTES / 2**30:g} GiB as dense float32, "
            f"got {num_nodes} x {num_features} = {size / 2**30:.1f} GiB"
        )


def available_memory() -> float:
    """Bytes that could be allocated now without swapping, as far as the system says so; else infinity."""
    found = [math.inf]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        found += [int(Path("/sys/fs/cgroup/memory.max").read_text())]  # of a container
    except (OSError, ValueError):  # another system, or "max"
        pass
    return min(found)


def from_numpy(arrays: dict[str, np.ndarray], name: str, split_seed: int, notes: tuple[str, ...] = ()) -> GraphData:
    """GraphData out of checked numpy arrays; a missing split is made with `split_seed`."""
    masks = {k: arrays[k] for k in ("train_mask", "val_mask", "test_mask") if k in arrays}
    if not masks:
        masks = random_split(arrays["y"], split_seed)
        notes += (f"split 60/20/20 made with split seed {split_seed}",)
    weight = arrays.get("edge_weight")
    return GraphData(
        x=torch.from_numpy(np.ascontiguousarray(arrays["x"], dtype=np.float32)),
        edge_index=torch.from_numpy(np.ascontiguousarray(arrays["edge_index"], dtype=np.int64)),
        y=torch.from_numpy(np.ascontiguousarray(arrays["y"], dtype=np.int64)),
        **{k: torch.from_numpy(np.ascontiguousarray(v, dtype=bool)) for k, v in masks.items()},
        num_classes=int(arrays["y"].max()) + 1,
        name=name,
        edge_weight=None if weight is None else torch.from_numpy(np.ascontiguousarray(weight, dtype=np.float32)),
        notes=notes,
    )
