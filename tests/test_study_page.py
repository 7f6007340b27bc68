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
