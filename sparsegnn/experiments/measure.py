"""What a training run costs: time per phase of a step, peak memory, floating point operations."""

from __future__ import annotations

import ctypes
import gc
import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from sparsegnn import _native

PHASES = ("forward", "backward", "optimizer")


class StepTimer:
    """Seconds per phase of a step, as medians over all recorded steps but the first ones."""

    def __init__(self, device: torch.device, warm_up: int = 3):
        self.device, self.warm_up = device, warm_up
        self.steps: list[dict[str, float]] = []
        self._now: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self._now[name] = time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def end_step(self, keep: bool = True) -> None:
        """Close the step; `keep=False` forgets it (counted under a FLOP counter, say)."""
        if keep:
            self.steps.append(self._now)
        self._now = {}

    def medians(self) -> dict[str, float | None]:
        """`forward`, `backward`, `optimizer`, and `step`: the median of the sums, not the sum of the medians.

        None for phases that were not timed, as where the whole step is one (`phase("step")`).
        """
        used = self.steps[self.warm_up :] or self.steps
        if not used:
            return dict.fromkeys((*PHASES, "step"), float("nan"))
        times = {name: [s[name] for s in used if name in s] for name in PHASES}
        result = {name: statistics.median(each) if each else None for name, each in times.items()}
        result["step"] = statistics.median(sum(s.values()) for s in used)
        return result


class PeakMemory:
    """High-water mark of memory since construction, in bytes.

    CPU: resident memory of the process from /proc, its mark reset through /proc/self/clear_refs. Where that is not
    allowed the mark since the start of the process is used and `exact` is False. CUDA: torch's allocator.
    """

    def __init__(self, device: torch.device):
        self.device, self.exact = device, True
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.start = torch.cuda.memory_allocated(device)
            return
        _release_free_memory()
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self.exact = False
        self.start = _status("VmRSS") or _max_resident()

    def peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return (_status("VmHWM") if self.exact else None) or _max_resident()


def _release_free_memory() -> None:
    """Give freed memory back to the system, so that an earlier run does not hide what this one takes."""
    _native.empty_cache()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # not glibc
        pass


def _status(field: str) -> int | None:
    try:
        text = Path("/proc/self/status").read_text(errors="replace")  # it begins with the name of the process
    except OSError:
        return None
    line = next((line for line in text.splitlines() if line.startswith(field + ":")), None)
    return None if line is None else int(line.split()[1]) * 1024


def _max_resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux


class StepFlops:
    """Training FLOPs of a run. A step is counted once for each `key` (number of weights, probes set) and reused.

    With `count=False` nothing is counted and `total` is None.
    """

    def __init__(self, count: bool = True) -> None:
        self.per_key: dict[object, int] = {}
        self.total: int | None = 0 if count else None

    @contextmanager
    def step(self, key: object) -> Iterator[bool]:
        """Wraps forward and backward; yields True when this step runs under the counter, which slows it."""
        if self.total is None:
            yield False
            return
        if key in self.per_key:
            yield False
        else:
            with FlopCounterMode(display=False) as counter:
                yield True
            self.per_key[key] = counter.get_total_flops()
        self.total += self.per_key[key]
