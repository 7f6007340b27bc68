"""What is said of accuracy is what docs/methods.md says."""

import re
from pathlib import Path

from sparsegnn.advice.accuracy import CORA, accuracy
from sparsegnn.advice.levers import Option


def test_numbers_are_those_of_the_page():
    page = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text()
    page = page[: page.index("## Train-and-prune")]
    for method, points in CORA.items():
        row = re.search(rf"^\| `{method}` .*$", page, re.M)[0].split("|")
        assert float(row[9]) == points, method


def test_every_lever_has_a_sentence():
    said = accuracy([Option(0.8), Option(0.9, "grouped:8", 32, True), Option(0.98), Option(width=0.5)])
    assert list(said) == sorted(said) and len(said) == 7
    assert accuracy([Option()]) == {}
