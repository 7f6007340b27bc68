"""The training run: selection, fixed sparsity, determinism, what it measures, and that it learns."""

import dataclasses
import functools
import math
import os

import numpy as np
import pytest
import torch
from tape import TapeGraphs

from sparsegnn import capture
from sparsegnn import data as graphs
from sparsegnn.experiments.config import TrainConfig
from sparsegnn.experiments.measure import PeakMemory, StepTimer
from sparsegnn.experiments.models import FeatureDropout, build, linears, rows, sparsities, weight_counts, weight_shapes
from sparsegnn.experiments.train import CheckFailed, parameter_groups, train, write_checkpoint

pytest.importorskip("tqdm")
CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def small():
    return graphs.skewed(400, 10, 4, 24, signal=1.0, seed=3)


def config(**changes):
    return TrainConfig(**{"data": "skewed", "epochs": 8, "hidden": 16, "progress": False, **changes})


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.02, 1.0])
def test_feature_dropout(share):
    torch.manual_seed(0)
    x = torch.rand(200, 300) * (torch.rand(200, 300) < share)
    dropout = FeatureDropout(0.25)
    for _ in range(2):
        y = dropout(x)
        kept = y != 0
        torch.testing.assert_close(y[kept], x[kept] / 0.75)
        assert abs(kept.sum() / (x != 0).sum() - 0.75) < 0.05 and not (kept & (x == 0)).any()
    assert not torch.equal(dropout(x) != 0, kept) or share == 0
    assert dropout.eval()(x) is x


@pytest.mark.parametrize("sparse", [False, True])
def test_feature_dropout_of_another_matrix(sparse):
    dropout = FeatureDropout(0.5)
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        x = torch.rand(50, 40) * (torch.rand(50, 40) < 0.1)
        y = dropout(x.to_sparse_csr()).to_dense() if sparse else dropout(x)
        kept = y != 0
        torch.testing.assert_close(y[kept], 2 * x[kept])
        assert 0.3 < kept.sum() / (x != 0).sum() < 0.7


SHAPES = {  # of 5 features and 3 classes: hidden 8, 3 layers, 4 heads, 2 hops
    "gcn": {"convs.0.lin": (8, 5), "convs.1.lin": (8, 8), "convs.2.lin": (3, 8)},
    "gat": {"convs.0.lin": (32, 5), "convs.1.lin": (32, 32), "convs.2.lin": (3, 32)},
    "sage": {"convs.0.lin_l": (8, 5), "convs.0.lin_r": (8, 5), "convs.1.lin_l": (8, 8), "convs.1.lin_r": (8, 8),
             "convs.2.lin_l": (3, 8), "convs.2.lin_r": (3, 8)},
    "gin": {"convs.0.nn.0": (8, 5), "convs.0.nn.2": (8, 8), "convs.1.nn.0": (8, 8), "convs.1.nn.2": (8, 8),
            "convs.2.nn.0": (8, 8), "convs.2.nn.2": (3, 8)},
    "sign": {"inputs.0": (8, 5), "inputs.1": (8, 5), "inputs.2": (8, 5), "layers.0": (8, 8), "layers.1": (3, 8)},
    "mlp": {"inputs.0": (8, 5), "layers.0": (8, 8), "layers.1": (3, 8)},
}  # fmt: skip


@pytest.mark.parametrize("model", SHAPES)
def test_weight_shapes(model, small):
    wanted = config(model=model, hidden=8, layers=3, heads=4)
    assert weight_shapes(wanted, 5, 3) == SHAPES[model]
    made = {name: tuple(lin.weight.shape) for name, lin in linears(build(wanted, small)).items()}
    assert made == weight_shapes(wanted, small.num_features, small.num_classes)


@pytest.mark.parametrize("distribution", ["erk", "uniform"])
def test_layer_sparsities_meet_the_total(distribution):
    shapes = weight_shapes(config(hidden=64, layers=3), 100, 7)
    sizes = np.array([rows * cols for rows, cols in shapes.values()])
    each = np.array(list(sparsities(shapes, 0.9, distribution).values()))
    assert abs((sizes * each).sum() / sizes.sum() - 0.9) < 1e-3
    assert (np.ptp(each) < 1e-3) == (distribution == "uniform")


@pytest.mark.parametrize("sparse", [False, True])
def test_rows_of_features(sparse):
    x = torch.rand(50, 40) * (torch.rand(50, 40) < 0.1)
    at = torch.tensor([3, 49, 0, 3])
    found = rows(x.to_sparse_csr() if sparse else x, at)
    assert (found.layout == torch.sparse_csr) == sparse and torch.equal(found.to_dense(), x[at])


def test_step_timer_drops_warm_up_and_takes_medians():
    timer = StepTimer(CPU, warm_up=1)
    timer.steps = [dict.fromkeys(("forward", "backward", "optimizer"), t) for t in (9.0, 1.0, 2.0, 3.0)]
    assert timer.medians() == {"forward": 2.0, "backward": 2.0, "optimizer": 2.0, "step": 6.0}
    assert math.isnan(StepTimer(CPU).medians()["step"])
    timer.steps = [{"step": 2.0}] * 3
    assert timer.medians() == {"forward": None, "backward": None, "optimizer": None, "step": 2.0}


def test_peak_memory_sees_what_was_freed():
    memory = PeakMemory(CPU)
    block = torch.ones(50 << 20)  # 200 MiB
    del block
    assert memory.peak() - memory.start > 190 << 20 or not memory.exact


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("model", ["gcn", "gat"])
@pytest.mark.parametrize("method", ["dense", "static", "set", "rigl", "gmp"])
def test_every_method(small, model, method):
    r = train(config(model=model, method=method, hidden=8, heads=2), small)
    assert 0 <= r["val_accuracy"] <= 1 and 0 <= r["test_accuracy"] <= 1
    wanted = 0 if method == "dense" else 0.9
    assert r["sparsity"] == 1 - r["weights"] / r["weights_dense"] and abs(r["sparsity"] - wanted) < 0.01
    assert r["flops"] > 0 and r["seconds_per_step"] > 0 and r["peak_memory_bytes"] > 0
    assert r["flops"] == r["flops_weights"] + r["flops_aggregation"] and r["flops_elementwise"] > 0
    assert (r["flops_mask_updates"] > 0) == (method not in ("dense", "static")) and r["seconds_training"] > 0
    if method not in ("dense", "static"):  # selected only once the mask is final
        assert r["best_epoch"] + 1 >= r["settings"]["stop_at"] == 6


@pytest.mark.parametrize("method", ["dense", "rigl"])
def test_same_seed_same_result(small, method):
    first, again, other = (train(config(method=method, seed=s), small) for s in (1, 1, 2))
    names = ("test_accuracy", "val_accuracy", "best_epoch", "weights", "flops")
    assert [first[n] for n in names] == [again[n] for n in names]
    assert any(first[n] != other[n] for n in names)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("model", ["gcn", "gat"])
@pytest.mark.parametrize("method", ["dense", "set", "rigl", "gmp"])
@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_cuda_graph_changes_nothing_but_the_times(small, monkeypatch, place, method, model):
    wanted = config(method=method, model=model, hidden=8, heads=2, epochs=24, device=place)
    if place == "cpu":  # with a tape of operators for a graph
        fused = lambda groups, **options: torch.optim.Adam(groups, **{**options, "fused": True})  # noqa: E731
        monkeypatch.setattr("sparsegnn.experiments.train.Adam", fused)
        monkeypatch.setattr(capture, "CapturedStep", functools.partial(capture.CapturedStep, graphs=TapeGraphs()))
    results = []
    for wanted.cuda_graph in (False, True):
        results.append(train(wanted, small))
    for name in ("test_accuracy", "val_accuracy", "best_epoch", "weights", "flops", "mask_updates"):
        assert results[0][name] == results[1][name], name
    assert results[0]["seconds_forward"] > 0 and results[1]["seconds_forward"] is None
    assert results[1]["seconds_per_step"] > 0


def test_sparse_runs_need_fewer_flops(small):
    dense, sparse = (train(config(method=m, hidden=64), small) for m in ("dense", "static"))
    assert sparse["flops"] < dense["flops"] / 2


def test_the_test_set_never_selects(small, tmp_path):
    """Other labels on the test nodes change the reported test accuracy and nothing else."""
    y = small.y.clone()
    y[small.test_mask] = (y[small.test_mask] + 1) % small.num_classes
    results, states = [], []
    for i, g in enumerate((small, dataclasses.replace(small, y=y))):
        path = str(tmp_path / f"{i}.pt")
        results.append(train(config(method="set", epochs=30, save=path), g))
        states.append(torch.load(path, weights_only=True)["model"])
    assert results[0]["best_epoch"] == results[1]["best_epoch"]
    assert results[0]["val_accuracy"] == results[1]["val_accuracy"]
    assert results[0]["test_accuracy"] != results[1]["test_accuracy"]
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


def test_ties_go_to_the_lower_validation_loss(small):
    """A single validation node, which is trained on: its loss falls while the accuracy stays."""
    only = torch.zeros_like(small.val_mask)
    only[small.train_mask.nonzero()[0]] = True
    r = train(config(epochs=30, dropout=0.0), dataclasses.replace(small, val_mask=only))
    assert r["val_accuracy"] == 1 and r["best_epoch"] == 29


@pytest.mark.parametrize("model, layers", [("gcn", [0.1, 0.0]), ("gat", [0.1, 0.1])])
def test_weight_decay_is_on_the_first_layer_of_gcn_and_all_of_gat(small, model, layers):
    chosen = config(model=model, heads=2, weight_decay=0.1)
    made = build(chosen, small)
    decay = {p: group["weight_decay"] for group in parameter_groups(made, chosen) for p in group["params"]}
    assert set(decay) == set(made.parameters())
    assert [{decay[p] for p in conv.parameters()} for conv in made.convs] == [{d} for d in layers]


@pytest.mark.parametrize("model", ["gcn", "gat"])
def test_checkpoint_gives_the_reported_accuracy(small, tmp_path, model):
    from sparsegnn.experiments.models import prepare

    path = str(tmp_path / "model.pt")
    lr = {"gcn": 0.3, "gat": 0.1}[model]
    r = train(config(model=model, method="rigl", epochs=20, heads=2, lr=lr, save=path), small)
    assert r["best_epoch"] < 19  # or the last weights would do
    checkpoint = torch.load(path, weights_only=True)
    again = build(TrainConfig(**checkpoint["config"]), small)
    again.load_state_dict(checkpoint["model"])
    with torch.no_grad():
        logits = again.eval()(small.x, prepare("sparsegnn", small))
    hits = (logits.argmax(1) == small.y)[small.test_mask].double().mean().item()
    assert hits == r["test_accuracy"] and weight_counts(again)[0] == r["weights"]


def test_dense_agrees_with_pyg(small):
    pytest.importorskip("torch_geometric")
    own, pyg = (train(config(epochs=40, backend=b), small) for b in ("sparsegnn", "pyg"))
    assert abs(own["test_accuracy"] - pyg["test_accuracy"]) < 0.08 and pyg["flops"] is None


def test_learns_digits():
    pytest.importorskip("sklearn")
    g = graphs.load("digits")
    dense = train(config(data="digits", hidden=64, epochs=60), g)
    sparse = train(config(data="digits", hidden=64, epochs=60, method="rigl"), g)
    assert dense["test_accuracy"] > 0.95 and sparse["test_accuracy"] > 0.92


def test_learns_cora(graph_data_dir):
    g = graphs.load(graph_data_dir / "cora.npz")
    dense, sparse = (train(config(hidden=64, epochs=60, method=m), g) for m in ("dense", "rigl"))
    assert dense["test_accuracy"] > 0.78 and sparse["test_accuracy"] > 0.70


# --- failures --------------------------------------------------------------------------------------------------------


def test_nan_is_reported_and_nothing_is_saved(small, tmp_path):
    bad = dataclasses.replace(small, x=torch.full_like(small.x, float("nan")))
    with pytest.raises(CheckFailed, match="training diverged: loss nan in epoch 0"):
        train(config(save=str(tmp_path / "m.pt")), bad)
    assert not os.listdir(tmp_path)


def test_checkpoint_is_never_half_written(tmp_path, monkeypatch):
    path = tmp_path / "m.pt"
    path.write_text("old")

    def fails(content, file):
        file.write(b"half")
        raise RuntimeError("cannot be pickled")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(RuntimeError, match="cannot be pickled"):
        write_checkpoint(str(path), {})
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["m.pt"]


@pytest.mark.parametrize(
    "field, value", [("hidden", 2.0), ("epochs", True), ("cuda_graph", 1), ("sparsity", "0.9"), ("lr", None)]
)
def test_wrong_types_are_type_errors(field, value):
    if value is None:
        assert TrainConfig(lr=None).lr == 0.01  # None is the recipe's value
        return
    with pytest.raises(TypeError, match=f"{field} must be"):
        TrainConfig(**{"method": "rigl", field: value})
