"""Temporal random walks over the training events, and embeddings of the nodes learned from them by word2vec."""

from __future__ import annotations

import zlib
from functools import lru_cache

import numpy as np

from sparsegnn.data import EventData
from sparsegnn.experiments.links.events import Leak, LinkSplit, check_past

WINDOW = 5  # of word2vec: nodes on either side


def temporal_walks(past: EventData, walks: int, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``walks`` walks from each node, along events in either direction, each later than the one before.

    Each step takes one of the events of the node that are later than the last one, all equally likely (Nguyen et al.,
    CTDNE, 2018); a walk ends where there is none.

    Returns:
        ``nodes`` int64 [walks * N, length], -1 behind the end of a walk; ``times`` [walks * N, length - 1], of the
        event before each node but the first, the last time of all behind the end.
    """
    n, when = past.num_nodes, np.concatenate([past.time, past.time])
    here, there = np.concatenate([past.source, past.target]), np.concatenate([past.target, past.source])
    order = np.lexsort((when, here))
    here, there, when = here[order], there[order], when[order]
    moments, rank = np.unique(when, return_inverse=True)
    key = here * (moments.size + 1) + rank
    end = np.searchsorted(here, np.arange(n), side="right")
    rng = np.random.default_rng(seed)
    nodes = np.full((walks * n, length), -1)
    nodes[:, 0] = np.tile(np.arange(n), walks)
    ranks = np.full((walks * n, length - 1), moments.size - 1)
    going, now = np.arange(walks * n), np.zeros(walks * n, dtype=np.int64)
    for i in range(1, length):
        at = nodes[going, i - 1]
        first = np.searchsorted(key, at * (moments.size + 1) + now)
        left = end[at] - first
        going, first, left = going[left > 0], first[left > 0], left[left > 0]
        event = first + np.floor(rng.random(going.size) * left).astype(np.int64)
        nodes[going, i], ranks[going, i - 1], now = there[event], rank[event], rank[event] + 1
    return nodes, moments[ranks]


def check_walks(nodes: np.ndarray, times: np.ndarray, data: EventData, links: LinkSplit) -> None:
    """Raise :class:`Leak` unless the walks step along events of the past only, never back in time."""
    on = nodes[:, 1:] >= 0
    if (times[on] >= links.start[0]).any():
        raise Leak(f"walks: must have events before {links.start[0]} only, got one at {times[on].max()}")
    if (np.diff(times, axis=1) < 0).any():
        raise Leak("walks: times must not decrease along a walk, got a step back in time")
    check_past("walks", nodes[:, :-1][on], nodes[:, 1:][on], data, links)


def embed(nodes: np.ndarray, num_nodes: int, features: int, passes: int, seed: int) -> np.ndarray:
    """Embeddings float32 [num_nodes, features] by skip-gram with negative sampling; walks are sentences.

    One worker, so the same walks and seed give the same numbers.
    """
    try:
        from gensim.models import Word2Vec
    except ImportError as e:
        raise ValueError("model 'walk' needs gensim: pip install 'sparsegnn[study]'") from e
    sentences = [[str(i) for i in walk[walk >= 0]] for walk in nodes]
    model = Word2Vec(sentences, vector_size=features, window=WINDOW, min_count=1, sg=1, negative=5, workers=1,
                     epochs=passes, seed=seed % 2**32, hashfxn=_hash)  # fmt: skip
    return model.wv[[str(i) for i in range(num_nodes)]]


def _hash(text: str) -> int:
    """The same in every process, which Python's own is not."""
    return zlib.crc32(str(text).encode())


@lru_cache(maxsize=4)  # runs of one study have the same
def walk_embeddings(data: EventData, links: LinkSplit, walks: int, length: int, features: int, passes: int,
                    seed: int) -> np.ndarray:  # fmt: skip
    """What :func:`temporal_walks`, :func:`check_walks` and :func:`embed` make of the past."""
    nodes, times = temporal_walks(links.past, walks, length, seed)
    check_walks(nodes, times, data, links)
    return embed(nodes, links.num_nodes, features, passes, seed)
