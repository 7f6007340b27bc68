"""docs/study.md is made of the committed rows."""

import pytest

pytest.importorskip("pydantic")
pytest.importorskip("matplotlib")

from publish import study as page  # noqa: E402

from sparsegnn.study import plots, tables  # noqa: E402
from sparsegnn.study.results import read  # noqa: E402

PATHS = sorted((page.FOLDER / "results").glob("*/study_*.jsonl"))


def test_a_table_becomes_markdown():
    rows = [[tables.Cell("a|b"), tables.Cell("1.5", 1.5)], [tables.Cell("c"), tables.Cell("-")]]
    table = tables.Table("t", [("net", "", False), ("seconds", "", True)], rows)
    assert page.markdown(table) == "| net | seconds |\n|---|---:|\n| a\\|b | 1.5 |\n| c | - |"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_page_shows_the_committed_rows(path):
    view, text = plots.View(read([path])), page.PAGE.read_text()
    made = text[text.index(page.BEGIN) : text.index(page.END)]
    assert page.where(view) in made and page.markdown(tables.overview(view)) in made
    assert all(page.details(view, net) in made for net in view.nets)


def test_there_are_rows():
    assert PATHS


def test_readme_shows_the_best_net_of_each_study():
    def row(title, speedup):
        cells = [tables.Cell(text) for text in (title, "80 %", "79.7 %", "dense", "2.0", "rigl", "1.0")]
        return [*cells, tables.Cell(f"{speedup}", speedup) if speedup is not None else tables.Cell("-")]

    found = {"nodes": tables.Table("overview", [], [row("a", 0.9), row("b", 2.0), row("c", None)]),
             "links": tables.Table("overview", [], [row("d", None)])}  # fmt: skip
    made = page.short_table(found).splitlines()
    assert len(made) == 4 and all(line.count("|") == made[0].count("|") for line in made)
    assert made[2] == "| Node classification | 3 | b | 80 % | dense | 2.0 | rigl | 1.0 | 2.0 |" and "| d |" in made[3]
    overviews = {p.stem.removeprefix("study_"): tables.overview(plots.View(read([p]))) for p in PATHS}
    shown = page.README.read_text()
    for line in page.short_table(overviews).splitlines():
        assert line in shown
