"""An accelerated model is still PyG's: copies, files, hooks, explainers, hetero models, compilers; and bad input."""

import copy
import gc
import inspect
import io
import pickle

import pytest
import torch
import torch_geometric.nn as pyg
from pyg.models import MODELS, OURS, N, edges
from pyg.oracle import accelerated, check, paths, watched
from torch import nn
from torch_geometric.explain import Explainer, GNNExplainer
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks
from torch_geometric.utils import k_hop_subgraph

import sparsegnn
from sparsegnn.pyg.cache import MEMORY

models = pytest.mark.parametrize("kind", MODELS)


def routes(model):
    return set(paths(model).values())


@models
def test_stays_a_model_of_pyg(kind):
    model = MODELS[kind]()
    other = accelerated(model)
    assert repr(other) == repr(model) and list(other.state_dict()) == list(model.state_dict())
    assert [type(m) for m in other.modules()] == [type(m) for m in model.modules()]
    assert len(list(other.buffers())) == len(list(model.buffers()))
    assert sparsegnn.accelerate(other) is other  # a second time changes nothing
    index = edges()
    check(model, lambda m: m(torch.ones(N, 6), index), other=other)
    assert routes(other) == {OURS}
    sparsegnn.accelerate(other, undo=True)
    assert not paths(other) and vars(other.convs[0]).keys() == vars(model.convs[0]).keys()
    check(model, lambda m: m(torch.ones(N, 6), index), other=other, ours=False)


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved])
@models
def test_copies_are_accelerated_and_apart(kind, again):
    model, x, index = MODELS[kind](), torch.randn(N, 6), edges()
    other = accelerated(model)
    other(x, index)
    made = again(other)
    for p in other.parameters():
        p.data.fill_(float("nan"))  # what the copy does with it would show
    check(model, lambda m: m(x, index), other=made)
    assert routes(made) == {OURS}


def test_loads_and_saves_state():
    model, x, index = MODELS["gat"](), torch.randn(N, 6), edges()
    other = sparsegnn.accelerate(MODELS["gat"]())
    other.load_state_dict(model.state_dict())
    check(model, lambda m: m(x, index), other=other)


# --- the edge list is converted once, and its changes are noticed ----------------------------------------------------


def test_one_conversion_for_all_layers_and_steps():
    model, x, index = accelerated(pyg.GraphSAGE(6, 8, 3, 4)), torch.randn(N, 6), edges()
    with watched() as watch:
        for _ in range(3):
            model(x, index).sum().backward()
    assert watch.conversions == 1 and watch.kernels == 3 * 5


@pytest.mark.parametrize("kind", ["gcn", "sage", "gat"])
def test_a_change_in_place_is_noticed(kind):
    model, x, index = MODELS[kind](), torch.randn(N, 6), edges()
    other = accelerated(model)
    other(x, index)
    index[0] = index[0].flip(0)
    check(model, lambda m: m(x, index), other=other)
    index.resize_(2, 60)
    check(model, lambda m: m(x, index), other=other)


@pytest.mark.parametrize("make", [lambda: pyg.GCNConv(6, 4), lambda: pyg.GraphConv(6, 4), lambda: pyg.APPNP(2, 0.1)])
def test_a_change_of_weights_in_place_is_noticed(make):
    model, x, index, w = make(), torch.randn(N, 6, requires_grad=True), edges(), torch.rand(150)
    other = accelerated(model)
    other(x, index, w)
    w.mul_(torch.arange(150) / 150)
    check(model, lambda m: m(x, index, w), x, other=other)


def test_a_change_of_a_norm_that_was_handed_out_is_noticed():
    conv, other = pyg.GCNConv(6, 4, cached=True), pyg.GCNConv(6, 4, bias=False)
    x, index = torch.randn(N, 6), edges()
    model = accelerated(nn.ModuleList([conv, other]))
    model[0](x, index)
    model[0]._cached_edge_index[1].zero_()
    torch.testing.assert_close(model[0](x, index), torch.zeros(N, 4))
    check(other, lambda m: m(x, index), other=model[1])


@pytest.mark.parametrize("make", [lambda: pyg.GCN(6, 8, 2, 4), lambda: pyg.LGConv(), lambda: pyg.ChebConv(6, 4, 2),
                                  lambda: pyg.GAT(6, 8, 2, 4)])  # fmt: skip
def test_memory_is_given_back(make):
    MEMORY.clear()
    model, x = accelerated(make()), torch.randn(N, 6)
    for _ in range(4):
        index = edges()
        model(x, index)
        held = len(MEMORY)
    assert held <= 3  # the edges, those with loops, and their norm
    del index
    gc.collect()
    assert len(MEMORY) == 0


def test_memory_is_bounded():
    MEMORY.clear()
    conv, x = accelerated(pyg.SAGEConv(6, 4)), torch.randn(N, 6)
    kept = [edges() for _ in range(300)]
    with torch.no_grad():
        for index in kept:
            conv(x, index)
    assert len(MEMORY) <= 256
    weighted, index = accelerated(pyg.GraphConv(6, 4)), edges()
    for w in [torch.rand(150) for _ in range(100)]:
        weighted(x, index, w)
    assert len(MEMORY.of(index)) <= 64


def test_inference_mode_then_training():
    model, x, index = MODELS["gcn"](), torch.randn(N, 6), edges()
    other = accelerated(model)
    with torch.inference_mode():
        other(x, index)
        other(x, edges())
    check(model, lambda m: m(x, index), other=other)


# --- PyG's tools -----------------------------------------------------------------------------------------------------


@models
def test_explainer_takes_pygs_path_and_then_ours_again(kind):
    model, x, index = MODELS[kind](), torch.randn(N, 6), edges()
    other = accelerated(model)
    config = dict(mode="multiclass_classification", task_level="node", return_type="raw")
    made = []
    for m in (model, other):
        torch.manual_seed(0)
        explainer = Explainer(m, GNNExplainer(epochs=3), explanation_type="model", node_mask_type="object",
                              edge_mask_type="object", model_config=config)  # fmt: skip
        made.append(explainer(x, index, index=3).edge_mask)
    torch.testing.assert_close(*made)
    assert routes(other) == {"explain"} and made[0].abs().sum() > 0
    check(model, lambda m: m(x, index), other=other)
    assert routes(other) == {OURS}


@models
def test_accelerated_while_it_is_explained(kind):
    model, x, index = MODELS[kind](), torch.randn(N, 6), edges()
    set_masks(model, torch.rand(index.size(1)), index)
    other = accelerated(model)
    check(model, lambda m: m(x, index), other=other, ours=False)
    for m in (model, other):
        clear_masks(m)
    check(model, lambda m: m(x, index), other=other)


HOOKS = ["propagate_forward_pre", "propagate_forward", "message_forward_pre", "message_forward",
         "aggregate_forward_pre", "aggregate_forward"]  # fmt: skip


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_of_message_passing_are_called(name):
    conv, x, index, calls = accelerated(pyg.GCNConv(6, 4)), torch.randn(N, 6), edges(), []
    handle = getattr(conv, f"register_{name}_hook")(lambda module, *args: calls.append(type(module)))
    conv(x, index)
    assert calls == [pyg.GCNConv] and paths(conv)[""] == f"a {name.partition('_')[0]} hook"
    handle.remove()
    conv(x, index)
    assert len(calls) == 1 and routes(conv) == {OURS}


@pytest.mark.parametrize("narrow", [4, 14])
def test_hooks_of_modules_see_what_they_would(narrow):
    conv, x, index = pyg.GCNConv(6, narrow), torch.randn(N, 6), edges()
    other, seen = accelerated(conv), []
    for c in (conv, other):
        c.lin.register_forward_hook(lambda module, args, y: seen.append((args[0], y)))
        c.register_forward_hook(lambda module, args, y: 2 * y)
    check(conv, lambda m: m(x, index), other=other)
    torch.testing.assert_close(seen[0], seen[1])


def test_attention_weights_and_decomposition_take_pygs_path():
    conv, x, index = accelerated(pyg.GATConv(6, 4, heads=2)), torch.randn(N, 6), edges()
    y, (kept, alpha) = conv(x, index, return_attention_weights=True)
    assert alpha.shape == (kept.size(1), 2) and routes(conv) == {"return_attention_weights"}
    torch.testing.assert_close(y, conv(x, index))
    assert routes(conv) == {OURS}
    gcn = accelerated(pyg.GCNConv(6, 4))
    gcn.decomposed_layers = 2
    y = gcn(x, index)
    assert routes(gcn) == {"decomposed_layers"}
    gcn.decomposed_layers = 1
    torch.testing.assert_close(gcn(x, index), y)
    assert routes(gcn) == {OURS}


@pytest.mark.parametrize("make", [lambda: pyg.GCNConv(6, 14), lambda: pyg.GATConv(6, 4), lambda: pyg.SAGEConv(6, 4)])
@pytest.mark.parametrize("name", ["propagate", "message", "aggregate"])
def test_methods_of_the_instance_are_called(make, name):
    conv, x, index, calls = accelerated(make()), torch.randn(N, 6), edges(), []
    theirs = getattr(type(conv), name).__get__(conv)
    setattr(conv, name, lambda *args, **kwargs: calls.append(1) or theirs(*args, **kwargs))
    conv(x, index)
    assert len(calls) == 1 and routes(conv) == {f"its own {name}"}


def test_hooks_of_the_aggregation_module_are_called():
    conv, x, index, calls = accelerated(pyg.SAGEConv(6, 14)), torch.randn(N, 6), edges(), []
    conv.aggr_module.register_forward_hook(lambda *args: calls.append(1))
    conv(x, index)
    assert calls == [1] and routes(conv) == {"aggr=mean"}


class Net(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.conv1, self.conv2 = make(6, 8), make(8, 4)

    def forward(self, x, edge_index):
        return self.conv2(self.conv1(x, edge_index).relu(), edge_index)


NODES = ["u", "v"]
TYPES = [("u", "to", "v"), ("v", "to", "u"), ("u", "s", "u")]


def hetero_inputs():
    size = {"u": 20, "v": 25}
    x = {k: torch.randn(n, 6) for k, n in size.items()}
    return x, {t: edges(size[t[0]], size[t[2]], 60) for t in TYPES}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("make", [
    lambda i, o: pyg.SAGEConv((i, i), o), lambda i, o: pyg.GraphConv((i, i), o),
    lambda i, o: pyg.GATConv((i, i), o, add_self_loops=False),
])  # fmt: skip
def test_to_hetero(make, when):
    net, (x, index) = Net(make), hetero_inputs()
    torch.manual_seed(1)
    model = pyg.to_hetero(net, (NODES, TYPES))
    torch.manual_seed(1)
    other = pyg.to_hetero(accelerated(net), (NODES, TYPES)) if when == "before" else accelerated(model)
    assert list(other.state_dict()) == list(model.state_dict())
    watch = check(model, lambda m: m(x, index), other=other)
    assert len(paths(other)) == 6 and routes(other) == {OURS} and watch.conversions == 3


def test_hetero_conv():
    x, index = hetero_inputs()
    convs = {TYPES[0]: pyg.SAGEConv((6, 6), 4), TYPES[1]: pyg.GATConv((6, 6), 4, add_self_loops=False),
             TYPES[2]: pyg.GCNConv(6, 4)}  # fmt: skip
    model = pyg.HeteroConv(convs)
    check(model, lambda m: m(x, index))


def test_compilers_record_pygs_path():
    model, x, index = pyg.SAGEConv(6, 4), torch.randn(N, 6), edges()
    other = accelerated(model)
    torch._dynamo.reset()
    made = torch.compile(other, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(made(x, index), model(x, index))
    torch.testing.assert_close(torch.jit.trace(other, (x, index))(x, index), model(x, index))
    check(model, lambda m: m(x, index), other=other)


def test_torchscript_reads_pygs_code():
    conv, x, index = pyg.SAGEConv(6, 4), torch.randn(N, 6), edges()
    other = accelerated(conv)
    torch.testing.assert_close(torch.jit.script(other)(x, index), conv(x, index))
    assert inspect.signature(other.forward) == inspect.signature(conv.forward)


def test_functional_call_and_second_derivatives():
    model, x, index = accelerated(pyg.GCN(6, 8, 2, 4)).double(), torch.randn(N, 6).double(), edges()
    params = {k: torch.randn_like(v) for k, v in model.named_parameters()}
    plain = sparsegnn.accelerate(copy.deepcopy(model), undo=True)

    def loss(m, p):
        return torch.func.functional_call(m, p, (x, index)).sin().sum()

    for transform in (torch.func.grad, torch.func.jacfwd):
        got, want = (transform(lambda p, m=m: loss(m, p))(params) for m in (model, plain))
        for k in params:
            torch.testing.assert_close(got[k], want[k])
    assert routes(model) == {OURS}


def test_subgraphs_and_trimming():
    model = pyg.GraphSAGE(6, 8, 2, 4)
    x, index = torch.randn(N, 6), edges()
    nodes, sub, _, _ = k_hop_subgraph([3], 2, index, relabel_nodes=True, num_nodes=N)
    check(model, lambda m: m(x[nodes], sub))
    num = dict(num_sampled_nodes_per_hop=[4, 10, 16], num_sampled_edges_per_hop=[20, 130])
    order = torch.cat([torch.stack([torch.randint(14, (20,)), torch.randint(4, (20,))]), edges(N, 14, 130)], 1)
    check(model, lambda m: m(x, order, **num))


# --- bad input -------------------------------------------------------------------------------------------------------


def test_models_without_convolutions():
    with pytest.raises(ValueError, match="accelerate: model must have a convolution of PyG"):
        sparsegnn.accelerate(nn.Linear(3, 3))
    with pytest.raises(TypeError, match="accelerate: model must be a torch.nn.Module, got list"):
        sparsegnn.accelerate([])
    with pytest.warns(UserWarning, match=r"none of the convolutions .* covered \(TransformerConv\)"):
        conv = sparsegnn.accelerate(pyg.TransformerConv(6, 4))
    assert not paths(conv)


@pytest.mark.parametrize("bad", ["negative", "large", "float", "shape", "sizes"])
@pytest.mark.parametrize("make", [lambda: pyg.SAGEConv(6, 4), lambda: pyg.GCNConv(6, 4), lambda: pyg.GATConv(6, 4)])
def test_bad_graphs_are_refused_as_pyg_does(make, bad):
    conv, x, index = make(), torch.randn(N, 6), edges()
    index[0, 0] = {"negative": -1, "large": N}.get(bad, 0)
    index = {"float": index.float(), "shape": index[0]}.get(bad, index)
    x = (x, torch.randn(N - 9, 6)) if bad == "sizes" and not isinstance(conv, pyg.GCNConv) else x
    if bad == "sizes" and isinstance(conv, pyg.GCNConv):
        index[0, 0] = 5 * N
    raised = []
    for c in (conv, accelerated(conv)):
        with pytest.raises(Exception) as e:
            c(x, index)
        raised.append((e.type, str(e.value)))
    assert raised[0] == raised[1]


@pytest.mark.parametrize("make", [
    lambda: pyg.GCNConv(-1, 4), lambda: pyg.SAGEConv((-1, -1), 4), lambda: pyg.GATConv(-1, 4),
])  # fmt: skip
def test_lazy_layers(make):
    conv, x, index = sparsegnn.accelerate(make()), torch.randn(N, 6), edges()
    conv(x, index)
    plain = sparsegnn.accelerate(copy.deepcopy(conv), undo=True)
    check(plain, lambda m: m(x, index), other=conv)


class Low(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.a, self.b = inner, nn.Linear(6, 2, bias=False), nn.Linear(2, 4, bias=False)

    def forward(self, x):
        return self.inner(x) + self.b(self.a(x))


@pytest.mark.parametrize("kind, name", [(pyg.GCNConv, "lin"), (pyg.SAGEConv, "lin_l"), (pyg.GATConv, "lin")])
def test_a_layer_of_another_kind_inside_a_covered_one(kind, name):
    conv = kind(6, 4)
    setattr(conv, name, Low(getattr(conv, name)))
    x, index = torch.randn(N, 6), edges()
    check(conv, lambda m: m(x, index))
