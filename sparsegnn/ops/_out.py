"""Checks of memory that the caller hands in as ``out=``."""

from torch import Tensor

from sparsegnn.ops._library import check, check_like


def check_out(op: str, out: Tensor, x: Tensor, shape: tuple[int, ...], need_grad: bool) -> None:
    """Raise unless ``out`` has this shape, is like ``x`` and apart from it in memory, and nothing needs a gradient."""
    check(op, "out", out, shape)
    check_like(op, "out", out, x)
    if need_grad or out.requires_grad:
        raise ValueError(f"{op}: out must be None where a gradient is needed, got a Tensor")
    if not out.is_contiguous():
        raise ValueError(f"{op}: out must be contiguous, got strides {list(out.stride())}")
    if shares_memory(out, x):
        raise ValueError(f"{op}: out must not share memory with x, got overlapping Tensors")


def shares_memory(a: Tensor, b: Tensor) -> bool:
    if not (a.numel() and b.numel()) or a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
        return False
    (first, last), (begin, end) = extent(a), extent(b)
    return first <= end and begin <= last


def extent(t: Tensor) -> tuple[int, int]:
    """First and last element of a tensor, counted from the beginning of its storage."""
    first = t.storage_offset()
    return first, first + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
