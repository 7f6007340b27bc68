"""Layers through ``torch.onnx``: what the file computes, evaluated by another program, is what the layer computes."""

import pytest
import torch

from sparsegnn import CSRGraph, nn, use_kernel
from sparsegnn.nn import SparseLinear

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

N, E = 20, 60


def edges(seed=0, e=E):
    g = torch.Generator().manual_seed(seed)
    index = torch.randint(N - 2, (2, e), generator=g)
    index[:, ::7] = index[:1, ::7]  # self-loops, some of them twice
    return index


def evaluated(path, *inputs):
    """By onnxruntime, or by onnx's own evaluator."""
    try:
        import onnxruntime
    except ImportError:
        session = onnx.reference.ReferenceEvaluator(str(path))
        names = session.input_names
    else:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [i.name for i in session.get_inputs()]
    return torch.from_numpy(session.run(None, dict(zip(names, (t.numpy() for t in inputs), strict=True)))[0])


def check(model, inputs, tmp_path, others=(), **options):
    model, path = model.eval(), tmp_path / "model.onnx"
    with torch.no_grad():
        torch.onnx.export(model, inputs, str(path), verbose=False, **options)
    for given in (inputs, *others):
        torch.testing.assert_close(evaluated(path, *given), model(*given).detach(), rtol=1e-4, atol=1e-5)
    assert not {node.domain for node in onnx.load(path).graph.node} & {"sparsegnn"}


@pytest.mark.parametrize("pattern", ["unstructured", "fan_in", "grouped:8", "block:16x16", "2:4"])
@pytest.mark.parametrize("kernel", ["sparse", "dense"])
def test_sparse_linear(pattern, kernel, tmp_path):
    layer = SparseLinear(32, 16, sparsity=0.5, pattern=pattern)
    model = torch.nn.Sequential(layer, torch.nn.ReLU(), torch.nn.Linear(16, 4))
    with use_kernel(kernel):
        check(model, (torch.randn(3, 5, 32),), tmp_path)


CONVS = {
    "GCNConv": lambda: nn.GCNConv(6, 4, sparsity=0.5), "GCNConv, act": lambda: nn.GCNConv(6, 9, act="relu", dropout=0.5),
    "GCNConv, weights": lambda: nn.GCNConv(6, 4, improved=True), "GCNConv, max": lambda: nn.GCNConv(6, 4, aggr="max"),
    "GCNConv, no norm": lambda: nn.GCNConv(6, 4, normalize=False), "SAGEConv": lambda: nn.SAGEConv(6, 4, sparsity=0.5),
    "SAGEConv, several": lambda: nn.SAGEConv(6, 4, aggr=["mean", "min"]),
    "GraphConv, weights": lambda: nn.GraphConv(6, 4, sparsity=0.5), "SGConv": lambda: nn.SGConv(6, 4, K=2, cached=True),
    "GINConv": lambda: nn.GINConv(torch.nn.Sequential(SparseLinear(6, 5, sparsity=0.5), torch.nn.ReLU())),
    "TAGConv": lambda: nn.TAGConv(6, 9, sparsity=0.5), "APPNP, weights": lambda: nn.APPNP(3, 0.2, dropout=0.3),
    "GATConv": lambda: nn.GATConv(6, 4, heads=2, sparsity=0.5),
    "GATConv, no loops": lambda: nn.GATConv(6, 4, concat=False, add_self_loops=False),
    "GATv2Conv": lambda: nn.GATv2Conv(6, 4, heads=2, sparsity=0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVS)
def test_convolutions(name, tmp_path):
    """One file serves every edge list, of any length."""
    torch.manual_seed(0)
    conv, index, more = CONVS[name](), edges(), edges(1, 40)
    weight = (lambda i: (torch.rand(i.size(1)) + 0.1,)) if name.endswith("weights") else (lambda i: ())
    inputs, others = (torch.randn(N, 6), index, *weight(index)), (torch.randn(N, 6), more, *weight(more))
    number = torch.export.Dim.DYNAMIC
    shapes = (None, {1: number}, *([{0: number}] if len(inputs) == 3 else []))
    check(conv, inputs, tmp_path, [others], dynamic_shapes=shapes)
    assert getattr(conv, "_cached_graph", None) is None or isinstance(conv._cached_graph, CSRGraph)


def test_gcn2(tmp_path):
    check(nn.GCN2Conv(6, 0.2, theta=0.5, layer=1, sparsity=0.5), (torch.randn(N, 6), torch.randn(N, 6), edges()), tmp_path)


class Net(torch.nn.Module):
    def __init__(self, graph=None):
        super().__init__()
        self.conv1, self.conv2, self.graph = nn.GCNConv(6, 8, sparsity=0.5), nn.GATConv(8, 3), graph

    def forward(self, x, edge_index=None):
        edge_index = self.graph if edge_index is None else edge_index
        return self.conv2(self.conv1(x, edge_index).relu(), edge_index).log_softmax(-1)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_graph_of_the_model(weighted, tmp_path):
    """A CSRGraph that the model holds becomes constants of the file."""
    graph = CSRGraph.from_edge_index(edges(), N, torch.rand(E) + 0.1 if weighted else None)
    check(Net(graph), (torch.randn(N, 6),), tmp_path, [(torch.randn(N, 6),)])


def test_a_batch_of_examples(tmp_path):
    check(nn.GraphConv(6, 4), (torch.randn(3, N, 6), edges()), tmp_path)


def test_the_layer_is_as_before(tmp_path):
    model, x = Net().eval(), torch.randn(N, 6)
    before = model(x, edges())
    check(model, (x, edges()), tmp_path)
    assert torch.equal(model(x, edges()), before)
    before.sum().backward()
