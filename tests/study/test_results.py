"""Rows of a study: read strictly, grouped by case, and compared; against values worked out by hand or by scipy."""

import json
import math

import numpy as np
import pytest

pytest.importorskip("pydantic")

from scipy import stats
from study.synthetic import ends, net, row, study, write

from sparsegnn.study import compare
from sparsegnn.study.bands import band, difference, kinds, ratio
from sparsegnn.study.results import machine, read

# --- means and bands -------------------------------------------------------------------------------------------------


def test_band_by_hand():
    found = band([1.0, 2.0, 3.0])  # deviation 1, t of 2 degrees of freedom 4.30265, by the root of 3
    assert (found.mean, found.n, found.kind) == (2.0, 3, "t")
    assert found.low == pytest.approx(2 - 2.484138) and found.high == pytest.approx(2 + 2.484138)
    assert band([3.0, 1.0]) == band([1.0, 3.0]) and (band([3.0, 1.0]).low, band([3.0, 1.0]).high) == (1.0, 3.0)
    assert band([3.0, 1.0]).kind == "range" and band([5.0]).kind == "single" and band([5.0]).low == 5.0
    assert found.scaled(100).high == pytest.approx(448.4138) and found.scaled(100).kind == "t"
    said = kinds([band([1.0]), band([1.0, 2.0, 3.0])])
    assert said == "95 % t-interval over the seeds; one seed, no band"


def test_difference_is_welchs():
    a, b = [81.2, 80.1, 80.9, 82.0], [79.0, 79.5, 80.4]
    found, expected = difference(a, b), stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(np.mean(a) - np.mean(b)) and found.kind == "t"
    few = difference([2.0, 4.0], [1.0, 1.5, 2.0])
    assert (few.mean, few.low, few.high, few.kind) == (1.5, 0.0, 3.0, "range")
    assert difference([2.0] * 3, [1.0] * 3).low == difference([2.0] * 3, [1.0] * 3).high == 1.0
    assert difference([2.0], [1.0]).kind == "single"


def test_ratio():
    a, b = [10.0, 10.2, 9.9, 10.1], [5.0, 5.1, 5.05]
    found, logs = ratio(a, b), stats.ttest_ind(np.log(a), np.log(b), equal_var=False).confidence_interval()
    assert found.mean == pytest.approx(np.mean(a) / np.mean(b))
    assert (found.low, found.high) == pytest.approx((math.exp(logs.low), math.exp(logs.high)), rel=1e-3)
    few = ratio([1.0, 3.0], [2.0, 4.0])
    assert (few.mean, few.low, few.high, few.kind) == (pytest.approx(2 / 3), 0.25, 1.5, "range")
    assert ratio([0.0, 1.0], [1.0]) is None and ratio([1.0], [-1.0]) is None
    exact = ratio([2.0] * 3, [4.0] * 3)
    assert exact.low == exact.mean == exact.high == 0.5


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_study_is_grouped(tmp_path):
    found = read([write(tmp_path / "a.jsonl", study())])
    assert [n.title for n in found.nets] == ["wiki, tgn", "toy, gcn", "roads, gconvgru"]
    assert [n.metric.name for n in found.nets] == ["AUC", "accuracy", "MAE"]
    toy = found.nets[1]
    assert [c.role for c in toy.cases].count("sparse") == 12 and len(toy.of_role("small_dense")) == 12
    assert {len(c.rows) for c in toy.cases} == {3} and [r.seed for r in toy.cases[0].rows] == [0, 1, 2]
    dense = toy.of_role("dense")[0]
    assert dense.score.mean == pytest.approx(80.0) and dense.scores == pytest.approx([79.6, 80.0, 80.4])
    assert dense.score.high == pytest.approx(80 + 4.302653 * 0.4 / 3**0.5)
    assert [(f.case, f.error) for f in found.failed] == [("toy gcn rigl 0.99", "CheckFailed: training diverged")]
    assert found.failed[0].where.endswith(f"a.jsonl:{len(study())}") and found.notes == []
    assert len(found.rows) == len(study()) - 1


BROKEN = [
    ("no json", "a.jsonl:2: each line must be a JSON object, got no json"),
    ("[1]", "a.jsonl:2: each line must be a JSON object, got [1]"),
    ('{"a": NaN}', "NaN is no JSON"),
    ("{" * 3, "a.jsonl:2: each line must be a JSON object"),
    ({"test": None}, "a.jsonl:2: test is wrong"),
    ({"test": "0.8"}, "a.jsonl:2: test is wrong: Input should be a valid number, got '0.8'"),
    ({"seed": 1.5}, "a.jsonl:2: seed is wrong"),
    ({"seed": True}, "a.jsonl:2: seed is wrong"),
    ({"task": "graphs"}, "a.jsonl:2: task is wrong: Input should be 'nodes', 'links' or 'traffic', got 'graphs'"),
    ({"role": "wide"}, "a.jsonl:2: role is wrong"),
    ({"metric": "f1"}, "a.jsonl:2: metric is wrong"),
    ({"higher_is_better": False}, "a.jsonl:2: higher_is_better must be True for metric 'accuracy'"),
    ({"role": "small_dense"}, "a.jsonl:2: matches must be set for role 'small_dense'"),
    ({"matches": "time"}, "a.jsonl:2: matches must be set for role 'small_dense' and for no other"),
    ({"curve": []}, "a.jsonl:2: curve must hold at least one point"),
    ({"curve": [[1, 0.5, 0.5]]}, "a.jsonl:2: curve.0.3 is missing"),
    ({"curve": [[2, 0.5, 0.5, 1.0, 2.0], [1, 0.5, 0.5, 1.0, 3.0]]}, "a.jsonl:2: curve must go on in steps and seconds"),
    ({"layers": {"a": [["x", 0.5]]}}, "a.jsonl:2: layers.a.0.0 is wrong"),
    ({"sparsity": 1.0}, "a.jsonl:2: sparsity must be in [0, 1), got 1.0"),
    ({"seed": 0, "id": "1"}, "a.jsonl:2: seed 0 of case 'toy gcn dense' is already at"),
    ({"config": {"epochs": 50, "lr": 0.01, "layers": 2}}, "has config.epochs 50 here, but 100 at"),
    ({"hidden": 64}, "has config.hidden 64 here, but 256 at"),
    ({"case": "b", "task": "nodes", "metric": "auc"}, "a.jsonl:2: metric 'auc', but 'accuracy' at"),
    ({"id": "1", "error": 3}, "a.jsonl:2: error is wrong"),
]


@pytest.mark.parametrize("second, message", BROKEN, ids=[f"{i}-{list(b)[0][:9] if b else b}" for i, (b, _) in
                                                         enumerate(BROKEN)])  # fmt: skip
def test_what_is_refused(second, message, tmp_path):
    line = second if isinstance(second, str) else json.dumps(row(**{"id": "2", "seed": 1} | second))
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(row())}\n{line}\n")
    with pytest.raises(ValueError) as e:
        read([tmp_path / "a.jsonl"])
    assert message in str(e.value), str(e.value)
    assert str(tmp_path) in str(e.value)


REQUIRED = ("id", "study", "case", "role", "matches", "of", "task", "data", "model", "method", "sparsity_asked",
            "hidden", "seed", "environment", "started", "metric", "higher_is_better", "val", "test", "steps",
            "selected_step", "curve", "layers", "sparsity", "weights", "weights_dense", "model_bytes", "flops",
            "seconds_training", "peak_memory_bytes", "run_memory_bytes", "config")  # fmt: skip


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_key_is_named(name, tmp_path):
    rows = [row(), {k: v for k, v in row(seed=1, id="1").items() if k != name}]
    with pytest.raises(ValueError, match=rf"a\.jsonl:2: {name} is missing"):
        read([write(tmp_path / "a.jsonl", rows)])


def test_half_a_last_line_is_passed_over(tmp_path):
    whole = json.dumps(row())
    path = tmp_path / "a.jsonl"
    path.write_text(whole + "\n\n" + whole[:100])
    found = read([path])
    assert len(found.rows) == 1 and found.notes == [
        f"{path}:3: half a line, left out: its run was not written to its end"
    ]
    path.write_text(whole[:100] + "\n" + whole + "\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:1: each line must be a JSON object"):
        read([path])
    path.write_text(whole)  # complete, but for its line break
    assert len(read([path]).rows) == 1 and read([path]).notes == []


def test_files_without_rows(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="results must hold rows of runs, got none in"):
        read([tmp_path / "empty.jsonl"])
    with pytest.raises(ValueError, match="results must be one or more files"):
        read([])
    with pytest.raises(FileNotFoundError):
        read([tmp_path / "none.jsonl"])


def test_a_run_that_is_there_again(tmp_path):
    """Once more in the same words, repaired after an error, or measured anew."""
    failed = {"id": "1", "case": "toy gcn dense", "error": "killed"}
    first, again = row(id="1"), row(id="1", started="2000-01-02T00:00:00", test=0.9)
    found = read([write(tmp_path / "a.jsonl", [failed, first, first, failed])])
    assert len(found.rows) == 1 and found.failed == [] and found.notes == []
    found = read([write(tmp_path / "a.jsonl", [first]), write(tmp_path / "b.jsonl", [again])])
    assert [r.test for r in found.rows] == [0.9]
    places = f"{tmp_path}/b.jsonl:1: run 1 is also at {tmp_path}/a.jsonl:1"
    assert found.notes == [f"{places}, of which this, the later one, is used"]


def test_machines_and_studies_are_kept_apart(tmp_path):
    other = row()["environment"] | {"threads": 1}
    rows = [row(), row(environment=other), row(study="other", id="2")]
    found = read([write(tmp_path / "a.jsonl", rows)])
    assert sorted(n.title for n in found.nets) == [
        "toy, gcn, made-up, Made-up CPU, 1 thread", "toy, gcn, made-up, Made-up CPU, 2 threads",
        "toy, gcn, other, Made-up CPU, 2 threads",
    ]  # fmt: skip
    assert machine({}) == "a machine without a name" and machine({"gpu": "H"}) == "H"


def test_a_counterpart_of_nothing_is_noted(tmp_path):
    lost = row(id="1", case="narrow", role="small_dense", matches="time", of="gone", hidden=64)
    found = read([write(tmp_path / "a.jsonl", [row(), lost])])
    assert found.notes == [f"{tmp_path}/a.jsonl:2: narrow is the counterpart of gone, of which there is no run"]


def test_optimizer_is_a_part_only_where_it_is_counted_apart(tmp_path):
    (plain,) = read([write(tmp_path / "a.jsonl", [row()])]).rows
    assert list(plain.parts) == ["weights", "aggregation", "elementwise", "mask_updates", "other"]
    (apart,) = read([write(tmp_path / "a.jsonl", [row(flops_optimizer=1, seconds_features=0.5)])]).rows
    assert list(apart.parts)[:2] == ["weights", "features"] and apart.parts["optimizer"] == 0.01


# --- comparisons -----------------------------------------------------------------------------------------------------


def one_net(tmp_path, rows):
    """That of the sparse case."""
    nets = read([write(tmp_path / "a.jsonl", rows)]).nets
    return next(n for n in nets if n.named("sparse") is not None)


def sparse(name="sparse", **changes):
    changes = {"method": "rigl", "sparsity_asked": 0.9, "sparsity": 0.9, "role": "sparse", "case": name} | changes
    return row(id=f"{name}/{changes.get('seed', 0)}", **changes)


def test_target_and_time_to_it(tmp_path):
    """The mean of 80, 81 and 82 % less 0.3 is 80.7 %."""
    dense = [row(id=str(i), seed=i, test=0.80 + i / 100) for i in range(3)]
    curve = [
        [10, 0.9, 0.70, 1.0, 1.0],
        [20, 0.9, 0.806, 2.0, 2.5],
        [30, 0.9, 0.807001, 3.0, 4.0],
        [40, 1, 0.7, 4.0, 5.0],
    ]
    found = one_net(tmp_path, [*dense, sparse(curve=curve), sparse(seed=1, curve=curve[:2]), row(
        id="low", case="low", hidden=64, test=0.5)])  # fmt: skip
    aim = compare.target(found)
    assert aim.score == pytest.approx(80.7) and aim.best.case == "toy gcn dense"
    case = found.named("sparse")
    assert [compare.time_to(found, r, aim.score) for r in case.rows] == [4.0, None]
    reached = compare.reached(found, case, aim.score)
    assert (reached.seeds, reached.of, reached.seconds.mean) == (1, 2, 4.0)
    assert compare.reached(found, case, 99.0).seconds is None


def test_seconds_until_the_mean_of_the_seeds_is_as_good(tmp_path):
    """At 20, 30 and 40 steps the means are 74.5, 79.5 and 80.5 %: before 20 the second seed has selected none."""
    curves = ([[10, 0.9, 0.70, 1.0, 1.0], [30, 0.9, 0.80, 1.0, 3.0]],
              [[20, 0.9, 0.79, 1.0, 4.0], [40, 0.9, 0.81, 1.0, 8.0]])  # fmt: skip
    found = one_net(tmp_path, [row(seed=9), *(sparse(seed=i, curve=c) for i, c in enumerate(curves))])
    case = found.named("sparse")
    times = {score: compare.seconds_to(found, case, score) for score in (70.0, 79.4, 80.4, 80.6)}
    assert times == {70.0: [2.0, 4.0], 79.4: [3.0, 6.0], 80.4: [3.0, 8.0], 80.6: []}


def test_of_an_error_less_is_better(tmp_path):
    """The best of 3 and 4 is 3, its target 3.009."""
    dense = [row(task="traffic", id="1", **ends(4.0, 1.0)),
             row(task="traffic", id="2", case="wide", hidden=512, **ends(3.0, 10.0))]  # fmt: skip
    curve = [[1, 0.0, 3.01, 1.0, 1.0], [2, 0.0, 3.0089, 1.0, 2.0]]
    found = one_net(tmp_path, [*dense, sparse(task="traffic", test=3.005, curve=curve, seconds_training=5.0)])
    aim = compare.target(found)
    assert aim.best.case == "wide" and aim.score == pytest.approx(3.009)
    assert compare.time_to(found, found.named("sparse").rows[0], 3.009) == 2.0
    verdict = compare.verdict([found])
    assert (verdict.dense.case, verdict.sparse.case, verdict.speedup.mean) == ("wide", "sparse", 5.0)
    assert (verdict.dense_seconds.mean, verdict.sparse_seconds.mean) == (10.0, 2.0)


def test_dense_counterpart_has_the_same_width_and_settings(tmp_path):
    dense = [row(id="1"), row(id="2", case="deep", config={"layers": 4}), row(id="3", case="wide", hidden=512)]
    narrow = row(id="4", case="narrow", role="small_dense", matches="time", of="sparse", hidden=64)
    masked = sparse("masked", role="masked", of="sparse", sparsity=0.0)
    found = one_net(tmp_path, [*dense, narrow, masked, sparse(), sparse("alone", hidden=32),
                               sparse("deeper", config={"layers": 4, "distribution": "erk"})])  # fmt: skip
    assert [n.title for n in found.family] == ["toy, gcn, 32 wide", "toy, gcn, 256 wide", "toy, gcn, 512 wide"]
    names = {c.case: getattr(compare.dense_of(n, c), "case", None) for n in found.family for c in n.cases}
    assert names == {"toy gcn dense": "toy gcn dense", "deep": "deep", "wide": "wide", "narrow": "toy gcn dense",
                     "masked": "toy gcn dense", "sparse": "toy gcn dense", "alone": None, "deeper": "deep"}  # fmt: skip
    assert {c.case for c in found.dense_of_any_width} == {"toy gcn dense", "deep", "wide", "narrow"}
    assert [c.case for c in compare.counterparts(found, found.named("sparse"))] == ["narrow", "masked"]
    assert found.named("masked").sparsity == 0.9  # there, if zero


def test_speed_up_and_the_soonest_dense_net_that_is_as_good(tmp_path):
    """Sparse: 0.798 in 5 s. Of dense nets of 0.8, 0.7952 and 0.79 in 10, 4 and 2 s only the first two are as good."""
    narrow = {"role": "small_dense", "matches": "weights", "of": "sparse"}
    rows = [row(), row(id="2", case="half", hidden=128, **narrow, **ends(0.7952, 4.0)),
            row(id="3", case="tenth", hidden=25, **narrow | {"matches": "time"}, **ends(0.79, 2.0)),
            sparse(**ends(0.798, 5.0))]  # fmt: skip
    found = one_net(tmp_path, rows)
    case = found.named("sparse")
    assert compare.speedup(case, compare.dense_of(found, case)).mean == 2.0
    assert compare.as_good(found, case).case == "half"
    assert compare.gain(case, found.named("tenth")).mean == pytest.approx(0.8)
    verdict = compare.verdict([found])  # the target is 79.7 %: not reached by half
    assert verdict.dense.case == "toy gcn dense" and verdict.speedup.mean == 2.0
    assert compare.quotient(case, found.named("tenth"), "seconds_training").mean == 2.5
    assert compare.quotient(case, None, "flops") is None


def test_what_was_not_measured_has_no_quotient(tmp_path):
    curve = [[50, 0.7, 0.7, None, 0.0], [100, 0.8, 0.8, None, 0.0]]
    found = one_net(tmp_path, [row(), sparse(flops=None, seconds_training=0.0, curve=curve)])
    case, dense = found.named("sparse"), found.named("toy gcn dense")
    assert compare.quotient(case, dense, "flops") is None and compare.speedup(case, dense) is None
    assert compare.verdict([found]).sparse is None and case.band("flops") is None


def test_break_even():
    assert compare.break_even([(0.0, 0.5), (50.0, 2.0)]) == pytest.approx(25.0)
    assert compare.break_even([(50.0, 0.5), (90.0, 0.9)]) is None
    assert compare.break_even([(50.0, 1.2), (90.0, 3.0)]) is None
    assert compare.break_even([(0.0, 0.5), (20.0, 1.0), (40.0, 0.9), (60.0, 1.5)]) > 40
    assert compare.break_even([]) is None


def test_made_up_rows_are_the_same_each_time():
    assert net() == net() and len({r["id"] for r in net()}) == len(net())
    assert all(r["study"] == "made-up" for r in net())
