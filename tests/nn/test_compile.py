"""Two-layer models under torch.compile and torch.export; layers under deepcopy, pickle and every kind of checkpoint."""

import copy
import io
import pickle

import pytest
import torch
import torch._dynamo.testing
from torch import nn
from torch.utils.checkpoint import checkpoint

from sparsegnn import CSRGraph, ops
from sparsegnn.nn import APPNP, GATConv, GCN2Conv, GCNConv, GINConv, GraphConv, SGConv, TAGConv


class GCN(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.first, self.second = GCNConv(8, 16, **options), GCNConv(16, 4, **options)

    def forward(self, x, graph, edge_weight=None):
        return self.second(self.first(x, graph, edge_weight).relu(), graph, edge_weight)


class GAT(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.first, self.second = GATConv(8, 4, heads=4, **options), GATConv(16, 4, **options)

    def forward(self, x, graph):
        return self.second(self.first(x, graph).relu(), graph)


class Others(nn.Module):
    """The other convolutions, one after the other."""

    def __init__(self, sparsity=0.0):
        super().__init__()
        self.gin = GINConv(nn.Linear(8, 8), train_eps=True)
        self.sgc, self.tag = SGConv(8, 4, K=2, sparsity=sparsity), TAGConv(4, 8, K=2, sparsity=sparsity)
        self.conv, self.gcn2 = GraphConv(8, 6, sparsity=sparsity), GCN2Conv(6, 0.1, 0.5, 2, sparsity=sparsity)
        self.appnp = APPNP(2, 0.1)

    def forward(self, x, graph, edge_weight=None):
        x = self.tag(self.sgc(self.gin(x, graph).relu(), graph, edge_weight).relu(), graph, edge_weight)
        x = self.conv(x.relu(), graph, edge_weight)
        return self.appnp(self.gcn2(x, x, graph, edge_weight), graph, edge_weight)


def make(n=30, e=100, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 8, generator=g), torch.randint(n, (2, e), generator=g), torch.rand(e, generator=g)


def run(model, *args):
    y = model(*args)
    return [y, *torch.autograd.grad(y.square().sum(), [*model.parameters()])]


def assert_same(got, wanted, tolerance=0.0):
    for g, w in zip(got, wanted, strict=True):
        assert g.dtype == w.dtype and (g - w).norm() <= tolerance * w.norm()


@pytest.mark.parametrize("net, derived, sparsity", [
    (GAT, True, 0.7),
    *(pytest.param(*more, marks=pytest.mark.deep) for more in (
        (Others, False, 0.5),
        (GCN, False, 0.7), (GCN, False, 0.0), (GCN, True, 0.7), (GCN, True, 0.0), (GAT, True, 0.0))),
])  # fmt: skip
def test_compile_on_a_graph_without_graph_breaks(net, derived, sparsity):
    """One compilation serves graphs of other sizes. GAT's explicit self-loops are made before, by a run or looped()."""
    torch._dynamo.reset()
    model = net(sparsity=sparsity)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    first = None
    for n, e in ((30, 100), (25, 90), (50, 333)):
        x, edge_index, _ = make(n, e)
        graph = CSRGraph.from_edge_index(edge_index.unique(dim=1), n)  # with repeated self-loops it is compiled again
        if derived:
            run(model, x, graph)
        same = 1e-6 if net is Others else 0.0  # whose sums of products are addmm_ where nothing is compiled
        assert_same(run(compiled, x, graph), run(model, x, graph), same)
        first = first or counter.frame_count
    assert counter.frame_count == first
    assert torch._dynamo.explain(model)(x, graph).graph_break_count == 0


def test_self_loops_inside_a_compiled_region_say_what_to_do():
    torch._dynamo.reset()
    x, edge_index, _ = make()
    with pytest.raises(Exception, match=r"call graph.looped\(\) once"):
        torch.compile(GAT(), fullgraph=True, backend="aot_eager")(x, CSRGraph.from_edge_index(edge_index, 30))


def test_public_ops_compile_with_dynamic_shapes():
    x, edge_index, weight = make()
    graph = CSRGraph.from_edge_index(edge_index, 30)
    graph.transpose()
    x.requires_grad_()
    for call in (
        lambda x: ops.spmm(graph, x),
        lambda x: ops.spmm(graph, x, reduce="max", edge_weight=weight),
        lambda x: ops.sddmm(graph, x, x),
        lambda x: ops.gat(graph, x.view(30, 2, 4), x[:, :2], x[:, 2:4]),
    ):
        torch._dynamo.reset()
        got, wanted = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")(x), call(x)
        assert torch.equal(got, wanted)
        assert_same(torch.autograd.grad(got.sum(), x), torch.autograd.grad(wanted.sum(), x))


def test_compile_with_inductor():
    torch._dynamo.reset()
    x, edge_index, _ = make()
    model, graph = GCN(sparsity=0.5), CSRGraph.from_edge_index(edge_index, 30)
    compiled = torch.compile(model, fullgraph=True)
    assert_same(run(compiled, x, graph), run(model, x, graph), 1e-6)


def test_compile_with_edge_weights_and_raw_edges():
    torch._dynamo.reset()
    x, edge_index, weight = make()
    model = GCN()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(run(compiled, x, edge_index), run(model, x, edge_index), 1e-6)
    assert_same(run(compiled, x, edge_index, weight), run(model, x, edge_index, weight), 1e-6)
    weight.requires_grad_()
    graph = CSRGraph.from_edge_index(edge_index, 30)
    graph.looped()  # data-dependent size: made before
    got, wanted = compiled(x, graph, weight), model(x, graph, weight)
    assert torch.equal(got, wanted)
    assert_same(torch.autograd.grad(got.sum(), weight), torch.autograd.grad(wanted.sum(), weight), 1e-6)


@pytest.mark.parametrize("net, sparsity", [(GCN, 0.0), (GCN, 0.7), (GAT, 0.7), (Others, 0.0), (Others, 0.5)])
def test_export(net, sparsity):
    x, edge_index, _ = make()
    model, graph = net(sparsity=sparsity).eval(), CSRGraph.from_edge_index(edge_index, 30)
    model(x, graph)
    exported = torch.export.export(model, (x, graph))
    assert torch.equal(exported.module()(x, graph), model(x, graph))


@pytest.mark.parametrize("net", [GCN, GAT, Others])
@pytest.mark.parametrize("sparsity", [0.0, 0.7])
def test_copies_and_checkpoints(net, sparsity, tmp_path):
    from safetensors.torch import load_file, save_file

    x, edge_index, _ = make()
    model, graph = net(sparsity=sparsity), CSRGraph.from_edge_index(edge_index, 30)
    wanted = run(model, x, graph)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(stream, weights_only=False)]
    for state in (torch.load(tmp_path / "model.pt", weights_only=True), load_file(tmp_path / "model.safetensors")):
        copies.append(net(sparsity=sparsity))
        copies[-1].load_state_dict(state)
    if sparsity:  # another number of weights
        copies.append(net(sparsity=0.2))
        copies[-1].load_state_dict(model.state_dict())
    for other in copies:
        assert_same(run(other, x, graph), wanted)


def test_cached_graph_is_copied_but_no_part_of_the_checkpoint():
    x, edge_index, _ = make()
    conv = GCNConv(8, 4, cached=True)
    wanted = conv(x, edge_index)
    assert conv.state_dict().keys() == {"lin.weight", "bias"}
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert torch.equal(other(x, torch.empty(2, 0).long()), wanted)


@pytest.mark.parametrize("net", [GCN, Others])
def test_checkpoint_recomputation_and_second_derivative(net):
    x, edge_index, _ = make()
    model, graph = net(), CSRGraph.from_edge_index(edge_index, 30)
    wanted = run(model, x.requires_grad_(), graph)[1:]
    for reentrant in (False, True):
        model.zero_grad()
        checkpoint(model, x, graph, use_reentrant=reentrant).square().sum().backward()
        assert_same([p.grad for p in model.parameters()], wanted, 1e-6)
    model.double()
    assert torch.autograd.gradgradcheck(model, (x.detach().double().requires_grad_(), graph), fast_mode=True)
