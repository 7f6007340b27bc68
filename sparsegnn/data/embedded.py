"""Graphs that need no file: `digits` (scikit-learn's images) and `skewed` (generated)."""

from __future__ import annotations

import numpy as np

from sparsegnn.data.types import GraphData, check_dense_size, from_numpy


def digits(neighbors: int = 8, split_seed: int = 0) -> GraphData:
    """1,797 images of handwritten digits (8 x 8 pixels), joined to their nearest neighbours, both directions."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        raise ValueError("data: 'digits' needs scikit-learn: pip install 'sparsegnn[cli]'") from e
    images = load_digits()
    pixels = images.data  # whole numbers up to 16, so squared distances are exact and ties always break the same way
    square = (pixels * pixels).sum(1)
    distance = square[:, None] + square - 2 * pixels @ pixels.T
    np.fill_diagonal(distance, np.inf)
    source = np.argsort(distance, axis=1, kind="stable")[:, :neighbors].ravel()
    target = np.repeat(np.arange(len(pixels)), neighbors)
    both = np.unique(np.concatenate([[source, target], [target, source]], axis=1), axis=1)
    arrays = {"x": pixels / 16.0, "edge_index": both, "y": images.target}
    return from_numpy(arrays, "digits", split_seed, (f"nearest-neighbour graph, k = {neighbors}, symmetrised",))


def skewed(
    num_nodes: int = 50_000,
    avg_degree: float = 20.0,
    num_classes: int = 16,
    num_features: int = 128,
    *,
    exponent: float = 2.2,
    homophily: float = 0.6,
    signal: float = 0.15,
    seed: int = 0,
    split_seed: int = 0,
) -> GraphData:
    """A graph with a power-law degree distribution, planted classes, and features too noisy to be enough alone.

    Degree-corrected planted partition: node weights follow a power law with density ~ w^-exponent, cut off at
    sqrt(N * avg_degree) times the smallest; an edge joins a node drawn by weight to another drawn by weight, from
    the same class with probability `homophily`. Features are `signal` * (class centre) + unit Gaussian noise.
    Multi-edges and loops are dropped, both directions are stored. The same arguments give the same graph.
    """
    for name, value, fine in (
        ("num_nodes", num_nodes, num_nodes >= 10),
        ("num_classes", num_classes, 2 <= num_classes <= num_nodes),
        ("num_features", num_features, num_features >= 1),
        ("avg_degree", avg_degree, 0 < avg_degree < num_nodes),
        ("exponent", exponent, exponent > 1),
        ("homophily", homophily, 0 <= homophily <= 1),
    ):
        if not fine:
            raise ValueError(f"skewed: {name} is out of range, got {value}")
    check_dense_size(num_nodes, num_features, "skewed")
    rng = np.random.default_rng(seed)
    y = np.sort(rng.permutation(num_nodes) % num_classes)  # classes are contiguous while edges are drawn
    weight = (1 - rng.random(num_nodes)) ** (-1 / (exponent - 1))
    ends = np.cumsum(np.minimum(weight, (num_nodes * avg_degree) ** 0.5))
    starts = np.concatenate([[0.0], ends[:-1]])
    first = np.searchsorted(y, np.arange(num_classes))
    last = np.append(first[1:], num_nodes) - 1

    draws = int(0.5 * num_nodes * avg_degree)
    a = np.searchsorted(ends, rng.random(draws) * ends[-1], side="right")
    same = rng.random(draws) < homophily
    low = np.where(same, starts[first[y[a]]], 0.0)
    high = np.where(same, ends[last[y[a]]], ends[-1])
    b = np.searchsorted(ends, low + rng.random(draws) * (high - low), side="right")
    a, b = np.minimum(a, num_nodes - 1), np.minimum(b, num_nodes - 1)

    order = rng.permutation(num_nodes)  # no locality that a real graph would not have
    a, b = order[a], order[b]
    keys = np.unique(np.concatenate([a * num_nodes + b, b * num_nodes + a])[np.tile(a != b, 2)])
    labels = np.empty(num_nodes, dtype=np.int64)
    labels[order] = y
    centres = rng.standard_normal((num_classes, num_features), dtype=np.float32)
    x = signal * centres[labels] + rng.standard_normal((num_nodes, num_features), dtype=np.float32)
    arrays = {"x": x, "edge_index": np.stack([keys // num_nodes, keys % num_nodes]), "y": labels}
    return from_numpy(arrays, "skewed", split_seed, (f"generated with seed {seed}",))
