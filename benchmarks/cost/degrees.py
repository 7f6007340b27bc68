"""Degree sequences: of stand-ins for large graphs, and of real ones where their files are at hand."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

#: nodes, edges (directed) and the largest degree aimed at: the sizes of ``harness.graphs.STAND_INS``
STAND_INS = {
    "arxiv": (169_343, 2_315_598, 13_161),
    "reddit": (232_965, 114_615_891, 21_657),
    "products": (2_449_029, 123_718_280, 17_481),
}
REAL = ("facebook_pages", "soc_slashdot0902", "flickr_7575", "coauthor_physics", "amazon_computers")


@dataclass(frozen=True, eq=False)
class Graph:
    """A square CSR pattern, as far as a schedule sees it. ``degrees`` [N] int64: edges of every row, in their order."""

    name: str
    degrees: np.ndarray
    real: bool = False

    @property
    def nodes(self) -> int:
        return len(self.degrees)

    @property
    def edges(self) -> int:
        return int(self.degrees.sum())


def chung_lu(nodes: int, edges: int, largest: int, seed: int = 0) -> np.ndarray:
    """Poisson numbers around power-law weights, whose exponent makes the largest expected degree ``largest``; in random
    order (Chung and Lu, 2002)."""
    rank = np.arange(1, nodes + 1, dtype=np.float64)
    low, high = 1.5, 8.0
    for _ in range(60):
        middle = (low + high) / 2
        weight = rank ** (-1 / (middle - 1))
        low, high = (middle, high) if edges * weight[0] / weight.sum() > largest else (low, middle)
    random = np.random.default_rng(seed)
    degrees = random.poisson(edges * weight / weight.sum()).astype(np.int64)
    random.shuffle(degrees)
    return degrees


def folder() -> Path | None:
    """Of the real graphs: SPARSEGNN_DATA, or shared/data beside the checkout."""
    given = os.environ.get("SPARSEGNN_DATA", "").split(os.pathsep)[0]
    for place in (Path(given) if given else None, *(p / "shared" / "data" for p in Path(__file__).resolve().parents)):
        if place and (place / "cora.npz").is_file():
            return place
    return None


_given: dict[str, Graph] = {}


@contextlib.contextmanager
def used(name: str, degrees: np.ndarray) -> Iterator[None]:
    """Within, the graph of this name has these degrees: those of the one that is measured."""
    _given[name] = Graph(name, np.asarray(degrees, dtype=np.int64))
    try:
        yield
    finally:
        del _given[name]


def graph(name: str) -> Graph:
    """A stand-in, or a real graph's edges by target; ValueError for a name that is neither."""
    return _given.get(name) or _made(name)


@cache
def _made(name: str) -> Graph:
    if name in STAND_INS:
        return Graph(name, chung_lu(*STAND_INS[name]))
    at = folder()
    path = at / f"{name}.npz" if at else None
    if path is None or not path.is_file():
        known = [*STAND_INS, *(p.stem for p in sorted(at.glob("*.npz")))] if at else [*STAND_INS]
        raise ValueError(f"no graph {name}; there are {', '.join(known)}")
    with np.load(path, allow_pickle=False) as data:
        return Graph(name, np.bincount(data["edge_index"][1], minlength=int(data["num_nodes"])).astype(np.int64), True)


def available() -> list[str]:
    """Names of the graphs that the tables show."""
    at = folder()
    return [*STAND_INS, *(n for n in REAL if at and (at / f"{n}.npz").is_file())]
