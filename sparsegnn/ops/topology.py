"""Drop the n weights of lowest score, grow n where a dense score is highest: a sparse-training update, in place.

Of the pattern (crow, col) of a weight [M, K] the nnz - n entries of highest ``drop_score`` [nnz] stay (ties: the lower
slot). Then the n positions of highest ``grow_score`` [M, K] among those not kept are added (ties: the lower index), so
a position that was just dropped may return. NaN ranks lowest. No gradient.
"""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparsegnn.ops._library import check, define, rows_of
from sparsegnn.pattern import check_pattern


def reference(crow: Tensor, col: Tensor, drop_score: Tensor, grow_score: Tensor, n: int) -> Tensor:
    """The same in plain PyTorch, with stable sorts."""
    nnz, (rows, cols) = col.numel(), grow_score.shape
    if not 0 <= n <= nnz:
        raise ValueError(f"topology_: n must be in [0, {nnz}], got {n}")
    linear = rows_of(crow, nnz) * cols + col
    slot = linear.new_full((rows * cols,), -1).scatter_(0, linear, torch.arange(nnz, device=col.device))
    kept = linear[drop_score.neg().argsort(stable=True)[: nnz - n]]  # ascending order puts NaN last
    taken = torch.zeros_like(slot, dtype=torch.bool).index_fill_(0, kept, True)
    best = grow_score.flatten().neg().argsort(stable=True)
    grown = best[taken[best].byte().argsort(stable=True)[:n]]
    chosen = torch.cat([kept, grown]).sort().values
    row = chosen.div(cols, rounding_mode="floor") if cols else chosen
    crow.copy_(torch.searchsorted(row, torch.arange(rows + 1, device=row.device)))
    col.copy_(chosen - row * cols)
    return slot[chosen].int()


def fake(crow, col, drop_score, grow_score, n):
    return torch.empty_like(col)


op = define(
    "topology_(Tensor(a!) crow, Tensor(b!) col, Tensor drop_score, Tensor grow_score, int n) -> Tensor", reference, fake
)


@register_flop_formula(torch.ops.sparsegnn.topology_)
def _(crow, col, *args, out_shape=None, **kwargs) -> int:
    return 0  # comparisons only


def topology_(crow: Tensor, col: Tensor, drop_score: Tensor, grow_score: Tensor, n: int) -> Tensor:
    """Rewrite the pattern ``(crow, col)`` in place: drop ``n`` entries, grow ``n``; the number of entries stays.

    Args:
        crow, col: int32 ``[M+1]`` and ``[nnz]``, columns ascending within rows.
        drop_score: ``[nnz]``; the lowest ``n`` go.
        grow_score: ``[M, K]``. Scores are floating point.
        n: number of entries to move, 0 to nnz.

    Returns:
        ``source`` int32 ``[nnz]``: the old slot of each entry, or -1 where it is new.
    """
    check("topology_", "crow", crow, ("M+1",))
    check("topology_", "col", col, ("nnz",), crow)
    if not crow.numel():
        raise ValueError("topology_: crow must have shape [M+1], got [0]")
    scores = ("drop_score", drop_score), ("grow_score", grow_score)
    check("topology_", *scores[0], (col.numel(),), crow)
    check("topology_", *scores[1], (crow.numel() - 1, "K"), crow)
    for name, score in scores:
        if not score.is_floating_point():
            raise TypeError(f"topology_: {name} must be floating point, got {score.dtype}")
    check_pattern(crow, col, *grow_score.shape, "topology_")
    if not 0 <= n <= col.numel():
        raise ValueError(f"topology_: n must be in [0, {col.numel()}], got {n}")
    return op(crow, col, drop_score.detach(), grow_score.detach(), n)
