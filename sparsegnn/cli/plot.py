"""`sparsegnn plot`: the figures of a study."""

from __future__ import annotations

import os
from pathlib import Path

from sparsegnn import _console, _files

NEEDS = "{name} needs pydantic, matplotlib, plotly and jinja2: pip install 'sparsegnn[study]' ({error})"


def plot(results: list[str], out: str = "figures", as_json: bool = False) -> None:
    """Draw what the runs of a study came to: accuracy against sparsity, time, FLOPs and bytes, speed-up, and so on.

    RESULTS are the study's files of JSON lines. Every figure is written as SVG and PNG into the folder --out.
    """
    try:
        import matplotlib  # noqa: F401

        from sparsegnn.study import plots
        from sparsegnn.study.results import read
    except ImportError as e:
        raise ValueError(NEEDS.format(name="plot", error=e)) from None
    folder = Path(out)
    view = plots.View(read(results))
    _check_folder(folder)
    paths, missing = plots.save(view, folder)
    tell(view.results.notes)
    if as_json:
        print(_console.json_text({"figures": paths, "left_out": {m.name: m.why for m in missing}}))
        return
    tell([f"no figure {m.name}: {m.why}" for m in missing])
    print("".join(f"{_console.clean(path)}\n" for path in paths), end="")


def tell(notes: list[str]) -> None:
    """On stderr, a line each."""
    for note in notes:
        _console.diagnostics().write(f"sparsegnn: {_console.clean(note)}\n")


def _check_folder(folder: Path) -> None:
    """Make it; ValueError where files cannot be written into it."""
    try:
        os.makedirs(folder, exist_ok=True)
    except (OSError, ValueError) as e:
        why = getattr(e, "strerror", None) or e
        raise ValueError(f"out must be a folder that can be written to, got {os.fspath(folder)!r}: {why}") from None
    _files.check("out", folder / "score_sparsity.svg")
