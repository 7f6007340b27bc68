"""What measuring on a GPU needs: its clock, contenders that are checked before they are timed, tf32, CUDA graphs.

Without a GPU (or with none visible) the same code runs on the CPU, by the clock of the host: that is the dry run.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

SHORT = 50e-6  # seconds; what takes less is replayed from a CUDA graph, where the gaps between launches vanish
CALLS = 20  # of a contender in such a graph, and at least in a sample of events
TOLERANCE = {"fp32": 1e-5, "tf32": 2e-3, "bf16": 1e-2}  # relative Frobenius error against fp64
#: of fp32 sums over all nodes, which a peer may add up in one chain: 2.5e-8 sqrt(n / 2) of 169,343 is 7e-6 already
LONG_SUM = 1e-4
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


# --- the clock -------------------------------------------------------------------------------------------------------


@dataclass
class Timed:
    run: Callable[[], object]
    calls: int  # of the contender in one run
    how: str  # events, graph, host


class DeviceClock:
    """Device time between two events; short contenders from a CUDA graph of several calls. See runner.HostClock."""

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
            start = time.perf_counter()
            for _ in range(runs):
                timer.run()
            return False, (time.perf_counter() - start) / runs
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


@contextlib.contextmanager
def tf32(allowed: bool = True):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def with_tf32(function: Callable) -> Callable:
    """The function, where float32 products may use the tensor cores."""

    def run():
        with tf32():
            return function()

    return run


def compiled(function: Callable) -> Callable:
    """By torch.compile; the function itself on the CPU, where a dry run does not wait for a compiler."""
    return torch.compile(function, dynamic=False) if on_gpu() else function


def sets_of(nbytes: int) -> int:
    """How many sets of inputs of that size take turns, so that none is found in the L2."""
    return 1 if nbytes > 2 * l2_bytes() else 3


def rotate(functions: Sequence[Callable]) -> Callable:
    if len(functions) == 1:
        return functions[0]
    turn = [0]

    def run():
        turn[0] = (turn[0] + 1) % len(functions)
        return functions[turn[0]]()

    return run


def randn(*shape: int, precision: str = "fp32", seed: int = 1) -> torch.Tensor:
    g = torch.Generator(device()).manual_seed(seed)
    return torch.randn(*shape, device=device(), generator=g).to(DTYPES[precision])


# --- contenders ------------------------------------------------------------------------------------------------------


@dataclass
class Entry:
    calls: Sequence[Callable]  # one per set of inputs
    precision: str
    want: Callable[[], list[torch.Tensor]] | None
    view: Callable[[object], list[torch.Tensor]]
    tolerance: float

    @functools.cached_property
    def run(self) -> Callable:
        return rotate(self.calls)


def flat(output: object) -> list[torch.Tensor]:
    return list(output) if isinstance(output, (tuple, list)) else [output]


@dataclass
class Contest:
    """Contenders by name. ``facts`` go into the rows: degrees of the graph, say; ``dropped`` why one does not run."""

    facts: dict = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, call: Callable | Sequence[Callable], *, precision: str = "fp32",
            want: Callable[[], list] | None = None, view: Callable = flat,
            tolerance: float | None = None) -> None:  # fmt: skip
        """``want`` gives the results in fp64 of what ``view`` picks from the output of the (first) call."""
        calls = [call] if callable(call) else list(call)
        limit = TOLERANCE[precision] if tolerance is None else tolerance
        self.entries[name] = Entry(calls, precision, want, view, limit)

    def offer(self, name: str, make: Callable[[], Callable | Sequence[Callable]], **options) -> None:
        """Add what ``make`` gives; where it fails the rows say why."""
        try:
            self.add(name, make(), **options)
        except Exception as e:
            self.dropped[name] = _text(e)
            assert_alive()


@dataclass
class Checked:
    """The contenders that run and are right, their errors against fp64, and the bytes that a run needs at most."""

    run: dict[str, Callable]
    errors: dict[str, float]
    memory: dict[str, int]
    dropped: dict[str, str]


def check(contest: Contest) -> Checked:
    """Run every contender once, into memory full of NaN, and compare; drop those that fail or are wrong."""
    found = Checked({}, {}, {}, dict(contest.dropped))
    for name, entry in contest.entries.items():
        try:
            output, found.memory[name] = poisoned(entry.calls[0])
            if entry.want is not None:
                found.errors[name] = worst(entry.view(output), entry.want())
                if not found.errors[name] <= entry.tolerance:
                    found.dropped[name] = f"relative error {found.errors[name]:.1e} is over {entry.tolerance:.0e}"
            del output
        except Exception as e:
            found.dropped[name] = _text(e)
            e.__traceback__ = None  # which holds its tensors
            assert_alive()
            if on_gpu():
                torch.cuda.empty_cache()
        if name not in found.dropped:
            found.run[name] = entry.run
    return found


def poisoned(call: Callable) -> tuple[object, int]:
    """The output of a call that got memory full of NaN, and the bytes that it took at most, outputs included."""
    sizes = [t.numel() * t.element_size() for t in flat(call()) if isinstance(t, torch.Tensor) and t.numel()]
    blocks = [torch.full((-(-size // 4),), torch.nan, device=device()) for size in sizes for _ in range(2)]
    del blocks  # the allocator hands these bytes to the next outputs: what is not written shows
    synchronize()
    if not on_gpu():
        return call(), sum(sizes)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    output = call()
    synchronize()
    return output, torch.cuda.max_memory_allocated() - before


def worst(got: Sequence[torch.Tensor], want: Sequence[torch.Tensor]) -> float:
    """The largest relative Frobenius error."""

    def error(a: torch.Tensor, b: torch.Tensor) -> float:
        if a.shape != b.shape:
            raise RuntimeError(f"the result has shape {list(a.shape)}, wanted {list(b.shape)}")
        return float((a.detach().double() - b).norm() / b.norm().clamp_min(1e-300))

    return max(error(a, b) for a, b in zip(got, want, strict=True))


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


def assert_alive() -> None:
    """DeadGpu after an error that breaks the CUDA context, such as an illegal access."""
    if on_gpu():
        try:
            torch.cuda.synchronize()
            torch.zeros(1, device=device()).item()
        except Exception as e:
            raise DeadGpu(_text(e)) from e


def _text(e: Exception) -> str:
    return f"{type(e).__name__}: {' '.join(str(e).split())}"[:300]


def name() -> str:
    """A folder name: the GPU's, or ``dry-run``."""
    from harness import runner

    return runner.device_name("cuda") if on_gpu() else "dry-run"


def hide() -> None:
    """Make this process, and those it starts, run on the CPU."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    device.cache_clear()
