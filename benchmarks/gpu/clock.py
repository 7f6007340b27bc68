"""Time on the device, between events or of a CUDA graph; by the host's clock in the dry run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from timeit import Timer

import torch

from gpu.context import on_gpu, synchronize

SHORT = 50e-6  # seconds; what takes less is replayed from a CUDA graph, where the gaps between launches vanish
CALLS = 20  # of a contender in such a graph, and at least in a sample of events


@dataclass
class Timed:
    run: Callable[[], object]
    calls: int  # of the contender in one run
    how: str  # events, graph, host


class DeviceClock:
    """Device time between two events; short contenders from a CUDA graph of several calls; of the host in `runner`."""

    def timer(self, function: Callable) -> Timed:
        function()
        synchronize()
        if not on_gpu():
            return Timed(function, 1, "host")
        timed = Timed(function, 1, "events")
        if self.sample(timed, 3)[1] < 4 * SHORT and self.sample(timed, CALLS)[1] < SHORT:
            with contextlib.suppress(RuntimeError):  # what waits for the device cannot be captured
                timed = Timed(captured(function, CALLS).replay, CALLS, "graph")
                timed.run()
        synchronize()
        return timed

    def once(self, timer: Timed) -> float:
        return self.sample(timer, 1)[1]

    def runs(self, once: float, sample: float) -> int:
        least = CALLS if once < 2e-3 else 3 if once < 2e-2 else 1
        return max(least, min(1000, int(sample / max(once, 1e-7)))) if on_gpu() else 1

    def sample(self, timer: Timed, runs: int) -> tuple[bool, float]:
        if timer.how == "host":
            return False, Timer(timer.run).timeit(runs) / runs
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        runs = max(1, runs // timer.calls)
        begin.record()
        for _ in range(runs):
            timer.run()
        end.record()
        end.synchronize()
        return False, 1e-3 * begin.elapsed_time(end) / (runs * timer.calls)


def captured(function: Callable, calls: int = 1):
    """A CUDA graph of so many calls."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(calls):
                function()
    finally:
        torch.cuda.set_stream(before)  # where the capture cannot end torch stays on the stream that it was on
    return graph


def graphed(function: Callable[[], object]) -> Callable[[], object]:
    """The function as one CUDA graph, whose outputs stay in place; on the CPU the function itself."""
    if not on_gpu():
        return function
    kept = {}
    graph = captured(lambda: kept.update(output=function()))
    return lambda: (graph.replay(), kept["output"])[1]
