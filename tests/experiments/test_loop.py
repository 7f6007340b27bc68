"""What training loops share: the selected step by either sense of a metric, and a curve that adds up to the account."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sparsegnn import data as graphs
from sparsegnn.experiments.config import TrainConfig
from sparsegnn.experiments.ledger import Ledger
from sparsegnn.experiments.loop import CheckFailed, Selection, model_bytes
from sparsegnn.experiments.measure import PeakMemory
from sparsegnn.experiments.train import train
from sparsegnn.nn import SparseLinear

pytest.importorskip("tqdm")
OFFERS = [(1, 0.5, 0.0), (2, 0.7, 0.4), (3, 0.7, 0.3), (4, 0.6, 0.0), (5, 0.7, 0.3)]  # step, validation, tie


@pytest.mark.parametrize("higher, selected, so_far", [(True, 3, [1, 2, 3, 3, 3]), (False, 1, [1, 1, 1, 1, 1])])
def test_selection(higher, selected, so_far):
    asked, model = [], nn.Linear(1, 1)
    selection = Selection("score", higher, keep_state=True)
    for step, val, tie in OFFERS:
        nn.init.constant_(model.weight, step)
        selection.offer(step, val, lambda step=step: asked.append(step) or {"score": 10.0 * step}, model, tie)
    found = selection.result()
    assert (found["selected_step"], found["test"]) == (selected, 10.0 * selected) and asked == sorted(set(so_far))
    assert selection.curve == [[o[0], o[1], 10.0 * s] for o, s in zip(OFFERS, so_far, strict=True)]
    assert selection.state["weight"].item() == selected


@pytest.mark.parametrize("val, tie, said", [(math.nan, 0.0, "score nan"), (0.5, math.inf, "loss inf")])
def test_what_is_not_finite_is_never_selected(val, tie, said):
    with pytest.raises(CheckFailed, match=f"validation {said} after 7 steps"):
        Selection("score", True).offer(7, val, dict, nn.Linear(1, 1), tie)


def test_marks_of_a_ledger(monkeypatch):
    """Two kinds of steps, of 3 and 5 seconds, marked after three and after five of them."""
    now, model = [0.0], nn.Linear(2, 2)
    monkeypatch.setattr("sparsegnn.experiments.ledger.time", SimpleNamespace(perf_counter=lambda: now[0]))
    ledger = Ledger(model, memory=PeakMemory(torch.device("cpu")))
    for i, kind in enumerate("aabab"):
        with ledger.step(kind):
            model(torch.ones(3, 2))
            now[0] += {"a": 3.0, "b": 5.0}[kind]
        if i in (2, 4):
            ledger.mark()
    step = 2 * 3 * 2 * 2
    assert ledger.so_far() == [(3 * step, 11.0), (5 * step, 19.0)]


@pytest.mark.parametrize("method", ["dense", "rigl", "gmp"])
def test_a_curve_adds_up(method):
    small = graphs.skewed(240, 8, 4, 24, signal=1.0, seed=3)
    wanted = TrainConfig(data="skewed", method=method, epochs=16, hidden=16, eval_every=3, progress=False)
    r = train(wanted, small)
    steps, vals, tests, flops, seconds = zip(*r["curve"], strict=True)
    assert steps[-1] == r["steps"] == 16 and flops[-1] == r["flops"] and seconds[-1] == r["seconds_training"]
    assert list(flops) == sorted(set(flops)) and list(seconds) == sorted(set(seconds))
    assert r["val"] == max(vals) == r["val_accuracy"] and r["test"] == tests[-1] == r["tests"]["accuracy"]
    assert (
        dict(zip(steps, vals, strict=True))[r["selected_step"]] == r["val"]
        and r["selected_step"] == r["best_epoch"] + 1
    )
    assert (r["task"], r["metric"], r["higher_is_better"]) == ("nodes", "accuracy", True)
    ends = {name: points[-1][1] for name, points in r["layers"].items()}
    sizes = {"convs.0.lin": 24 * 16, "convs.1.lin": 16 * 4}
    assert sum(sizes[n] * s for n, s in ends.items()) == pytest.approx(r["sparsity"] * sum(sizes.values()))
    assert all(points[0][0] == 0 for points in r["layers"].values())
    assert (len(r["layers"]["convs.0.lin"]) > 2) == (method == "gmp")


def test_model_bytes():
    dense, sparse = nn.Linear(8, 4), SparseLinear(8, 4, sparsity=0.75)
    assert model_bytes(dense) == 4 * (32 + 4)
    assert model_bytes(nn.Sequential(dense, sparse)) == 4 * (32 + 4) + 4 * (8 + 4) + 4 * (8 + 4 + 1)
