"""`sparsegnn study`: many runs by a configuration file, resumed where they were left."""

from __future__ import annotations

from sparsegnn import _console
from sparsegnn.cli.train import MOST_THREADS


def study(
    config: str,
    out: str | None = None,
    data: str | None = None,
    threads: int | None = None,
    only: list[str] | None = None,
    again: bool = False,
    dry_run: bool = False,
    progress: bool | None = None,
    as_json: bool = False,
) -> None:
    """Train the methods, sparsities, widths, seeds and sets of CONFIG.toml: one JSON line a run, never a run twice."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise ValueError(f"threads must be a positive integer, at most {MOST_THREADS}, got {threads}")
    from sparsegnn.experiments.train import CheckFailed

    try:
        from sparsegnn.study.faults import BadStudy
        from sparsegnn.study.run import run
    except ImportError as e:
        if (e.name or "").partition(".")[0] not in ("pydantic", "tomli", "tqdm"):
            raise
        raise ValueError("study needs pydantic: pip install 'sparsegnn[study]'") from e
    try:
        found = run(config, out, data=data, threads=threads, only=only or (), again=again, dry_run=dry_run,
                    progress=progress)  # fmt: skip
    except BadStudy as e:
        lines = str(e).splitlines()
        for line in lines:
            _console.diagnostics().write(_console.clean(line) + "\n")
        count = f"{len(lines)} fault{'s' * (len(lines) != 1)}"
        raise ValueError(f"{config} has {count}, so nothing was run: {'; '.join(lines)}" if as_json
                         else f"{config} has {count}, so nothing was run") from None  # fmt: skip
    print(_console.json_text(found) if as_json else _text(found), end="\n" if as_json else "")
    if found.get("failed"):
        raise CheckFailed(f"{len(found['failed'])} of {found['runs']} runs failed: see 'error' in {found['out']}")


def _text(found: dict) -> str:
    if "cases" in found:
        rows = [(c["role"].replace("_", " "), c["case"], ", ".join(map(str, c["seeds"]))) for c in found["cases"]]
        title = f"study {found['study']}: {found['runs']} runs, to {found['out']}"
        return _console.table(title, rows, ("role", "case", "seeds"), box="SIMPLE_HEAD")
    from sparsegnn.study.progress import duration

    rows = [
        ("runs", f"{found['runs']:,}"),
        ("done", f"{found['done']:,}"),
        ("of these now", f"{found['made']:,}, and {found['copied']:,} of equal nets copied"),
        ("failed", f"{len(found['failed']):,}"),
        ("left out", f"{found['left']:,}"),
        ("time", duration(found["seconds"])),
        ("rows", found["out"]),
    ]
    return _console.table(f"study {found['study']}", rows, box="SQUARE")
