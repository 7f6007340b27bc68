"""Weights of pattern "2:4" through torch's semi-structured product (cuSPARSELt or CUTLASS), on a GPU in 16 bit.

The forward product is torch's. The weight is compressed at each call: a version counter does not tell of all changes
(``.data``, the replay of a CUDA graph), and this costs as much as the weight has entries, the product as much for each
row of x. The gradients are dense products: the transpose of a 2:4 weight is not 2:4, and dy^T x is dense.
"""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from sparsegnn import policy

LEAST_CAPABILITY = (8, 0)  # sparse tensor cores
HALVES = (torch.float16, torch.bfloat16)
_warned: set[str] = set()


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias`` by torch's kernels; at most two of every four inputs of ``weight`` are not zero."""
    return nn.functional.linear(x.contiguous(), torch.sparse.to_sparse_semi_structured(weight), bias).contiguous()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx, dy: Tensor):
        (x, weight), need = ctx.saved_tensors, ctx.needs_input_grad
        dx = dy @ weight if need[0] else None
        return dx, dy.mT @ x if need[1] else None, dy.sum(0) if need[2] else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Differentiable ``x @ weight.T + bias`` for x [N, in] and a 2:4 ``weight`` [out, in], in autocast's precision."""
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        x, weight, bias = (None if t is None else t.to(dtype) for t in (x, weight, bias))
    with torch.autocast("cuda", enabled=False):
        if x.size(0) == 0:
            return nn.functional.linear(x, weight, bias)
        return _Linear.apply(x, weight, bias)


def reason(device: torch.device, shape: tuple[int, int], precision: torch.dtype | str) -> str:
    """Why torch's product cannot be used for a weight [out, in], and what to do; "" where it can."""
    if precision not in HALVES:
        shown = "TF32" if isinstance(precision, str) else str(precision).removeprefix("torch.")
        return f"it has no kernels for 2:4 weights in {shown}: use bfloat16 or float16, or autocast"
    if wrong := capability(device, precision):
        return wrong
    rows, cols = multiples(precision)
    if shape[0] % rows or shape[1] % cols:
        return (
            f"it needs a multiple of {rows} outputs and {cols} inputs in {str(precision).removeprefix('torch.')}, got "
            f"{shape[0]} and {shape[1]}: choose other widths"
        )
    return ""


def multiples(precision: torch.dtype) -> tuple[int, int]:
    """What outputs and inputs of a weight must be multiples of, as this torch says of the backend that it would use."""
    forced = getattr(torch.sparse.SparseSemiStructuredTensor, "_FORCE_CUTLASS", False)
    backend = getattr(torch.sparse, f"SparseSemiStructuredTensor{'CUTLASS' if forced else 'CUSPARSELT'}", None)
    limits = getattr(backend, "_DTYPE_SHAPE_CONSTRAINTS", {}).get(precision)
    return (64, 64) if limits is None else (limits.sparse_min_rows, limits.sparse_min_cols)


@functools.cache
def capability(device: torch.device, precision: torch.dtype) -> str:
    """Why torch's product does not work on this GPU, "" if it does: tried once, on a small weight."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return "it runs on CUDA devices only: move the layer to one"
    if not hasattr(torch.sparse, "to_sparse_semi_structured"):
        return f"torch {torch.__version__} does not have it: install a newer torch"
    if (found := torch.cuda.get_device_capability(device)) < LEAST_CAPABILITY:
        return f"it needs compute capability 8.0 (A100) or newer, got {found[0]}.{found[1]}: choose pattern 'grouped:8'"
    with _disable_current_modes(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says once that the interface is a prototype
        return trial(device, precision)


def trial(device: torch.device, precision: torch.dtype) -> str:
    """What is wrong with a small product on ``device``; "" if nothing is."""
    cpu = {"generator": torch.Generator("cpu").manual_seed(0), "device": "cpu", "dtype": torch.float32}
    mask = torch.tensor([1, 0, 0, 1], device="cpu").repeat(32)
    x, weight = (torch.randn(128, 128, **cpu) for _ in range(2))
    x, weight = x.to(device, precision), (weight * mask).to(device, precision)
    try:
        with torch.autocast("cuda", enabled=False):
            got = product(x, weight, None).double()
    except torch.OutOfMemoryError:
        raise  # and try again the next time
    except Exception as problem:  # cuSPARSELt is not there, say
        text = (str(problem).splitlines() or [type(problem).__name__])[0]
        return f"it fails here ({text}): install a torch wheel that brings cuSPARSELt"
    want = x.double() @ weight.double().mT
    right = (got - want).norm() <= 1e-2 * want.norm()
    return "" if right else "its results are wrong here: install another version of torch"


def choose(layer, precision: torch.dtype | str, forced: bool) -> str:
    """What multiplies where a 2:4 layer on a GPU would run the sparse kernel: ``"2:4"`` for torch's product, if it can.

    Not where calls are compiled or recorded in a CUDA graph: it has been tried in neither.
    """
    if torch.compiler.is_compiling():
        return "sparse" if forced or precision not in HALVES else "dense"
    if reason(layer.values.device, (layer.out_features, layer.in_features), precision):
        return "sparse"  # as asked for, or measured
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return "sparse" if forced else "dense"
    return "2:4"


def explain(layer, kernel: str) -> None:
    """Warn, once for each cause, of a 2:4 layer on a GPU that does without torch's product because it must."""
    if torch.compiler.is_compiling() or policy.forced() == "dense":
        return
    size, precision = (layer.out_features, layer.in_features), policy.precision("cuda", layer.values.dtype)
    why = reason(layer.values.device, size, precision)
    if why and why not in _warned:
        _warned.add(why)
        name = type(layer).__name__
        warnings.warn(f"{name}: torch's 2:4 product is not used, the {kernel} kernel runs: {why}", stacklevel=4)
