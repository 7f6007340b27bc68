"""`sparsegnn bench`: the benchmarks of a checkout."""

from __future__ import annotations

import sys
from pathlib import Path

from sparsegnn import _console


def bench(
    op: str = "",
    suite: str = "",
    quick: bool = False,
    check: bool = False,
    only: str = "",
    as_json: bool = False,
) -> None:
    """Time an op against its baselines, or print a whole table of bars: `bench spmm`, `bench --suite cpu` or `h200`.

    Needs a checkout: it runs benchmarks/ there.
    """
    if bool(op) == bool(suite):
        raise ValueError("bench needs the name of an op or --suite, one of them, got " + ("both" if op else "none"))
    if op and (check or only):
        raise ValueError("check and only must be used with --suite, got op " + repr(op))
    script = "harness/suite.py" if suite else "harness/runner.py"
    folder = next((f for f in checkouts() if (f / script).is_file()), None)
    if folder is None:
        raise ValueError(f"bench needs a checkout: no benchmarks/{script} here or beside the package")
    sys.path.insert(0, str(folder))
    if suite:
        _bench_suite(suite, quick, check, only, as_json)
        return
    known = sorted(
        p.stem.removeprefix("bench_") for kind in ("ops", "layers") for p in folder.glob(f"{kind}/bench_*.py")
    )
    if op not in known:
        raise ValueError(f"op must be one of {', '.join(known)}, got {op!r}")
    from harness import runner

    rows = runner.run(op, quick=quick, table=not as_json)
    if as_json:
        print(_console.json_text(rows))


def _bench_suite(name: str, quick: bool, check: bool, only: str, as_json: bool) -> None:
    from harness import suite

    from sparsegnn.experiments.train import CheckFailed

    rows = suite.run(name, quick=quick, only=only, table=not as_json)
    if as_json:
        print(_console.json_text(rows))
    below = suite.missed(rows)
    if check and below:
        raise CheckFailed(f"{len(below)} bars missed: " + "; ".join(f"{r['suite_row']} ({r['regime']})" for r in below))


def checkouts() -> list[Path]:
    return [Path.cwd() / "benchmarks", Path(__file__).resolve().parents[2] / "benchmarks"]
