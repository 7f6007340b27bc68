"""SignalData: a graph whose nodes have a value at every time, as forecasting takes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsegnn.data.npz import meta_of, open_npz


@dataclass(frozen=True, eq=False)
class SignalData:
    """A graph of sensors and what they measured.

    signal       float32 [T, N], one row for each time, in steps of equal length
    edge_index   int64 [2, E], row 0 source, row 1 target
    edge_weight  float32 [E], not negative, or None
    minutes      length of a step
    notes        what was done to the source data
    """

    signal: Tensor
    edge_index: Tensor
    edge_weight: Tensor | None
    name: str
    minutes: int = 5
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, dim in (("signal", 2), ("edge_index", 2), ("edge_weight", 1)):
            value = getattr(self, name)
            if value is None and name == "edge_weight":
                continue
            if not isinstance(value, Tensor) or value.is_floating_point() != (name != "edge_index"):
                kind = "integers" if name == "edge_index" else "floating-point numbers"
                got = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"SignalData: {name} must be a tensor of {kind}, got {got}")
            if value.dim() != dim:
                raise ValueError(f"SignalData: {name} must have {dim} dimension(s), got {list(value.shape)}")
        if not bool(self.signal.isfinite().all()):
            raise ValueError("SignalData: signal must be finite, got NaN or infinite values")

    @property
    def num_nodes(self) -> int:
        return self.signal.size(1)

    @property
    def num_edges(self) -> int:
        return self.edge_index.size(1)

    def to(self, device: str | torch.device) -> SignalData:
        """The same data with every tensor on `device`."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def load_signal_npz(path: str | Path, minutes: int = 5) -> SignalData:
    """The graph and `signal` [T, N] in an `.npz` file of the format `sparsegnn-graph-npz/1`.

    Raises ValueError that names the file and the array at fault.
    """
    file = open_npz(path)
    with file.archive:
        file.header("edge_index")
        meta = meta_of(file)
        if "signal" not in file.names:
            raise file.error("graph without a signal (no array 'signal'): values of the nodes over time are needed")
        if "edge_time" in file.names:
            raise file.error("graph that changes (array 'edge_time'): only static graphs are supported")
        num_nodes = int(file.integers("num_nodes", (), 1, 2**31))
        edges = file.integers("edge_index", (2, None), 0, num_nodes)
        signal = file.numbers("signal", (None, num_nodes))
        weight = None
        if "edge_weight" in file.names:
            weight = file.numbers("edge_weight", (edges.shape[1],))
            file.require(bool((weight >= 0).all()), "edge_weight", "not be negative", "negative values")
    made = [None if a is None else torch.from_numpy(np.ascontiguousarray(a)) for a in (signal, edges, weight)]
    return SignalData(*made, name=str(meta.get("name") or Path(path).stem), minutes=minutes)


def ringroad(num_nodes: int = 24, steps: int = 600, *, noise: float = 1.0, seed: int = 0) -> SignalData:
    """Generated speeds on a ring of sensors: a jam of about 40 km/h travels around it, and another one against it.

    What comes to a sensor is at its neighbours before, so the graph helps. The same arguments give the same data.
    """
    for name, value, fine in (
        ("num_nodes", num_nodes, num_nodes >= 3),
        ("steps", steps, steps >= 1),
        ("noise", noise, noise >= 0),
    ):
        if not fine:
            raise ValueError(f"ringroad: {name} is out of range, got {value}")
    rng = np.random.default_rng(seed)
    t, place = np.arange(steps)[:, None], 2 * np.pi * np.arange(num_nodes) / num_nodes
    waves = np.cos(place - 2 * np.pi * t / 37) ** 4 * 20 + np.cos(place + 2 * np.pi * t / 53) ** 4 * 10
    signal = 65 - waves + noise * rng.standard_normal((steps, num_nodes))
    here = np.arange(num_nodes)
    after = (here + 1) % num_nodes
    edges = np.stack([np.concatenate([here, after, here]), np.concatenate([after, here, here])])
    weight = np.repeat(np.float32([0.5, 0.5, 1.0]), num_nodes)
    made = [torch.from_numpy(a) for a in (signal.astype(np.float32), edges.astype(np.int64), weight)]
    return SignalData(*made, name="ringroad", notes=(f"generated with seed {seed}",))
