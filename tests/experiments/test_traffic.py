"""Traffic forecasting: windows and errors by hand, the networks, runs of all families of methods, bad input."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sparsegnn import _console
from sparsegnn import data as sets
from sparsegnn.controllers import METHODS
from sparsegnn.data import SignalData
from sparsegnn.experiments.loop import CheckFailed
from sparsegnn.experiments.models import linears
from sparsegnn.experiments.traffic import TrafficConfig, models, train
from sparsegnn.experiments.traffic.data import Windows, errors, persistence
from sparsegnn.experiments.traffic.models import Copies
from sparsegnn.graph import CSRGraph

pytest.importorskip("tqdm")
SAME = ("val", "test", "tests", "selected_step", "weights", "flops", "layers")


@pytest.fixture(scope="module")
def data():
    return sets.ringroad(8, 300)


def config(model="stgcn", method="dense", **changes):
    small = {"hidden": 8, "layers": 1, "heads": 2, "epochs": 3, "batch": 32, "progress": False}
    return TrafficConfig(**{"model": model, "method": method, **small, **changes})


# --- windows ---------------------------------------------------------------------------------------------------------


def test_windows_by_hand():
    steps = 400
    signal = torch.arange(1.0, steps + 1)[:, None] * torch.tensor([1.0, 10.0])
    data = SignalData(signal, torch.zeros(2, 0, dtype=torch.int64), None, "count")
    windows = Windows(data, 12, (15, 30, 45))
    assert windows.ahead.tolist() == [14, 17, 20]  # 3, 6, 9 steps after the last of 12
    ends = {"train": (0, 280), "val": (280, 320), "test": (320, 400)}
    for part, (first, end) in ends.items():
        starts = windows.starts[part]
        assert starts[0] == first and starts[-1] + 20 == end - 1  # no window reaches into another part
        assert starts.tolist() == list(range(first, end - 20))
        x, y = windows.inputs(starts), windows.targets(starts)
        assert torch.equal(y[0, :, 0], torch.tensor([first + 15.0, first + 18, first + 21]))
        torch.testing.assert_close(windows.measured(x)[0, :, 0], torch.arange(first + 1.0, first + 13))
    train_values = signal[:280].double()
    assert windows.mean == pytest.approx(float(train_values.mean()))
    assert windows.std == pytest.approx(float(train_values.std()))


def test_the_mean_knows_neither_the_future_nor_what_is_missing():
    signal = 50 + torch.randn(300, 4)
    late, holes = signal.clone(), signal.clone()
    late[210:] += 1000
    holes[5, :2] = 0
    edges = torch.zeros(2, 0, dtype=torch.int64)
    plain, other, missing = (Windows(SignalData(s, edges, None, "x"), 4, (5,)) for s in (signal, late, holes))
    assert (plain.mean, plain.std) == (other.mean, other.std)
    rest = torch.cat([holes[:210].flatten()[:20], holes[:210].flatten()[22:]]).double()
    assert missing.mean == pytest.approx(float(rest.mean())) and missing.std == pytest.approx(float(rest.std()))
    assert missing.signal[5, :2].tolist() == [0, 0] and (missing.signal[5, 2:] != 0).all()


def test_errors_by_hand():
    """Two horizons of two sensors, one value missing."""
    truth = torch.tensor([[[10.0, 20.0], [40.0, 0.0]]])
    forecast = torch.tensor([[[11.0, 17.0], [44.0, 9.0]]])
    found = errors(forecast, truth, (15, 30))
    wanted = {
        "mae_15": 2.0, "mae_30": 4.0, "mae": 3.0,
        "rmse_15": 5**0.5, "rmse_30": 4.0, "rmse": (5**0.5 + 4) / 2,
        "mape_15": (10 + 15) / 2, "mape_30": 10.0, "mape": (12.5 + 10) / 2,
    }  # fmt: skip
    assert found == pytest.approx(wanted)


def test_errors_against_numpy():
    rng = np.random.default_rng(0)
    truth = rng.uniform(20, 70, (30, 3, 7))
    truth[rng.random(truth.shape) < 0.1] = 0
    forecast = truth + rng.standard_normal(truth.shape)
    found = errors(torch.tensor(forecast), torch.tensor(truth), (15, 30, 45))
    for i, m in enumerate((15, 30, 45)):
        t, p = truth[:, i], forecast[:, i]
        off = np.abs(p - t)[t != 0]
        assert found[f"mae_{m}"] == pytest.approx(off.mean())
        assert found[f"rmse_{m}"] == pytest.approx(np.sqrt((off**2).mean()))
        assert found[f"mape_{m}"] == pytest.approx(100 * (off / t[t != 0]).mean())


def test_persistence_by_hand():
    signal = torch.arange(1.0, 301.0)[:, None].repeat(1, 3)
    windows = Windows(SignalData(signal, torch.zeros(2, 0, dtype=torch.int64), None, "up"), 12, (15, 30, 45))
    found = persistence(windows)
    assert [found[f"mae_{m}"] for m in (15, 30, 45)] == pytest.approx([3, 6, 9], rel=1e-4)


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["stgcn", "stgat"])
@pytest.mark.parametrize("sizes", [{"layers": 1}, {"layers": 2}, {"layers": 1, "stride": 3}])
def test_weight_shapes(model, sizes):
    wanted = config(model, **sizes)
    made = {n: tuple(m.weight.shape) for n, m in linears(models.build(wanted)).items()}
    assert made == models.weight_shapes(wanted)
    data, made = sets.ringroad(6, 100), models.build(wanted)
    assert made(torch.randn(2, 12, 6), Copies(CSRGraph.from_edge_index(data.edge_index, 6))).shape == (2, 3, 6)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_over_time_is_a_gated_convolution(stride):
    x, linear = torch.randn(2, 6, 5, 4), torch.nn.Linear(12, 8)
    kernel = linear.weight.view(8, 3, 4).permute(0, 2, 1)[..., None]  # [out, in, time, 1]
    wanted = F.glu(F.conv2d(x.permute(0, 3, 1, 2), kernel, linear.bias, (stride, 1)), 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(models.over_time(x, linear, stride), wanted)


def test_copies_are_block_diagonal():
    edges, weight = torch.tensor([[0, 1, 2, 2], [1, 2, 0, 2]]), torch.tensor([1.0, 2, 3, 4])
    graph = CSRGraph.from_edge_index(edges, 3, weight)
    copies = Copies(graph)
    many = copies.of(3)
    a = torch.zeros(3, 3).index_put((edges[1], edges[0]), weight)
    found = torch.zeros(9, 9).index_put((many.rows(), many.col.long()), many.val)
    assert torch.equal(found, torch.block_diag(a, a, a)) and copies.of(3) is many
    assert copies.of(1).val.tolist() == graph.val.tolist()
    plain = Copies(CSRGraph.from_edge_index(edges, 3)).of(2)
    assert plain.val is None and plain.num_edges == 8


@pytest.mark.parametrize("model", ["stgcn", "stgat"])
def test_weights_are_shared_over_batch_time_and_sensors(model):
    """A window's forecast does not depend on the others in its batch, and sensors may be in any order."""
    data, wanted = sets.ringroad(6, 100), config(model, layers=2)
    torch.manual_seed(0)
    net = models.build(wanted).eval()
    graph = CSRGraph.from_edge_index(data.edge_index, 6, data.edge_weight)
    x = torch.randn(5, 12, 6)
    together = net(x, Copies(graph))
    assert together.shape == (5, 3, 6)
    alone = torch.cat([net(x[i : i + 1], Copies(graph)) for i in range(5)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = CSRGraph.from_edge_index(order.argsort()[data.edge_index], 6, data.edge_weight)
    torch.testing.assert_close(net(x[..., order], Copies(moved)), together[..., order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["stgcn", "stgat"])
def test_agrees_with_pyg(model):
    """The layer over the sensors, one graph at a time, by PyG."""
    nn = pytest.importorskip("torch_geometric.nn")
    data, wanted = sets.ringroad(6, 100), config(model, layers=1)
    conv = models.build(wanted).blocks[0].conv
    twin = nn.GCNConv(8, 8) if model == "stgcn" else nn.GATConv(8, 4, 2)
    twin.load_state_dict(conv.state_dict())
    x = torch.randn(4, 6, 8)
    copies = Copies(CSRGraph.from_edge_index(data.edge_index, 6, data.edge_weight))
    weight = (data.edge_weight,) if model == "stgcn" else ()
    found = conv(x.flatten(0, 1), copies.of(4)).view(4, 6, 8)
    for i in range(4):
        torch.testing.assert_close(found[i], twin(x[i], data.edge_index, *weight), rtol=1e-4, atol=1e-5)


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, method",
    [("stgcn", m) for m in ("dense", "set", "rigl", "gmp", "slr")]
    + [("stgat", m) for m in ("dense", "static", "rigl", "admm")],
)
def test_every_family(data, model, method):
    epochs = 12 if method in ("slr", "admm") else 3
    r = train(config(model, method, epochs=epochs), data)
    json.loads(_console.json_text(r))
    assert (r["task"], r["metric"], r["higher_is_better"]) == ("traffic", "mae", False)
    names = {f"{m}{h}" for m in ("mae", "rmse", "mape") for h in ("", "_15", "_30", "_45")}
    assert set(r["tests"]) == names and r["test"] == r["tests"]["mae"] > 0 and r["val"] > 0
    assert r["steps"] == epochs * (r["windows"]["train"] // 32)
    wanted = 0 if method == "dense" else 0.9
    assert r["sparsity"] == 1 - r["weights"] / r["weights_dense"] and abs(r["sparsity"] - wanted) < 0.01
    assert (r["mask_updates"] > 0) == (method not in ("dense", "static"))
    assert set(r["layers"]) == set(models.weight_shapes(config(model)))
    assert r["flops"] > 0 and r["flops_aggregation"] > 0 and r["seconds_training"] > 0
    steps, val, test, flops, _ = r["curve"][-1]
    assert (steps, flops, test) == (r["steps"], r["flops"], r["test"]) and min(p[1] for p in r["curve"]) == r["val"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("method", sorted(set(METHODS) - {"rigl", "set", "gmp", "slr"}))
def test_every_method_trains_or_says_why_not(data, method):
    from controllers.methods import SETTINGS

    try:
        r = train(config("stgcn", method, epochs=10, batch=150, set=SETTINGS.get(method, {})), data)
    except ValueError as e:
        assert "must" in str(e)
    else:
        assert r["weights"] <= r["weights_dense"] and r["selected_step"] > 0


@pytest.mark.parametrize("model", ["stgcn", "stgat"])
def test_same_seed_same_result(data, model):
    first, again, other = (train(config(model, "rigl", seed=s), data) for s in (1, 1, 2))
    assert [first[n] for n in SAME] == [again[n] for n in SAME] and first["val"] != other["val"]


@pytest.mark.parametrize("model", ["stgcn", "stgat"])
def test_learns_more_than_persistence(model):
    data = sets.ringroad(12, 400, noise=0.5)
    dense, sparse = (train(config(model, m, hidden=16, epochs=10, lr=0.01), data) for m in ("dense", "rigl"))
    level = dense["levels"]["persistence"]
    assert dense["test"] < 0.6 * level and sparse["test"] < 0.8 * level


@pytest.mark.parametrize("method", ["static", "rigl", "set"])
def test_sparsity_is_that_of_all_layers_where_some_are_full(data, method):
    """ERK leaves the narrow layers all their weights; the others then have fewer."""
    r = train(config(method=method, hidden=64, stride=3, epochs=1, batch=150), data)
    assert r["layers"]["out.1"] == [[0, 0.0]] and abs(r["sparsity"] - 0.9) < 0.001


def test_sparse_runs_need_fewer_flops(data):
    dense, sparse = (train(config(method=m, hidden=32), data) for m in ("dense", "static"))
    assert sparse["flops_weights"] < dense["flops_weights"] / 4


def test_the_test_part_never_selects(data):
    """Other values in the test part change the reported test errors and nothing else."""
    signal = data.signal.clone()
    signal[240:] += 5
    first, second = (train(config(method="set"), d) for d in (data, dataclasses.replace(data, signal=signal)))
    assert (first["val"], first["selected_step"]) == (second["val"], second["selected_step"])
    assert first["test"] != second["test"]


def test_missing_values_are_no_part_of_the_loss(data):
    """A sensor that reports nothing has no error; with it the others' forecasts stay of the same quality."""
    signal = data.signal.clone()
    signal[:, 0] = 0
    r = train(config(epochs=6), dataclasses.replace(data, signal=signal))
    assert r["test"] < 15  # it would be above 60 / 8 more if zeros were the truth, and MAPE infinite
    assert np.isfinite(r["tests"]["mape"])


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"model": "gcn"}, ValueError, "model must be one of stgcn, stgat, got 'gcn'"),
        ({"hidden": 0}, ValueError, "hidden must be a positive integer"),
        ({"model": "stgat", "hidden": 10, "heads": 4}, ValueError, "hidden must be a multiple of heads 4, got 10"),
        ({"history": 8}, ValueError, "history must be at least 9 for 2 layers, got 8"),
        ({"history": 8, "layers": 1, "stride": 3}, ValueError, "history must be at least 9 for 1 layers, got 8"),
        ({"history": "12"}, TypeError, "history must be a positive integer"),
        ({"horizons": ()}, ValueError, "horizons must be different minutes"),
        ({"horizons": (30, 15)}, ValueError, "horizons must be different minutes, ascending"),
        ({"horizons": (15, 15)}, ValueError, "horizons must be different minutes"),
        ({"horizons": (0, 15)}, ValueError, "horizons must be positive integers"),
        ({"horizons": 15}, TypeError, "horizons must be a list of minutes, got 15"),
        ({"horizons": "15"}, TypeError, "horizons must be a list of minutes"),
        ({"lr": -1.0}, ValueError, "lr must be in"),
        ({"batch": 2.5}, TypeError, "batch must be a positive integer"),
        ({"sparsity": 0.5}, ValueError, "sparsity must be 0 for method 'dense'"),
        ({"method": "kedge"}, ValueError, "method must be one that leaves the edges, got 'kedge'"),
        ({"method": "nothing"}, ValueError, "method must be one of dense, "),
    ],
)
def test_bad_settings(changes, error, words):
    with pytest.raises(error, match=words):
        TrafficConfig(**changes)


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda d: dataclasses.replace(d, minutes=10),
            "horizons must be multiples of the 10 minutes",
        ),
        (lambda d: dataclasses.replace(d, signal=d.signal[:60]), "must have at least 21 steps of val, got 6"),
        (lambda d: dataclasses.replace(d, signal=torch.zeros_like(d.signal)), "a training part that varies"),
    ],
)
def test_data_that_cannot_be_used(data, change, words):
    with pytest.raises(ValueError, match=words):
        train(config(), change(data))


def test_divergence_is_reported(data):
    with pytest.raises(CheckFailed, match="training diverged"):
        train(config(lr=1e30), data)


def test_data_by_name():
    assert train(config(epochs=1, data="ringroad", batch=100))["data"] == "ringroad"
    with pytest.raises(ValueError, match="no set named"):
        train(config(data="nothing"))


META = json.dumps({"format": sets.FORMAT, "name": "tiny", "deduplicated": True})


def arrays(**changes) -> dict:
    made = {
        "edge_index": np.array([[0, 1], [1, 0]], dtype=np.int32),
        "edge_weight": np.float32([1, 0.5]),
        "num_nodes": np.int64(2),
        "signal": np.ones((5, 2), dtype=np.float32),
        "meta": np.array(META),
        **changes,
    }
    return {k: v for k, v in made.items() if v is not None}


def test_files_of_signals(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "tiny.npz", **arrays())
    monkeypatch.setenv("SPARSEGNN_DATA", str(tmp_path))
    found = sets.load_signal("tiny")
    assert found.name == "tiny" and found.signal.shape == (5, 2) and found.num_edges == found.num_nodes == 2
    assert found.edge_weight.tolist() == [1, 0.5] and found.minutes == 5
    np.savez_compressed(tmp_path / "tiny.npz", **arrays(edge_weight=None))
    assert sets.load_signal("tiny").edge_weight is None


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"signal": None}, "no array 'signal'"),
        ({"signal": np.ones((5, 3), dtype=np.float32)}, r"'signal' must have shape \[\*, 2\]"),
        ({"signal": np.full((5, 2), np.nan)}, "'signal' must be finite"),
        ({"edge_time": np.arange(2)}, "graph that changes"),
        ({"edge_weight": np.float32([1, -1])}, "'edge_weight' must not be negative"),
    ],
)
def test_files_that_are_refused(tmp_path, changes, words):
    np.savez_compressed(tmp_path / "bad.npz", **arrays(**changes))
    with pytest.raises(ValueError, match=words):
        sets.load_signal(tmp_path / "bad.npz")


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"signal": [[1.0]]}, TypeError, "signal must be a tensor of floating-point numbers, got list"),
        ({"signal": torch.ones(5)}, ValueError, r"signal must have 2 dimension\(s\), got \[5\]"),
        ({"signal": torch.full((5, 2), float("inf"))}, ValueError, "signal must be finite"),
        ({"edge_index": torch.zeros(2, 1)}, TypeError, "edge_index must be a tensor of integers"),
    ],
)
def test_signals_that_are_none(changes, error, words):
    fine = {"signal": torch.ones(5, 2), "edge_index": torch.zeros(2, 1, dtype=torch.int64), "edge_weight": None}
    SignalData(**fine, name="x")
    with pytest.raises(error, match=words):
        SignalData(**(fine | changes), name="x")


@pytest.mark.parametrize("changes", [{"num_nodes": 2}, {"steps": 0}, {"noise": -1.0}, {"noise": float("nan")}])
def test_ringroad_out_of_range(changes):
    with pytest.raises(ValueError, match=f"ringroad: {next(iter(changes))} is out of range"):
        sets.ringroad(**changes)
