"""The table of bars: what its rows say, that every bar of the suite is there, and a run of tiny sizes from end to end.

No test asserts a time.
"""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "benchmarks" / "harness" / "suite.py").is_file():
    pytest.skip("not run from a checkout", allow_module_level=True)
sys.path[:0] = [str(ROOT / "benchmarks")]

from harness import machine, processes, runner, suite  # noqa: E402
from suite_in_process import in_process  # noqa: E402, F401
from suites import cpu, dispatch, oracles, peers  # noqa: E402

LIMIT = {"flops": 1e9, "bandwidth": 1e9, "by": "test"}
KEYS = set(
    "suite_row group case regime kind unit value bar stretch passed contender baseline ours theirs baselines missing "
    "rounds roofline error error_baseline note".split()
)


def judge(row, middle, regime="default", quick=False):
    samples = {name: [value] * 3 for name, value in middle.items()}
    return suite.result(row, suite.Group("g", {}, (row,)), regime, samples, middle, {"a": 1e-7}, LIMIT, quick)


def test_a_row_is_judged_against_the_best_baseline():
    row = suite.Row("t", "a", ("b", "c", "gone"), {"default": (2.0, 3.0)}, work=dict(flop=1e6, bytes=5e5))
    got = judge(row, {"a": 0.002, "b": 0.005, "c": 0.0042})
    assert set(got) >= KEYS and got["baseline"] == "c" and got["missing"] == ["gone"]
    assert got["value"] == pytest.approx(2.1) and got["passed"] is True and (got["bar"], got["stretch"]) == (2.0, 3.0)
    assert got["ours"] == pytest.approx(2.0) and got["theirs"] == pytest.approx(4.2) and got["unit"] == "x"
    assert got["roofline"] == pytest.approx(0.5) and got["error"] == 1e-7 and got["error_baseline"] is None
    assert judge(row, {"a": 0.002, "b": 0.005, "c": 0.0038})["passed"] is False
    assert judge(row, {"a": 0.002, "b": 0.005}, regime="kept")["passed"] is None
    assert judge(row, {"a": 0.002, "b": 0.001}, quick=True)["passed"] is None
    json.dumps(got)


def test_a_missing_baseline_is_said_not_guessed():
    got = judge(suite.Row("t", "a", ("b",), {"default": (2.0, None)}), {"a": 1.0})
    assert got["value"] is None and got["passed"] is None and got["missing"] == ["b"]
    assert judge(suite.Row("t", "gone", ("a",)), {"a": 1.0})["missing"] == ["gone"]


def test_dispatch_sums_up_its_grid():
    rows = [judge(suite.Row(f"{i}, static policy", "a", ("b",), {"default": (1.1, None)}, "slow-down"), middle)
            for i, middle in enumerate(({"a": 1.0, "b": 2.0}, {"a": 2.08, "b": 1.0}))]  # fmt: skip
    assert [r["passed"] for r in rows] == [True, False]
    (mean,) = dispatch.summary(rows)
    assert mean["value"] == pytest.approx(1.04**0.5) and mean["bar"] == 1.03 and mean["passed"] is True
    assert dispatch.summary([judge(suite.Row("x", "a", ("b",)), {"a": 1.0})]) == []
    assert len(dispatch.groups(quick=False)) == 75


@pytest.mark.parametrize("kind, middle, bar, value, passed", [
    ("extra time", {"a": 30e-6, "b": 20e-6}, 15, 10, True),
    ("extra time", {"a": 40e-6, "b": 20e-6}, 15, 20, False),
    ("memory", {"a": 1e6, "b": 8e6}, 8, 8, True),
    ("scaling", {"a": 1.0, "b": 1.8}, 1.85, 1.8, False),
])  # fmt: skip
def test_kinds(kind, middle, bar, value, passed):
    got = judge(suite.Row("t", "a", ("b",), {"default": (bar, None)}, kind), middle)
    assert got["value"] == pytest.approx(value) and got["passed"] is passed


def test_share_of_peak_needs_no_baseline():
    got = judge(suite.Row("t", "a", (), {"default": (75, None)}, "share of peak", dict(flop=8e5, bytes=0)), {"a": 1e-3})
    assert got["value"] == pytest.approx(80) and got["passed"] is True


def test_every_bar_of_the_suite_is_a_row():
    rows = [(group, row) for group in cpu.groups(quick=False) for row in group.rows]
    assert len({(g.name, r.text) for g, r in rows}) == len(rows)
    judged = {regime: sum(regime in r.bars and regime in g.regimes for g, r in rows) for regime in suite.REGIMES}
    assert judged["default"] >= 20 + 7 + 4 + 2 + 6 + 2 + 4 and judged["kept"] >= 6 + 2 + 5
    for _, row in rows:
        assert set(row.bars) <= set(suite.REGIMES) and row.kind in suite.KINDS
        assert all(stretch is None or stretch >= bar for bar, stretch in row.bars.values())
        assert not row.work or (row.work["flop"] >= 0 and row.work["bytes"] > 0)
    products = [(g, r) for g, r in rows if g.name.startswith("weights")]
    weights = {(g.case["shape"], r.text.split(", ")[1]): r.bars["default"] for g, r in products}
    assert len(weights) == 20 and weights[(8192, 1024, 1024), "98 % sparse"] == (17, 21)


def test_a_failing_group_fails_its_rows_and_no_other(monkeypatch, capsys):
    def broken():
        raise RuntimeError("no such luck")

    share = suite.Row("three", "a", (), {}, "share of peak", dict(flop=1.0, bytes=1.0))
    bad = suite.Group("bad", {}, (suite.Row("one", "a"), suite.Row("two", "a")), broken)
    found = [bad, suite.Group("good", {}, (share,), lambda: {"a": int})]
    monkeypatch.setattr(suite, "load", lambda name, quick: found)
    monkeypatch.setattr(suite, "limits_of", lambda regime: LIMIT)
    threads = torch.get_num_threads()
    suite.child("any", "default", True, threads, "")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["start"] for line in lines if "start" in line] == ["bad", "good"]
    got = [line["row"] for line in lines if "row" in line]
    assert [r["suite_row"] for r in got] == ["one", "two", "three"]
    assert [r["passed"] for r in got] == [False, False, None] and "no such luck" in got[0]["note"]
    assert [r["suite_row"] for r in suite.missed(got)] == ["one", "two"]
    suite.show("any", got, 1.0)
    assert "no such luck" in capsys.readouterr().out


CHILD = """
import json, sys, time
for name in json.loads(sys.argv[-1]):
    print(json.dumps({"start": name}), flush=True)
    if name == "dies":
        sys.exit(3)
    if name == "hangs":
        time.sleep(60)
    print(json.dumps({"row": {"group": name, "suite_row": name, "value": 2, "suite": "s"}}), flush=True)
    print(json.dumps({"done": name}), flush=True)
"""


def test_a_process_that_dies_or_hangs_costs_its_group(monkeypatch):
    steps, kept = [], []
    groups = {name: suite.Group(name, {}, (suite.Row(name, "a"),)) for name in ("a", "dies", "b", "hangs", "c")}

    def follow(names):
        return processes.run(
            [sys.executable, "-c", CHILD], names, steps.append, lambda rows: kept.append(len(rows)),
            lambda at, why: suite.failed(groups[at], "gpu", why))  # fmt: skip

    monkeypatch.setattr(processes, "SILENCE", 4)
    rows = follow(list(groups))
    assert steps == [row["group"] for row in rows] == list(groups)
    assert [row["value"] for row in rows] == [2, None, 2, None, 2] and kept == [1, 2, 3, 4, 5]
    assert [row["group"] for row in suite.missed([r | dict(passed=r.get("passed")) for r in rows])] == ["dies", "hangs"]
    assert "ended with code 3" in rows[1]["note"] and "said nothing for 4 s" in rows[3]["note"]
    assert rows[1]["suite"] == "s"  # what is known of the run
    with pytest.raises(RuntimeError, match="ended with code 1"):  # before any group
        processes.run([sys.executable, "-c", "raise SystemExit(1)"], ["a"], print, print, None)


def test_quick_runs_every_kind_of_group_in_its_regime(in_process, monkeypatch):  # noqa: F811
    monkeypatch.setattr(suite, "limits_of", lambda regime: LIMIT)
    # one thread: tiny work for two is all waiting where others use the cores
    rows = suite.run("cpu", quick=True, regimes=("kept",), threads=1, table=False)
    assert in_process == list(dict.fromkeys(row["group"] for row in rows))
    assert {row["group"].split()[0] for row in rows} >= {"spmm", "GATConv", "GCN"}
    for row in rows:
        assert set(row) >= KEYS and row["malloc"] == row["regime"] == "kept" and row["limits"]["flops"] > 0
        assert "failed" not in row["note"] and (row["value"] is None) == (row["baseline"] is None)
        assert row["error"] is None or row["error"] < 1e-5


def test_bad_names(monkeypatch):
    with pytest.raises(ValueError, match="suite must be one of .*cpu.*, got 'gpu'"):
        suite.run("gpu")
    with pytest.raises(ValueError, match="only must be part of a group's name"):
        suite.run("cpu", only="nothing", quick=True)


def test_interleave_takes_turns_and_rests_slow_ones(monkeypatch):
    order = []

    class Fake:
        def __init__(self, function):
            self.function = function

        def timeit(self, runs):
            return runs * self.function()

    def contender(name, seconds):
        return lambda: order.append(name) or seconds

    monkeypatch.setattr(runner, "Timer", Fake)
    monkeypatch.setattr(runner, "run_queue_wait", lambda: 0.0)
    samples = runner.interleave({"a": contender("a", 0.1), "b": contender("b", 4.0)}, 9, budget=10, least=2)
    assert order[:4] == ["a", "a", "b", "b"] and order[4:] == ["a", "a", "b"] + ["a", "a"] * 6
    assert len(samples["b"]) == 2 and len(samples["a"]) == 7  # steady: stops before the eighth
    assert len(runner.interleave({"a": contender("a", 0.1)}, 3)["a"]) == 3


def test_disturbed_samples_are_taken_again_and_left_out(monkeypatch):
    times, waits = iter([1.0] + [0.0, 9.0, 0.0, 2.0] * 4), iter([0.0, 1.0, 1.0, 1.0] * 4)  # 0.0: before each sample

    class Fake:
        def __init__(self, function):
            pass

        def timeit(self, runs):
            return next(times)

    monkeypatch.setattr(runner, "Timer", Fake)
    monkeypatch.setattr(runner, "run_queue_wait", lambda: next(waits))
    assert runner.interleave({"a": lambda: None}, 4)["a"] == [2.0] * 4
    assert runner.quiet([(True, 9.0), (False, 1.0), (False, 1.0), (False, 2.0)]) == [1.0, 1.0, 2.0]
    assert runner.quiet([(True, 9.0), (False, 1.0)]) == [9.0, 1.0]


def test_limits_of_the_machine():
    found = machine.limits(1)
    assert found["by"] in ("C", "torch") and found["flops"] > 1e8 and found["bandwidth"] > 1e7


@pytest.mark.parametrize("name", peers.LAYERS)
def test_layers_of_all_projects_are_judged_by_one_oracle(name, monkeypatch):
    shape = (32, 50, 41)
    if not peers.layers((name,), *shape[1:], 0.8):
        pytest.skip(f"{name} is not installed")
    assert oracles.layer(shape, 0.8, (name,))[name] < 1e-6
    linear_step = peers.linear_step

    def broken(*arguments):
        step, layer = linear_step(*arguments), arguments[-1]

        def run():
            results = step()
            getattr(layer, peers.LAYERS[name].values).grad.neg_()
            return results

        return run

    monkeypatch.setattr(peers, "linear_step", broken)
    assert oracles.layer(shape, 0.8, (name,))[name] == pytest.approx(2)


def test_a_project_that_is_not_installed_is_left_out(monkeypatch):
    for name in ("sparselab", "sparseprop.modules.linear"):
        monkeypatch.setitem(sys.modules, name, None)
    assert list(peers.steps(tuple(peers.LAYERS), (8, 5, 4), 0.5)) == ["SparseLinear", "nn.Linear"]
    rows = list(suite.measure_group(cpu.layer((8, 5, 4), *cpu.LAYERS[8192, 1024, 1024]), "default", quick=True))
    assert [row["missing"] for row in rows] == [[], ["SparseProp"], ["sparselab"]]
    assert all(row["error"] < 1e-6 for row in rows) and rows[0]["value"] > 0 and rows[2]["value"] is None


def test_rows_name_a_forced_kernel():
    from sparsegnn import use_kernel
    from sparsegnn.nn import SparseLinear

    layer = SparseLinear(50, 41, sparsity=0.9)
    assert peers.linear_step(4, 50, 41, layer).kernel == "sparse"
    with use_kernel("dense"):
        assert peers.linear_step(4, 50, 41, layer).kernel == "dense (forced)"
    assert peers.linear_step(4, 50, 41, torch.nn.Linear(50, 41)).kernel is None
