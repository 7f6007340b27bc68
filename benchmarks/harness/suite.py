"""A whole table of bars in one go: ``python benchmarks/harness/suite.py cpu`` (or ``sparsegnn bench --suite cpu``).

A file ``suites/<name>.py`` lists groups: contenders that run interleaved in one process, and the rows of the table
that are read off them. Each regime of memory is a process of its own:

    default   malloc as it is: large outputs of the baselines are mapped, and their pages faulted in, anew every time
    kept      malloc keeps what is freed, for both sides: what remains is the quality of kernels and algorithms
    gpu       device memory by torch's allocator: the one regime of a suite for GPUs (``REGIMES = ("gpu",)``)

Results are JSON lines in ``results/<device>/suite_<name>.jsonl``; README's tables and figure are made from them. A
group whose process dies or hangs fails, and the next process goes on behind it. A suite for GPUs writes after every
group and, run again, measures what is missing, or failed, or was measured with other sources.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import json
import os
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:  # run by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import FOLDER, processes  # noqa: E402

REGIMES = ("default", "kept")

#: kind of a row: its unit, whether more is better, and its value from seconds (or bytes) of ours and of the best other
KINDS: dict[str, tuple[str, bool, Callable]] = {
    "speed-up": ("x", True, lambda ours, other, work, limit: other / ours),
    "scaling": ("x", True, lambda ours, other, work, limit: other / ours),
    "memory": ("x", True, lambda ours, other, work, limit: other / ours),
    "slow-down": ("x", False, lambda ours, other, work, limit: ours / other),
    "extra time": ("us", False, lambda ours, other, work, limit: 1e6 * (ours - other)),
    "time": ("ms", False, lambda ours, other, work, limit: 1e3 * ours),
    "bytes": ("GB/s", True, lambda ours, other, work, limit: work["bytes"] / ours / 1e9),
    "products": ("TFLOP/s", True, lambda ours, other, work, limit: work["flop"] / ours / 1e12),
    "share of peak": ("%", True, lambda ours, other, work, limit: 100 * work["flop"] / ours / limit["flops"]),
}


@dataclass(frozen=True)
class Row:
    """A line of the table: ``ours`` (the best of them, if several) against the best of ``against``, by name.

    ``bars`` gives (bar, stretch) for every regime that has one; ``work`` flop and bytes of ours, for the roofline, and
    on a GPU ``rate``, which limit the flop are of, and ``l2``, bytes that come at best from there.
    """

    text: str
    ours: str | tuple[str, ...]
    against: tuple[str, ...] = ()
    bars: Mapping[str, tuple[float, float | None]] = field(default_factory=dict)
    kind: str = "speed-up"
    work: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Contenders that are timed together. ``make`` gives ``{name: callable}``, ``errors`` their relative errors against
    fp64 ``{name: error}``; ``measure`` takes the place of timing (peak memory, say) and gives ``{name: value}``.

    In the regime ``gpu``, ``make`` gives a ``gpu.Contest``; ``stage`` is a part of the suite that is run by itself.
    """

    name: str
    case: Mapping[str, object]
    rows: tuple[Row, ...]
    make: Callable[[], object] | None = None
    errors: Callable[[], dict[str, float]] | None = None
    measure: Callable[[], dict[str, float]] | None = None
    regimes: tuple[str, ...] = REGIMES
    seconds: float = 10.0
    #: a group with a bar below is measured so often at most; the best counts, and the row says how often
    repeats: int = 1
    stage: str = ""

    @property
    def estimate(self) -> float:
        """Seconds on a GPU, with what comes before the timing: a guess, until one has been there."""
        return 1.3 * self.seconds + (1 if self.seconds < 1 else 3)


# --- the child: one regime -------------------------------------------------------------------------------------------


def load(name: str, quick: bool) -> list[Group]:
    return importlib.import_module(f"suites.{name}").groups(quick)


def regimes_of(name: str) -> tuple[str, ...]:
    return getattr(importlib.import_module(f"suites.{name}"), "REGIMES", REGIMES)


def limits_of(regime: str) -> dict:
    import torch

    from harness import machine

    if regime != "gpu":
        return machine.limits(torch.get_num_threads())
    from gpu import machine as device

    return device.limits()


def measure_group(group: Group, regime: str, quick: bool) -> Iterator[dict]:
    """The rows of one group."""
    start = time.perf_counter()
    if regime == "gpu":
        yield from _measure_on_gpu(group, quick)
    else:
        yield from _measure_on_host(group, regime, quick)
    if not quick:
        print(f"{group.name}: {time.perf_counter() - start:.1f} s", file=sys.stderr)


def _measure_on_host(group: Group, regime: str, quick: bool) -> list[dict]:
    limit = limits_of(regime)
    errors = group.errors() if group.errors is not None and regime == group.regimes[0] else {}
    contenders = group.make() if group.measure is None else {}
    rows: list[dict] = []
    for repeat in range(group.repeats):
        samples = _samples(group, contenders, quick)
        middle = {name: statistics.median(values) for name, values in samples.items()}
        found = [result(row, group, regime, samples, middle, errors, limit, quick) for row in group.rows]
        rows = [better(*pair) for pair in zip(rows, found, strict=True)] if rows else found
        for row in rows:
            row["repeats"] = repeat + 1
            row["kernel"] = getattr(contenders.get(row["contender"]), "kernel", None)
        if all(row["passed"] is not False for row in rows):
            break
    return rows


def _measure_on_gpu(group: Group, quick: bool) -> Iterator[dict]:
    """Contenders are checked first, over memory full of NaN; those that fail or are wrong take no part."""
    import gpu

    from harness import runner

    limit, contest = limits_of("gpu"), gpu.Contest() if group.make is None else group.make()
    checked = gpu.check(contest)
    brief = dict(rounds=2, budget=0, least=2)
    long = dict(rounds=15, budget=group.seconds, least=7, sample=min(0.02, group.seconds / 50))
    samples = runner.interleave(checked.run, **(brief if quick else long), clock=gpu.DeviceClock())
    samples |= {name: [value] for name, value in (group.measure() if group.measure else {}).items()}
    middle = {name: statistics.median(values) for name, values in samples.items()}
    memory = {name: size for name, size in checked.memory.items() if name in middle}
    for row in group.rows:
        values = memory if row.kind == "memory" else middle
        line = result(row, group, "gpu", samples, values, checked.errors, limit, quick)
        ours, other = line["contender"], line["baseline"]
        line["case"] |= contest.facts
        entries = {n: contest.entries[n] for n in (ours, *line["baselines"]) if n in contest.entries}
        line["precisions"] = {name: entry.precision for name, entry in entries.items()}
        line["percentiles"] = {n: percentiles(samples[n]) for n in (ours, *line["baselines"]) if n in samples}
        if line["ours"] and row.kind not in ("memory", "bytes"):
            line["gflops"] = row.work.get("flop", 0) / line["ours"] / 1e6
            line["gbytes_per_second"] = (row.work.get("l2") or row.work.get("bytes", 0)) / line["ours"] / 1e6
        line["memory"], line["memory_baseline"] = (memory[n] / 1e6 if n in memory else None for n in (ours, other))
        line["dropped"] = {n: checked.dropped[n] for n in line["missing"] if n in checked.dropped}
        if line["value"] is None:
            lost, line["passed"] = line["ours"] is None, False if line["ours"] is None else None
            reasons = "; ".join(f"{n}: {line['dropped'].get(n, 'not there')}" for n in line["missing"])
            line["note"] = f"{'failed' if lost else 'nothing to compare with'}: {reasons}"
        yield line


def percentiles(seconds: list[float]) -> list[float]:
    """The 10th and the 90th, in ms."""
    if len(seconds) < 2:
        return [1e3 * s for s in seconds for _ in range(2)]
    cuts = statistics.quantiles(seconds, n=10, method="inclusive")
    return [1e3 * cuts[0], 1e3 * cuts[-1]]


def _samples(group: Group, contenders: dict[str, Callable], quick: bool) -> dict[str, list[float]]:
    from harness import runner

    if group.measure is not None:
        return {name: [value] for name, value in group.measure().items()}
    brief, long = dict(rounds=1, budget=0, least=1, sample=0.001), dict(rounds=25, budget=group.seconds)
    return runner.interleave(contenders, **(brief if quick else long))


def better(a: dict, b: dict) -> dict:
    """The row with the better value."""
    if a["value"] is None or b["value"] is None:
        return b if a["value"] is None else a
    return a if (a["value"] > b["value"]) == KINDS[a["kind"]][1] else b


def result(row: Row, group: Group, regime: str, samples: dict, middle: dict, errors: dict, limit: dict,
           quick: bool) -> dict:  # fmt: skip
    """One JSON line."""
    unit, more_is_better, value_of = KINDS[row.kind]
    candidates = (row.ours,) if isinstance(row.ours, str) else row.ours
    others = {name: middle[name] for name in row.against if name in middle}
    missing = [name for name in (*candidates, *row.against) if name not in middle]
    best = min(others, key=others.get) if others else None
    mine = min((n for n in candidates if n in middle), key=middle.get, default=candidates[0])
    ours = middle.get(mine)
    value = None
    if ours is not None and (best is not None or not row.against):
        value = value_of(ours, others.get(best), row.work, limit)
    bar, stretch = row.bars.get(regime, (None, None)) if not quick else (None, None)
    floor = floor_of(row.work, limit) if row.work and row.kind not in ("memory", "bytes") else None
    size = 1e-6 if row.kind == "memory" else 1e3  # MB or ms
    return dict(
        suite_row=row.text,
        group=group.name,
        case=dict(group.case),
        regime=regime,
        kind=row.kind,
        unit=unit,
        value=value,
        bar=bar,
        stretch=stretch,
        passed=None if bar is None or value is None else bool(value >= bar if more_is_better else value <= bar),
        contender=mine,
        several=len(candidates) > 1,
        baseline=best,
        ours=None if ours is None else size * ours,
        theirs=None if best is None else size * others[best],
        baselines={name: size * v for name, v in others.items()},
        missing=missing,
        rounds=len(samples.get(mine, ())),
        spread=_spread(samples.get(mine), samples.get(best)),
        floor=None if floor is None else 1e3 * floor,
        roofline=floor / ours if floor is not None and ours else None,
        error=errors.get(mine),
        error_baseline=errors.get(best),
        note=row.note,
    )


def floor_of(work: Mapping[str, float | str], limit: Mapping[str, float]) -> float:
    """Seconds that the work takes at least: what is largest of its parts over what this machine can do."""
    parts = [work["flop"] / (limit.get(work.get("rate", "flops")) or float("inf")), work["bytes"] / limit["bandwidth"]]
    return max(*parts, work.get("l2", 0) / (limit.get("l2") or float("inf")))


def _spread(ours: list[float] | None, theirs: list[float] | None) -> list[float] | None:
    """Quartiles of the ratio, round by round; None where there is nothing to compare."""
    if not ours or not theirs or len(ours) < 3:
        return None
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=False))
    return [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]]


def child(name: str, regime: str, quick: bool, threads: int, only: str, todo: list[str] | None = None,
          deadline: float | None = None) -> None:  # fmt: skip
    """Measure the groups of one regime (those in ``todo``) until ``deadline``; JSON lines to stdout."""
    import torch

    import sparsegnn

    if regime == "kept" and not sparsegnn.keep_memory():
        raise RuntimeError("this malloc cannot be told to keep memory")

    from harness import runner

    warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)")
    torch.set_num_threads(threads)
    groups = [g for g in selected(load(name, quick), regime, only) if todo is None or g.name in todo]
    about = runner.environment() | dict(malloc=regime, suite=name, limits=limits_of(regime))
    if regime == "gpu":
        import gpu

        os.environ["SPARSEGNN_STRICT"] = "1"  # a fallback to plain PyTorch must not pass for a kernel
        about |= dict(device=gpu.name(), code=code())
    for group in groups:
        if deadline is not None and time.time() + group.estimate > deadline:
            emit(late=group.name)
            return
        emit(start=group.name)
        try:
            for row in measure_group(group, regime, quick):
                emit(row=about | row)
        except Exception as e:  # the table says so, and the other groups still run
            traceback.print_exc()
            for row in failed(group, regime, f"{type(e).__name__}: {e}"):
                emit(row=about | row)
        emit(done=group.name)
        if regime == "gpu":
            gpu.clean_up()  # or the end of this process, where its GPU is lost


def failed(group: Group, regime: str, reason: str) -> list[dict]:
    empty = dict.fromkeys(("value", "bar", "stretch", "baseline", "ours", "theirs", "roofline", "error",
                           "error_baseline"))  # fmt: skip
    return [empty | dict(suite_row=row.text, group=group.name, case=dict(group.case), regime=regime, kind=row.kind,
                         unit=KINDS[row.kind][0], passed=False, missing=[], note=f"failed: {reason}")
            for row in group.rows]  # fmt: skip


def selected(groups: list[Group], regime: str, only: str) -> list[Group]:
    return [g for g in groups if regime in g.regimes and only in g.name]


@functools.cache
def code() -> str:
    """A hash of the kernels and of what calls them: numbers of other sources are not taken for these."""
    root, digest = FOLDER.parent, hashlib.sha256()
    for pattern in ("csrc/**/*", "sparsegnn/ops/*.py", "sparsegnn/nn/*.py", "sparsegnn/*.py"):
        for path in sorted(p for p in root.glob(pattern) if p.is_file()):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def emit(**event) -> None:
    print(json.dumps(event), flush=True)


# --- the parent ------------------------------------------------------------------------------------------------------


def run(name: str, *, quick: bool = False, threads: int = 2, only: str = "", regimes: tuple[str, ...] | None = None,
        write: bool = True, table: bool = True, stages: tuple[str, ...] = (), folder: Path | None = None,
        seconds: float | None = None) -> list[dict]:  # fmt: skip
    """Measure a suite, write its JSON lines (not when ``quick`` or partial), print its table; return the rows.

    A suite for GPUs writes after every group, to ``folder`` if that is given (``quick`` too), and goes on where it was:
    ``stages`` measures only these parts of it, and no group starts after ``seconds``.
    """
    known = sorted(p.stem for p in (FOLDER / "suites").glob("[!_]*.py") if "def groups" in p.read_text())
    if name not in known:
        raise ValueError(f"suite must be one of {', '.join(known)}, got {name!r}")
    every = regimes_of(name)
    regimes, on_gpu = regimes or every, every == ("gpu",)
    groups = [g for g in load(name, quick) if not stages or g.stage in stages]
    if not any(selected(groups, regime, only) for regime in regimes):
        raise ValueError(f"only must be part of a group's name ({', '.join(g.name for g in groups)}), got {only!r}")
    start, path, kept = time.perf_counter(), None, []
    summary = getattr(importlib.import_module(f"suites.{name}"), "summary", lambda rows: [])
    if on_gpu:
        import gpu

        if not gpu.on_gpu() and not quick:
            raise ValueError(f"suite {name} needs a GPU that PyTorch sees; --quick runs it on the CPU with tiny sizes")
        folder = folder or (None if quick or not write or only else FOLDER / "results" / gpu.name())
        path = folder / f"suite_{name}.jsonl" if folder else None
        kept = earlier(path) if path else []
    deadline = None if seconds is None else time.time() + seconds
    names = [g.name for g in load(name, quick)]

    def keep(rows: list[dict]) -> list[dict]:
        """All rows, in the order of the suite, with those that sum up; written if they are to be."""
        rows = sorted(kept + rows, key=lambda row: names.index(row["group"]) if row["group"] in names else len(names))
        rows += summary(rows)
        if path and rows:
            save(path, rows)
        return rows

    rows, todo = [], {regime: missing(selected(groups, regime, only), kept) for regime in regimes}
    with processes.progress(sum(map(len, todo.values()))) as step:
        for regime, wanted in todo.items():
            kept = [r for r in kept if r["regime"] != regime or r["group"] not in {g.name for g in wanted}]
            options = ["--threads", str(threads), "--only", only] + ["--quick"] * quick
            options += ["--deadline", str(deadline)] if deadline else []
            command = [sys.executable, str(Path(__file__).resolve()), name, "--child", regime, *options]
            by_name = {g.name: g for g in wanted}
            rows += processes.run(
                command, list(by_name), lambda text, regime=regime: step(f"{regime}: {text}"),
                lambda more, rows=rows: keep(rows + more),
                lambda at, why, by_name=by_name, regime=regime: failed(by_name[at], regime, why))  # fmt: skip
    rows = keep(rows)
    if not on_gpu and write and not quick and not only and set(regimes) == set(every):
        save(FOLDER / "results" / rows[0]["device"] / f"suite_{name}.jsonl", rows)
    if table:
        show(name, rows, time.perf_counter() - start)
    return rows


def earlier(path: Path) -> list[dict]:
    """Rows of a file that are of these sources."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [row for row in rows if row.get("code") == code() and row["group"] != "mean"]


def missing(groups: list[Group], rows: list[dict]) -> list[Group]:
    """The groups of which there are not all rows, or of which some failed."""
    there = {(row["group"], row["suite_row"]) for row in rows if not row["note"].startswith("failed")}
    return [g for g in groups if any((g.name, row.text) not in there for row in g.rows)]


def save(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    temporary.replace(path)


def show(name: str, rows: list[dict], seconds: float) -> None:
    """Print the table."""
    from harness.table import show_suite

    show_suite(name, rows, seconds, missed(rows))


def missed(rows: list[dict]) -> list[dict]:
    """Rows below their bar, or that failed."""
    return [row for row in rows if row["passed"] is False]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, no bars, nothing written")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a bar is missed")
    parser.add_argument("--only", default="", metavar="TEXT", help="groups whose name contains this; nothing written")
    parser.add_argument("--regime", choices=REGIMES, action="append", help="one regime only; nothing written")
    parser.add_argument("--stage", action="append", help="a part of a suite for GPUs, which goes on where it was")
    parser.add_argument("--threads", type=int, default=2, help="torch.set_num_threads; the bars are for 2")
    for hidden, kind in (("--child", str), ("--todo", json.loads), ("--deadline", float)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.name, args.child, args.quick, args.threads, args.only, args.todo, args.deadline)
        return
    chosen = dict(quick=args.quick, threads=args.threads, only=args.only, stages=tuple(args.stage or ()))
    chosen["regimes"] = tuple(args.regime) if args.regime else None
    sys.exit(1 if missed(run(args.name, **chosen)) and args.check else 0)


if __name__ == "__main__":
    main()
