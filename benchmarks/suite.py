"""A whole table of bars in one go: ``python benchmarks/suite.py cpu`` (or ``sparsegnn bench --suite cpu``).

A file ``suites/<name>.py`` lists groups: contenders that run interleaved in one process, and the rows of the table
that are read off them. Each regime of memory is a process of its own:

    default   malloc as it is: large outputs of the baselines are mapped, and their pages faulted in, anew every time
    kept      malloc keeps what is freed, for both sides: what remains is the quality of kernels and algorithms

Results are JSON lines in ``results/<device>/suite_<name>.jsonl``; README's table and figure are made from them.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import json
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER)] if str(FOLDER) not in sys.path else []
REGIMES = ("default", "kept")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4

#: kind of a row: its unit, whether more is better, and its value from seconds (or bytes) of ours and of the best other
KINDS: dict[str, tuple[str, bool, Callable]] = {
    "speed-up": ("x", True, lambda ours, other, work, limit: other / ours),
    "scaling": ("x", True, lambda ours, other, work, limit: other / ours),
    "memory": ("x", True, lambda ours, other, work, limit: other / ours),
    "slow-down": ("x", False, lambda ours, other, work, limit: ours / other),
    "extra time": ("us", False, lambda ours, other, work, limit: 1e6 * (ours - other)),
    "share of peak": ("%", True, lambda ours, other, work, limit: 100 * work["flop"] / ours / limit["flops"]),
}


@dataclass(frozen=True)
class Row:
    """A line of the table: ``ours`` against the best of ``against``, by name of contender.

    ``bars`` gives (bar, stretch) for every regime that has one; ``work`` flop and bytes of ours, for the roofline.
    """

    text: str
    ours: str
    against: tuple[str, ...] = ()
    bars: Mapping[str, tuple[float, float | None]] = field(default_factory=dict)
    kind: str = "speed-up"
    work: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Contenders that are timed together. ``make`` gives ``{name: callable}``, ``errors`` their relative errors against
    fp64 ``{name: error}``; ``measure`` takes the place of timing (peak memory, say) and gives ``{name: value}``."""

    name: str
    case: Mapping[str, object]
    rows: tuple[Row, ...]
    make: Callable[[], dict[str, Callable]] | None = None
    errors: Callable[[], dict[str, float]] | None = None
    measure: Callable[[], dict[str, float]] | None = None
    regimes: tuple[str, ...] = REGIMES
    seconds: float = 10.0
    repeats: int = (
        1  # a group with a bar below is measured so often at most; the best counts, and the row says how often
    )


def keep_memory() -> None:
    """Tell malloc, from now on, to keep freed memory instead of giving it back to the system."""
    mallopt = ctypes.CDLL(None).mallopt
    kept = mallopt(M_TRIM_THRESHOLD, -1) and (mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_MAX, 0))
    if not kept:
        raise RuntimeError("mallopt: this malloc cannot be told to keep memory")


# --- the child: one regime -------------------------------------------------------------------------------------------


def load(name: str, quick: bool) -> list[Group]:
    return importlib.import_module(f"suites.{name}").groups(quick)


def measure_group(group: Group, regime: str, quick: bool) -> Iterator[dict]:
    """The rows of one group."""
    import machine
    import torch

    start = time.perf_counter()
    limit = machine.limits(torch.get_num_threads())
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
    yield from rows
    if not quick:
        print(f"{group.name}: {time.perf_counter() - start:.1f} s", file=sys.stderr)


def _samples(group: Group, contenders: dict[str, Callable], quick: bool) -> dict[str, list[float]]:
    import runner

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
    others = {name: middle[name] for name in row.against if name in middle}
    missing = [name for name in (row.ours, *row.against) if name not in middle]
    best = min(others, key=others.get) if others else None
    ours = middle.get(row.ours)
    value = None
    if ours is not None and (best is not None or not row.against):
        value = value_of(ours, others.get(best), row.work, limit)
    bar, stretch = row.bars.get(regime, (None, None)) if not quick else (None, None)
    floor = max(row.work["flop"] / limit["flops"], row.work["bytes"] / limit["bandwidth"]) if row.work else None
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
        contender=row.ours,
        baseline=best,
        ours=None if ours is None else size * ours,
        theirs=None if best is None else size * others[best],
        baselines={name: size * v for name, v in others.items()},
        missing=missing,
        rounds=len(samples.get(row.ours, ())),
        spread=_spread(samples.get(row.ours), samples.get(best)),
        roofline=floor / ours if floor is not None and ours else None,
        error=errors.get(row.ours),
        error_baseline=errors.get(best),
        note=row.note,
    )


def _spread(ours: list[float] | None, theirs: list[float] | None) -> list[float] | None:
    """Quartiles of the ratio, round by round; None where there is nothing to compare."""
    if not ours or not theirs or len(ours) < 3:
        return None
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=False))
    return [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]]


def child(name: str, regime: str, quick: bool, threads: int, only: str) -> None:
    """Measure every group of one regime; JSON lines to stdout."""
    if regime == "kept":
        keep_memory()
    import machine
    import runner
    import torch

    warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)")
    torch.set_num_threads(threads)
    about = runner.environment() | dict(malloc=regime, suite=name)
    about |= dict(limits=machine.limits(threads))
    for group in selected(load(name, quick), regime, only):
        emit(start=group.name)
        try:
            for row in measure_group(group, regime, quick):
                emit(row=about | row)
        except Exception as e:  # the table says so, and the other groups still run
            traceback.print_exc()
            for row in group.rows:
                failed = dict(suite_row=row.text, group=group.name, case=dict(group.case), regime=regime, value=None,
                              kind=row.kind, unit=KINDS[row.kind][0], bar=None, stretch=None, passed=False,
                              note=f"failed: {type(e).__name__}: {e}")  # fmt: skip
                emit(row=about | failed)


def selected(groups: list[Group], regime: str, only: str) -> list[Group]:
    return [g for g in groups if regime in g.regimes and only in g.name]


def emit(**event) -> None:
    print(json.dumps(event), flush=True)


# --- the parent ------------------------------------------------------------------------------------------------------


def run(name: str, *, quick: bool = False, threads: int = 2, only: str = "", regimes: tuple[str, ...] = REGIMES,
        write: bool = True, table: bool = True) -> list[dict]:  # fmt: skip
    """Measure a suite, write its JSON lines (not when ``quick`` or partial), print its table; return the rows."""
    known = sorted(p.stem for p in (FOLDER / "suites").glob("[!_]*.py") if "def groups" in p.read_text())
    if name not in known:
        raise ValueError(f"suite must be one of {', '.join(known)}, got {name!r}")
    groups = load(name, quick)
    if not any(selected(groups, regime, only) for regime in regimes):
        raise ValueError(f"only must be part of a group's name ({', '.join(g.name for g in groups)}), got {only!r}")
    start, rows = time.perf_counter(), []
    with progress(sum(len(selected(groups, regime, only)) for regime in regimes)) as step:
        for regime in regimes:
            if selected(groups, regime, only):
                rows += _run_child(name, regime, quick, threads, only, step)
    rows += getattr(importlib.import_module(f"suites.{name}"), "summary", lambda rows: [])(rows)
    if write and not quick and not only and set(regimes) == set(REGIMES):
        save(FOLDER / "results" / rows[0]["device"] / f"suite_{name}.jsonl", rows)
    if table:
        show(name, rows, time.perf_counter() - start)
    return rows


def _run_child(name: str, regime: str, quick: bool, threads: int, only: str, step: Callable[[str], None]) -> list[dict]:
    command = [sys.executable, str(FOLDER / "suite.py"), name, "--child", regime, "--threads", str(threads)]
    command += ["--only", only] + ["--quick"] * quick
    rows = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if not line.startswith("{"):
                continue
            event = json.loads(line)
            if "start" in event:
                step(f"{regime}: {event['start']}")
            else:
                rows.append(event["row"])
    if process.returncode and not rows:
        raise RuntimeError(f"the process of regime {regime!r} ended with code {process.returncode}")
    if process.returncode:  # what it measured before stands
        group = event.get("start") or event["row"]["group"]
        note = f"failed: the process ended with code {process.returncode} in group {group!r} or after it"
        empty = dict.fromkeys(("value", "bar", "stretch", "baseline", "ours", "theirs", "roofline"))
        rows.append(rows[-1] | empty | dict(suite_row=f"process {regime}", group=group, passed=False, note=note))
    return rows


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:48}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task, begun = bar.add_task("starting", total=total), [False]

        def step(description: str) -> None:
            bar.update(task, description=description, advance=int(begun[0]))
            begun[0] = True

        yield step
        bar.update(task, description="done", completed=total)


def save(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    temporary.replace(path)


def missed(rows: list[dict]) -> list[dict]:
    """Rows below their bar, or that failed."""
    return [row for row in rows if row["passed"] is False]


def show(name: str, rows: list[dict], seconds: float) -> None:
    """The table: a line per row, the regimes side by side."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    first = rows[0]
    title = f"suite {name}: {first['device']}, {first['threads']} threads, {first['isa']}, torch {first['torch']}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("what", no_wrap=True)
    table.add_column("ours", justify="right", no_wrap=True)
    table.add_column("best other", no_wrap=True)
    regimes = [regime for regime in REGIMES if any(row["regime"] == regime for row in rows)]
    for regime in regimes:
        table.add_column(f"{regime} malloc: ratio, bar / stretch", no_wrap=True)
    table.add_column("roofline", justify="right")
    table.add_column("fp64 error", no_wrap=True)
    lines: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        lines.setdefault((row["group"], row["suite_row"]), {})[row["regime"]] = row
    last = None
    for (group, text), by_regime in lines.items():
        if last not in (None, group.split()[0]):
            table.add_section()
        last, row = group.split()[0], by_regime.get("default") or next(iter(by_regime.values()))
        cells = [verdict(by_regime.get(regime)) for regime in regimes]
        if row["value"] is None:
            reason = row.get("note") or f"not installed: {', '.join(row['missing'])}"
            table.add_row(text, "", f"[yellow]{reason}[/]", *cells, "", "")
            continue
        size = "MB" if row["kind"] == "memory" else "ms"
        other = "" if row["baseline"] is None else f"{row['baseline']} {row['theirs']:.3g} {size}"
        text += f" (ran {row['kernel']})" if (row.get("kernel") or "").startswith("dense") else ""
        roofline = "" if row["roofline"] is None else f"{100 * row['roofline']:.0f} %"
        errors = " / ".join("-" if e is None else f"{e:.1e}" for e in (row["error"], row["error_baseline"]))
        ours = "" if row["ours"] is None else f"{row['ours']:.3g} {size}"
        table.add_row(text, ours, other, *cells, roofline, "" if errors == "- / -" else errors)
    (Console() if sys.stdout.isatty() else Console(width=200)).print(table)
    judged, below = [r for r in rows if r["passed"] is not None], missed(rows)
    limit = first["limits"]
    print(f"{len(judged) - len(below)} of {len(judged)} bars reached in {seconds:.0f} s. Limits ({limit['by']}): "
          f"{limit['flops'] / 1e9:.0f} GFLOP/s fp32, {limit['bandwidth'] / 1e9:.0f} GB/s copied.")  # fmt: skip


def verdict(row: dict | None) -> str:
    """The value of a row beside its bar."""
    if row is None or row["value"] is None:
        return "[red]failed[/]" if row is not None and row["passed"] is False else ""
    text = f"{row['value']:.2f}x" if row["unit"] == "x" else f"{row['value']:.3g} {row['unit']}"
    if row["passed"] is None:
        return text
    bar = f"{row['bar']:g}" + (f" / {row['stretch']:g}" if row["stretch"] is not None else "")
    return f"[green]{text:>6}[/]  {bar} pass" if row["passed"] else f"[red]{text:>6}[/]  {bar} [red]MISS[/]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, no bars, nothing written")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a bar is missed")
    parser.add_argument("--only", default="", metavar="TEXT", help="groups whose name contains this; nothing written")
    parser.add_argument("--regime", choices=REGIMES, action="append", help="one regime only; nothing written")
    parser.add_argument("--threads", type=int, default=2, help="torch.set_num_threads; the bars are for 2")
    parser.add_argument("--child", choices=REGIMES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.name, args.child, args.quick, args.threads, args.only)
        return
    chosen = dict(quick=args.quick, threads=args.threads, only=args.only, regimes=tuple(args.regime or REGIMES))
    sys.exit(1 if missed(run(args.name, **chosen)) and args.check else 0)


if __name__ == "__main__":
    main()
