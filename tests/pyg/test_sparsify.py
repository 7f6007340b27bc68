"""sparsify, densify and summary of models of PyG."""

import copy
import warnings

import pytest
import torch
import torch_geometric.nn as pyg
from pyg.oracle import check, paths
from torch import nn

import sparsegnn
from sparsegnn.nn import SparseLinear

N = 30
ISA = f"cpu/{torch.ops.sparsegnn.isa()}"


def edges():
    return torch.randint(N, (2, 150), generator=torch.Generator().manual_seed(0))


def sparse(model):
    return [name for name, m in model.named_modules() if isinstance(m, SparseLinear)]


def kernels(model):
    return {row["layer"]: row["kernel"] for row in sparsegnn.summary(model, show=False)}


CONVS = {
    "gcn": (lambda: pyg.GCNConv(12, 12), ["lin"]),
    "sage": (lambda: pyg.SAGEConv(12, 12, project=True), ["lin", "lin_l", "lin_r"]),
    "graph": (lambda: pyg.GraphConv(12, 12), ["lin_rel", "lin_root"]),
    "gin": (lambda: pyg.GINConv(pyg.MLP([12, 12, 12])), ["nn.lins.0", "nn.lins.1"]),
    "sg": (lambda: pyg.SGConv(12, 12), ["lin"]),
    "tag": (lambda: pyg.TAGConv(12, 12, K=1), ["lins.0", "lins.1"]),
    "cheb": (lambda: pyg.ChebConv(12, 12, 2), ["lins.0", "lins.1"]),
    "le": (lambda: pyg.LEConv(12, 12), ["lin1", "lin2", "lin3"]),
    "gat": (lambda: pyg.GATConv(12, 4, heads=3), ["lin"]),
    "gatv2": (lambda: pyg.GATv2Conv(12, 4, heads=3), ["lin_l", "lin_r"]),
    "mixhop": (lambda: pyg.MixHopConv(12, 12), ["lins.0", "lins.1", "lins.2"]),
    "transformer": (lambda: pyg.TransformerConv(12, 12), ["lin_key", "lin_query", "lin_value", "lin_skip"]),
}


@pytest.mark.parametrize("kind", CONVS)
def test_every_linear_layer_that_is_merely_called(kind):
    make, names = CONVS[kind]
    conv, x, index = make(), torch.randn(N, 12), edges()
    dense = copy.deepcopy(conv)
    model = sparsegnn.sparsify(conv, 0.75)
    assert model is conv and sparse(conv) == names
    for name in names:
        with torch.no_grad():
            dense.get_submodule(name).weight.copy_(conv.get_submodule(name).to_dense().weight)
    torch.testing.assert_close(conv(x, index), dense(x, index))
    if kind != "transformer":
        assert paths(conv) == {"": "ours"}
        sparsegnn.accelerate(dense)
        torch.testing.assert_close(conv(x, index), dense(x, index))
        sparsegnn.accelerate(dense, undo=True)
    sparsegnn.densify(conv)
    assert not paths(conv) and [type(m) for m in conv.modules()] == [type(m) for m in dense.modules()]
    assert repr(conv) == repr(dense) and list(conv.state_dict()) == list(dense.state_dict())
    check(dense, lambda m: m(x, index), other=conv, ours=False)
    conv.reset_parameters()


def test_one_call_makes_a_model_sparse_and_fast():
    model, x, index = pyg.GraphSAGE(12, 16, 2, 4), torch.randn(N, 12), edges()
    sparsegnn.sparsify(model, 0.9)
    assert kernels(model)["convs.0"] == f"{ISA} (not run yet)"
    model(x, index)
    assert {kernels(model)[f"convs.{i}"] for i in (0, 1)} == {ISA}
    plain = sparsegnn.sparsify(pyg.GraphSAGE(12, 16, 2, 4), 0.9, accelerate=False)
    assert not paths(plain) and kernels(plain)["convs.0"] == "PyG"
    other = sparsegnn.sparsify(pyg.GraphSAGE(12, 16, 2, 4), 0.9, inplace=False)
    assert set(paths(other)) == {"convs.0", "convs.1"} and other.convs[0].forward.conv is other.convs[0]


class Tagged(nn.Linear):
    """Keeps the forward."""


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_subclasses_of_linear():
    model = sparsegnn.sparsify(nn.Sequential(Tagged(12, 12), nn.ReLU(), Tagged(12, 12)), 0.5)
    assert sparse(model) == ["0", "2"]
    model[0].dense_kind[1]["tag"] = 3
    again = sparsegnn.densify(model)
    assert type(again[0]) is Tagged and again[0].tag == 3 and again[0](torch.randn(2, 12)).shape == (2, 12)
    with pytest.warns(
        UserWarning, match=r"50% of the multiplications .* dense: 1 \(Doubled has a forward of its own\)"
    ):
        model = sparsegnn.sparsify(nn.Sequential(Tagged(12, 12), Doubled(12, 12)), 0.5)
    assert sparse(model) == ["0"]


class Scaled(nn.Linear):
    def __init__(self, *widths):
        super().__init__(*widths)
        self.scale = nn.Parameter(torch.ones(1))


def test_layers_that_hold_more_are_left_alone():
    for other in (Scaled(12, 12), nn.utils.parametrizations.weight_norm(nn.Linear(12, 12)), nn.GRU(12, 12)):
        with pytest.warns(UserWarning, match=r"stay dense: 1"):
            model = sparsegnn.sparsify(nn.Sequential(nn.Linear(12, 12), other), 0.5)
        assert sparse(model) == ["0"] and model[1] is other


def test_says_what_stays_dense():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.other = pyg.GCNConv(12, 12), pyg.GCN2Conv(12, 0.1)
            self.hetero = pyg.HeteroDictLinear(12, 12, ["a"])

    with pytest.warns(UserWarning) as told:
        sparsegnn.sparsify(Net(), 0.9)
    text = str(told[0].message)
    assert len(told) == 1 and "sparsify: 67% of the multiplications by weights stay dense" in text
    assert "other.weight1 (GCN2Conv holds it itself)" in text and "hetero.lins.a (HeteroDictLinear.forward" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsegnn.sparsify(Net(), 0.9, exclude=lambda name, module: False)  # who chooses has been told
        sparsegnn.sparsify(pyg.GAT(12, 8, 2, 4, heads=2), 0.9)
        sparsegnn.sparsify(pyg.GIN(12, 8, 2, 4), 0.9)


def test_summary_counts_dense_layers_of_pyg():
    conv = pyg.SAGEConv(12, 8)
    rows = {row["layer"]: row for row in sparsegnn.summary(conv, show=False)}
    assert rows["lin_l"]["flops_per_row"] == rows["lin_r"]["flops_per_row"] == 2 * 12 * 8
    assert rows["total"]["flops_per_row"] == 4 * 12 * 8 and rows["lin_l"]["sparsity"] == 0
    assert rows["SAGEConv"]["kernel"] == "PyG" and rows["SAGEConv"]["weights"] == 0
    sparsegnn.accelerate(conv)
    handle = conv.register_message_forward_hook(lambda *args: None)
    conv(torch.randn(N, 12), edges())
    assert kernels(conv)["SAGEConv"] == "PyG: a message hook"
    handle.remove()
    conv(torch.randn(N, 12), edges())
    assert kernels(conv)["SAGEConv"] == ISA
    gat = sparsegnn.accelerate(pyg.GATConv(12, 8))
    gat(torch.randn(N, 12), edges(), return_attention_weights=True)
    assert kernels(gat)["GATConv"] == "PyG: return_attention_weights"
