"""Times an op against its baselines: all contenders interleaved in one process, medians, ratios, roofline fractions.

A file ``ops/bench_<op>.py`` (or ``layers/bench_<layer>.py``) describes its subject with four functions:

    cases() -> list of dicts         plain values; ``quick=True`` marks those that a quick run takes
    ours(case) -> callable           one run of our op
    baselines(case) -> {name: callable}
    work(case) -> dict(flop, bytes)  what any implementation must do at least: gives the roofline fraction

``sparsegnn bench spmm`` prints a table and writes JSON lines to ``results/<device>/<op>.jsonl``; ``pytest benchmarks
--benchmark-only`` times the quick cases one contender after another, with statistics of each (``bench_ops.py``).
"""

import importlib
import json
import math
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from timeit import Timer

import torch

from harness import FOLDER, machine

KINDS = ("ops", "layers")
ROUND_SECONDS = 0.02  # least time of one sample; short runs are repeated within it


def names() -> list[str]:
    """Ops, and whole layers by the names of their files in ``layers/``."""
    return sorted(p.stem.removeprefix("bench_") for kind in KINDS for p in (FOLDER / kind).glob("bench_*.py"))


def load(op: str):
    kind = next(k for k in KINDS if (FOLDER / k / f"bench_{op}.py").is_file())
    return importlib.import_module(f"{kind}.bench_{op}")


def device_name(device: str = "cpu") -> str:
    """A folder name for results: the GPU's model, or the processor's, which several kinds share, with what it can."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device).replace(" ", "-").lower()
    import sparsegnn  # noqa: F401

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    isa = [torch.ops.sparsegnn.best_isa()] if hasattr(torch.ops.sparsegnn, "best_isa") else []
    words = model.lower().replace("(r)", "").replace("(tm)", "").split()
    return "-".join(["cpu", *words, *isa, f"{torch.get_num_threads()}t"]).translate({47: 45, 64: None})


def environment(device: str = "cpu") -> dict:
    import sparsegnn

    return dict(
        device=device_name(device),
        threads=torch.get_num_threads(),
        isa=torch.ops.sparsegnn.isa() if hasattr(torch.ops.sparsegnn, "isa") else None,
        torch=torch.__version__,
        sparsegnn=sparsegnn.__version__,
        python=platform.python_version(),
        malloc=os.environ.get("SPARSEGNN_MALLOC", "default"),
    )


class HostClock:
    """Time of calls that return when their work is done. ``gpu.DeviceClock`` is the other one."""

    def timer(self, function: Callable):
        function()
        return Timer(function)

    def once(self, timer) -> float:
        """Seconds of one run, right after others' runs."""
        return timer.timeit(1)

    def runs(self, once: float, sample: float) -> int:
        """How many of them make a sample."""
        return max(1, min(1000, int(sample / max(once, 1e-7))))

    def sample(self, timer, runs: int) -> tuple[bool, float]:
        """Whether others used our cores meanwhile, and seconds per run."""
        timer.timeit(1)  # the caches hold what another contender left
        waited, start = run_queue_wait(), time.perf_counter()
        seconds = timer.timeit(runs) / runs
        return run_queue_wait() - waited > 0.03 * (time.perf_counter() - start), seconds


def interleave(contenders: dict[str, Callable], rounds: int = 7, *, budget: float | None = None, least: int = 3,
               sample: float = ROUND_SECONDS, clock=None) -> dict[str, list[float]]:  # fmt: skip
    """Seconds per run of every contender: ``rounds`` samples each, taken in turns, after one warm-up run.

    A sample during which threads of ours waited for a core, because other processes had it, for more than 3 % of the
    time is taken again, up to three times; where three undisturbed samples exist, only those are returned. With a
    ``budget`` in seconds, ``rounds`` is the most: after ``least`` of them it stops when the medians are steady to 1 %
    or the budget is spent. A contender of which a sample takes a fifth of it has ``least`` single runs, fewer where the
    budget is spent twice, and none is repeated.
    """
    clock = HostClock() if clock is None else clock
    timers, runs, once = {}, {}, {}
    start = time.perf_counter()
    for name, function in contenders.items():
        timers[name] = clock.timer(function)
        once[name] = clock.once(timers[name])
        runs[name] = clock.runs(once[name], sample)
    slow = {name for name in contenders if budget is not None and once[name] * runs[name] > budget / 5}
    samples = {name: [(False, once[name])] if name in slow else [] for name in contenders}
    for done in range(rounds):
        for name, timer in timers.items():
            spent = time.perf_counter() - start
            if name in slow:
                if len(samples[name]) < least and spent < 2 * budget:
                    samples[name].append((False, clock.once(timer)))
                continue
            tries = [clock.sample(timer, runs[name])]
            while tries[-1][0] and len(tries) < 4 and (budget is None or spent < budget):
                tries.append(clock.sample(timer, runs[name]))
                spent = time.perf_counter() - start
            samples[name].append(min(tries))
        if budget is not None and done + 1 >= least:
            steady = done >= 6 and all(_steady(quiet(taken)) for taken in samples.values())
            if steady or time.perf_counter() - start > budget:
                break
    return {name: quiet(taken) for name, taken in samples.items()}


def quiet(samples: list[tuple[bool, float]]) -> list[float]:
    """The undisturbed samples if there are three, else all."""
    undisturbed = [seconds for disturbed, seconds in samples if not disturbed]
    return undisturbed if len(undisturbed) >= 3 else [seconds for _, seconds in samples]


def run_queue_wait() -> float:
    """Seconds that threads of this process have waited for a core so far; 0 where the kernel does not say."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[1])
        except (OSError, ValueError, IndexError):
            continue
    return total / 1e9


def _steady(seconds: list[float]) -> bool:
    """Whether the median is known to about 1 %."""
    middle = statistics.median(seconds)
    spread = statistics.median(abs(s - middle) for s in seconds)
    return spread < 0.01 * middle * math.sqrt(len(seconds))


def measure(op: str, case: dict, rounds: int = 7) -> list[dict]:
    """Rows of one case: ours first, then every baseline; ``speedup`` is how many times faster ours is."""
    bench = load(op)
    contenders = {"sparsegnn": bench.ours(case), **bench.baselines(case)}
    samples, work, limit = interleave(contenders, rounds), bench.work(case), machine.limits(torch.get_num_threads())
    floor = max(work["flop"] / limit["flops"], work["bytes"] / limit["bandwidth"])
    own = statistics.median(samples["sparsegnn"])
    rows = []
    for name, seconds in samples.items():
        middle = statistics.median(seconds)
        rows.append(
            dict(
                op=op,
                rounds=rounds,
                case={k: v for k, v in case.items() if k != "quick"},
                contender=name,
                ms=1e3 * middle,
                ms_low=1e3 * min(seconds),
                ms_high=1e3 * max(seconds),
                speedup=middle / own,
                gflops=work["flop"] / middle / 1e9,
                gbytes_per_second=work["bytes"] / middle / 1e9,
                roofline=floor / middle,
            )
        )
    return rows


def run(op: str, *, quick: bool = False, table: bool = True) -> list[dict]:
    """Measure the cases of an op, write JSON lines, print a table; return the rows.

    ``quick`` takes the cases marked so, in three rounds, and writes nothing.
    """
    from tqdm import tqdm

    warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)")  # torch's, about the baselines
    cases, rows = load(op).cases(), []
    if quick:
        cases = [c for c in cases if c.get("quick")] or cases[:2]
    for case in tqdm(cases, desc=f"bench {op}", disable=not sys.stderr.isatty()):
        rows += measure(op, case, 3 if quick else 7)
    if not quick:
        folder = FOLDER / "results" / device_name()
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(environment() | row) for row in rows]
        temporary = folder / f".{op}.jsonl"
        temporary.write_text("\n".join(lines) + "\n")
        temporary.replace(folder / f"{op}.jsonl")
    if table:
        from harness.table import show_cases

        show_cases(rows)
    return rows
