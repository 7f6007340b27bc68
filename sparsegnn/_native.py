"""Loads the compiled libraries if they are there, and remembers why not."""

import ctypes
import os
from pathlib import Path

import torch

#: where the libraries are; SPARSEGNN_LIBRARIES names another folder (sanitizer builds, prebuilt libraries)
FOLDER = Path(os.environ.get("SPARSEGNN_LIBRARIES") or Path(__file__).parent)
BUILD_HINT = "pip install --no-build-isolation ."  # from a checkout

#: library -> "" when loaded, else the reason
status: dict[str, str] = {}


def strict() -> bool:
    """True when SPARSEGNN_STRICT=1: a fallback to plain PyTorch is an error (tests, benchmarks, CI)."""
    return os.environ.get("SPARSEGNN_STRICT", "") == "1"


def load() -> None:
    """Load libsparsegnn_cpu.so, and libsparsegnn_cuda.so where this torch has CUDA."""
    for name in ("cpu", "cuda"):
        path = FOLDER / f"libsparsegnn_{name}.so"
        if not path.exists():
            status[name] = "not built"
        elif name == "cuda" and torch.version.cuda is None:
            status[name] = "built, but this torch has no CUDA"
        else:
            try:
                torch.ops.load_library(str(path))
                status[name] = ""
            except OSError as error:
                status[name] = f"does not load: {error}"


def has_kernel(op: str, key: str) -> bool:
    """Whether a compiled kernel of ``sparsegnn::op`` is registered for the dispatch key ``CPU`` or ``CUDA``."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"sparsegnn::{op}", key)


def kept_memory() -> tuple[int, int]:
    """Bytes of large CPU outputs: held by live tensors, and kept for later ones."""
    live, kept = ctypes.c_uint64(), ctypes.c_uint64()
    if status.get("cpu") == "":
        _library().sparsegnn_pool_use(ctypes.byref(live), ctypes.byref(kept))
    return live.value, kept.value


def empty_cache() -> None:
    """Give the memory that CPU ops keep for their next outputs back to the system.

    Outputs of 4 MiB and more come from a pool (``SPARSEGNN_POOL=0`` switches it off): it keeps freed ones, together
    with those in use never more than were in use at once lately.
    """
    if status.get("cpu") == "":
        _library().sparsegnn_pool_release()


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(FOLDER / "libsparsegnn_cpu.so"))  # the loaded one
