"""Single messages of this library's own layers: hooks, methods and weights are those of PyG's with the same weights."""

import copy
import gc
import pickle
import weakref

import fresh
import pytest
import torch
import torch_geometric.nn as pyg
from pyg.oracle import watched
from pyg.pairs import BIPARTITE, HETERO, WIDTH, N, Traced, both, features, graph, hetero_inputs, kinds, more_of
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks

import sparsegnn
from sparsegnn import CSRGraph, nn

HOOKS = [name for name in dir(pyg.MessagePassing) if name.startswith("register_") and name not in dir(torch.nn.Module)]


def kernels(model):
    return {row["kernel"] for row in sparsegnn.summary(model, show=False) if row["layer"] == row["type"]}


def told(value):
    """The tensors of what a hook was given."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [t for part in parts for t in told(part)]


@pytest.mark.parametrize("name", HOOKS)
@kinds
def test_hooks_see_and_change_what_they_do_of_pygs(kind, name):
    (ours, theirs), edges, x = both(kind), graph(), features()
    more, seen, results = more_of(kind, edges), [], []
    before = ours(x, edges, *more)
    for model in (ours, theirs):
        calls, handles = [], []

        def hook(module, *args, calls=calls):
            assert type(module).__name__ == kind.partition(",")[0]
            calls.append(told(args))
            return None if name.endswith("pre_hook") else 2 * args[-1]

        handles = [getattr(conv, name)(hook) for conv in (model.conv1, model.conv2)]
        results.append(model(x, edges, *more))
        seen.append(calls)
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(*results)
    assert len(seen[0]) == len(seen[1])
    for got, want in zip(*seen, strict=True):
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, check_dtype=a.is_floating_point())
    assert len(HOOKS) == 10 and ("fused" in name or "edge_update" in name or "and_aggregate" in name or seen[0])
    with watched() as watch:
        torch.testing.assert_close(ours(x, edges, *more), before)
    assert watch.kernels


@pytest.mark.parametrize("name", ["message", "aggregate", "update", "propagate"])
@kinds
def test_methods_of_an_instance_are_called(kind, name):
    (ours, theirs), edges, x, results = both(kind), graph(), features(), []
    more = more_of(kind, edges)
    for model in (ours, theirs):
        made = getattr(model.conv1, name)
        setattr(model.conv1, name, lambda *args, made=made, **kwargs: 3 * made(*args, **kwargs))
        results.append(model(x, edges, *more))
    torch.testing.assert_close(*results)
    assert not torch.allclose(results[0], both(kind)[0](x, edges, *more))
    delattr(ours.conv1, name)
    torch.testing.assert_close(ours(x, edges, *more), both(kind)[0](x, edges, *more))
    with pytest.raises(AttributeError, match=f"{name} is not replaced"):
        delattr(ours.conv1, name)


def test_methods_can_be_called():
    ours, theirs = (package.GCNConv(4, 4).double() for package in (nn, pyg))
    x, edges = features(width=4), graph()
    w = torch.rand(edges.size(1)).double()
    torch.testing.assert_close(ours.propagate(edges, x=x, edge_weight=w), theirs.propagate(edges, x=x, edge_weight=w))
    torch.testing.assert_close(ours.message(x[edges[0]], w), theirs.message(x[edges[0]], w))


@kinds
def test_a_hook_on_a_graph_of_this_library(kind):
    """Its edges are in another order; what hooks see is in that of the list it was made from."""
    (ours, theirs), edges, x = both(kind), graph(), features()
    more, seen = more_of(kind, edges), []
    made = CSRGraph.from_edge_index(edges, N)
    if kind == "GCNConv, weights":
        made, calls = made.weighted(more[0]), [(made.weighted(more[0]),), (edges, *more)]
    else:
        calls = [(made, *more), (edges, *more)]
    for model, call in zip((ours, theirs), calls, strict=True):
        model.conv1.register_message_forward_hook(lambda module, args, y: seen.append(y))
        seen.append(model(x, *call))
    half = len(seen) // 2
    for got, want in zip(seen[:half], seen[half:], strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_layers_with_arguments_of_their_own(sparsity):
    edges, x = graph(), features().float()
    layers = [
        nn.GCNConv(WIDTH, 4, act="relu", dropout=0.5, sparsity=sparsity),
        nn.GCN2Conv(WIDTH, 0.1, sparsity=sparsity),
        nn.GCN2Conv(WIDTH, 0.1, 0.5, 2, shared_weights=False, sparsity=sparsity),
        nn.SGConv(WIDTH, 4, K=2, cached=True, sparsity=sparsity),
        nn.GCNConv(WIDTH, 4, cached=True, improved=True),
        nn.SAGEConv(WIDTH, 4, project=True, normalize=True, root_weight=False, sparsity=sparsity),
    ]
    for conv in layers:
        args = (x, x.flip(0), edges) if isinstance(conv, nn.GCN2Conv) else (x, edges)
        conv.eval()
        wanted, calls = conv(*args), []
        conv.register_message_forward_hook(lambda *seen, calls=calls: calls.append(seen))
        torch.testing.assert_close(conv(*args), wanted)
        assert calls and kernels(conv) <= {"PyG: single messages", sparsegnn.report.kernel(nn.SparseLinear(2, 2))}
        y = conv.train()(*args)
        assert y.shape == wanted.shape
        if getattr(conv, "dropout", 0):
            assert 0.5 < (y == 0).double().mean() < 1
            torch.testing.assert_close(y[y != 0], 2 * wanted[y != 0])


def test_gradients_reach_the_layer():
    (ours, theirs), edges, x = both("GATConv"), graph(), features()
    for model in (ours, theirs):
        model.conv1.register_message_forward_hook(lambda module, args, y: y.sin())
        model(x, edges).cos().sum().backward()
    wanted = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name].grad)


def test_making_pygs_layer_draws_no_numbers_and_is_not_seen():
    conv = nn.GATConv(WIDTH, 4, edge_dim=2)
    state, modules, names = torch.get_rng_state(), len(list(conv.modules())), list(conv.state_dict())
    conv.register_message_forward_hook(print).remove()
    assert torch.equal(torch.get_rng_state(), state)
    assert len(list(conv.modules())) == modules and list(conv.state_dict()) == names
    gone = weakref.ref(conv)
    del conv
    gc.collect()
    assert gone() is None


def doubled(module, args, y):
    return 2 * y


@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_have_the_hooks_and_weights_of_their_own(again):
    conv, edges, x = nn.SAGEConv(WIDTH, 4).double(), graph(), features()
    plain = conv(x, edges)
    conv.register_aggregate_forward_hook(doubled)
    wanted = conv(x, edges)
    assert not torch.allclose(plain, wanted)
    other = again(conv)
    torch.testing.assert_close(other(x, edges), wanted)
    other.flow = "target_to_source"
    torch.testing.assert_close(other(x, edges.flip(0)), wanted)
    torch.testing.assert_close(conv(x, edges), wanted)
    other.lin_l = copy.deepcopy(other.lin_l)
    torch.nn.init.zeros_(other.lin_l.weight)
    assert not torch.allclose(other(x, edges.flip(0)), wanted)
    if again is not copy.copy:  # which shares the table of its layers
        torch.testing.assert_close(conv(x, edges), wanted)


def test_lazy_layers_and_changes_of_settings():
    edges, x = graph(), features().float()
    conv, seen = nn.GCNConv(-1, 4), []
    conv.register_message_forward_hook(lambda module, args, y: seen.append(y))
    y = conv(x, edges)
    plain = copy.deepcopy(conv)
    conv.flow = "target_to_source"
    torch.testing.assert_close(conv(x, edges.flip(0)), y)
    torch.testing.assert_close(plain(x, edges), y)
    conv.decomposed_layers = 2
    torch.testing.assert_close(conv(x, edges.flip(0)), y)
    assert len(seen) == 5 and [t.size(1) for t in seen] == [4, 4, 4, 2, 2]


# --- classes of the user's -------------------------------------------------------------------------------------------


class Scaled(nn.GraphConv):
    def __init__(self, *args, factor=1.0):
        super().__init__(*args)
        self.factor = factor

    def message(self, x_j, edge_weight):
        return self.factor * super().message(x_j, edge_weight)


class Shifted(Scaled):
    def message(self, x_j, edge_weight):
        return super().message(x_j, edge_weight) + self.shift()

    def shift(self):
        return 0.5


class PyGsScaled(pyg.GraphConv):
    def __init__(self, *args, factor=1.0):
        super().__init__(*args)
        self.factor = factor

    def message(self, x_j, edge_weight):
        return self.factor * super().message(x_j, edge_weight)


class PyGsShifted(PyGsScaled):
    def message(self, x_j, edge_weight):
        return super().message(x_j, edge_weight) + 0.5


@pytest.mark.parametrize("ours, theirs", [(Scaled, PyGsScaled), (Shifted, PyGsShifted)])
def test_a_class_with_messages_of_its_own(ours, theirs):
    edges, x, w = graph(), features(), torch.rand(graph().size(1)).double()
    one, other = (kind(WIDTH, 4, factor=3.0).double() for kind in (ours, theirs))
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(one(x, edges, w), other(x, edges, w))
    for again in (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))):
        torch.testing.assert_close(again(one)(x, edges, w), other(x, edges, w))
    one.factor = other.factor = 2.0
    torch.testing.assert_close(one(x, edges, w), other(x, edges, w))


class Wrapped(nn.SAGEConv):
    def forward(self, x, edge_index):
        return super().forward(x, edge_index) + 1


def test_a_forward_of_its_own_calls_the_one_with_hooks():
    conv, edges, x = Wrapped(WIDTH, 4).double(), graph(), features()
    plain, calls = conv(x, edges), []
    conv.register_message_forward_hook(lambda *seen: calls.append(seen))
    torch.testing.assert_close(conv(x, edges), plain)
    assert len(calls) == 1


# --- attention weights, hetero models --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GATConv", "GATv2Conv", "GATConv, no loops", "GATConv, edges"])
def test_attention_weights(kind):
    (ours, theirs), edges, x = both(kind), graph(), features()
    more = more_of(kind, edges)
    wanted, (index, weights) = theirs.conv1(x, edges, *more, return_attention_weights=True)
    for given in (edges, CSRGraph.from_edge_index(edges, N)):
        y, (kept, alpha) = ours.conv1(x, given, *more, return_attention_weights=True)
        for a, b in zip((y, kept, alpha), (wanted, index, weights), strict=True):
            torch.testing.assert_close(a, b)
    with watched() as watch:
        torch.testing.assert_close(ours.conv1(x, edges, *more), wanted)
    assert watch.kernels


def test_attention_weights_of_sparse_layers():
    conv, edges, x = nn.GATConv(WIDTH, 4, heads=2, sparsity=0.5), graph(), features().float()
    y, (_, alpha) = conv(x, edges, return_attention_weights=True)
    torch.testing.assert_close(y, conv(x, edges))
    assert alpha.shape[1] == 2


@pytest.mark.parametrize("kind", [k for k in BIPARTITE if "lazy" not in k and "GAT" not in k])
def test_to_hetero_with_bases(kind):
    x, edges = hetero_inputs()
    ours, theirs = (
        pyg.to_hetero_with_bases(Traced(BIPARTITE[kind], p, (WIDTH, WIDTH, 4)).double(), HETERO, 2) for p in (nn, pyg)
    )
    theirs.load_state_dict(ours.state_dict())
    for name, wanted in theirs(x, edges).items():
        torch.testing.assert_close(ours(x, edges)[name], wanted)


def test_masks_and_hooks_together():
    (ours, theirs), edges, x, results = both("GCNConv"), graph(), features(), []
    for model in (ours, theirs):
        model.conv1.register_message_forward_hook(doubled)
        set_masks(model, torch.linspace(-2, 2, edges.size(1), dtype=torch.float64), edges)
        results.append(model(x, edges))
        clear_masks(model)
        results.append(model(x, edges))
    torch.testing.assert_close(results[0], results[2])
    torch.testing.assert_close(results[1], results[3])


def test_every_method_of_pygs_base_is_known():
    """A new one of a later PyG must be looked at: it may be about messages too."""
    theirs = {n for n in vars(pyg.MessagePassing) if not n.startswith("_") and callable(vars(pyg.MessagePassing)[n])}
    ours = {*nn.messages.METHODS, *nn.messages.HOOKS}
    assert theirs - ours == {"forward", "reset_parameters", "jittable"}


def test_without_pyg():
    program = """
import torch, sparsegnn
from sparsegnn import nn
edges = torch.randint(5, (2, 9))
for call in (lambda: nn.GCNConv(4, 4).register_message_forward_hook(print), lambda: nn.GCNConv(4, 4).message(1),
             lambda: nn.GATConv(4, 4)(torch.ones(5, 4), edges, return_attention_weights=True),
             lambda: setattr(nn.SAGEConv(4, 4), "message", print),
             lambda: type("Mine", (nn.SAGEConv,), {"message": lambda self, x_j: x_j})(4, 4)):
    try:
        call()
    except NotImplementedError as error:
        assert "import torch_geometric.nn first" in str(error), error
    else:
        raise AssertionError(call)
"""
    fresh.output(program)
