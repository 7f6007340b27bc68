"""A study as one HTML page that needs nothing else: tables that sort, figures that answer who points at them.

plotly's script is within the page, which asks no server for anything: its policy forbids it. All text of the results is
escaped.
"""

from __future__ import annotations

from pathlib import Path

from sparsegnn import _console
from sparsegnn.study import tables
from sparsegnn.study.bands import LEAST, LEVEL, kinds
from sparsegnn.study.plots import figures, hover
from sparsegnn.study.plots.series import View
from sparsegnn.study.results import Net, Results

FOLDER = Path(__file__).with_name("template")


def page(results: Results) -> str:
    """The page's HTML. ModuleNotFoundError without plotly or jinja2, of the extra `study`."""
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    view = View(results)
    drawn, missing = figures(view)
    plots: dict[str, dict] = {}
    sections = [_section(view, net, i, drawn, plots) for i, net in enumerate(view.nets, 1)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = results.rows
    return environment.get_template("page.html").render(
        title=", ".join(dict.fromkeys(_console.clean(row.study) for row in rows)) or "no finished runs",
        runs=len(rows),
        files=results.files,
        notes=results.notes,
        sections=sections,
        missing=missing,
        overview=tables.overview(view),
        environments=tables.environments(view),
        failures=tables.failures(view),
        bands=kinds([case.score for net in view.nets for case in net.cases]),
        level=f"{100 * LEVEL:g}",
        least=LEAST,
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup((FOLDER / "page.js").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
        plots=Markup(_within_script(_console.json_text(plots))),
    )


def _section(view: View, net: Net, number: int, drawn: list, plots: dict[str, dict]) -> dict:
    """Tables and figures of a net; their descriptions for plotly go to ``plots``, by the id of their place."""
    shown = []
    for figure in drawn:
        panels = [panel for panel in figure.panels if panel.net is net]
        places = []
        for panel in panels:
            name = f"plot-{len(plots) + 1}"
            plots[name] = hover.plot(panel)
            places.append({"id": name, "label": f"{figure.title} {_console.clean(panel.title)}".strip(),
                           "height": plots[name]["layout"]["height"]})  # fmt: skip
        if places:
            name = figure.title.partition(":")[0]
            shown.append({"title": name, "note": figure.note, "bands": figure.bands, "plots": places,
                          "wide": figure.columns == 1})  # fmt: skip
    return {
        "id": f"net-{number}",
        "title": net.title,
        "task": net.task,
        "machine": net.machine,
        "answer": tables.answer(view, net),
        "summary": tables.summary(view, net),
        "against": tables.against(view, net),
        "figures": shown,
    }


def _within_script(text: str) -> str:
    """JSON that no parser of HTML takes for markup."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
