"""Which kernel multiplies by a sparse weight, the sparse or the dense one: a static policy, and how to force one.

In order of precedence: :func:`use_kernel`, the environment variable ``SPARSEGNN_KERNEL``, a measured verdict
(:mod:`sparsegnn.plans`), the static policy. That is deterministic: it depends on the shape, the number of weights, the
pattern, the type of device, on a CPU the instruction set, and the precision in which the dense product would run.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator

import torch
from torch.utils._python_dispatch import _disable_current_modes

from sparsegnn import _native

KERNELS = ("sparse", "dense", "auto")
TF32 = "tf32"  # the precision of float32 products on a GPU where torch is allowed to round their factors
PRECISIONS = (torch.float32, torch.float64, torch.bfloat16, torch.float16, TF32)

# --- force one -------------------------------------------------------------------------------------------------------


class _Innermost(threading.local):
    kernel: str | None = None  # of the use_kernel() that this thread is in


_innermost = _Innermost()
_environment: str | None = None  # SPARSEGNN_KERNEL, as it was when a sparse layer was last made or moved


@contextlib.contextmanager
def use_kernel(kernel: str) -> Iterator[None]:
    """Run every sparse layer on the ``"sparse"`` or the ``"dense"`` kernel within this context, in this thread.

    ``"auto"`` leaves the choice to measured verdicts and the static policy, whatever ``SPARSEGNN_KERNEL`` says. The
    results are equal to rounding: the dense kernel multiplies by the weight with its zeros filled in. Contexts nest;
    the end of one restores what was before. ``torch.compile`` compiles a model once for each kernel. A backward pass
    uses the kernel of its forward pass.
    """
    check_kernel("use_kernel", "kernel", kernel)
    before, _innermost.kernel = _innermost.kernel, kernel
    try:
        yield
    finally:
        _innermost.kernel = before


def forced() -> str | None:
    """``"sparse"`` or ``"dense"`` where the user asks for it, by context or environment; else None."""
    kernel = _innermost.kernel or _environment
    return None if kernel == "auto" else kernel


def read_environment() -> None:
    """Look at ``SPARSEGNN_KERNEL``, not at every call: that would cost more than the rest of the choice."""
    global _environment
    kernel = os.environ.get("SPARSEGNN_KERNEL") or None
    if kernel is not None:
        check_kernel("sparsegnn", "SPARSEGNN_KERNEL", kernel)
    _environment = kernel


def check_kernel(op: str, name: str, kernel: object) -> None:
    if kernel not in KERNELS:
        raise ValueError(f"{op}: {name} must be one of {', '.join(KERNELS)}, got {kernel!r}")


# --- the precision of a call -----------------------------------------------------------------------------------------


def tf32_allowed() -> bool:
    """Whether torch multiplies float32 matrices in TF32 on a GPU, by whichever of its settings."""
    return torch._C._get_fp32_precision_getter("cuda", "matmul") == "tf32"  # the legacy getter raises if both are used


# It is guarded: a change compiles again. What torch.compiler.assume_constant_result does, which loads all of the
# compiler: half of the time that this package takes to import.
tf32_allowed._dynamo_marked_constant = True


def precision(device: str, dtype: torch.dtype) -> torch.dtype | str:
    """In what a product by a weight of this ``dtype`` would run now: autocast and the TF32 setting may change it."""
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    return rounded(device, dtype)


def rounded(device: str, dtype: torch.dtype) -> torch.dtype | str:
    """In what torch multiplies matrices of this ``dtype``: the TF32 setting may change it."""
    return TF32 if device == "cuda" and dtype == torch.float32 and tf32_allowed() else dtype


# --- the static policy -----------------------------------------------------------------------------------------------

_MEASURED_WITH_AVX512 = {torch.float32: 0.16, torch.float64: 0.07, torch.bfloat16: 0.7, torch.float16: 0.0}
#: CPU: least sparsity at which the sparse kernels win, forward and backward together, by instruction set and dtype;
#: measured on Zen 4 with AVX-512 over widths of 64 to 1024 and 4,000 rows or more. Dense bfloat16 has instructions of
#: its own there; dense float16 has none, and always loses. With few rows dense wins longer: `only_if_faster` measures
#: that. With AVX2 float32 on Zen 3 breaks even at 27 % (4096 x 256 x 256), 40 % (4096 x 512 x 512) and 48 % (2048 x
#: 1024 x 1024). Where a core starts two 512-bit multiply-adds a cycle (Emerald Rapids, widths of 256 to 1024) float32
#: breaks even at 30 to 45 %, float64 at 30 to 35, bfloat16 against AMX at 80 to 90, float16 at 15 to 35. What was not
#: measured has the numbers of AVX-512.
LEAST_SPARSITY = {
    "avx512": _MEASURED_WITH_AVX512,
    "avx512x2": {torch.float32: 0.4, torch.float64: 0.35, torch.bfloat16: 0.85, torch.float16: 0.3},
    "avx2": _MEASURED_WITH_AVX512 | {torch.float32: 0.4},
    "portable": dict(_MEASURED_WITH_AVX512),
    "reference": dict(_MEASURED_WITH_AVX512),  # plain PyTorch
}
#: CPU: no more inputs or outputs than this, and the dense kernels leave so much unused that sparse ones always win
NARROW = 40

#: CPU: least sparsity at which sparse features times the nonzeros of the weight win over its dense form
FEATURES_SPARSITY = 0.7


def features_kernel(values: torch.Tensor, shape: tuple[int, int], structure: str) -> str:
    """The kernel for constant sparse features and a sparse weight [M, K]: ``"sparse"`` or ``"dense"``."""
    chosen = forced()
    if chosen is None:
        enough = values.numel() <= (1 - FEATURES_SPARSITY) * shape[0] * shape[1]
        chosen = "sparse" if enough and not values.is_cuda else "dense"
    return chosen


# CUDA: a roofline of a training step's three products, y, dx and dW, by both kernels. All numbers are EXPECTED, NOT
# MEASURED ON A GPU BY THIS PROJECT'S KERNELS; "2.2" is the section of the notes on the arithmetic of an H200
# (shared/notes/cuda-kernels.md) that derives them, "log" docs/kernels-log.md. The consequences, of which tests keep
# account: in strict float32 unstructured weights win from 81 % sparsity on, where dW of up to 82 % comes from the dense
# product; against TF32 and 16 bit nothing wins below a width of about 384 (0.1), unstructured weights from 97 % on
# (0.2), groups and blocks at a width of 512 and more (0.3), groups of 8 in 16 bit only from 94 to 96 % on.
BANDWIDTH = 4.3  # TB/s, copies: section 1, measured on an H200
#: TFLOP/s of cuBLAS: section 1, for bfloat16 measured on an H200, else planned; float64: 90 % of its tensor cores' peak
DENSE_RATE = {torch.float32: 50, TF32: 380, torch.bfloat16: 790, torch.float16: 790, torch.float64: 60}
#: TFLOP/s of y by ours, planned, by pattern: section 2.2; of unstructured weights in float32 what the counts of the
#: compiled kernel make of that (log). Above 42 by tensor cores, which block_linear uses in TF32 and 16 bit. float32 has
#: none, so that V outputs that share an input reach the FMA's 42 at most. float64 is not in the notes: half of float32,
#: with words twice as wide and half the FMAs
SPARSE_RATE = {
    "unstructured": {torch.float32: 11, TF32: 11, torch.bfloat16: 20, torch.float16: 20},  # V=1: a shared-memory word
    "fan_in": {torch.float32: 11, TF32: 11, torch.bfloat16: 20, torch.float16: 20},  # for each multiplication
    # torch's own product, in 16 bit: half of the operations of cuBLAS in 1/1.15 to 1/1.5 of its time (2.2), so that the
    # rate is 1.3 / 2 of its; else that of ours, which take the pattern for unstructured
    "2:4": {torch.float32: 11, TF32: 11, torch.bfloat16: 513, torch.float16: 513},
    "grouped:4": {torch.float32: 42, TF32: 42, torch.bfloat16: 42, torch.float16: 42},  # V=4 does not fill an mma
    "grouped:8": {torch.float32: 42, TF32: 80, torch.bfloat16: 80, torch.float16: 80},  # V=8, mma.sync
    "grouped:16": {torch.float32: 42, TF32: 120, torch.bfloat16: 120, torch.float16: 120},  # V=16, the lower end
    "block:16x16": {torch.float32: 42, TF32: 120, torch.bfloat16: 300, torch.float16: 300},  # ldmatrix, the lower end
    "block:32x32": {torch.float32: 42, TF32: 200, torch.bfloat16: 300, torch.float16: 300},
}
#: TFLOP/s of dx, where it is slower than y: groups add to columns scattered in shared memory (log), three words for V
#: multiplications
SCATTER_RATE = {"grouped:4": 14, "grouped:8": 28, "grouped:16": 57}
#: TFLOP/s of dvalues of unstructured weights on the nonzeros, from the counts of the compiled kernel (log); in 16 bit
#: 45 % of what shared memory delivers (3.2). Groups and blocks: as y
SAMPLED_RATE = {torch.float32: 9, TF32: 9, torch.bfloat16: 15, torch.float16: 15}
#: sparse is taken where it is expected to be so much faster; the 1.05 to 1.09 at a width of 384 (0.1) do not count
MARGIN = 1.1


def static_kernel(
    nnz: int,
    shape: tuple[int, int],
    precision: torch.dtype | str = torch.float32,
    device: str = "cpu",
    structure: str = "unstructured",
) -> str:
    """``"sparse"`` or ``"dense"`` for a weight of this shape and pattern, ``nnz`` of which exist."""
    if device == "cuda":
        return _by_roofline(nnz, shape, precision, structure)
    dense_types = LEAST_SPARSITY[instructions()]
    narrow = min(shape) <= NARROW and precision in (torch.float32, torch.float64)
    least = 0.0 if narrow else dense_types.get(precision, dense_types[torch.float32])
    return "dense" if nnz > (1 - least) * shape[0] * shape[1] else "sparse"


def _by_roofline(nnz: int, shape: tuple[int, int], precision: torch.dtype | str, structure: str) -> str:
    rates, whole = SPARSE_RATE[structure], shape[0] * shape[1]
    forward = _rate(rates, precision)
    sparse, dense = _seconds(nnz, shape, precision, forward), _seconds(whole, shape, precision, DENSE_RATE[precision])
    if structure != "2:4" or precision not in (torch.bfloat16, torch.float16):  # else gradients are the dense kernel's
        sparse += _seconds(nnz, shape, precision, min(forward, SCATTER_RATE.get(structure, forward)))
        if structure.startswith(("grouped", "block")):
            sparse += _seconds(nnz, shape, precision, forward)
        else:
            sparse += min(_sampled(nnz, shape, precision), dense)
        dense *= 3
    return "sparse" if MARGIN * sparse <= dense else "dense"


def _rate(rates: dict, precision: torch.dtype | str) -> float:
    return rates[torch.float32] / 2 if precision == torch.float64 else rates[precision]


def _seconds(multiplications: int, shape: tuple[int, int], precision: torch.dtype | str, rate: float) -> float:
    """Of one product, per row of x, in ps: what multiplies, or what reads x and writes y, whichever takes longer."""
    size = {torch.float64: 8, torch.float32: 4, TF32: 4}.get(precision, 2)
    return max(2 * multiplications / rate, size * sum(shape) / BANDWIDTH)


def _sampled(nnz: int, shape: tuple[int, int], precision: torch.dtype | str) -> float:
    return _seconds(nnz, shape, precision, _rate(SAMPLED_RATE, precision))


def gathers_gradient(nnz: int, shape: tuple[int, int], precision: torch.dtype | str, device: str = "cuda") -> bool:
    """Whether the gradient of ``nnz`` values is gathered from the dense ``dy.T @ x``, or made on the nonzeros alone.

    By a roofline of both, on a GPU: in TF32 and 16 bit, on tensor cores, at any sparsity up to a width of about 384 and
    below 98 % up to about 2048; in strict float32 below 82 %, in float64 below 93 %. That takes a temporary ``[M, K]``
    of the type of ``x``, and 12 bytes for each value. A CPU stays on the nonzeros, as do all where the sparse kernel is
    forced.
    """
    if device != "cuda" or forced() == "sparse":
        return False
    dense = _seconds(shape[0] * shape[1], shape, precision, DENSE_RATE[precision])
    return dense <= _sampled(nnz, shape, precision)


def instructions() -> str:
    """The instruction set of the CPU kernels, ``avx512x2`` where a core starts two 512-bit multiply-adds a cycle.

    ``reference`` where no kernels are loaded.
    """
    return "reference" if _native.status.get("cpu", "not built") else _isa()


@functools.cache
def _isa() -> str:
    with _disable_current_modes():  # a layer may be made under FakeTensorMode, which knows tensors only
        return torch.ops.sparsegnn.isa() + "x2" * torch.ops.sparsegnn.two_wide_fmas()
