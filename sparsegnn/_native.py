"""Loads the compiled libraries if they are there, and remembers why not."""

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
