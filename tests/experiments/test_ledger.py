"""The ledger against torch's FLOP counter, against counts by hand, and against the closed forms of the methods."""

import ast
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import sparsegnn
from sparsegnn import CSRGraph, sparsify
from sparsegnn.controllers import SET, GradualMagnitude, RigL, StaticSparse
from sparsegnn.controllers.cost import step_cost, train_and_prune_ratio
from sparsegnn.nn import GATConv, GCNConv, MaxK, SparseLinear
from sparsegnn.nn.functional import activation_dropout

N = 30
GRAPH = CSRGraph.from_edge_index(torch.randint(N, (2, 100), generator=torch.Generator().manual_seed(0)), N)


class Net(nn.Module):
    def __init__(self, conv=GCNConv, act=F.relu):
        super().__init__()
        self.convs, self.act = nn.ModuleList([conv(16, 24), conv(24, 5)]), act

    def forward(self, x, graph):
        return self.convs[1](F.dropout(self.act(self.convs[0](x, graph)), 0.5, self.training), graph)


def run(model, optimizer, steps, around, x=None):
    """The training of ``model``, each step within what ``around()`` returns."""
    torch.manual_seed(1)
    x = torch.randn(N, 16) if x is None else x
    y = torch.randint(5, (N,))
    for _ in range(steps):
        with around():
            F.cross_entropy(model(x, GRAPH), y).backward()
            optimizer.step()
            optimizer.zero_grad()


class Counters(list):
    """Torch's counter around every step."""

    def __call__(self):
        self.append(FlopCounterMode(display=False))
        return self[-1]

    def total(self):
        return sum(counter.get_total_flops() for counter in self)


CONTROLLERS = {
    "dense": (None, None),
    "static": (0.8, StaticSparse),
    "set": (0.8, lambda m, o: SET(m, o, update_every=2, stop_at=9)),
    "rigl": (0.8, lambda m, o: RigL(m, o, update_every=3, stop_at=9)),
    "gmp": (0.0, lambda m, o: GradualMagnitude(m, o, update_every=2, stop_at=7, start_at=3)),
}
MODELS = {
    "gcn": Net,
    "gat": lambda: Net(lambda i, o: GATConv(i, o, heads=1)),
    "maxk": lambda: Net(act=MaxK(6)),
    "kept": lambda: Net(lambda i, o: GCNConv(i, o, cached=True)),
}


def made(method, model="gcn"):
    torch.manual_seed(0)
    sparsity, controller = CONTROLLERS[method]
    net = MODELS[model]()
    if sparsity is not None:
        sparsify(net, sparsity)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    if controller is not None:
        controller(net, optimizer)
    return net, optimizer


@pytest.mark.parametrize(
    "method, model", [(m, "gcn") for m in CONTROLLERS] + [("rigl", m) for m in MODELS if m != "gcn"] + [("set", "kept")]
)
def test_agrees_with_torch_on_what_ran(method, model):
    net, optimizer = made(method, model)
    counters = Counters()
    run(net, optimizer, 12, counters)
    net, optimizer = made(method, model)
    ledger = sparsegnn.ledger(net, optimizer)
    run(net, optimizer, 12, ledger.step)
    found = ledger.report(show=False)
    assert found["flops"]["products"] == ledger.products == counters.total() > 0
    assert found["flops"]["weights"] + found["flops"]["aggregation"] == ledger.products
    assert (found["flops"]["mask_updates"] > 0) == (method in ("set", "rigl", "gmp"))
    assert found["steps"] == 12 and found["sampled_steps"] < 12
    seconds = found["seconds"]
    assert all(t >= 0 for t in seconds.values()) and min(seconds[k] for k in ("weights", "elementwise", "total")) > 0
    assert seconds["aggregation"] > 0 and (seconds["mask_updates"] > 0) == (method in ("set", "rigl", "gmp"))


def test_a_dense_step_by_hand():
    layer, x = nn.Linear(8, 4), torch.randn(N, 8, requires_grad=True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, foreach=False)
    ledger = sparsegnn.ledger(layer, optimizer)
    for _ in range(5):
        with ledger.step():
            F.relu(layer(x)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        x.grad = None
    loss = 2 * N * 4 + 1  # ReLU, its gradient, the sum
    step = {"weights": 3 * 2 * N * 8 * 4, "aggregation": 0, "elementwise": loss + 4 + 36, "mask_updates": 0}
    found = ledger.report(show=False)
    assert {k: found["flops"][k] for k in step} == {k: 5 * n for k, n in step.items()}
    assert found["flops_per_step"]["weights"] == step["weights"]
    assert found["flops"]["total"] == 5 * sum(step.values())


def test_fused_activation_and_dropout_are_elementwise():
    x = torch.randn(N, 8, requires_grad=True)
    ledger = sparsegnn.ledger(nn.Identity())
    with ledger.step():
        activation_dropout(x, None, F.relu, 0.5).sum().backward()
    found = ledger.report(show=False)
    assert found["flops"]["weights"] == 0 == found["seconds"]["weights"] < found["seconds"]["elementwise"]
    assert found["flops"]["elementwise"] == 2 * N * 8 + 1


@pytest.mark.parametrize("foreach", [{"foreach": False}, {"foreach": True}, {"fused": True}])
def test_optimizers_count_what_they_write(foreach):
    layer = SparseLinear(20, 10, bias=False, sparsity=0.5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, **foreach)
    layer.values.grad = torch.ones_like(layer.values)
    optimizer.step()  # makes the momentum
    ledger = sparsegnn.ledger(layer, optimizer)
    with ledger.step():
        optimizer.step()
    # momentum twice and the weights; fused: momentum, weights, and the gradients, which it may scale
    assert ledger.report(show=False)["flops"]["elementwise"] == 3 * 100


def sparse_x():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR")
        return torch.where(torch.rand(N, 16) < 0.2, 1.0, 0.0).to_sparse_csr()


def test_sparse_features_are_work_of_the_weights():
    x = sparse_x()
    net, optimizer = made("static")
    ledger = sparsegnn.ledger(net, optimizer)
    run(net, optimizer, 3, ledger.step, x)
    hidden, kept = 24, net.convs[1].lin.values.numel()
    flops = ledger.report(show=False)["flops_per_step"]
    there = (net.convs[0].lin.dense_weight() != 0).sum(0)  # weights of each feature: only nonzeros meet
    met = int((there * (x.to_dense() != 0).sum(0)).sum())
    assert flops["weights"] == 2 * (2 * met) + 3 * 2 * N * kept
    edges = GRAPH.num_edges  # self-loops are kept as a diagonal
    assert flops["aggregation"] == pytest.approx(2 * 2 * edges * (hidden + 5), rel=0.1)


def test_sparse_features_by_dense_weights_are_no_aggregation():
    """The operator of aggregation multiplies them: at each nonzero, forward and for the gradient of the weight."""
    x = sparse_x()
    net, optimizer = made("dense")
    ledger = sparsegnn.ledger(net, optimizer)
    run(net, optimizer, 3, ledger.step, x)
    flops = ledger.report(show=False)["flops_per_step"]
    assert flops["weights"] == 2 * 2 * x.values().numel() * 24 + 3 * 2 * N * 24 * 5
    assert flops["aggregation"] == pytest.approx(2 * 2 * GRAPH.num_edges * (24 + 5), rel=0.1)


def test_a_fused_operator_is_split():
    lin, x = SparseLinear(16, 24, bias=False, sparsity=0.7), torch.randn(N, 16, requires_grad=True)
    graph, scale, diag = GRAPH.normed(False, True, torch.float32)
    matrix = (graph.crow, graph.col, None, scale, scale, diag, *graph.transpose())
    weight = (lin.values, None, lin.crow, lin.col, lin.ccol, lin.row, lin.perm)
    ledger = sparsegnn.ledger(lin)
    with ledger.step():
        torch.ops.sparsegnn.spmm_linear(x, *matrix, *weight).sum().backward()
    flops = ledger.report(show=False)["flops"]
    assert flops["aggregation"] == 2 * graph.num_edges * 16 + 2 * graph.num_edges * 24
    assert flops["weights"] == 3 * 2 * N * lin.values.numel()


# --- closed forms ----------------------------------------------------------------------------------------------------


def weight_flops(layer, optimizer, steps):
    x = torch.randn(N, layer.in_features, requires_grad=True)
    ledger = sparsegnn.ledger(layer, optimizer)
    for _ in range(steps):
        with ledger.step():
            layer(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return ledger.report(show=False)["flops"]["weights"]


def test_rigl_costs_what_its_closed_form_says():
    """Ten sparse steps and one with a dense gradient; where the sparse gradient is made beside it, that is on top."""
    layer = SparseLinear(50, 40, bias=False, sparsity=0.9)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
    RigL(layer, optimizer, update_every=11, stop_at=1000)
    dense = 11 * 3 * 2 * N * 50 * 40
    assert step_cost(0.9, 10) == pytest.approx(0.1273, abs=5e-5)
    assert weight_flops(layer, optimizer, 11) / dense == pytest.approx(step_cost(0.9, 10) + 0.1 / 33)
    static = SparseLinear(50, 40, bias=False, sparsity=0.9)
    assert weight_flops(static, torch.optim.SGD(static.parameters(), lr=1e-3), 11) / dense == pytest.approx(0.1)


def test_train_and_prune_over_sparse_training():
    """20 dense and 10 reweighted epochs, 10 of retraining, against 40 sparse ones, of one step each."""
    layer = SparseLinear(50, 40, bias=False, sparsity=0.0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
    GradualMagnitude(layer, optimizer, sparsity=0.9, start_at=30, stop_at=30)
    pruned = weight_flops(layer, optimizer, 40)
    sparse = SparseLinear(50, 40, bias=False, sparsity=0.9)
    trained = weight_flops(sparse, torch.optim.SGD(sparse.parameters(), lr=1e-3), 40)
    assert pruned / trained == pytest.approx(train_and_prune_ratio(0.9)) == 7.75


# --- steps -----------------------------------------------------------------------------------------------------------


def test_few_steps_of_each_kind_are_sampled():
    net, optimizer = made("rigl")
    ledger, seen = sparsegnn.ledger(net, optimizer, sample_every=8), []
    controller = ledger.controllers[0]

    class Around:
        def __enter__(self):
            self.step = ledger.step()
            seen.append((controller.due(controller.step + 1), self.step.__enter__()))

        def __exit__(self, *error):
            return self.step.__exit__(*error)

    run(net, optimizer, 24, Around)
    plain = [sampled for due, sampled in seen if not due]
    assert [i for i, sampled in enumerate(plain) if sampled] == [0, 2, 8, 16]
    assert [sampled for due, sampled in seen if due] == [True, False]
    assert not any(name in vars(controller) for name in ("update", "arm", "before_step", "after_step", "skipped"))


def test_a_key_tells_kinds_apart_and_failed_steps_do_not_count():
    layer = SparseLinear(8, 4, bias=False, sparsity=0.5)
    ledger = sparsegnn.ledger(layer, sample_every=0)
    for rows in (3, 5, 3, 3, 5):
        with ledger.step(rows):
            layer(torch.randn(rows, 8))
    with pytest.raises(ZeroDivisionError), ledger.step(3):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), ledger.step(7):
        raise ZeroDivisionError
    found = ledger.report(show=False)
    assert found["steps"] == 5 and found["sampled_steps"] == 2
    assert found["flops"]["products"] == 2 * 16 * (3 * 3 + 2 * 5)


def test_sampling_changes_no_result():
    runs = []
    for method in ("rigl", "gmp"):
        for account in (False, True):
            net, optimizer = made(method)
            ledger = sparsegnn.ledger(net, optimizer) if account else None
            run(net, optimizer, 12, ledger.step if account else torch.enable_grad)
            runs.append(net.state_dict())
    for a, b in (runs[:2], runs[2:]):
        assert all(torch.equal(t, b[k]) for k, t in a.items())


def test_report(capsys):
    net, optimizer = made("set")
    with sparsegnn.ledger(net, optimizer) as ledger:
        run(net, optimizer, 5, ledger.step)
    found = ledger.report()
    text = capsys.readouterr().out
    for words in ("5 steps", "weights", "aggregation", "elementwise", "mask updates", "other", "peak memory"):
        assert words in text
    assert found["peak_memory_bytes"] >= found["run_memory_bytes"] >= 0 and "steps=5" in repr(ledger)
    assert sparsegnn.ledger(net, optimizer).report(show=False)["flops"]["total"] == 0


def test_refused():
    layer = SparseLinear(8, 4)
    for arguments, options, error, words in (
        ((3,), {}, TypeError, "model must be a torch.nn.Module, got int"),
        ((layer, 3), {}, TypeError, "optimizer must be a torch.optim.Optimizer, got int"),
        ((layer, None, [3]), {}, TypeError, "controller must be a sparsegnn.Controller, got int"),
        ((layer,), {"sample_every": -1}, ValueError, "sample_every must be at least 0, got -1"),
        ((layer,), {"sample_every": 0.5}, TypeError, "sample_every must be an integer, got float"),
    ):
        with pytest.raises(error, match=f"ledger: {words}"):
            sparsegnn.ledger(*arguments, **options)
    with pytest.raises(AttributeError, match="module 'sparsegnn' has no attribute 'legder'"):
        _ = sparsegnn.legder


def test_the_library_does_not_import_it():
    top = ast.parse(Path(sparsegnn.__file__).read_text()).body
    assert not [n for n in top if isinstance(n, ast.ImportFrom) and "experiments" in (n.module or "")]
