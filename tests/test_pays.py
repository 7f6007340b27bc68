"""The map of when a sparse net pays: its cases, its arithmetic on hand-made runs, its page and figure."""

import math

import pytest
from publish import pays as published
from training import pays

from sparsegnn.experiments.config import TrainConfig


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
        and "| A | dense 64: 92.00 % | dense 64: 60.0 s | 90 % 64: 15.0 s | 4.00x" in text
    )
    assert "| dense 16 | 90.00 | 1000.0 | never | 0 | 1 |" in text
    assert [path.stat().st_size > 1000 for path in published.draw(nets, tmp_path)] == [True, True]
    assert "pays for none of 1 nets" in published.page({"B": nets["B"]})


@pytest.mark.parametrize("net", pays.NETS, ids=lambda net: net.name)
def test_every_case_is_a_training(net):
    from sparsegnn.cli import options  # noqa: F401  the commands are of this version

    for name, arguments in net.cases():
        for words in (arguments, pays.short(arguments)):
            found = config(words.split())
            assert found.epochs in (net.steps, pays.SHORT) and name.startswith(net.name + " | ")
            assert found.stop_at in (None, found.epochs // 2)


def config(words):
    known, given, at = TrainConfig.__dataclass_fields__, {}, 0
    while at < len(words):
        name = words[at].removeprefix("--").replace("-", "_")
        kind = known[name].type
        if kind == "bool":
            given[name], at = True, at + 1
            continue
        text = words[at + 1]
        given[name], at = (text if "str" in kind else (float(text) if "float" in kind else int(text))), at + 2
    return TrainConfig(**given)


def test_time_without_measurement_is_unknown():
    (run,) = pays.collect({"A | dense 16": row([0.9], [[[10, 0.1, 0.9]]])}, {})["A"]
    assert math.isnan(run.seconds) and math.isnan(run.time_to(0.9))
