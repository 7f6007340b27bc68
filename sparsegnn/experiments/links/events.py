"""Events split by time into pairs to predict, their negatives, and the check that nothing knows the future."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsegnn.data import EventData

PARTS = (0.7, 0.15)  # of the events, for training and validation; the others are for the test


class Leak(ValueError):
    """Something that a model learns from has events that are not of the past."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of nodes and whether they have events: each positive once, then as many negatives of each corruption.

    source, target  int64 [3 P]: P positives, the P with other sources, the P with other targets
    label           float32 [3 P], 1 or 0
    """

    source: np.ndarray
    target: np.ndarray
    label: np.ndarray

    @property
    def positives(self) -> int:
        return self.source.size // 3


@dataclass(frozen=True, eq=False)
class LinkSplit:
    """Events split by time.

    Nodes are those that have a training event with another node, in the order of their ids; what else happens to
    others cannot be predicted from the past and is left out, as self-loops are.

    past            the training events, of these nodes, in the order of their times
    nodes           int64 [N], the id in the data of every node here
    start           time of the first event that is not of the past, and of the first of the test
    train, val, test
    notes           what was left out
    """

    past: EventData
    nodes: np.ndarray
    start: tuple[float, float]
    train: Pairs
    val: Pairs
    test: Pairs
    notes: tuple[str, ...]

    @property
    def num_nodes(self) -> int:
        return self.nodes.size


def split(data: EventData, seed: int = 0, parts: tuple[float, float] = PARTS) -> LinkSplit:
    """The first 70 % of the events train, the next 15 % validate, the others test; events of one time stay together.

    Within a part a pair of nodes is one positive, however many events it has. Its negatives have another source, or
    another target, drawn evenly from the nodes with which the other end has no event in that part; ``seed`` decides
    which. A negative may have events in another part: that who met will meet again is to be learned, not known.
    """
    first, second = _start(data.time, parts[0]), _start(data.time, parts[0] + parts[1])
    part = (data.time >= first).astype(int) + (data.time >= second)
    proper = data.source != data.target
    train = proper & (part == 0)
    nodes = np.unique(np.concatenate([data.source[train], data.target[train]]))
    place = np.full(data.num_nodes, -1)
    place[nodes] = np.arange(nodes.size)
    source, target = place[data.source], place[data.target]
    known = (source >= 0) & (target >= 0)
    made = []
    for i, name in enumerate(("training", "validation", "test")):
        chosen = proper & known & (part == i)
        if not chosen.any():
            raise ValueError(f"events: {data.name} must have {name} events between nodes that are known, got none")
        made.append(_pairs(source[chosen], target[chosen], nodes, np.random.default_rng([seed, i]), data.name))
    past = EventData(source[train], target[train], data.time[train], nodes.size, data.name, data.notes)
    new, loops = int((proper & ~known & (part > 0)).sum()), int((~proper).sum())
    notes = (*data.notes, f"{new} later events of nodes without training events left out", f"{loops} self-loops too")
    return LinkSplit(past, nodes, (first, second), *made, notes)


def _start(time: np.ndarray, share: float) -> float:
    """The time of the event behind the first ``share`` of the events."""
    at = round(share * time.size)
    if not 0 < at < time.size:
        raise ValueError(f"events: there must be enough to split by time, got {time.size}")
    return time[at]


def _pairs(source: np.ndarray, target: np.ndarray, ids: np.ndarray, rng: np.random.Generator, name: str) -> Pairs:
    u, v = np.divmod(np.unique(source * ids.size + target), ids.size)
    other_u, other_v = others(v, u, ids, rng, name), others(u, v, ids, rng, name)
    label = np.repeat(np.float32([1, 0, 0]), u.size)
    return Pairs(np.concatenate([u, other_u, u]), np.concatenate([v, v, other_v]), label)


def others(kept: np.ndarray, banned: np.ndarray, ids: np.ndarray, rng: np.random.Generator, name: str) -> np.ndarray:
    """For each ``kept[i]`` a node, drawn evenly from all but itself and every ``banned[j]`` with the same ``kept[j]``.

    ValueError where a node has no other left, which says its ``ids`` [N] number.
    """
    n = ids.size
    key = np.unique(np.concatenate([kept * n + banned, np.arange(n) * (n + 1)]))
    row, col = np.divmod(key, n)
    count = np.bincount(row, minlength=n)
    first = np.cumsum(count) - count
    before = col - (np.arange(key.size) - first[row])  # how many nodes below this one are allowed
    free = (n - count)[kept]
    if (free == 0).any():
        full = int(ids[kept[np.argmin(free)]])
        raise ValueError(f"events: {name} must leave every node one that it has no event with, got node {full} "
                         f"with events with all {n - 1} others")  # fmt: skip
    drawn = np.floor(rng.random(kept.size) * free).astype(np.int64)
    return drawn + np.searchsorted(row * (n + 1) + before, kept * (n + 1) + drawn, side="right") - first[kept]


def check_past(what: str, source: np.ndarray, target: np.ndarray, data: EventData, links: LinkSplit) -> None:
    """Raise :class:`Leak` unless all these pairs of nodes of ``links`` have events in ``data`` before validation.

    In either direction: this asks the data and not the split, which may be what is wrong.
    """
    n = data.num_nodes
    early = data.time < links.start[0]
    low, high = np.minimum(data.source, data.target), np.maximum(data.source, data.target)
    known = np.unique((low * n + high)[early])
    u, v = links.nodes[source], links.nodes[target]
    key = np.minimum(u, v) * n + np.maximum(u, v)
    fine = np.isin(key, known) | (u == v)
    if not fine.all():
        i = int(np.argmin(fine))
        raise Leak(f"{what}: must have pairs with events before {links.start[0]} only, got {(~fine).sum()} others, "
                   f"the first of them nodes {int(u[i])} and {int(v[i])}")  # fmt: skip
