"""`sparsegnn report`: a study as one HTML page."""

from __future__ import annotations

from sparsegnn import _console, _files
from sparsegnn.cli.plot import NEEDS, tell


def report(results: list[str], out: str = "report.html", as_json: bool = False) -> None:
    """Write what the runs of a study came to as one HTML page: tables that sort, figures that answer to the pointer.

    RESULTS are the study's files of JSON lines. The page is the file --out; it needs no network and no other file.
    """
    try:
        import jinja2  # noqa: F401
        import plotly  # noqa: F401

        from sparsegnn.study.report import page
        from sparsegnn.study.results import read
    except ImportError as e:
        raise ValueError(NEEDS.format(name="report", error=e)) from None
    _files.check("out", out)
    found = read(results)
    _files.replace(out, page(found).encode("utf-8", "backslashreplace"))
    tell(found.notes)
    if as_json:
        print(_console.json_text({"report": out, "runs": len(found.rows), "failed": len(found.failed)}))
    else:
        print(_console.clean(out))
