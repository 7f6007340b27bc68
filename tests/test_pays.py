"""The map of when a sparse net pays: its cases, its arithmetic on hand-made runs, its page and figure."""

import itertools
import json
import math
from dataclasses import replace

import pytest
from publish import pays as published
from training import advice, pays, runs


def row(accuracies, curves, memory=100.0):
    return {
        "test_accuracy": sum(accuracies) / len(accuracies),
        "curves": curves,
        "run_memory_bytes": memory,
        "flops": 1,
    }


ACCURACY = {
    "A | dense 16": row([0.90], [[[10, 0.1, 0.80], [20, 0.1, 0.90]]], 50),
    "A | dense 64": row([0.92], [[[10, 0.1, 0.915], [20, 0.1, 0.918], [30, 0.1, 0.92]]], 300),
    "A | 90 % 64": row([0.92], [[[20, 0.1, 0.90], [30, 0.1, 0.918]]], 100),
    "A | dense weights, MaxK 64": row([0.91], [[[10, 0.1, 0.91]]], 10),
    "B | dense 16": row([0.5, 0.7], [[[10, 0, 0.4], [20, 0, 0.5]], [[20, 0, 0.7]]]),
    "B | 98 % 64": row([0.5], [[[10, 0, 0.5]]]),
}
TIMES = {f"{name} | {i}": {"seconds_per_step": s + i}
         for name, s in (("A | dense 16", 1.0), ("A | dense 64", 3.0), ("A | 90 % 64", 0.5), ("B | dense 16", 1.0))
         for i in (0, 1, -0.25)}  # fmt: skip


def test_what_pays():
    nets = pays.collect(ACCURACY, TIMES)
    a, b = pays.judge(nets["A"]), pays.judge(nets["B"])
    assert a.best.label == "dense 64" and a.target == pytest.approx(0.917)
    assert a.best.time_to(a.target) == 20 * 3.0  # the median of the rounds
    assert a.fastest[True].label == "dense 64" and a.fastest[False].time_to(a.target) == 30 * 0.5
    assert a.ratio("time") == 4.0 and a.ratio("memory") == 3.0 and a.pays
    assert a.smallest[False].label == "90 % 64"  # MaxK with dense weights is smaller, but not as accurate
    assert b.target == pytest.approx(0.597) and b.best.curve == [(20, pytest.approx(0.6))]
    assert b.ratio("time") == b.ratio("memory") == 0 and not b.pays  # none is as accurate
    assert pays.judge([run for run in nets["A"] if not run.dense]) is None


def test_envelope():
    runs = pays.collect(ACCURACY, TIMES)["A"]
    dense = [run for run in runs if run.dense]
    assert published.envelope(dense) == [(10.0, 0.80), (20.0, 0.90), (30.0, 0.915), (60.0, 0.918), (90.0, 0.92)]


def test_page_and_figure(tmp_path):
    nets = pays.collect(ACCURACY, TIMES)
    text = published.page(nets)
    assert (
        "It pays for 1 of 2 nets: A." in text
        and "| A | dense 64: 92.00 % | 90 % 64: 92.00 % | dense 64: 60.0 s | 90 % 64: 15.0 s | 4.00x" in text
    )
    assert "| dense 16 | 90.00 | 1000.0 | never | 0 | 1 |" in text
    assert [path.stat().st_size > 1000 for path in published.draw(nets, tmp_path)] == [True, True]
    assert "pays for none of 1 nets" in published.page({"B": nets["B"]})
    timed = {name: {**r, "parts": {"seconds_weights": 1, "seconds_other": 3}} for name, r in TIMES.items()}
    timed["B | 98 % 64 | 0"] = {"seconds_per_step": 1.4, "parts": {"seconds_weights": 1, "seconds_other": 3}}
    text = published.page({"B": pays.collect(ACCURACY, timed)["B"]})  # 1.05 s without weights, dense 1
    assert "in 1 of 1 a step of the most accurate net with sparse weights takes longer without" in text
    timed["B | 98 % 64 | 0"]["seconds_per_step"] = 1.3  # 0.975 s
    assert "The reason" not in published.page({"B": pays.collect(ACCURACY, timed)["B"]})


@pytest.mark.parametrize("net", pays.NETS, ids=lambda net: net.name)
def test_every_case_is_a_training(net):
    from sparsegnn.cli import options  # noqa: F401  the commands are of this version

    for name, arguments in net.cases():
        for words in (arguments, pays.short(arguments)):
            found = runs.config(words.split())
            assert found.epochs in (net.steps, pays.SHORT) and name.startswith(net.name + " | ")
            assert found.stop_at in (None, found.epochs // 2)


def test_time_without_measurement_is_unknown():
    (run,) = pays.collect({"A | dense 16": row([0.9], [[[10, 0.1, 0.9]]])}, {})["A"]
    assert math.isnan(run.seconds) and math.isnan(run.time_to(0.9))
    assert "| dense 16 | 90.00 |  | not timed |" in published.page({"A": [run]})
    assert published.envelope([run]) == []
    (untrained,) = pays.collect({"A | dense 16": row([0.9], [[], [[10, 0.1, 0.9]]])}, {})["A"]
    assert untrained.curve == [] and math.isinf(untrained.time_to(0.1))  # one seed never selected an epoch


def test_why():
    nets = pays.collect(ACCURACY, TIMES)
    assert published.why("A", nets["A"]) == (
        "A: 90 % 64 is there after 15.0 s where dense 64 is there after 60.0 s and 90 % 64 needs 0 MiB where dense 64 "
        "needs 0 MiB: it pays."
    )
    assert published.why("B", nets["B"]) == (
        "B: no sparse net is accurate enough; the best, 98 % 64, has 50.00 %, 9.70 points below the target of 59.70 %."
    )
    dense = [run for run in nets["A"] if run.dense]
    assert published.why("A", dense) == "A: no sparse net was trained yet."
    assert published.why("A", [run for run in nets["A"] if not run.dense]) == "A: no dense net was trained yet."
    slow = {name: {**r, "seconds_per_step": 9.0} if "90 %" in name else r for name, r in TIMES.items()}
    parts = {"seconds_weights": 1, "seconds_aggregation": 6, "seconds_other": 3, "seconds_forward": 5}
    slow = {name: {**r, "parts": parts} for name, r in slow.items()}
    runs_of = pays.collect({n: {**r, "run_memory_bytes": 2**20} for n, r in ACCURACY.items()}, slow)["A"]
    assert published.why("A", runs_of) == (
        "A: 90 % 64 is there after 270.0 s where dense 64 is there after 60.0 s and 90 % 64 needs 1 MiB where dense 64 "
        "needs 1 MiB; weights are 10 % of a step of dense 64, aggregation is 60 %, whatever is done to the weights."
    )
    better = [replace(run, accuracy=0.93) if run.label == "90 % 64" else run for run in runs_of]
    assert "1 MiB; 90 % 64 is 1.00 points more accurate than any dense width; weights" in published.why("A", better)


def test_rows_of_other_settings_are_left_out(capsys, monkeypatch, tmp_path):
    net = pays.NETS[0]
    (case, arguments), (other, _) = list(net.cases())[:2]
    made = {**ACCURACY["A | dense 64"], "command": f"train {arguments} --seeds 3 --threads 2 --json"}
    older = {**made, "command": f"train {arguments}0 --seeds 3 --threads 2 --json"}
    timed = {"seconds_per_step": 1.0, "command": f"train {pays.short(arguments)} --threads 2 --json"}
    rows = {case: made, other: older, "gone | dense 3": made}
    assert list(pays.current(rows, pays.all_cases())) == [case]
    times = {f"{case} | 0": timed, f"{other} | 0": timed}
    assert list(pays.current(times, pays.all_cases())) == [f"{case} | 0"]
    files = {"accuracy": tmp_path / "a.jsonl", "times": tmp_path / "t.jsonl"}
    assert pays.publish(files) == 1 and "nothing to publish" in capsys.readouterr().err
    for path, lines in zip(files.values(), (rows, times), strict=True):
        runs.write(path, {name: {"case": name, **line} for name, line in lines.items()})
    monkeypatch.setattr(pays, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(published, "FOLDER", tmp_path)
    assert pays.publish(files) == 0
    said = capsys.readouterr()
    assert "gone | dense 3" in said.err and other in said.err and f"1 of {len(list(net.cases()))}" in said.out
    page = (tmp_path / "page.md").read_text()
    assert f"{net.name} ({len(list(net.cases())) - 1} cases not trained)" in page and (tmp_path / "figures").is_dir()


def test_rounds_that_disagree_are_measured_again(monkeypatch, tmp_path):
    """Two cases, of which one is disturbed twice; a run that fails is said to have, and the rest goes on."""
    taken = {"A | quiet": iter([1.0, 1.01, 1.3]), "A | noisy": iter([1.0, 1.5, 2.0, 1.01, 1.02, 1.0])}
    words = {"A | quiet": "--hidden 1", "A | noisy": "--hidden 2", "A | bad": "--hidden 3"}

    def run(arguments, env, timeout):
        name = next(n for n, w in words.items() if arguments.startswith(w))
        if name == "A | bad":
            return "exit 1"
        command = f"train {arguments} --json"
        return {"command": command, "seconds_training": next(taken[name]) * 24, "config": {"epochs": 24}}

    monkeypatch.setattr(runs, "run", run)
    path = tmp_path / "times.jsonl"
    failed = pays.measure_times(words, " --threads 2", path, {}, 60.0)
    assert failed == [f"A | bad | {i}" for i in range(3)]
    rows = runs.read(path)
    assert len(pays.rounds_of(rows, "A | quiet")) == 3 and len(pays.rounds_of(rows, "A | noisy")) == 5
    assert pays.unsteady(rows, words) == [] and next(taken["A | noisy"]) == 1.0
    pays.measure_times(words, " --threads 2", path, {}, 60.0)  # all are there: nothing runs
    assert runs.read(path) == rows


@pytest.mark.parametrize("seconds, far", [([2.0], 0.0), ([1.0, 1.5], 0.2), ([1.0, 1.1, 9.0], 0.1 / 1.1),
                                          ([1.0, 1.0, 1.5, 2.0], 0.25 / 1.25)])  # fmt: skip
def test_spread(seconds, far):
    assert pays.spread(seconds) == pytest.approx(far)


# --- expected and measured -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", advice.nets())
def test_every_net_of_the_advice_is_a_dense_training(name):
    found = runs.config(advice.nets()[name].split())
    assert found.method == "dense" and name.endswith(f" {found.hidden}")


def test_table_of_expected_and_measured():
    def net(name, *pairs):
        options = [{"option": f"lever {i}", "expected": e, "measured": m} for i, (e, m) in enumerate(pairs)]
        return advice.row(name, {"options": options})

    tried = net("GCN, 3 layers, coauthor_cs 512", (1.0, 1.0), (1.2, 1.0), (3.0, 2.0))
    new = net("other 8", (1.0, 2.0), (0.9, 1.0))
    lines = advice.table([tried, new]).splitlines()
    assert lines[2] == "| GCN, 3 layers, coauthor_cs 512 (tried) | 3 | 2 | 20 | 50 | lever 2: 1.50 |"
    assert lines[3] == "| other 8 | 2 | 1 | 30 | 50 | lever 0: 0.50 |"
    assert lines[4].startswith("| **tried** | 3 | 2 |") and lines[5].startswith("| **all others** | 2 | 1 |")
    assert lines[6].startswith("| **all** | 5 | 3 | 20 | 50 |")
    assert list(advice.missed([tried, new])) == [
        "GCN, 3 layers, coauthor_cs 512: lever 2: expected is 1.50 of measured",
        "other 8: lever 0: expected is 0.50 of measured",
    ]
    assert set(advice.nets()) > advice.TRIED


def test_options_of_all_kinds_are_measured():
    from sparsegnn.advice.levers import PATTERNS, SPARSITIES, Option
    from sparsegnn.advice.search import Found

    options = [Found(Option(s, p, maxk), {}, {}, 0) for maxk in (0, 32) for p in PATTERNS for s in SPARSITIES]
    options += [Found(Option(), {}, {}, 0), Found(Option(width=0.5), {}, {}, 0), Found(Option(bf16=True), {}, {}, 0)]
    best = [options[3]]
    chosen = advice.spread_over(best, options, 7)
    assert chosen[0] is best[0] and len({id(x) for x in chosen}) == 7
    kinds = {(x.option.kinds, x.option.pattern) for x in chosen}
    assert len(kinds) == 5 and not any(x.option.width != 1 or not x.option.kinds for x in chosen)
    assert len(advice.spread_over(best, options, 100)) == 17 and advice.spread_over(best, options, 1) == best


def test_advice_is_measured_once(monkeypatch, tmp_path, capsys):
    asked = []

    def answer(command, env, timeout):
        asked.append(command)
        if "residual" in " ".join(command):
            return "exit 1"
        return {"step": 1.0, "options": [{"option": "MaxK 8", "expected": 1.0, "measured": 2.0}]}

    monkeypatch.setattr(advice, "answer", answer)
    monkeypatch.setattr(
        "sys.argv", ["advice.py", "--only", "flickr", "MLP, 4", "--out", str(tmp_path), "--threads", "1"]
    )
    assert advice.main() == 1 and len(asked) == 2  # one failed
    said = capsys.readouterr()
    assert (
        "| MLP, 4 layers, citeseer 1024 | 1 | 0 | 50 | 50 | MaxK 8: 0.50 |" in said.out and "failed: GCN, 4" in said.err
    )
    assert advice.main() == 1 and len(asked) == 3  # that one again
    monkeypatch.setattr("sys.argv", ["advice.py", "--only", "no such net"])
    assert advice.main() == 1


def test_one_net_in_full():
    """An advice of a tiny net, by a clock that counts: every narrower net and the options asked for are measured."""
    ticks = (0.05 * i for i in itertools.count())
    found = advice.one("--model gcn --data digits --hidden 32".split(), 1000.0, 3, ticks.__next__)
    assert found["step"] > 0 and found["rounds"] >= 3
    words = [x["option"] for x in found["options"]]
    assert len(words) == 5 and "half the width" in words and all(x["measured"] > 0 for x in found["options"])
    assert json.loads(json.dumps(found)) == found
