"""README's table and the figure are made from result files: here from rows that were made up."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "benchmarks" / "publish" / "figure.py").is_file():
    pytest.skip("not run from a checkout", allow_module_level=True)
pytest.importorskip("matplotlib")
sys.path[:0] = [str(ROOT / "benchmarks")]

from harness import suite  # noqa: E402
from publish import figure, readme  # noqa: E402
from suites import sparsity  # noqa: E402

ABOUT = dict(threads=2, isa="portable", torch="0", device="cpu-none-2t",
             limits={"flops": 1e9, "bandwidth": 1e9, "by": "test"})  # fmt: skip


def rows():
    for s in (0.0, 0.5, 0.9, 0.99):
        for name, factor in (("sparsegnn, forward", 0.8), ("scipy, forward", 0.05)):
            case = {"shape": [64, 32, 16], "sparsity": s}
            yield ABOUT | dict(case=case, contender=name, value=factor / (1 - s))
    yield ABOUT | dict(case={"shape": [64, 32, 16], "sparsity": 0.9}, contender="SparseProp", value=None)


def test_break_even():
    assert figure.break_even([(0.0, 0.5), (0.5, 2.0)]) == pytest.approx(0.25)
    assert figure.break_even([(0.0, 0.5), (0.9, 0.9)]) is None
    assert figure.break_even([(0.0, 1.2), (0.9, 3.0)]) is None
    assert figure.break_even([(0.0, 0.5), (0.2, 1.0), (0.4, 0.9), (0.6, 1.5)]) > 0.4


def test_figure_is_drawn_the_same_twice(tmp_path):
    first = figure.draw(list(rows()), tmp_path / "a")
    again = figure.draw(list(rows()), tmp_path / "b")
    assert [p.name for p in first] == ["speedup.svg", "speedup.png"] and all(p.stat().st_size > 1000 for p in first)
    assert first[0].read_bytes() == again[0].read_bytes()


def test_the_sweep_has_every_line_of_the_figure():
    groups = sparsity.groups(quick=False)
    assert len(groups) == 4 * len(sparsity.SPARSITIES) and {g.case["sparsity"] for g in groups} >= {0.0, 0.9, 0.99}
    assert {row.ours for g in groups for row in g.rows} == {name for _, name, *_ in figure.LINES}


def test_table_of_readme():
    group = suite.Group("g", {}, ())
    row = suite.Row("spmm", "a", ("b",), {"default": (2.0, None), "kept": (2.0, None)}, work=dict(flop=1e6, bytes=1e5))
    made = []
    for regime, theirs in (("default", 0.009), ("kept", 0.003)):
        middle = {"a": 0.002, "b": theirs}
        made.append(suite.result(row, group, regime, {}, middle, {"a": 1e-7, "b": 2e-7}, ABOUT["limits"], False))
    gone = suite.result(suite.Row("x", "a", ("gone",)), group, "default", {}, {"a": 1.0}, {}, ABOUT["limits"], False)
    text = readme.table([ABOUT | r for r in [*made, gone]])
    assert "| spmm | 2 ms | b 9 ms | **4.5x** | *1.5x* | 2; 2 | 50 % | 1e-07 / 2e-07 |" in text
    both = readme.headlines([[ABOUT | r for r in made]] * 2)
    assert both.startswith("| what | bar | cpu-none-2t | cpu-none-2t |") and "cpu-none-2t: 1 of 2 bars" in both
    assert readme.headline(ABOUT | made[0]) == "**4.5x** b: 2 against 9 ms" and readme.headline(gone) == ""
    assert "| x | | not installed: gone |" in text and "1 of 2 do" in text and "cpu-none-2t" in text
