"""The networks of the training run and their levers: each against formulas on dense matrices, alone and composed."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from sparsegnn import data as graphs
from sparsegnn.experiments.config import TrainConfig
from sparsegnn.experiments.models import MODELS, build, inputs_of, prepare
from sparsegnn.experiments.train import train

pytest.importorskip("tqdm")


@pytest.fixture(scope="module")
def small():
    return graphs.skewed(200, 8, 3, 24, signal=1.0, seed=3)


@pytest.fixture(scope="module")
def matrices(small):
    """A without loops, and with the symmetric norm of GCN: A[target, source]."""
    n = small.num_nodes
    plain = torch.zeros(n, n, dtype=torch.float64)
    plain.index_put_((small.edge_index[1], small.edge_index[0]), torch.ones(small.num_edges).double(), accumulate=True)
    loops = plain - plain.diag().diag() + torch.eye(n).double()
    scale = loops.sum(1).pow(-0.5)
    return plain, scale[:, None] * loops * scale


def config(**changes):
    return TrainConfig(**{"data": "skewed", "epochs": 6, "hidden": 16, "heads": 2, "progress": False, **changes})


def keep(x, k):
    """The k largest of each row."""
    return x * torch.zeros_like(x).scatter(1, x.topk(k, 1).indices, 1.0) if k else x.relu()


def weight(lin):
    dense = lin.to_dense() if hasattr(lin, "to_dense") else lin
    bias = 0.0 if dense.bias is None else dense.bias.double()
    return lambda x: x @ dense.weight.double().T + bias


def expected(model, c, x, plain, normed, hops):
    """Logits in fp64."""
    if c.model in ("sign", "mlp"):
        y, layers = sum(weight(lin)(x) for lin, x in zip(model.inputs, hops, strict=False)), list(model.layers)
    else:
        convs = list(model.convs)

        def conv(layer, x, last):
            bias = 0.0 if getattr(layer, "bias", None) is None else layer.bias.double()
            if c.model == "gcn" and c.maxk and not last:
                return normed @ keep(weight(layer.lin)(x), c.maxk)
            if c.model == "gcn":
                return normed @ weight(layer.lin)(x) + bias
            if c.model == "gin":
                return weight(layer.nn[2])(weight(layer.nn[0])(x + plain @ x).relu())
            mean = plain @ x / plain.sum(1, keepdim=True).clamp(min=1)
            return weight(layer.lin_l)(mean) + weight(layer.lin_r)(x)

        y, layers = conv(convs[0], x, len(convs) == 1), convs[1:]
    last_input = None
    for i, layer in enumerate(layers):
        if c.residual and last_input is not None and last_input.shape == y.shape:
            y = y + last_input
        if c.layer_norm:
            y = F.layer_norm(y, y.shape[1:], model.norms[i].weight.double(), model.norms[i].bias.double())
        last_input = y if c.model == "gcn" and c.maxk else keep(y, c.maxk)
        y = weight(layer)(last_input) if c.model in ("sign", "mlp") else conv(layer, last_input, i + 1 == len(layers))
    return y


LEVERS = [{}, {"maxk": 4}, {"layers": 3, "residual": True, "layer_norm": True}, {"layers": 1}, {"layers": 3, "maxk": 6},
          {"method": "static", "sparsity": 0.8}, {"method": "static", "pattern": "grouped:8", "maxk": 8},
          {"method": "gmp", "pattern": "grouped:8"}]  # fmt: skip


@pytest.mark.parametrize("model", [m for m in MODELS if m != "gat"])
@pytest.mark.parametrize("levers", LEVERS, ids=str)
def test_logits(small, matrices, model, levers):
    c = config(model=model, **levers)
    torch.manual_seed(0)
    made, graph = build(c, small).eval(), prepare("sparsegnn", small)
    inputs = inputs_of(c, small, graph)
    x, (plain, normed) = small.x.double(), matrices
    hops = [x, normed @ x, normed @ normed @ x]
    with torch.no_grad():
        found = made(inputs[0], graph) if made.takes_graph else made(inputs if len(inputs) > 1 else inputs[0])
    torch.testing.assert_close(found.double(), expected(made, c, x, plain, normed, hops), rtol=2e-4, atol=2e-5)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "levers",
    [{"maxk": 8, "dtype": "bfloat16", "method": "rigl", "pattern": "grouped:8"},
     {"layers": 3, "residual": True, "layer_norm": True, "method": "set"},
     {"method": "oto"} , {"maxk": 8, "method": "gmp", "layer_norm": True}],
    ids=str,
)  # fmt: skip
def test_levers_compose(small, model, levers):
    if levers.get("method") == "oto" and model == "gin":
        with pytest.raises(ValueError, match="OTO: model must have hidden units"):
            train(config(model=model, **levers), small)
        return
    clear = graphs.skewed(200, 8, 3, 24, signal=4.0, seed=3)
    r = train(config(model=model, epochs=40, dropout=0.2, lr=0.02, **levers), clear)
    assert r["test_accuracy"] > 0.5 and r["flops"] > 0  # of three classes
    assert ("grouped:8" in r["patterns"].values()) == ("pattern" in levers)
    assert abs(r["sparsity"] - (0 if levers["method"] == "oto" else 0.9)) < 0.02


def test_what_is_wide_and_sparse_stays_sparse(small):
    x = torch.zeros(small.num_nodes, 300)
    x[:, ::60] = torch.rand(small.num_nodes, 5)
    wide = dataclasses.replace(small, x=x)
    first, _, third = inputs_of(config(model="sign"), wide, prepare("sparsegnn", wide))
    assert first.layout == torch.sparse_csr and (
        third.layout == torch.strided or third.values().numel() < 0.05 * x.numel()
    )
    assert torch.equal(first.to_dense(), x)
    for model in MODELS:
        assert train(config(model=model, epochs=3, input_dropout=0.0), wide)["flops"] > 0


def test_less_is_computed(small):
    """Of the levers, by the count of operations."""
    whole, kept = (train(config(layers=3, hidden=64, maxk=k, input_dropout=0.0), small) for k in (None, 8))
    assert kept["flops_aggregation"] < 0.5 * whole["flops_aggregation"]
    hops = [train(config(model="sign", hops=n), small)["flops_aggregation"] for n in (0, 3)]
    assert hops == [0, 0]


BAD = [
    ({"maxk": 17}, ValueError, r"maxk must be in \[1, 16\], the width of a hidden layer, got 17"),
    ({"maxk": 4, "layers": 1}, ValueError, "maxk must be used with at least 2 layers, got 1"),
    ({"maxk": 2.0}, TypeError, "maxk must be in"),
    ({"maxk": 4, "method": "maxk"}, ValueError, "maxk must be left out for method 'maxk'"),
    ({"maxk": 4, "method": "triple"}, ValueError, "maxk must be left out for method 'triple'"),
    ({"residual": True}, ValueError, "residual must be used with at least 3 layers, got 2"),
    ({"residual": 1, "layers": 3}, TypeError, "residual must be True or False, got 1"),
    ({"layer_norm": True, "layers": 1}, ValueError, "layer_norm must be used with at least 2 layers"),
    ({"dtype": "float16"}, ValueError, "dtype must be one of float32, bfloat16, got 'float16'"),
    ({"hops": 2}, ValueError, "hops must be left out for model 'gcn', only sign has them"),
    ({"model": "sign", "hops": -1}, ValueError, r"hops must be an integer in \[0, 32\], got -1"),
    ({"model": "mlp", "method": "fastgat"}, ValueError, "model must be one that aggregates in each step for method"),
    ({"model": "mlp", "backend": "pyg"}, ValueError, "model must be one of PyG's graph layers for backend 'pyg'"),
    ({"maxk": 4, "backend": "pyg"}, ValueError, "maxk must be left out for backend 'pyg'"),
    ({"model": "gcnii"}, ValueError, "model must be one of gcn, gat, sage, gin, sign, mlp"),
]


@pytest.mark.parametrize("changes, error, words", BAD)
def test_bad_input(changes, error, words):
    with pytest.raises(error, match=words):
        config(**changes)


def test_no_layer_holds_the_pattern(small):
    with pytest.raises(ValueError, match="pattern: a weight of pattern 'block:32x32' must have a multiple of 32"):
        build(config(method="static", pattern="block:32x32"), small)
