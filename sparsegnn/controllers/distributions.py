"""How many weights each layer keeps: from shapes [M, K] and one sparsity to an exact count per layer.

Counts are rounded to the nearest per layer, at least one each.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsegnn.pattern import check_sparsity, count_kept, top

DISTRIBUTIONS = ("erk", "er", "uniform", "global")
Shapes = Mapping[str, tuple[int, int]]


def allocate(
    shapes: Shapes,
    sparsity: float,
    distribution: str | Mapping[str, float] = "erk",
    weights: Mapping[str, Tensor] | None = None,
    op: str = "allocate",
) -> dict[str, int]:
    """Number of weights of every layer.

    Args:
        shapes: name -> ``(out_features, in_features)``.
        sparsity: of all layers together; ignored where ``distribution`` names each layer's own.
        distribution: ``"erk"``, ``"er"``, ``"uniform"``, ``"global"`` (by magnitude over all ``weights``) or
            ``{name: sparsity}``.
        weights: name -> the weights, of any shape; for ``"global"`` only.
    """
    if isinstance(distribution, Mapping):
        return explicit(shapes, distribution, op)
    check_sparsity(sparsity, op)
    if distribution in ("erk", "er"):  # they differ for convolutions with a window only
        return erk(shapes, sparsity)
    if distribution == "uniform":
        return uniform(shapes, sparsity)
    if distribution == "global":
        return global_magnitude(weights, sparsity)
    names = ", ".join(repr(d) for d in DISTRIBUTIONS)
    raise ValueError(f"{op}: distribution must be {names} or a dict of layer name to sparsity, got {distribution!r}")


def uniform(shapes: Shapes, sparsity: float) -> dict[str, int]:
    """The same sparsity in every layer. A tiny output layer suffers: prefer ERK (or keep that layer dense)."""
    return {name: count_kept(*shape, sparsity) for name, shape in shapes.items()}


def erk(shapes: Shapes, sparsity: float) -> dict[str, int]:
    """Erdos-Renyi-kernel: the fraction kept is proportional to (M + K) / (M K) (SET 2018, RigL 2020).

    Layers that would keep more than all of their weights are dense, and the others share the rest.
    """
    budget, full = (1 - sparsity) * sum(m * k for m, k in shapes.values()), set()
    while True:
        left = {name: shape for name, shape in shapes.items() if name not in full}
        scale = (budget - sum(m * k for m, k in map(shapes.get, full))) / max(1, sum(m + k for m, k in left.values()))
        over = {name for name, (m, k) in left.items() if scale * (m + k) > m * k}
        if not over:
            break
        full |= over
    return {
        name: m * k if name in full else max(1, round(scale * (m + k))) for name, (m, k) in shapes.items()
    }  # in the order of `shapes`


def explicit(shapes: Shapes, sparsities: Mapping[str, float], op: str = "allocate") -> dict[str, int]:
    """Each layer's own sparsity; names that are missing on either side raise ValueError."""
    for name in {*shapes, *sparsities}:
        if (name in shapes) != (name in sparsities):
            problem = "must not name" if name in sparsities else "must name"
            raise ValueError(f"{op}: distribution {problem} layer {name!r}, got {sorted(sparsities)}")
    return {name: count_kept(*shape, check_sparsity(sparsities[name], op)) for name, shape in shapes.items()}


def global_magnitude(weights: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
    """The counts that keep the largest magnitudes of all layers together; ties to the earlier layer and index."""
    flat = {name: w.detach().abs().flatten().float() for name, w in weights.items()}
    owner = torch.cat([torch.full((w.numel(),), i) for i, w in enumerate(flat.values())])
    device = next(iter(flat.values())).device
    kept = top(torch.cat([w.to(device) for w in flat.values()]), count_kept(1, owner.numel(), sparsity))
    count = owner[kept.cpu()].bincount(minlength=len(flat)).tolist()
    return {name: max(1, n) for name, n in zip(flat, count, strict=True)}
