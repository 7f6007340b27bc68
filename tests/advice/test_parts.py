"""What is known of a step's layers, and the arithmetic of what is expected."""

import warnings

import numpy as np
import pytest
import torch
from advice.simulated import Machine
from torch import nn
from torch.nn import functional as F

from sparsegnn import CSRGraph
from sparsegnn.advice.expect import expected
from sparsegnn.advice.parts import CALL, Kept, Layer, StepMeter, Trace, other_of
from sparsegnn.advice.prices import BOUND, Prices, moved, timed_rows
from sparsegnn.advice.verdict import NARROWEST, interpolated, inverse
from sparsegnn.advice.work import Candidate, Problem, Stopwatch
from sparsegnn.nn import GATConv, GCNConv, SAGEConv

N = 30
GRAPH = CSRGraph.from_edge_index(torch.randint(N, (2, 90), generator=torch.Generator().manual_seed(0)), N)


class Net(nn.Module):
    """Layers one after the other; convolutions get the graph."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x, GRAPH) if hasattr(layer, "in_channels") else layer(x)
        return x


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(8, 8)

    def forward(self, x):
        return self.lin(self.lin(x).relu())


def sparse_x():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR")
        return torch.where(torch.rand(N, 12) < 0.2, 1.0, 0.0).to_sparse_csr()


def pyg():
    layers = pytest.importorskip("torch_geometric.nn")
    edges = torch.randint(N, (2, 60))

    class Pyg(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = layers.GCNConv(12, 5)

        def forward(self, x):
            return self.conv(x, edges)

    return Pyg()


X = lambda: torch.randn(N, 12)  # noqa: E731
#: rows, calls, a gradient of its input, sparse features
FIRST, LATER, SPARSE = (N, 1, False, False), (N, 1, True, False), (N, 1, False, True)
TWO, CONVS = {"layers.0": FIRST, "layers.1": LATER}, {"layers.0.lin": FIRST, "layers.1.lin": LATER}
STEPS = {
    "linear": (lambda: Net(nn.Linear(12, 7), nn.Linear(7, 3)), X, TWO),
    "square": (lambda: Net(nn.Linear(12, 12), nn.Linear(12, 12, bias=False)), X, TWO),
    "one output": (lambda: Net(nn.Linear(12, 7), nn.Linear(7, 1)), X, TWO),
    "gcn": (lambda: Net(GCNConv(12, 9), GCNConv(9, 4)), X, CONVS),
    "sparse features": (lambda: Net(GCNConv(12, 9), GCNConv(9, 4)), sparse_x, CONVS | {"layers.0.lin": SPARSE}),
    "gat": (lambda: Net(GATConv(12, 4, heads=2), GATConv(8, 4)), X, CONVS),
    "sage": (lambda: Net(SAGEConv(12, 6)), X, {"layers.0.lin_l": FIRST, "layers.0.lin_r": FIRST}),
    "pyg": (pyg, X, {"conv.lin": FIRST}),
    "called twice": (Twice, lambda: torch.randn(N, 8), {"lin": (N, 2, True, False)}),
    "batches": (lambda: Net(nn.Linear(12, 7)), lambda: torch.randn(2, N, 12), {"layers.0": (2 * N, 1, False, False)}),
}


def candidate_of(make, x, low_precision=False):
    problem = Problem(make(), lambda m: m(x).float().square().mean(), lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
    return Candidate(problem, problem.model, low_precision)


def metered(candidate, **costs) -> StepMeter:
    """Around the second step of a model, on a machine of these costs."""
    candidate.step()
    with Machine(call=0.0, **costs) as machine:
        meter = StepMeter(candidate, Stopwatch(candidate.device, machine.now))
        with meter:
            candidate.step(meter.optimizing)
    return meter


@pytest.mark.parametrize("low_precision", [False, True])
@pytest.mark.parametrize("name", STEPS)
def test_layers_are_found_in_a_step(name, low_precision):
    make, x, want = STEPS[name]
    candidate = candidate_of(make, x(), low_precision)
    meter = metered(candidate, product=1.0)
    found = {y.name: (y.rows, y.calls, y.need_dx, y.features is not None) for y in meter.layers}
    assert found == want
    for layer in meter.layers:  # products of weights alone take time there
        passes = 2 * layer.calls + layer.need_dx * (1 if name == "called twice" else layer.calls)
        dense = 2 * layer.rows * layer.shape[0] * layer.shape[1] * passes
        if layer.features is None and name != "sage":
            assert layer.seconds == pytest.approx(dense)
    total = sum(y.seconds for y in meter.layers)
    assert total <= meter.seconds["weights"] + meter.seconds["features"]


def test_parts_of_a_step():
    """By hand: two products forward and three backward, and what SGD writes."""
    candidate = candidate_of(lambda: Net(nn.Linear(12, 7, bias=False), nn.Linear(7, 3, bias=False)), X())
    candidate.optimizer = torch.optim.SGD(candidate.model.parameters(), lr=0.1, foreach=False)
    meter = metered(candidate, product=1.0, element=1.0)
    assert meter.seconds["weights"] == 2 * N * (2 * 12 * 7 + 3 * 7 * 3)
    assert meter.seconds["optimizer"] == 12 * 7 + 7 * 3
    assert meter.seconds["aggregation"] == meter.seconds["features"] == 0


class Sign(nn.Module):
    """Two layers of one shape, of features of their own: powers of an adjacency."""

    def __init__(self):
        super().__init__()
        self.few, self.many = GCNConv(12, 9).lin, GCNConv(12, 9).lin

    def forward(self, x):
        return self.few(x[0]) + self.many(x[1])


@pytest.mark.parametrize("swapped", [False, True])
def test_layers_of_one_shape_get_their_own_gradients(swapped):
    few, many = sparse_x(), torch.ones(N, 12).to_sparse_csr()
    candidate = candidate_of(Sign, (many, few) if swapped else (few, many))
    meter = metered(candidate, edge=1.0)
    found = {y.name: y.seconds for y in meter.layers}
    want = {"few": few, "many": many} if not swapped else {"few": many, "many": few}
    assert found == {name: 2 * 2 * x.values().numel() * 9 for name, x in want.items()}  # forward, and of the weight


def test_the_copy_of_a_gradient_is_its_layers():
    """That of a weight on sparse features is made transposed; autograd wants the strides of the weight."""
    candidate = candidate_of(lambda: Net(GCNConv(12, 9, bias=False), GCNConv(9, 4, bias=False)), sparse_x())
    meter = metered(candidate, element=1.0)
    assert {y.name: y.seconds for y in meter.layers} == {"layers.0.lin": 12 * 9, "layers.1.lin": 0}
    assert (meter.seconds["features"], meter.seconds["weights"]) == (12 * 9, 0)


def test_activations_are_what_the_step_keeps():
    candidate = candidate_of(lambda: Net(nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3)), X())
    with Kept(candidate) as kept:
        candidate.step()
    assert kept.bytes == 4 * (N * 7 + N * 3)  # ReLU's output, the logits that are squared


# --- arithmetic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "within, before, after, want",
    [
        (8.0, 8.0, 2.0, 2.0),
        (8.0, 10.0, 2.0, 8.0 - 0.8 * 8),  # faster within the step, by the same factor
        (8.0, 40.0, 30.0, 8.0 - 10 / BOUND),  # what is mostly the call counts at no less
        (8.0, 4.0, 1.0, 8.0 - BOUND * 3),
        (1.0, 1.0, 4.0, 4.0),
        (0.0, 0.0, 3.0, 3.0),
        (1.0, 30.0, 1.0, 0.0),
    ],
)
def test_moved(within, before, after, want):
    assert moved(within, before, after) == pytest.approx(want)


def test_expected_is_the_sum_of_its_parts():
    layers = [
        Layer("a", (8, 8), 10, 1, False, (torch.ones(1),) * 3, 3.0),
        Layer("b", (8, 8), 10, 1, True, None, 5.0),
        Layer("c", (8, 8), 10, 1, True, None, 2.0),
    ]
    seconds = {"weights": 9.0, "features": 3.5, "aggregation": 4.0, "elementwise": 1.0, "optimizer": 2.0, "other": 0.5}
    found = expected(Trace(seconds, layers), {"a": (3.0, 1.0), "b": (5.0, 0.5)}, (4.0, 1.0))
    assert found == pytest.approx({"weights": 4.5, "features": 1.5, "aggregation": 4.0, "elementwise": 1.0,
                                   "optimizer": 2.0 - 3.0 / BOUND, "other": 0.5})  # fmt: skip
    assert seconds["weights"] == 9.0
    assert expected(Trace(seconds, layers), {}) == seconds
    trace = Trace(seconds, layers, {"activations": 10, "weights": 90}, operators=20_000)  # 0.2 s of calls
    assert expected(trace, {}, None, {"activations": 10, "weights": 40})["other"] == pytest.approx(0.2 + 0.3 / 2)


def test_what_no_operator_takes():
    base = Trace({"other": 0.1}, memory={"activations": 600, "weights": 400}, operators=1000)
    assert other_of(base, 1000, base.memory) == pytest.approx(0.1)
    fewer = {"activations": 200, "weights": 50}
    assert other_of(base, 500, fewer) == pytest.approx(1000 * CALL / 2 + (0.1 - 1000 * CALL) / 4)
    small = Trace({"other": 0.01}, memory={"activations": 0, "weights": 0}, operators=1000)
    assert other_of(small, 500, small.memory) == pytest.approx(0.005)


def test_a_curve_and_its_inverse():
    points = {1.0: 100.0, 0.5: 30.0, 0.25: 20.0}
    for w in (1.0, 0.8, 0.5, 0.4, 0.25, 0.1):
        logs = sorted((np.log(k), np.log(v)) for k, v in points.items())
        x, (xs, ys) = np.log(w), zip(*logs)  # noqa: B905
        want = np.interp(x, xs, ys) if x >= xs[0] else ys[0] + (ys[1] - ys[0]) / (xs[1] - xs[0]) * (x - xs[0])
        assert interpolated(points, w) == pytest.approx(np.exp(want))
        assert inverse(points, interpolated(points, w)) == pytest.approx(w, rel=1e-6)
    assert inverse(points, 200.0) == 1.0 and inverse(points, 1e-9) == pytest.approx(NARROWEST)


def test_layers_that_take_long_are_timed_on_a_part_of_their_rows():
    use = Layer("a", (8, 8), 1000, 2, True, None, 2.0)
    assert timed_rows(use) == 250
    module = nn.Linear(8, 8)
    with Machine(product=1e-9) as machine:
        prices = Prices(Stopwatch(torch.device("cpu"), machine.now))
        machine.call = 0.0
        found = prices.layers(use, {"dense": module})
    assert found["dense"] == pytest.approx(2 * 3 * 2 * 1000 * 64 * 1e-9)


def test_prices_of_sparse_features_are_of_their_first_rows():
    x = sparse_x()
    use = Layer("a", (6, 12), N, 1, False, (x.crow_indices().int(), x.col_indices().int(), x.values()), 0.01)
    with Machine(product=1e-9, edge=1e-9, call=0.0) as machine:
        prices = Prices(Stopwatch(torch.device("cpu"), machine.now))
        found = prices.layers(use, {0: GCNConv(12, 6).lin})
    assert found[0] == pytest.approx(2 * 2 * x.values().numel() * 6 * 1e-9)
    assert F.relu(torch.tensor(found[0])) > 0
