"""EventData: events between nodes, each with its time, as temporal link prediction takes them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from sparsegnn.data.npz import meta_of, open_npz


@dataclass(frozen=True, eq=False)
class EventData:
    """Events between nodes, in the order of their times. Equal where all numbers are, so that what follows can be kept.

    source, target  int64 [E], nodes 0..num_nodes-1; the same pair may come many times
    time            int64 or float64 [E], never decreasing; seconds where the source has these
    notes           what was done to the source data
    """

    source: np.ndarray
    target: np.ndarray
    time: np.ndarray
    num_nodes: int
    name: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("source", "target", "time"):
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.dtype.kind not in ("iuf" if name == "time" else "iu"):
                got = getattr(array, "dtype", type(array).__name__)
                raise TypeError(f"EventData: {name} must be an array of numbers, got {got}")
            if array.shape != (self.source.size,):
                raise ValueError(f"EventData: {name} must have shape [{self.source.size}], got {list(array.shape)}")
        for name in ("source", "target"):
            array = getattr(self, name)
            if array.size and not (0 <= array.min() and array.max() < self.num_nodes):
                got = f"{array.min()} to {array.max()}"
                raise ValueError(f"EventData: {name} must be in [0, {self.num_nodes}), got {got}")
        if not bool((np.diff(self.time) >= 0).all()):  # nor NaN
            raise ValueError("EventData: time must not decrease, got a decreasing step or NaN")

    @property
    def num_events(self) -> int:
        return self.source.size

    @cached_property
    def _digest(self) -> bytes:
        digest = hashlib.blake2b(self.name.encode(), digest_size=16)
        for array in (self.source, self.target, self.time):
            digest.update(str(array.dtype).encode() + np.ascontiguousarray(array).tobytes())
        return digest.digest()

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, EventData) and self.num_nodes == other.num_nodes and self.notes == other.notes
        return same and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)


def load_events_npz(path: str | Path) -> EventData:
    """The events in an `.npz` file of the format `sparsegnn-graph-npz/1` that has `edge_time`, ascending.

    Raises ValueError that names the file and the array at fault.
    """
    file = open_npz(path)
    with file.archive:
        file.header("edge_index")
        meta = meta_of(file)
        if "edge_time" not in file.names:
            raise file.error("graph without times (no array 'edge_time'): events are needed")
        num_nodes = int(file.integers("num_nodes", (), 1, 2**31))
        source, target = file.integers("edge_index", (2, None), 0, num_nodes)
        time = file.get("edge_time", (source.size,), "iuf", "numbers")
        time = time.astype(np.float64 if time.dtype.kind == "f" else np.int64)
        file.require(bool(np.isfinite(time).all()), "edge_time", "be finite", "NaN or infinite values")
        file.require(bool((np.diff(time) >= 0).all()), "edge_time", "not decrease", "a decreasing step")
    return EventData(source, target, time, num_nodes, str(meta.get("name") or Path(path).stem))


def meetings(num_nodes: int = 120, num_groups: int = 6, num_events: int = 6000, *, within: float = 0.9,
             seed: int = 0) -> EventData:  # fmt: skip
    """Generated events: nodes meet others of their group with probability `within`, some nodes much more often.

    Who meets whom does not change over time, so the past tells the groups and the future follows them. The same
    arguments give the same events.
    """
    for name, value, fine in (
        ("num_nodes", num_nodes, num_nodes >= 2 * num_groups),
        ("num_groups", num_groups, num_groups >= 1),
        ("num_events", num_events, num_events >= 10),
        ("within", within, 0 <= within <= 1),
    ):
        if not fine:
            raise ValueError(f"meetings: {name} is out of range, got {value}")
    rng = np.random.default_rng(seed)
    group = rng.permutation(num_nodes) % num_groups
    weight = (1 - rng.random(num_nodes)) ** -0.5
    source = rng.choice(num_nodes, num_events, p=weight / weight.sum())
    target = np.empty_like(source)
    same = rng.random(num_events) < within
    for g in range(num_groups):
        members = np.flatnonzero(group == g)
        for at, among in ((same & (group[source] == g), members), (~same & (group[source] == g), np.arange(num_nodes))):
            target[at] = rng.choice(among, int(at.sum()), p=weight[among] / weight[among].sum())
    return EventData(source, target, np.arange(num_events), num_nodes, "meetings", (f"generated with seed {seed}",))
