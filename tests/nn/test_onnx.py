"""Layers through ``torch.onnx``: what the file computes, evaluated by another program, is what the layers compute."""

import pytest
import torch

from sparsegnn import CSRGraph, nn, use_kernel
from sparsegnn.nn import SparseLinear

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

N, E = 20, 60


def edges(seed=0, e=E):
    """With self-loops, and nodes without edges."""
    g = torch.Generator().manual_seed(seed)
    index = torch.randint(N - 2, (2, e), generator=g)
    index[:, ::7] = index[:1, ::7]
    return index


def check(model, inputs, path, others=(), **options):
    """Of these inputs, with which it is exported, and of others."""
    model, path = model.eval(), str(path / "model.onnx")
    with torch.no_grad():
        torch.onnx.export(model, inputs, path, verbose=False, optimize=False, **options)
    domains = {node.domain for node in onnx.load(path).graph.node}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    assert not any(domain.startswith("sparsegnn") for domain in domains)
    for given in (inputs, *others):
        wanted = model(*given)
        wanted = wanted if isinstance(wanted, dict) else {"y": wanted}
        got = session.run(None, dict(zip(names, (t.numpy() for t in given), strict=True)))
        for (name, want), y in zip(wanted.items(), got, strict=True):
            torch.testing.assert_close(torch.from_numpy(y), want.detach(), rtol=1e-4, atol=1e-5, msg=name)


class Each(torch.nn.ModuleDict):
    """All layers, of the same inputs."""

    def forward(self, *inputs):
        return {name: layer(*inputs) for name, layer in self.items()}


def test_sparse_linear(tmp_path):
    """Whatever kernel it would run itself."""
    kinds = {"one": "unstructured", "blocks": "block:16x16"}  # the other patterns have the form of the first
    model = Each({name: SparseLinear(32, 16, sparsity=0.5, pattern=pattern) for name, pattern in kinds.items()})
    model["all"] = SparseLinear(32, 16, sparsity=0.0, bias=False)
    with use_kernel("sparse"):
        check(model, (torch.randn(3, 5, 32),), tmp_path)


WITHOUT = {
    "gcn": lambda: nn.GCNConv(6, 9, act="relu", dropout=0.5, sparsity=0.5),
    "gcn max": lambda: nn.GCNConv(6, 4, aggr="max"),
    "gcn kept": lambda: nn.GCNConv(6, 9, cached=True),
    "sage": lambda: nn.SAGEConv(6, 4, ["mean", "min"], normalize=True),
    "gin": lambda: nn.GINConv(torch.nn.Sequential(SparseLinear(6, 5, sparsity=0.5), torch.nn.ReLU())),
    "gat": lambda: nn.GATConv(6, 4, heads=2, sparsity=0.5), "gat v2": lambda: nn.GATv2Conv(6, 4, add_self_loops=False),
}  # fmt: skip
WITH = {
    "gcn": lambda: nn.GCNConv(6, 4, improved=True), "graph conv": lambda: nn.GraphConv(6, 4, sparsity=0.5),
    "graph wide": lambda: nn.GraphConv(6, 9, aggr="mean"), "sg": lambda: nn.SGConv(6, 4, K=2),
    "tag": lambda: nn.TAGConv(6, 9, sparsity=0.5), "appnp": lambda: nn.APPNP(3, 0.2, dropout=0.3),
}  # fmt: skip


SOME = ("gcn", "gcn kept", "sage", "gat", "tag")  # a layer takes a second; all of them in the deep tests


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.deep)])
@pytest.mark.parametrize("weighted", [False, True])
def test_convolutions(weighted, every, tmp_path):
    """One file serves every edge list, of any length; nothing of the export stays in the layers."""
    torch.manual_seed(0)
    kinds = {name: make for name, make in (WITH if weighted else WITHOUT).items() if every or name in SOME}
    model, index, more = Each({name: make() for name, make in kinds.items()}), edges(), edges(1, 40)
    number = torch.export.Dim.DYNAMIC
    calls = [(torch.randn(N, 6), i, *((torch.rand(i.size(1)) + 0.1,) if weighted else ())) for i in (index, more)]
    shapes = ((None, {1: number}, *([{0: number}] if weighted else [])),)
    if not weighted:
        model["gcn kept"](*calls[0])  # its graph is a constant of the file
    check(model, calls[0], tmp_path, calls[1:], dynamic_shapes=shapes)
    model.train()(*calls[1])["gcn"].sum().backward()
    if not weighted:
        assert isinstance(model["gcn kept"]._cached_graph, CSRGraph)


class Net(torch.nn.Module):
    def __init__(self, graph):
        super().__init__()
        self.conv1, self.conv2, self.graph = nn.GCNConv(6, 6, sparsity=0.5), nn.GCN2Conv(6, 0.2), graph

    def forward(self, x):
        return self.conv2(self.conv1(x, self.graph).relu(), x, self.graph).log_softmax(-1)


def test_a_graph_of_the_model(tmp_path):
    """A CSRGraph that the model holds becomes constants of the file; examples of a batch share it."""
    graph = CSRGraph.from_edge_index(edges(), N, torch.rand(E) + 0.1)
    check(Net(graph), (torch.randn(2, N, 6),), tmp_path, [(torch.randn(2, N, 6),)])
