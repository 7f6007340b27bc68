"""Checks of memory that the caller hands in, as ``out=`` or to be written to in place."""

import torch
from torch import Tensor

from sparsegnn.ops._autograd import transformed
from sparsegnn.ops._library import check, check_like

_COUNTS = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)


def check_out(op: str, out: Tensor, x: Tensor, shape: tuple[int, ...], **inputs: Tensor | None) -> None:
    """Raise unless ``out`` has this shape, is like ``x``, apart from all inputs, and nothing needs a gradient."""
    check(op, "out", out, shape)
    check_like(op, "out", out, x)
    inputs["x"] = x
    needed = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs.values())
    if needed or out.requires_grad:
        raise ValueError(f"{op}: out must be None where a gradient is needed, got a Tensor")
    if not out.is_contiguous():
        raise ValueError(f"{op}: out must be contiguous, got strides {list(out.stride())}")
    check_apart(op, "out", out, inputs)


def write(op, out: Tensor, *args) -> Tensor:
    """``op(out, *args)``, which tells autograd what it writes to, in 1 us instead of the 8 us of a key in Python."""
    if torch.compiler.is_compiling():
        op(out, *args)
        return out
    torch.autograd.graph.increment_version(out)
    with torch._C._ExcludeDispatchKeyGuard(_COUNTS):
        op(out, *args)
    return out


def check_apart(op: str, name: str, written: Tensor, inputs: dict[str, Tensor | None]) -> None:
    """Raise if a tensor that is written to shares memory with an input: kernels read while they write.

    Where tensors have no memory to look at, nothing is looked at.
    """
    if torch.compiler.is_compiling() or transformed() or type(written) is not Tensor or written.is_meta:
        return
    begin = written.data_ptr()
    end = begin + written.nbytes
    for other, t in inputs.items():
        if t is not None and t.data_ptr() < end and begin < t.data_ptr() + extent(t) and begin < end:
            raise ValueError(f"{op}: {name} must not share memory with {other}, got overlapping Tensors")


def extent(t: Tensor) -> int:
    """Bytes from the first element of a tensor to the end of its last."""
    if t.is_contiguous():
        return t.nbytes
    last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return (last + 1) * t.element_size() if t.numel() else 0
