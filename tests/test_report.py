"""summary, flops and info: numbers that can be counted by hand."""

import builtins
import json

import pytest
import torch
from torch import nn

import sparsegnn
from sparsegnn import CSRGraph
from sparsegnn.nn import APPNP, GCN2Conv, GCNConv, GINConv, GraphConv, SGConv, SparseLinear, TAGConv


class GCN(nn.Module):
    def __init__(self, sparsity=0.0):
        super().__init__()
        self.first, self.second = GCNConv(50, 20, sparsity=sparsity), GCNConv(20, 8)

    def forward(self, x, graph):
        return self.second(self.first(x, graph).relu(), graph)


GRAPH = CSRGraph.from_edge_index(torch.randint(30, (2, 200), generator=torch.Generator().manual_seed(0)), 30)
ISA = f"cpu/{torch.ops.sparsegnn.isa()}"


def test_summary(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    rows = sparsegnn.summary(GCN(0.9))
    assert [r["layer"] for r in rows] == ["first", "first.lin", "second", "second.lin", "total"]
    first, lin, second, dense, total = rows
    assert lin["type"] == "SparseLinear" and lin["shape"] == [20, 50] and lin["weights"] == 100
    assert lin["sparsity"] == pytest.approx(0.9) and lin["flops_per_row"] == 200
    assert first["shape"] == [[20]] and first["weights"] == 20 and first["sparsity"] is None
    assert dense["shape"] == [8, 20] and dense["weights"] == 160 and dense["flops_per_row"] == 320
    assert dense["sparsity"] == 0 and dense["kernel"] == "dense" and first["kernel"] == second["kernel"] == ISA
    assert total["weights"] == 100 + 20 + 160 + 8 and total["flops_per_row"] == 520
    assert total["sparsity"] == pytest.approx(900 / (900 + 288))
    index = 4 * (21 + 100 + 51 + 100 + 100 + 2)  # crow, col, ccol, row, perm, shape
    assert lin["bytes"] == 4 * 100 + index and dense["bytes"] == 4 * 160
    assert total["bytes"] == sum(r["bytes"] for r in rows[:-1])
    json.dumps(rows)
    out = capsys.readouterr().out
    assert "first.lin" in out and "0.900" in out and "total" in out
    assert sparsegnn.summary(GCN(), show=False)[-1]["sparsity"] == 0 and not capsys.readouterr().out


def test_summary_names_what_runs(monkeypatch):
    layer = SparseLinear(8, 8)
    assert sparsegnn.summary(layer, show=False)[0]["kernel"] in (ISA, "reference")
    monkeypatch.setitem(sparsegnn._native.status, "cpu", "not built")
    assert sparsegnn.summary(layer, show=False)[0]["kernel"] == "reference"
    layer.choose_kernel_(2.0)
    row = sparsegnn.summary(layer, show=False)[0]
    assert row["kernel"] == "dense" and row["flops_per_row"] == 128  # a sparse layer that runs dense is labelled so
    meta = sparsegnn.summary(SparseLinear(8, 8, device="meta"), show=False)[0]
    assert meta["kernel"] == "reference" and meta["weights"] == 6 + 8


def test_summary_of_shared_lazy_and_no_parameters():
    shared = nn.Linear(4, 4, bias=False)
    assert sparsegnn.summary(nn.Sequential(shared, nn.Sequential(shared)), show=False)[-1]["weights"] == 16
    other = nn.Linear(4, 4, bias=False)
    other.weight = shared.weight
    assert sparsegnn.summary(nn.Sequential(shared, other), show=False)[-1]["weights"] == 16
    assert sparsegnn.summary(GCNConv(-1, 4), show=False)[-1]["weights"] == 4
    assert sparsegnn.summary(nn.ReLU(), show=False)[-1]["weights"] == 0
    with pytest.raises(TypeError, match="summary: model must be an nn.Module, got list"):
        sparsegnn.summary([])


def test_summary_and_flops_of_other_convolutions():
    """Layers, parameters of their own, FLOPs per row of all weights, and of a call on width-20 features."""
    n, e, x = 30, GRAPH.num_edges, torch.randn(30, 20)
    gin = GINConv(nn.Linear(20, 8), train_eps=True)
    for layer, own, weights, hops, width in (
        (SGConv(20, 8, K=2), None, 160, 2, 8), (GraphConv(20, 8), None, 320, 1, 8), (gin, 1, 160, 1, 20),
        (TAGConv(20, 8, K=2), 8, 480, 2, 8), (GCN2Conv(20, 0.1, shared_weights=False), 800, 800, 1, 20),
        (APPNP(3, 0.1), None, 0, 3, 20),
    ):  # fmt: skip
        rows = sparsegnn.summary(layer, show=False)
        assert rows[-1]["flops_per_row"] == 2 * weights
        assert [r["weights"] for r in rows if r["layer"] == type(layer).__name__] == ([] if own is None else [own])
        args = (x.clone().requires_grad_(), *([x] if type(layer) is GCN2Conv else []), GRAPH)
        GRAPH.gcn_norm(), GRAPH.gcn_norm(add_self_loops=False)
        found = sparsegnn.flops(layer, *args, show=False)
        assert found["total"] == 2 * n * weights + 2 * hops * e * width, type(layer)
    assert sparsegnn.summary(GCN2Conv(20, 0.1), show=False)[0]["kernel"] == "dense"
    assert sparsegnn.summary(gin, show=False)[0]["kernel"] == ISA


@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_flops(sparsity, capsys):
    GRAPH.gcn_norm()  # once per graph; its sums are not the model's
    n, e, kept = 30, GRAPH.num_edges, round(1000 * (1 - sparsity))
    found = sparsegnn.flops(GCN(sparsity), torch.randn(n, 50), GRAPH)
    aggregate = [2 * e * 20, 2 * e * 8]  # the first layer at width min(50, 2 * 20), the second after its transform
    assert found["total"] == sum(aggregate) + 2 * n * kept + 2 * n * 160
    assert found["operators"]["sparsegnn.spmm"] == sum(aggregate)
    assert found["modules"]["GCN.second"] == {"sparsegnn.spmm": aggregate[1], "aten.mm": 2 * n * 160}
    assert sum(found["operators"].values()) == found["total"]
    assert f"{found['total']:,}" in capsys.readouterr().out


def test_flops_of_the_backward_pass():
    model, x, n, e = GCN(0.9), torch.randn(30, 50), 30, GRAPH.num_edges
    forward = sparsegnn.flops(model, x, GRAPH, show=False)["total"]
    found = sparsegnn.flops(model, x, GRAPH, backward=True, show=False)["total"]
    # both aggregations again, dW of the first layer (x needs no gradient), dW and dx of the second
    assert found == forward + 2 * e * (20 + 8) + 2 * n * 100 + 2 * (2 * n * 160)
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(TypeError, match="flops: model must be an nn.Module"):
        sparsegnn.flops(x)


def test_info(capsys, monkeypatch):
    monkeypatch.setenv("SPARSEGNN_DATA", "somewhere")
    content = sparsegnn.info()
    assert (
        content["versions"]["sparsegnn"] == sparsegnn.__version__ and content["versions"]["torch"] == torch.__version__
    )
    assert content["environment"]["SPARSEGNN_DATA"] == "somewhere"
    ops = {row["op"]: row for row in content["ops"]}
    assert {"spmm", "csr_from_edges", "csr_transpose", "csr_degrees"} <= ops.keys()
    assert ops["spmm"]["cpu"] == "compiled" and content["libraries"]["cpu"] == "loaded"
    json.dumps(content)
    assert "csr_from_edges" in capsys.readouterr().out
    assert sparsegnn.info(show=False).keys() == content.keys() and not capsys.readouterr().out


def test_plain_tables_without_rich(capsys, monkeypatch):
    real = builtins.__import__

    def no_rich(name, *args, **kwargs):
        if name.partition(".")[0] == "rich":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_rich)
    sparsegnn.summary(GCN(0.9))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "sparsegnn summary" and lines[1].startswith("layer") and lines[-1].startswith("total")
