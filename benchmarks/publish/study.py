"""Makes the tables of docs/study.md, its figures and README's: ``python benchmarks/publish/study.py``.

Reads every ``results/<device>/study_*.jsonl``, which ``sparsegnn study benchmarks/study/NAME.toml`` writes. What stands
outside of the page's two markers is written by hand. Needs ``pip install scour``, which halves the figures.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import FOLDER  # noqa: E402
from harness.pages import between  # noqa: E402

from sparsegnn.study import plots, tables  # noqa: E402
from sparsegnn.study.plots import draw  # noqa: E402
from sparsegnn.study.results import Net, read  # noqa: E402

PAGE = FOLDER.parent / "docs" / "study.md"
FIGURES = FOLDER / "figures" / "study"
README = FOLDER.parent / "README.md"
BEGIN, END = "<!-- tables:", "<!-- /tables -->"
README_BEGIN, README_END = "<!-- study table:", "<!-- /study table -->"
SHOWN = ("score_sparsity", "speedup", "score_time")  # figures on the page; `sparsegnn plot` makes the others, too
TITLES = {"nodes": "Node classification", "models": "Node classification: other layers and graphs, at 90 %",
          "links": "Temporal link prediction", "traffic": "Traffic forecasting"}  # fmt: skip


def markdown(table: tables.Table) -> str:
    lines = ["| " + " | ".join(name for name, *_ in table.head) + " |"]
    lines.append("|" + "|".join("---:" if number else "---" for *_, number in table.head) + "|")
    lines += ["| " + " | ".join(cell.text.replace("|", "\\|") for cell in row) + " |" for row in table.rows]
    return "\n".join(lines)


def details(view: plots.View, net: Net) -> str:
    """All cases of a net, folded away."""
    parts = [f"<details><summary>{net.title}: {tables.answer(view, net)}</summary>"]
    parts += [markdown(tables.summary(view, net)), "Against narrower dense nets that cost the same, and masks:",
              markdown(tables.against(view, net)), "</details>"]  # fmt: skip
    return "\n\n".join(parts)


def section(name: str, view: plots.View) -> str:
    """A study's tables; its figures are drawn."""
    folder = FIGURES / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    found, _ = plots.figures(view)
    several = len({net.sparsity_asked for net in view.results.rows if net.sparsity_asked is not None}) > 1
    shown = SHOWN if several else SHOWN[-1:]  # nothing is drawn against one sparsity
    for figure in (f for f in found if f.name in shown):
        for path in map(Path, draw.save(figure, folder)):
            if path.suffix == ".svg":
                path.write_text(smaller(path.read_text()))
            else:
                path.unlink()
    parts = [f"## {TITLES.get(name, name)}", where(view), markdown(tables.overview(view))]
    parts += [f"![{figure}](../benchmarks/figures/study/{name}/{figure}.svg)"
              for figure in SHOWN if (folder / f"{figure}.svg").is_file()]  # fmt: skip
    if view.results.failed:
        parts += ["Runs that failed:", markdown(tables.failures(view))]
    return "\n\n".join(parts + [details(view, net) for net in view.nets])


def smaller(svg: str) -> str:
    """The same picture."""
    from scour import scour

    said = "--set-precision=5 --enable-id-stripping --shorten-ids --remove-metadata --strip-xml-space --indent=none"
    return scour.scourString(svg, scour.sanitizeOptions(scour.parse_args([*said.split(), "--no-line-breaks"])))


def where(view: plots.View) -> str:
    rows = view.results.rows
    trained = [row for row in rows if row.copied_from is None]
    machines = dict.fromkeys(net.machine for net in view.nets)
    seconds = sum(row.seconds_training for row in trained)
    copied = f", of which {len(rows) - len(trained)} are copies of equal nets" * (len(trained) < len(rows))
    return f"{len(rows)} runs{copied}; {seconds / 3600:.1f} hours of training, on {'; '.join(machines)}."


def short_table(overviews: dict[str, tables.Table]) -> str:
    """Of each study the net with the greatest speed-up, said to be that; nets without one lose to every other."""
    names = ("study", "nets", "its best net for sparsity", "dense", "soonest dense", "s", "soonest sparse", "s",
             "speed-up")  # fmt: skip
    numbers = (False, True, False, True, False, True, False, True, True)
    short = tables.Table("short", [(name, "", number) for name, number in zip(names, numbers, strict=True)])
    for name, table in overviews.items():
        best = max(table.rows, key=lambda row: -1.0 if row[7].key is None else float(row[7].key))
        count = tables.Cell(TITLES.get(name, name)), tables.Cell(str(len(table.rows)))
        short.rows.append([*count, *(best[i] for i in (0, 1, 3, 4, 5, 6, 7))])
    return markdown(short)


def main() -> int:
    order = list(TITLES)
    paths = sorted((FOLDER / "results").glob("*/study_*.jsonl"),
                   key=lambda p: order.index(n) if (n := p.stem.removeprefix("study_")) in order else 99)  # fmt: skip
    views = {path.stem.removeprefix("study_"): plots.View(read([path])) for path in paths}
    sections = "\n\n".join(section(name, view) for name, view in views.items())
    PAGE.write_text(between(PAGE.read_text(), BEGIN, END, sections))
    short = short_table({name: tables.overview(view) for name, view in views.items()})
    README.write_text(between(README.read_text(), README_BEGIN, README_END, short))
    return 0


if __name__ == "__main__":
    sys.exit(main())
