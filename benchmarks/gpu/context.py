"""The GPU of this process, or the CPU in its place; whether it still answers; numbers on it."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import sys

import torch

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


class DeadGpu(RuntimeError):
    """A kernel broke the CUDA context: nothing runs in this process any more."""


@functools.cache
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def on_gpu() -> bool:
    return device().type == "cuda"


def synchronize() -> None:
    if on_gpu():
        torch.cuda.synchronize()


def l2_bytes() -> int:
    return torch.cuda.get_device_properties(device()).L2_cache_size if on_gpu() else 1 << 20


def name() -> str:
    """A folder name: the GPU's, or ``dry-run``."""
    from harness import runner

    return runner.device_name("cuda") if on_gpu() else "dry-run"


def hide() -> None:
    """Make this process, and those it starts, run on the CPU."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    device.cache_clear()


def randn(*shape: int, precision: str = "fp32", seed: int = 1) -> torch.Tensor:
    g = torch.Generator(device()).manual_seed(seed)
    return torch.randn(*shape, device=device(), generator=g).to(DTYPES[precision])


@contextlib.contextmanager
def tf32(allowed: bool = True):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def assert_alive() -> None:
    """DeadGpu after an error that breaks the CUDA context, such as an illegal access."""
    if on_gpu():
        try:
            torch.cuda.synchronize()
            torch.zeros(1, device=device()).item()
        except Exception as e:
            raise DeadGpu(text_of(e)) from e


def clean_up() -> None:
    """Between groups. A process that lost its GPU ends here, and the next one goes on behind the group it was at."""
    try:
        assert_alive()
    except DeadGpu as e:
        print(f"the GPU is lost to this process: {e}", file=sys.stderr, flush=True)
        os._exit(9)
    gc.collect()  # closures that hold each other hold tensors
    if on_gpu():
        torch.cuda.empty_cache()


def text_of(e: Exception) -> str:
    return f"{type(e).__name__}: {' '.join(str(e).split())}"[:300]
