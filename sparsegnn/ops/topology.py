"""Drop the n weights of lowest score, grow n where a dense score is highest: a sparse-training update, in place.

Of the pattern (crow, col) of a weight [M, K] the nnz - n entries of highest ``drop_score`` [nnz] stay (ties: the lower
slot). Then the n positions of highest ``grow_score`` [M, K] among those not kept are added (ties: the lower index), so
a position that was just dropped may return. NaN ranks lowest. No gradient.

The op takes n as an int64 tensor [] on the device of the pattern: a recorded CUDA graph then moves as many as the
tensor says at each replay. On a GPU n is held in [0, nnz]; to check it would mean to wait.
"""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparsegnn.ops._library import check, define, rows_of
from sparsegnn.ops._out import check_apart
from sparsegnn.pattern import check_pattern


def reference(crow: Tensor, col: Tensor, drop_score: Tensor, grow_score: Tensor, n: Tensor) -> Tensor:
    """The same in plain PyTorch, with stable sorts; no size depends on n."""
    nnz, (rows, cols) = col.numel(), grow_score.shape
    n, place = n.clamp(0, nnz), torch.arange(rows * cols, device=col.device)
    linear = rows_of(crow, nnz) * cols + col
    slot = torch.full_like(place, -1).scatter_(0, linear, place[:nnz])
    order = drop_score.neg().argsort(stable=True)  # ascending order puts NaN last
    kept = torch.zeros_like(place, dtype=torch.bool).scatter_(0, linear[order], place[:nnz] < nnz - n)
    best = grow_score.flatten().neg().argsort(stable=True)
    best = best[kept[best].byte().argsort(stable=True)]  # the free ones first
    grown = torch.zeros_like(kept).scatter_(0, best, place < n)
    chosen = (kept | grown).byte().argsort(descending=True, stable=True)[:nnz]
    row = chosen.div(cols, rounding_mode="floor") if cols else chosen
    crow.copy_(torch.searchsorted(row, torch.arange(rows + 1, device=row.device)))
    col.copy_(chosen - row * cols)
    return slot[chosen].int()


def fake(crow, col, drop_score, grow_score, n):
    return torch.empty_like(col)


op = define(
    "topology_(Tensor(a!) crow, Tensor(b!) col, Tensor drop_score, Tensor grow_score, Tensor n) -> Tensor",
    reference,
    fake,
)


@register_flop_formula(torch.ops.sparsegnn.topology_)
def _(crow, col, *args, out_shape=None, **kwargs) -> int:
    return 0  # comparisons only


def topology_(crow: Tensor, col: Tensor, drop_score: Tensor, grow_score: Tensor, n: int | Tensor) -> Tensor:
    """Rewrite the pattern ``(crow, col)`` in place: drop ``n`` entries, grow ``n``; the number of entries stays.

    Args:
        crow, col: int32 ``[M+1]`` and ``[nnz]``, columns ascending within rows.
        drop_score: ``[nnz]``; the lowest ``n`` go.
        grow_score: ``[M, K]``. Scores are floating point.
        n: number of entries to move, 0 to nnz; or an int64 tensor of one element on the device of ``crow`` that holds
            it, whose value is not checked on a GPU.

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
    read = dict(drop_score=drop_score, grow_score=grow_score, n=n if isinstance(n, Tensor) else None)
    check_apart("topology_", "crow", crow, read | {"col": col})
    check_apart("topology_", "col", col, read)
    check_pattern(crow, col, *grow_score.shape, "topology_")
    if not isinstance(n, Tensor):
        if not 0 <= n <= col.numel():
            raise ValueError(f"topology_: n must be in [0, {col.numel()}], got {n}")
        n = torch.full((), n, dtype=torch.int64, device=crow.device)
    if n.dtype != torch.int64 or n.numel() != 1 or n.device != crow.device:
        got = f"{n.dtype} {list(n.shape)} on {n.device}"
        raise TypeError(f"topology_: n must be an int64 tensor of one element on {crow.device}, got {got}")
    return op(crow, col, drop_score.detach(), grow_score.detach(), n)
