"""The advice on nets whose answer is known, on a machine whose time is counted; and that nothing is left changed."""

import json
import random

import numpy as np
import pytest
import torch
from advice.simulated import Machine
from torch import nn
from torch.nn import functional as F

import sparsegnn
from sparsegnn import CSRGraph, sparsify
from sparsegnn.nn import GCNConv, SparseLinear

N = 40
GRAPH = CSRGraph.from_edge_index(torch.randint(N, (2, 400), generator=torch.Generator().manual_seed(0)), N)
X = torch.randn(N, 16, generator=torch.Generator().manual_seed(1))
Y = torch.arange(N) % 8


class GCN(nn.Module):
    def __init__(self, hidden=128, out=128, features=16):
        super().__init__()
        self.convs = nn.ModuleList([GCNConv(features, hidden), GCNConv(hidden, out)])
        self.act = nn.ReLU()

    def forward(self, x, graph):
        return self.convs[1](self.act(self.convs[0](x, graph)), graph)


def mlp(hidden=256):
    return nn.Sequential(nn.Linear(16, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 8))


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    """Time that is counted needs no medians."""
    monkeypatch.setattr("sparsegnn.advice.search.ROUNDS", (1, 1))
    for name in ("parts.MOST", "prices.MOST", "prices.FEWEST"):
        monkeypatch.setattr(f"sparsegnn.advice.{name}", 1)


def loss_of(x=X):
    def loss(model):
        logits = model(x, GRAPH) if isinstance(model, GCN) else model(x)
        return F.cross_entropy(logits, Y)

    return loss


ROWS = torch.randn(2000, 16, generator=torch.Generator().manual_seed(2))


def of_many_rows(model):
    """Few weights beside so many activations."""
    return model(ROWS).square().mean()


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=1e-3, foreach=False)


def simulated(model, loss=None, seconds=1e6, **costs):
    with Machine(**costs) as machine:
        options = {"seconds": seconds, "show": False, "clock": machine.now}
        return sparsegnn.advise(model, loss or loss_of(), optimizer=sgd, **options)


def by_name(found):
    return {row["option"]: row for row in found["options"]}


# --- the answer ------------------------------------------------------------------------------------------------------


def test_a_net_that_is_all_weights():
    found = simulated(mlp(), product=1e-6)
    rows = by_name(found)
    assert found["answer"] == "levers" and found["text"].startswith("Levers pay: 98 % sparse weights")
    assert found["parts"]["weights"] > 0.9 * found["step"]
    sizes = 16 * 256 + 256 * 256 + 256 * 8
    for sparsity in (80, 90, 95, 98):
        row = rows[f"{sparsity} % sparse weights (unstructured)"]
        assert row["weights"] == pytest.approx(sizes * (1 - sparsity / 100), rel=0.01)
    # of all FLOPs: no gradient of x in the first layer
    dense = 2 * 40 * (2 * 16 * 256 + 3 * 256 * 256 + 3 * 256 * 8)
    assert found["step"] == pytest.approx(dense * 1e-6, rel=0.02)
    assert "MaxK" in found["left_out"] and "bf16" in rows
    half = 2 * 40 * (2 * 16 * 128 + 3 * 128 * 128 + 3 * 128 * 8)
    assert rows["half the width"]["measured"] == pytest.approx(half * 1e-6, rel=0.02)
    assert found["equal_time_width"] < 0.25


def test_a_net_that_is_all_aggregation():
    found = simulated(GCN(), edge=1e-6)
    assert found["answer"] == "levers" and found["option"] == "MaxK 16"
    assert found["parts"]["aggregation"] > 0.9 * found["step"]
    rows = by_name(found)
    assert rows["98 % sparse weights (unstructured)"]["speedup"] == pytest.approx(1, abs=0.02)
    assert rows["half the width"]["speedup"] > 1.2 > 1.02 > rows["90 % sparse weights (grouped:8)"]["speedup"]


def test_a_net_that_is_all_activations():
    """Only a narrower net has fewer elements; nothing that is done to weights helps."""
    found = simulated(mlp(64), of_many_rows, element=1e-6)
    assert found["answer"] == "narrower" and found["text"].startswith("Use a narrower dense net: at a quarter")
    assert "Weights are 0 % of a step, so that their sparsity can hardly matter." in found["text"]


def test_levers_that_gain_no_more_than_half_the_width():
    """Weights are less than half of the step: without them it would hardly be faster than at half the width."""
    products = 2 * 2000 * (2 * 16 * 64 + 3 * 64 * 64 + 3 * 64 * 8)
    found = simulated(mlp(64), of_many_rows, product=1.0 / products, element=1.5 / (8 * 2000 * 64))
    assert found["answer"] == "narrower" and "at half the width" in found["text"]
    assert "All levers together gain no more" in found["text"] and found["equal_time_width"] >= 0.4


def test_a_tiny_net():
    found = simulated(mlp(8), call=1e-4)
    assert found["answer"] == "nothing" and "nothing here gains a tenth" in found["text"]
    assert any("grouped:8" not in row["option"] for row in found["options"])


@pytest.mark.parametrize(
    "make, costs",
    [
        (mlp, {"product": 1e-6}),
        (mlp, {"product": 1e-8, "element": 1e-6, "call": 1e-3}),
        (GCN, {"product": 1e-8, "edge": 1e-6, "element": 1e-8}),
        (lambda: sparsify(mlp(), 0.5), {"product": 1e-7, "element": 1e-7}),
    ],
)
def test_what_was_expected_is_what_is_measured(make, costs):
    found = simulated(make(), **costs)
    both = [row for row in found["options"] if row["measured"] is not None]
    assert len(both) >= 4
    for row in both:
        assert row["expected"] == pytest.approx(row["measured"], rel=0.25), row["option"]
        assert sum(row["parts"].values()) == pytest.approx(row["expected"])
    assert sum(found["parts"].values()) == pytest.approx(found["step"])


def test_a_model_that_is_sparse_already_is_compared_with_its_dense_form():
    model = sparsify(mlp(), 0.98)
    found = simulated(model, product=1e-6)
    rows = by_name(found)
    assert rows["dense"]["speedup"] < 0.1 and rows["half the width"]["weights"] > 16 * 128 + 128 * 128
    assert found["weights"] == sum(m.values.numel() for m in model if isinstance(m, SparseLinear))
    assert found["answer"] == "nothing"


def test_time_that_runs_out_is_said():
    found = simulated(mlp(), seconds=1.0, product=1e-6)
    assert any("no time was left" in why for why in found["left_out"].values())
    assert found["rounds"] >= 1


def test_memory_is_of_weights_optimizer_and_activations():
    found = simulated(mlp(), product=1e-6)
    parameters = 16 * 256 + 256 + 256 * 256 + 256 + 256 * 8 + 8
    assert found["memory"]["weights"] == 2 * 4 * parameters and found["memory"]["optimizer"] == 0
    # two activations, log-probabilities and the weight that cross_entropy sums
    assert found["memory"]["activations"] == 4 * (2 * N * 256 + N * 8 + 1)
    with Machine(product=1e-6) as machine:
        adam = sparsegnn.advise(mlp(), loss_of(), seconds=1e6, show=False, clock=machine.now)
    assert adam["memory"]["optimizer"] == pytest.approx(2 * 4 * parameters, rel=0.01)


# --- what is left out ------------------------------------------------------------------------------------------------


def test_widths_that_a_pattern_cannot_hold():
    model = nn.Sequential(nn.Linear(16, 30), nn.ReLU(), nn.Linear(30, 9))
    found = simulated(model, product=1e-6)
    assert (
        "no layer can hold pattern 'grouped:8': 0 30x16, 2 9x30" in found["left_out"]["90 % sparse weights (grouped:8)"]
    )
    assert "90 % sparse weights (unstructured)" in by_name(found)


def test_no_linear_layers():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(16))

        def forward(self, x):
            return x * self.scale

    found = simulated(Scale(), element=1e-6)
    assert "no linear layer" in found["left_out"]["90 % sparse weights (unstructured)"]
    assert found["answer"] == "nothing" and "half the width" in found["left_out"]


def test_a_lever_that_the_model_refuses():
    """Its forward writes to the weight, which a sparse layer makes of its values."""

    class Clips(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 8)

        def forward(self, x):
            with torch.no_grad():
                self.a.weight.clamp_(-1, 1)
            return self.b(self.a(x).relu())

    found = simulated(Clips(), product=1e-6)
    assert "weight must only be read" in found["left_out"]["98 % sparse weights (grouped:8)"]
    assert not [row for row in found["options"] if row["levers"]["sparsity"]]


def test_narrower_is_asked_for_nets_that_cannot_be_compacted():
    class Looks(nn.Module):
        def __init__(self, hidden=64):
            super().__init__()
            self.layers = mlp(hidden)

        def forward(self, x):
            return self.layers(x if bool(x.sum() < 1e9) else -x)  # of data: torch.fx cannot follow

    found = simulated(Looks(), of_many_rows, element=1e-6)
    assert "torch.fx" in found["left_out"]["half the width"] and found["answer"] == "nothing"
    with Machine(element=1e-6) as machine:
        options = {"optimizer": sgd, "seconds": 1e6, "show": False, "clock": machine.now}
        found = sparsegnn.advise(Looks(), of_many_rows, narrower=lambda share: Looks(round(64 * share)), **options)
    assert found["answer"] == "narrower"


# --- bad input, and what is put back ---------------------------------------------------------------------------------


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.lin, self.calls = nn.BatchNorm1d(16), nn.Linear(16, 8), 0

    def forward(self, x):
        torch.rand(1), random.random(), np.random.rand()
        self.lin(F.dropout(self.norm(x), 0.5, self.training))
        raise ZeroDivisionError("of the user")


def state_of(model, *tensors):
    grads = [None if t.grad is None else (id(t.grad), t.grad.clone()) for t in (*model.parameters(), *tensors)]
    randoms = torch.get_rng_state(), random.getstate(), np.random.get_state()
    return {k: v.clone() for k, v in model.state_dict().items()}, grads, randoms, [m.training for m in model.modules()]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def batch_norm():
    return nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 8))


CALLS = {
    "it runs": (batch_norm, loss_of(), None),
    "it fails": (Fails, loss_of(), ZeroDivisionError),
    "the loss is no scalar": (batch_norm, lambda m: m(X), ValueError),
    "the loss needs no gradient": (batch_norm, lambda m: m(X).sum().detach(), ValueError),
    "the loss is a number": (batch_norm, lambda m: m(X).sum().item(), TypeError),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("training", [True, False])
def test_everything_is_as_it_was(name, training):
    make, loss, error = CALLS[name]
    model = make().train(training)
    x = X.clone().requires_grad_()
    x.grad = torch.ones_like(x)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    mixed = (lambda m: loss(m) + m[0](x).sum()) if error is None else loss
    before = state_of(model, x)
    if error is None:
        found = simulated(model, mixed, product=1e-6)
        assert "1 tensor(s) outside of the model" in found["notes"][0]
    else:
        with pytest.raises(error):
            simulated(model, loss, product=1e-6)
    assert same(before, state_of(model, x))


def test_a_loss_of_another_model_is_refused_and_that_is_as_it_was():
    model = batch_norm()
    before = state_of(model)
    with pytest.raises(ValueError, match="must depend on the model that it is called with"):
        simulated(model, lambda copy: F.cross_entropy(model(X), Y), product=1e-6)
    assert same(before, state_of(model))


@pytest.mark.parametrize(
    "arguments, options, error, words",
    [
        ((3,), {}, TypeError, "model must be a torch.nn.Module or a TrainConfig, got int"),
        ((mlp(8),), {}, TypeError, "loss must be callable with a model, got NoneType"),
        ((mlp(8), loss_of()), {"optimizer": 3}, TypeError, "optimizer must be an Optimizer or make one"),
        (
            (mlp(8), loss_of()),
            {"optimizer": list},
            TypeError,
            "optimizer must return a torch.optim.Optimizer, got list",
        ),
        ((mlp(8), loss_of()), {"narrower": 2}, TypeError, "narrower must be callable"),
        ((mlp(8), loss_of()), {"seconds": 0}, ValueError, "seconds must be at least 1, got 0"),
        ((mlp(8), loss_of()), {"seconds": "1"}, TypeError, "seconds must be a number, got '1'"),
        ((mlp(8), lambda m: m(X)), {}, ValueError, r"loss must return a scalar, got shape \[40, 8\]"),
    ],
)
def test_refused(arguments, options, error, words):
    with pytest.raises(error, match=f"advise: {words}"):
        sparsegnn.advise(*arguments, show=False, **options)


def test_optimizers_are_made_anew_with_the_same_settings():
    model = mlp(32)
    given = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
    with Machine(product=1e-6) as machine:
        found = sparsegnn.advise(model, loss_of(), optimizer=given, seconds=1e6, show=False, clock=machine.now)
    assert found["memory"]["optimizer"] == sum(p.nbytes for p in model.parameters()) and not given.state


def test_tables_and_json(capsys):
    with Machine(product=1e-6) as machine:
        found = sparsegnn.advise(mlp(32), loss_of(), optimizer=sgd, seconds=1e6, clock=machine.now)
    text = capsys.readouterr().out
    for words in ("one training step", "aggregation", "expected ms", "measured ms", "as it is", "half the width",
                  "left out: MaxK", "accuracy of 90 % sparse weights", found["text"][:40]):  # fmt: skip
        assert words in text, words
    assert json.loads(json.dumps(found)) == found
