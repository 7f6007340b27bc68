"""sparsify and densify: which layers, how many weights, what stays the same."""

import copy

import pytest
import torch
from torch import nn

import sparsegnn
from sparsegnn import densify, plans, sparsify
from sparsegnn.controllers.distributions import allocate
from sparsegnn.nn import GATConv, GCN2Conv, GCNConv, GraphConv, SGConv, SparseLinear, TAGConv


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Sequential(nn.Linear(64, 64), nn.ReLU()), nn.Linear(64, 5))


SHAPES = {"0": (64, 20), "2.0": (64, 64), "3": (5, 64)}


def counts(model):
    return {name: m.values.numel() for name, m in model.named_modules() if isinstance(m, SparseLinear)}


def top_mask(weight, n):
    flat = weight.detach().abs().flatten()
    return torch.zeros_like(flat).index_fill_(0, flat.topk(n).indices, 1).view_as(weight)


@pytest.mark.parametrize("distribution", ["erk", "uniform", "global"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_keeps_the_largest_weights(distribution, sparsity):
    model, dense = mlp(), mlp()
    weights = {name: dense.get_submodule(name).weight for name in SHAPES}
    want = allocate(SHAPES, sparsity, distribution, weights)
    assert sparsify(model, sparsity, distribution=distribution) is model
    assert counts(model) == want
    for name, n in want.items():
        linear = dense.get_submodule(name)
        linear.weight.data *= top_mask(linear.weight, n)
        assert torch.equal(model.get_submodule(name).to_dense().weight, linear.weight)
    x = torch.randn(7, 20)
    torch.testing.assert_close(model(x), dense(x))
    densify(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in dense.modules()]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), dense.state_dict().values(), strict=True))


def test_global_competes_across_layers():
    model = mlp()
    with torch.no_grad():
        model[0].weight.mul_(100)
    assert counts(sparsify(model, 0.8, distribution="global"))["0"] > 1000


def test_choice_of_layers():
    def made(**kwargs):
        return set(counts(sparsify(mlp(), 0.5, **kwargs)))

    assert made() == {"0", "2.0", "3"}
    assert made(exclude=["3"]) == {"0", "2.0"}
    assert made(include=["2"]) == {"2.0"}
    assert made(include=["?"], exclude=["0"]) == {"2.0", "3"}
    assert made(include=lambda name, module: module.in_features == 64) == {"2.0", "3"}
    assert made(distribution={"0": 0.5, "2": 0.9}) == {"0", "2.0"}
    assert counts(sparsify(mlp(), distribution={"2": 0.75}))["2.0"] == 1024
    assert counts(sparsify(mlp(), 0.9, exclude=["3"])) == allocate({k: SHAPES[k] for k in ("0", "2.0")}, 0.9)


def test_fan_in():
    model = sparsify(mlp(), 0.9, distribution="uniform", pattern="fan_in")
    assert all(m.crow.diff().unique().numel() == 1 for m in model.modules() if isinstance(m, SparseLinear))


def test_copy_leaves_the_model_alone():
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    sparse = sparsify(model, 0.9, inplace=False)
    assert not counts(model) and counts(sparse)
    dense = densify(sparse, inplace=False)
    assert counts(sparse) and not counts(dense)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_layer_alone():
    layer = sparsify(nn.Linear(8, 4), 0.5)
    assert isinstance(layer, SparseLinear) and layer.values.numel() == 16
    assert type(densify(layer)) is nn.Linear


def test_a_module_with_two_names_stays_one():
    shared = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    sparsify(model, 0.5)
    assert model["a"] is model["b"][0] and isinstance(model["a"], SparseLinear)
    densify(model)
    assert model["a"] is model["b"][0] and type(model["a"]) is nn.Linear


def test_mode_and_requires_grad_carry_over():
    model = mlp().eval()
    model[0].requires_grad_(False)
    sparsify(model, 0.5)
    assert not model[0].training and not model[0].values.requires_grad and model[3].values.requires_grad
    densify(model)
    assert not model[0].training and not model[0].weight.requires_grad and model[3].weight.requires_grad
    conv = sparsify(GCNConv(12, 8).eval(), 0.75)
    assert not conv.lin.training and not densify(conv).lin.training


def test_a_sparse_model_is_not_made_sparser():
    model = sparsegnn.sparsify(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), 0.5)
    with pytest.raises(ValueError, match="got 2 that are sparse already: densify them before another sparsity"):
        sparsegnn.sparsify(model, 0.9)
    assert sparsegnn.sparsify(sparsegnn.densify(model), 0.9)[0].values.numel() < 16


def test_subclasses_are_left_alone():
    attention = nn.MultiheadAttention(8, 2)  # reads the weight of its projection
    with pytest.raises(ValueError, match="model must have a linear layer to make sparse, got none"):
        sparsify(attention)


def edges():
    g = torch.Generator().manual_seed(0)
    return torch.randint(30, (2, 120), generator=g)


@pytest.mark.parametrize("make", [lambda **k: GCNConv(12, 8, **k), lambda **k: GATConv(12, 4, heads=2, **k),
                                  lambda **k: SGConv(12, 8, bias=False, **k)])  # fmt: skip
def test_our_convolutions(make):
    torch.manual_seed(0)
    conv, x = make(), torch.randn(30, 12)
    dense = copy.deepcopy(conv)
    sparsify(conv, 0.75)
    assert isinstance(conv.lin, SparseLinear) and conv.lin.values.numel() == 24 and conv.lin.bias is None
    dense.lin.weight.data *= top_mask(dense.lin.weight, 24)
    torch.testing.assert_close(conv(x, edges()), dense(x, edges()))
    densify(conv)
    assert type(conv.lin) is type(dense.lin) and list(conv.state_dict()) == list(dense.state_dict())
    torch.testing.assert_close(conv(x, edges()), dense(x, edges()))
    conv.reset_parameters()
    made_sparse = densify(make(sparsity=0.5))
    assert type(made_sparse.lin) is type(dense.lin)


def test_our_convolutions_of_several_weights():
    for make, names in (
        (lambda **k: GraphConv(12, 8, **k), ["lin_rel", "lin_root"]),
        (lambda **k: TAGConv(12, 8, K=2, **k), ["lins.0", "lins.1", "lins.2"]),
    ):
        conv, x = make(), torch.randn(30, 12)
        dense = copy.deepcopy(conv)
        assert list(counts(sparsify(conv, 0.75, distribution="uniform"))) == names
        for name in names:
            weight = dense.get_submodule(name).weight
            weight.data *= top_mask(weight, 24)
        torch.testing.assert_close(conv(x, edges()), dense(x, edges()))
        densify(conv)
        assert [type(m) for m in conv.modules()] == [type(m) for m in dense.modules()]
        assert list(conv.state_dict()) == list(dense.state_dict())
        torch.testing.assert_close(conv(x, edges()), dense(x, edges()))


def test_gcn2_becomes_dense_and_no_more():
    conv, x = GCN2Conv(12, 0.1, 0.5, 2, shared_weights=False, sparsity=0.75), torch.randn(30, 12)
    conv.weight2.requires_grad_(False)
    dense = densify(conv, inplace=False)
    assert [n for n, p in dense.named_parameters() if p.requires_grad] == ["weight1"] and len(dense.state_dict()) == 2
    assert int((dense.weight1 != 0).sum()) == 36 and torch.equal(dense.weight1, conv.weight1.dense_weight().T)
    torch.testing.assert_close(dense(x, x, edges()), conv(x, x, edges()))


@pytest.mark.parametrize("kind", ["gcn", "gat", "bipartite", "gatv2", "sage"])
def test_pyg_convolutions(kind):
    pyg = pytest.importorskip("torch_geometric.nn")
    torch.manual_seed(0)
    make = {
        "gcn": lambda: pyg.GCNConv(12, 8),
        "gat": lambda: pyg.GATConv(12, 4, heads=2, edge_dim=3, residual=True),
        "bipartite": lambda: pyg.GATConv((12, 12), 4, heads=2, add_self_loops=False),
        "gatv2": lambda: pyg.GATv2Conv(12, 4, heads=2),
        "sage": lambda: pyg.SAGEConv(12, 8),
    }[kind]
    conv, x = make(), torch.randn(30, 12)
    x = (x, x) if kind == "bipartite" else x
    dense = copy.deepcopy(conv)
    sparsify(conv, 0.75, distribution="uniform")
    names = {"bipartite": ["lin_src", "lin_dst"], "gatv2": ["lin_l", "lin_r"], "sage": ["lin_l", "lin_r"],
             "gat": ["lin", "res"]}.get(kind, ["lin"])  # fmt: skip
    assert list(counts(conv)) == names
    for name in names:
        weight = getattr(dense, name).weight
        weight.data *= top_mask(weight, 24)
    torch.testing.assert_close(conv(x, edges()), dense(x, edges()))
    conv.reset_parameters()
    conv.load_state_dict(sparsify(copy.deepcopy(dense), 0.75, distribution="uniform").state_dict())
    densify(conv)
    assert [type(m) for m in conv.modules()] == [type(m) for m in dense.modules()]
    assert list(conv.state_dict()) == list(dense.state_dict())
    torch.testing.assert_close(conv(x, edges()), dense(x, edges()))
    conv.reset_parameters()
    repr(conv)


def test_pyg_linear_layers_beside_convolutions():
    """Of a head, of a GIN's MLP, of any convolution; what is used past the call stays dense."""
    pyg = pytest.importorskip("torch_geometric.nn")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.sage, self.gin = pyg.SAGEConv(12, 12), pyg.GINConv(pyg.MLP([12, 12, 12], norm=None))
            self.trans, self.head, self.last = pyg.TransformerConv(12, 12), pyg.Linear(12, 12), nn.Linear(12, 12)
            self.other = pyg.HeteroDictLinear(12, 12, ["a"])

        def forward(self, x):
            for layer in (self.sage, self.gin, self.trans):
                x = layer(x, edges()).relu()
            return self.last(self.head(self.other({"a": x})["a"]))

    model, x = Net(), torch.randn(30, 12)
    dense = copy.deepcopy(model)
    sparsify(model, 0.75, distribution="uniform")
    names = ["sage.lin_l", "sage.lin_r", "gin.nn.lins.0", "gin.nn.lins.1", "trans.lin_key", "trans.lin_query",
             "trans.lin_value", "trans.lin_skip", "head", "last"]  # fmt: skip
    assert list(counts(model)) == names
    for name in names:
        weight = dense.get_submodule(name).weight
        weight.data *= top_mask(weight, 36)
    torch.testing.assert_close(model(x), dense(x))
    torch.testing.assert_close(densify(model)(x), dense(x))
    assert [type(m) for m in model.modules()] == [type(m) for m in dense.modules()]


def test_sparse_training_of_a_converted_pyg_model():
    pyg = pytest.importorskip("torch_geometric.nn")
    torch.manual_seed(0)
    model = sparsify(pyg.GCN(12, 16, num_layers=2, out_channels=3), 0.8)
    assert list(counts(model)) == ["convs.0.lin", "convs.1.lin"]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    controller = sparsegnn.RigL(model, optimizer, update_every=2, stop_at=9)
    x, before = torch.randn(30, 12), counts(model)
    for _ in range(10):
        optimizer.zero_grad()
        model(x, edges()).square().mean().backward()
        optimizer.step()
    assert controller.updates == 4 and counts(model) == before
    assert any(int(n) for n in controller.grown.values())


@pytest.mark.parametrize("sparse_time", [1.0, 3.0])
def test_only_if_faster_keeps_the_faster_kernel(monkeypatch, tmp_path, sparse_time):
    monkeypatch.setenv("SPARSEGNN_CACHE", str(tmp_path))
    monkeypatch.setattr(plans, "measure", fake_measure(sparse_time))
    model = sparsify(mlp(), 0.9, only_if_faster=True, rows=8)
    layers = [m for m in model.modules() if isinstance(m, SparseLinear)]
    assert {m.kernel for m in layers} == {"dense" if sparse_time > 2 else "sparse"}
    assert all(float(m.dense_kernel) == sparse_time / 2 for m in layers)
    assert all(p.grad is None for p in model.parameters())
    sparse = sparsify(mlp(), 0.9)
    x = torch.randn(6, 20)
    torch.testing.assert_close(model(x), sparse(x))
    other = sparsify(mlp(), 0.5)
    other.load_state_dict(model.state_dict())
    assert [m.kernel for m in other.modules() if isinstance(m, SparseLinear)] == [m.kernel for m in layers]


def fake_measure(sparse_time):
    def measure(layer, rows):
        return {"ratio": sparse_time / 2, "sparse_ms": sparse_time, "dense_ms": 2.0}

    return measure


def test_only_if_faster_measures(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSEGNN_CACHE", str(tmp_path))
    model = sparsify(mlp(), 0.9, only_if_faster=True, rows=16)
    assert {m.kernel for m in model.modules() if isinstance(m, SparseLinear)} <= {"sparse", "dense"}
    assert len(plans.read(plans.cache_file())) == 3


def test_refused():
    for bad in (1.0, -0.5, float("nan")):
        with pytest.raises(ValueError, match=r"sparsify: sparsity must be in \[0, 1\), got"):
            sparsify(mlp(), bad)
    with pytest.raises(TypeError, match="sparsify: model must be a torch.nn.Module, got list"):
        sparsify([mlp()])
    with pytest.raises(TypeError, match="densify: model must be a torch.nn.Module, got str"):
        densify("model")
    for kwargs, error, text in [
        ({"pattern": "4:8"}, ValueError, "pattern must be one of 'unstructured', 'fan_in'"),
        ({"distribution": "even"}, ValueError, "distribution must be 'erk'"),
        ({"distribution": {"9": 0.5}}, ValueError, "distribution must name layers of .*'2.0'.*, got '9'"),
        ({"exclude": ["out"]}, ValueError, "exclude must name layers of .*, got 'out'"),
        ({"include": "0"}, TypeError, "include must be a list of names or callable, got the string '0'"),
        ({"exclude": ["*"]}, ValueError, "model must have a linear layer to make sparse, got none"),
        ({"rows": 0}, ValueError, "rows must be a positive integer, got 0"),
    ]:
        with pytest.raises(error, match="sparsify: " + text):
            sparsify(mlp(), 0.5, **kwargs)
    with pytest.raises(ValueError, match="got the lazy layer '0'"):
        sparsify(nn.Sequential(nn.LazyLinear(4)))
    tied = nn.ModuleDict({"embed": nn.Embedding(10, 4), "out": nn.Linear(4, 10)})
    tied["out"].weight = tied["embed"].weight
    with pytest.raises(ValueError, match="must not share weights between modules, got 'out'"):
        sparsify(tied, 0.5)
