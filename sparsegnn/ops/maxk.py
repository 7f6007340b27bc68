"""The k largest entries of every row, compressed: values and their columns, in ascending order of columns.

Peng et al., MaxK-GNN, ASPLOS 2024 (https://arxiv.org/abs/2312.08656): an activation that keeps k of F features, so that
the aggregation behind it reads k. With a ``group``, the k * group / F largest of every ``group`` neighbouring columns.
"""

from numbers import Integral

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparsegnn.ops._autograd import register_autograd
from sparsegnn.ops._compressed import MAX_WIDTH
from sparsegnn.ops._library import check, define, index_dtype


def reference(x, k, group):
    """The same in plain PyTorch: stable sorts, so that equals keep the order of columns. NaN ranks highest."""
    n, width = x.shape
    group = group or max(width, 1)
    parts = width // group
    best = x.view(n, parts, group).sort(dim=2, descending=True, stable=True).indices[..., : k // max(parts, 1)]
    index = (best + torch.arange(0, width, group, device=x.device)[:, None]).reshape(n, k).sort(dim=1).values
    return x.gather(1, index), index.to(index_dtype(width))


def fake(x, k, group):
    return x.new_empty(x.size(0), k), x.new_empty(x.size(0), k, dtype=index_dtype(x.size(1)))


op = define("maxk(Tensor x, int k, int group) -> (Tensor, Tensor)", reference, fake)


def setup_context(ctx, inputs, output):
    ctx.width = inputs[0].shape[1]
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def backward(ctx, dvalues, _):
    (index,) = ctx.saved_tensors
    return torch.ops.sparsegnn.maxk_expand(dvalues, index, ctx.width), None, None


register_autograd(op, backward, setup_context)


@register_flop_formula(torch.ops.sparsegnn.maxk)
def _(x, *args, out_shape=None, **kwargs) -> int:
    return 0  # comparisons only


def check_k(name: str, k: int, group: int | None, width: int) -> int:
    """``group`` as the op wants it (0: none); raise unless ``k`` of ``width`` columns can be kept so."""
    for what, value in (("k", k), ("group", group)):
        if (isinstance(value, bool) or not isinstance(value, Integral)) and not (what == "group" and value is None):
            raise TypeError(f"{name}: {what} must be an int, got {type(value).__name__}")
    if not 1 <= k <= width:
        raise ValueError(f"{name}: k must be in [1, {width}], the number of columns, got {k}")
    if width > MAX_WIDTH:
        raise ValueError(f"{name}: x must have at most {MAX_WIDTH} columns, got {width}")
    if group is None:
        return 0
    if group < 1 or width % group or k % (width // group):
        raise ValueError(
            f"{name}: group must divide the {width} columns into parts that keep equally many of k={k}, got {group}"
        )
    return int(group)


def maxk(x: Tensor, k: int, group: int | None = None) -> tuple[Tensor, Tensor]:
    """Keep the ``k`` largest entries of every row.

    Args:
        x: ``[N, F]``, float32, float64, bfloat16 or float16; F at most 32768. NaN counts as largest, as in
            ``torch.topk``; of equals those of lower columns are kept.
        k: entries to keep, 1 to F.
        group: keep the same number, ``k * group / F``, of every ``group`` neighbouring columns; None: of the row.

    Returns:
        ``values`` ``[N, k]``, differentiable in ``x``, and their columns ``index`` ``[N, k]``, ascending: uint8 where
        F is at most 256, int16 where it is more.
    """
    check("maxk", "x", x, ("N", "F"))
    if not x.is_floating_point():
        raise TypeError(f"maxk: x must be floating point, got {x.dtype}")
    return op(x, int(k), check_k("maxk", k, group, x.size(1)))
