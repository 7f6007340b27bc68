"""The spans of a graph: made once, where kernels take them, and handed to every op that walks rows."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sparsegnn import CSRGraph, graph_spans, ops
from sparsegnn.nn import APPNP, GATConv, GATv2Conv, GCNConv, MaxK, SAGEConv
from sparsegnn.ops import _indices


@pytest.fixture
def listed(monkeypatch):
    """The kernels of this device take spans, of the smallest graph too."""
    monkeypatch.setattr(graph_spans, "DEVICES", {"cpu"})
    monkeypatch.setattr(graph_spans, "LEAST_EDGES", 0)


def graph(n=60, e=1500, shape=None, symmetric=False) -> CSRGraph:
    """Node 3 is the target of 600 edges, and of 1, or 200 more, the source."""
    g = torch.Generator().manual_seed(0)
    edges = torch.randint(n, (2, e), generator=g)
    edges[1, :600] = 3
    edges = torch.cat([edges, edges.flip(0)], 1) if symmetric else edges
    return CSRGraph.from_edge_index(edges, shape or n)


def test_none_are_made_for_a_cpu_or_a_small_graph(monkeypatch):
    g = graph()
    assert g.spans(True) == (None, None) and "spans" not in g._structure
    monkeypatch.setattr(graph_spans, "DEVICES", {"cpu"})
    assert g.spans(True) == (None, None) and "spans" not in g._structure
    monkeypatch.setattr(graph_spans, "LEAST_EDGES", 1500)
    assert g.spans()[0] is not None


def test_made_once_and_shared(listed):
    g = graph()
    rows, none = g.spans()
    assert none is None and g.spans()[0] is rows and g.weighted(torch.rand(1500)).spans()[0] is rows
    both = g.spans(True)
    assert torch.equal(both[0], rows) and torch.equal(both[1], graph_spans.row_spans(g.transpose()[0], 1500))
    assert g.spans(True)[1] is both[1] and g.spans()[1] is None
    assert "spans" not in pickle.loads(pickle.dumps(g))._structure
    moved = copy.deepcopy(g)
    assert torch.equal(moved.spans(True)[1], both[1])
    g.assign_(graph(e=1400))
    assert "spans" in g._structure, "a compiled region would find none"
    assert torch.equal(g.spans(True)[0], graph_spans.row_spans(g.crow, 1400))
    twin = graph(symmetric=True)
    assert twin.spans(True)[0] is twin.spans(True)[1]


def test_none_are_made_where_they_could_not_be_kept(listed):
    """In a compiled region and of tensors without numbers; what is there already is used."""
    g, seen = graph(), []

    @torch.compile(backend="eager", fullgraph=True)
    def look(g):
        seen.append(g.spans(True)[0] is None)
        return g.col + 1

    look(g)
    assert g._structure == {}
    g.spans(True)
    torch.compiler.reset()
    look(g)
    assert seen == [True, False]
    with FakeTensorMode() as mode:
        fake = CSRGraph(*(mode.from_tensor(t) for t in (g.crow, g.col)), None, 60)
        assert fake.spans(True) == (None, None)


class Calls(TorchDispatchMode):
    """Checks the spans of every call, and counts those that have some."""

    def __init__(self):
        super().__init__()
        self.given = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("sparsegnn::")
        if func.namespace == "sparsegnn":
            a = dict(zip((p.name for p in func._schema.arguments), args, strict=False)) | (kwargs or {})
            for spans, crow in (("spans", "crow"), ("cspans", "ccol")):
                if a.get(spans) is not None:
                    want = graph_spans.row_spans(a[crow], a["col" if crow == "crow" else "row"].numel())
                    assert torch.equal(a[spans], want), (name, spans)
                    self.given.setdefault(name, set()).add(spans)
        return func(*args, **(kwargs or {}))


BOTH, ROWS, COLS = {"spans", "cspans"}, {"spans"}, {"cspans"}
LAYERS = {
    "spmm": (lambda g, x: ops.spmm(g, x, "mean"), {"spmm": BOTH}),
    "max": (lambda g, x: ops.spmm(g, x, "max"), {"spmm": BOTH, "spmm_arg_backward": COLS}),
    "out": (lambda g, x: ops.spmm(g, x.detach(), out=torch.empty(60, 8)), {"spmm_out": ROWS}),
    "gat": (lambda g, x: ops.gat(g, x.view(-1, 2, 4), x[:, :2], x[:, 2:4]), {"gat": BOTH, "gat_backward": COLS}),
    "gatv2": (lambda g, x: ops.gatv2(g, x.view(-1, 2, 4), x.view(-1, 2, 4), torch.ones(2, 4)),
              {"gatv2": BOTH, "gatv2_backward": BOTH}),
    "gcn": (lambda g, x: ops.gcn(g, x, torch.ones(8, 8)), {"spmm": BOTH}),
    "GCNConv": (lambda g, x: GCNConv(8, 8)(x, g), {"spmm": BOTH}),
    "SAGEConv": (lambda g, x: SAGEConv(8, 8, aggr="max")(x, g), {"spmm": BOTH, "spmm_arg_backward": COLS}),
    "GATConv": (lambda g, x: GATConv(8, 4, 2)(x, g), {"gat": BOTH, "gat_backward": COLS}),
    "GATv2Conv": (lambda g, x: GATv2Conv(8, 4, 2)(x, g), {"gatv2": BOTH, "gatv2_backward": BOTH}),
    "APPNP": (lambda g, x: APPNP(3, 0.1)(x, g), {"spmm": ROWS}),
    "maxk": (lambda g, x: ops.maxk_spmm(g, *ops.maxk(x, 2), 8), {"maxk_spmm": COLS, "maxk_spmm_backward": COLS}),
    "MaxK": (lambda g, x: SAGEConv(8, 8)(MaxK(2, compressed=True)(x), g),
             {"maxk_spmm": COLS, "maxk_spmm_backward": COLS}),
}  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS)
def test_every_op_gets_them(listed, layer):
    """Forward and backward, in eager code; the results are those without."""
    run, expected = LAYERS[layer]
    results = []
    for devices in ({"cpu"}, set()):
        graph_spans.DEVICES.clear(), graph_spans.DEVICES.update(devices)
        torch.manual_seed(0)
        x = torch.randn(60, 8).requires_grad_()
        with Calls() as calls:
            y = run(graph(), x)
            if y.requires_grad:
                y.square().sum().backward()
        assert calls.given == (expected if devices else {})
        results.append((y, x.grad))
    for a, b in zip(*results, strict=True):
        assert a is b is None or torch.equal(a, b)


@pytest.mark.parametrize(
    "spoil", [lambda s: s.flip(0), lambda s: s[:-1], lambda s: s.long()], ids=["order", "few", "long"]
)
def test_wrong_spans_are_refused_where_indices_are_checked(listed, spoil):
    g = graph()
    given = dict(x=torch.ones(60, 4), crow=g.crow, col=g.col, reduce="sum")
    arguments = torch.ops.sparsegnn.spmm.default._schema.arguments
    call = SimpleNamespace(**{p.name: given.get(p.name) for p in arguments})
    call.spans = spoil(g.spans()[0])
    with pytest.raises(ValueError, match="spmm: spans must be row_spans of crow"):
        _indices.check("spmm", call)
    call.spans = g.spans()[0]
    _indices.check("spmm", call)
