"""glibc's malloc told to keep what is freed, instead of mapping large tensors anew at every step."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # malloc.h
_DEFAULTS = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 128 << 10, _TOP_PAD: 128 << 10, _MMAP_THRESHOLD: 128 << 10}

kept = False


def keep_memory(keep: bool = True) -> bool:
    """Let the malloc of this process keep large blocks that are freed, for all libraries; ``keep=False`` undoes it.

    glibc maps each block of 32 MiB and more anew, and smaller ones at first, so half of a training step can be page
    faults of PyTorch's own outputs (a product, ``relu``, the loss); those of this package's ops do not need it
    (:func:`empty_cache`). The process then keeps its peak of memory until this is undone. jemalloc and tcmalloc
    (``LD_PRELOAD``) keep memory by themselves, and are not told anything.

    Args:
        keep: switch it on, or back to glibc's defaults with fixed thresholds of 128 KiB, and give back what is free.

    Returns:
        Whether malloc was told: False where it is not glibc's.
    """
    global kept
    if not isinstance(keep, bool):
        raise TypeError(f"keep_memory: keep must be True or False, got {keep!r}")
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "gnu_get_libc_version"):
        return False
    never = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 64 << 20}  # mapped, given back; grown in small steps
    wanted = never if keep else _DEFAULTS
    told = all([libc.mallopt(name, value) for name, value in wanted.items()])
    if not keep:
        libc.malloc_trim(0)
    kept = keep and told
    return bool(told)
