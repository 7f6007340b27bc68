"""Checks of compressed rows that do not come from ``maxk``: a kernel writes where their columns say."""

import torch
from torch import Tensor

from sparsegnn.ops._autograd import transformed
from sparsegnn.ops._library import check, index_dtype

MAX_WIDTH = 1 << 15  # columns must fit int16


def check_rows(op: str, values: Tensor, index: Tensor, width: int, group: int | None) -> int:
    """``group`` as the ops want it (0: none); raise unless ``values`` and ``index`` [N, k] are rows of ``width``."""
    check(op, "values", values, ("N", "k"))
    check(op, "index", index, tuple(values.shape), values)
    if isinstance(width, bool) or not isinstance(width, (int, torch.SymInt)):
        raise TypeError(f"{op}: width must be an int, got {type(width).__name__}")
    if not 0 <= width <= MAX_WIDTH:
        raise ValueError(f"{op}: width must be in [0, {MAX_WIDTH}], got {width}")
    if index.dtype != index_dtype(width):
        raise TypeError(f"{op}: index must be {index_dtype(width)} for width={width}, got {index.dtype}")
    readable = index.numel() and not index.is_meta and not torch.compiler.is_compiling() and not transformed()
    if readable:
        low, high = (int(v) for v in index.aminmax())
        if not 0 <= low <= high < width:
            raise ValueError(f"{op}: index must be in [0, {width}), got {low} to {high}")
        if not bool((index[:, 1:] > index[:, :-1]).all()):
            raise ValueError(f"{op}: index must ascend within every row, got columns that do not")
    if not group:
        return 0
    parts, k = width // group if group > 0 else 0, index.size(1)
    if parts == 0 or width % group or k % parts:
        raise ValueError(f"{op}: group must divide the {width} columns into parts of equally many of k={k}, "
                         f"got {group}")  # fmt: skip
    if readable:
        wanted = torch.arange(parts, device=index.device).repeat_interleave(k // parts)
        if not torch.equal(index.long() // group, wanted.expand_as(index)):
            raise ValueError(f"{op}: index must have {k // parts} entries in every group of {group} columns")
    return group
