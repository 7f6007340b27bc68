"""Self-loops made inside compiled regions, where no size may depend on data: layers against PyG's, run eagerly."""

import pytest
import torch
from torch import nn

from sparsegnn import CSRGraph
from sparsegnn.nn import CompressedRows, GATConv, GCNConv
from sparsegnn.ops import gcn

from .twins import assert_close, twins

N, M, E = 12, 9, 66


def edges(targets=N, several=True, seed=0):
    """Nodes with several self-loops, with one and with none; the last edge is none."""
    g = torch.Generator().manual_seed(seed)
    plain = torch.stack([torch.randint(N, (E - 7,), generator=g), torch.randint(targets, (E - 7,), generator=g)])
    plain[1] = torch.where(plain[0] == plain[1], (plain[1] + 1) % targets, plain[1])
    loops = torch.tensor([4, 4, 4, 2, 2, 5, 1] if several else [4, 3, 8, 2, 6, 5, 1]).expand(2, -1)
    index = torch.cat([plain, loops], 1)[:, torch.randperm(E, generator=g)]
    return torch.cat([index, torch.tensor([[0], [targets - 1]])], 1)


def draw(*shape, grad=False):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_(grad)


def weight(grad):
    return (torch.rand(E + 1, dtype=torch.float64) + 0.1).requires_grad_(grad)


def run(model, *args):
    y = model(*args)
    leaves = [*model.parameters(), *(a for a in args if isinstance(a, torch.Tensor) and a.requires_grad)]
    return [y, *torch.autograd.grad(y.square().sum(), leaves)]


ONE = edges(several=False)  # PyG's gradient of a weight that another replaces is not 0
LAYERS = {  # name: (layer, sizes, options, arguments)
    "GAT": ("GATConv", (6, 4), dict(heads=2), lambda: (draw(N, 6, grad=True), edges())),
    "GAT of edge features": (
        "GATConv",
        (6, 4),
        dict(edge_dim=3, concat=False, residual=True, fill_value="mul"),
        lambda: (draw(N, 6), edges(), draw(E + 1, 3, grad=True)),
    ),
    "GAT of two sides": (
        "GATConv",
        ((6, 7), 4),
        dict(edge_dim=3),
        lambda: ((draw(N, 6), draw(M, 7)), edges(M), draw(E + 1, 3)),
    ),
    "GATv2": (
        "GATv2Conv",
        (6, 4),
        dict(heads=2, edge_dim=1, share_weights=True),
        lambda: (draw(N, 6), edges(), draw(E + 1)),
    ),
    "GATv2 of two sides": ("GATv2Conv", ((6, 7), 4), {}, lambda: ((draw(N, 6), draw(M, 7)), edges(M))),
    "GCN": ("GCNConv", (6, 4), {}, lambda: (draw(N, 6, grad=True), edges())),
    "GCN of weights": ("GCNConv", (4, 6), dict(improved=True), lambda: (draw(N, 4), edges(), weight(False))),
    "GCN of learned weights": ("GCNConv", (6, 4), dict(improved=True), lambda: (draw(N, 6), ONE, weight(True))),
    "GCN mean": ("GCNConv", (6, 4), dict(aggr="mean"), lambda: (draw(N, 6), edges(), weight(False))),
    "GCN max": ("GCNConv", (6, 4), dict(aggr="max"), lambda: (draw(N, 6), ONE, weight(True))),
}
DEEP = pytest.param("aot_eager", True, marks=pytest.mark.deep), pytest.param("eager", True, marks=pytest.mark.deep)


@pytest.mark.parametrize("backend, dynamic", [("eager", None), *DEEP])
@pytest.mark.parametrize("name", LAYERS)
def test_edge_lists_without_graph_breaks(name, backend, dynamic):
    layer, sizes, options, make = LAYERS[name]
    (ours, theirs), args = twins(layer, *sizes, **options), make()
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend=backend, dynamic=dynamic)
    assert_close(run(compiled, *args), run(theirs, *args))
    assert_close(run(ours, *args), run(theirs, *args))


@pytest.mark.parametrize("layer", ["GATConv", "GATv2Conv", "GCNConv"])
def test_graphs_without_loops_get_them_between_compiled_regions(layer):
    """Without fullgraph they are made by eager code, once, whichever of its frames are compiled."""
    ours, theirs = twins(layer, 6, 4)
    x, index = draw(N, 6), edges()
    weights = [weight(True)] if layer == "GCNConv" else []
    graph = CSRGraph.from_edge_index(index, N)
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="eager")
    for _ in range(2):
        assert_close(run(compiled, x, graph, *weights)[:2], run(theirs, x, index, *weights)[:2])
    assert "looped" in graph._structure


def test_models_layers_and_ops_with_gradients_under_aot():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU()).double()
    first, conv, index = GATConv(6, 3, heads=2).double(), GCNConv(6, 6).double(), edges()
    both = nn.ModuleList([model, first, conv])

    def step(x, index):
        graph = CSRGraph.from_edge_index(index, N)
        h = nn.functional.elu_(first(model(x), graph))
        h = nn.functional.relu_(conv(h, index))
        return gcn(graph, h, model[0].weight)

    torch._dynamo.reset()
    x, leaves = draw(N, 6), [*both.parameters()]
    wanted = step(x, index)
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(x, index)
    assert_close([got], [wanted])
    grads = [torch.autograd.grad(y.square().sum(), leaves) for y in (got, wanted)]
    assert_close(*grads, tolerance=1e-10)


def test_compressed_rows_with_learned_weights():
    index = torch.arange(3, dtype=torch.uint8).expand(N, 3).contiguous()
    rows, conv, w = CompressedRows(draw(N, 3), index, 6), GCNConv(6, 4).double(), weight(True)
    wanted = conv(rows.to_dense(), edges(), w)
    torch._dynamo.reset()
    assert_close([torch.compile(conv, fullgraph=True, backend="eager")(rows, edges(), w)], [wanted])
