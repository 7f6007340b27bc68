"""The maxk method: which ReLUs become MaxK, against top-k written out, and what it puts back."""

import copy
import warnings

import pytest
import torch
from dying import Net
from torch import nn
from torch.nn import functional as F

from sparsegnn import CSRGraph
from sparsegnn.controllers import MaxKGNN
from sparsegnn.nn import APPNP, GATConv, GCNConv, GINConv, GraphConv, MaxK, SAGEConv, SGConv, TAGConv

N = 20


def graph():
    return CSRGraph.from_edge_index(torch.randint(0, N, (2, 70), generator=torch.Generator().manual_seed(0)), N)


def attribute(self, x, graph):
    x = F.dropout(self.activation(self.a(x, graph)), 0.5, self.training)
    return self.b(x, graph)


def module(self, x, graph):
    return self.b(self.drop(self.relu(self.norm(self.a(x, graph)))), graph)


def built_in(self, x, graph):
    return self.b(self.a(x, graph), graph)


def head_and_residual(self, x, graph):
    h = self.relu(self.a(x, graph))
    return self.head(self.b(h, graph) + h)


def twice(self, x, graph):
    h = self.act(self.a(x, graph))
    return self.b(self.act(self.c(h, graph)), graph)


def listed(self, x, graph):
    for layer in self.layers:
        x = layer(x, graph) if isinstance(layer, GCNConv) else layer(x)
    return x


#: model, whether rows are compressed, and the same with the function ``top`` in place of ReLU
CASES = {
    "attribute": (lambda: Net(attribute, a=GCNConv(5, 8), b=GCNConv(8, 3), activation=F.relu), True,
                  lambda m, x, g, top: m.b(top(m.a(x, g)), g)),
    "torch_relu": (lambda: Net(attribute, a=SAGEConv(5, 8), b=SAGEConv(8, 3), activation=torch.relu), True,
                   lambda m, x, g, top: m.b(top(m.a(x, g)), g)),
    "sgc": (lambda: Net(attribute, a=SGConv(5, 8), b=SGConv(8, 3, K=2), activation=F.relu), True,
            lambda m, x, g, top: m.b(top(m.a(x, g)), g)),
    "graph_conv": (lambda: Net(attribute, a=GraphConv(5, 8), b=TAGConv(8, 3), activation=F.relu), True,
                   lambda m, x, g, top: m.b(top(m.a(x, g)), g)),
    "gin": (lambda: Net(attribute, a=GINConv(nn.Linear(5, 8)), b=GINConv(nn.Linear(8, 3), train_eps=True),
                        activation=F.relu), True,
            lambda m, x, g, top: m.b(top(m.a(x, g)), g)),
    "appnp": (lambda: Net(attribute, a=GCNConv(5, 8), b=APPNP(2, 0.1), activation=F.relu), True,
              lambda m, x, g, top: m.b(top(m.a(x, g)), g)),
    "module": (lambda: Net(module, a=GCNConv(5, 8), b=SAGEConv(8, 3), relu=nn.ReLU(inplace=True),
                           drop=nn.Dropout(0.5), norm=nn.LayerNorm(8)), True,
               lambda m, x, g, top: m.b(top(m.norm(m.a(x, g))), g)),
    "attention": (lambda: Net(module, a=GATConv(5, 4, heads=2), b=GATConv(8, 3), relu=nn.ReLU(), drop=nn.Dropout(0.5),
                              norm=nn.Identity()), False,
                  lambda m, x, g, top: m.b(top(m.a(x, g)), g)),
    "built_in": (lambda: Net(built_in, a=GCNConv(5, 8, act="relu", dropout=0.5), b=GCNConv(8, 3)), True,
                 lambda m, x, g, top: m.b(top(m.a(x, g)), g)),
    "residual": (lambda: Net(head_and_residual, a=GCNConv(5, 8), b=GCNConv(8, 8), relu=nn.ReLU(),
                             head=nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))), False,
                 lambda m, x, g, top: m.head(m.b(top(m.a(x, g)), g) + top(m.a(x, g)))),
    "listed": (lambda: Net(listed, layers=nn.Sequential(GCNConv(5, 8), nn.ReLU(), GCNConv(8, 3), nn.ReLU())), True,
               lambda m, x, g, top: m.layers[2](top(m.layers[0](x, g)), g).relu()),
    "twice": (lambda: Net(twice, a=GCNConv(5, 8), b=GCNConv(8, 3), c=GCNConv(8, 8), act=nn.ReLU()), True,
              lambda m, x, g, top: m.b(top(m.c(top(m.a(x, g)), g)), g)),
}  # fmt: skip


def attach(model, **settings):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return MaxKGNN(model, optimizer, **{"k": 4, **settings}), optimizer


def top(group, k):
    """By the definition: of every group the largest, by a threshold in numpy."""

    def keep(x):
        parts = x.view(N, -1, group)
        least = parts.sort(-1, descending=True).values[..., k * group // 8 - 1 : k * group // 8]
        return (parts * (parts >= least)).view(x.shape)

    return keep


@pytest.mark.parametrize("group", [None, 4])
@pytest.mark.parametrize("name", CASES)
def test_is_top_k_between_graph_layers(name, group):
    make, compressed, formula = CASES[name]
    torch.manual_seed(0)
    model, x, g = make().double().eval(), torch.randn(N, 5, dtype=torch.float64), graph()
    keys, before = list(model.state_dict()), model(x, g)
    controller, optimizer = attach(model, group=group)
    found = [m for m in model.modules() if isinstance(m, MaxK)]
    found += [hook.maxk for m in model.modules() for hook in m._forward_hooks.values()]
    assert len(found) == 1 and found[0].compressed is compressed and list(model.state_dict()) == keys
    if name == "built_in":
        assert model.a.act is None and model.a.dropout == 0
    got = model(x, g)
    got.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    optimizer.zero_grad()
    twin = copy.deepcopy((model, optimizer, controller))
    controller.detach()
    assert torch.equal(model(x, g), before) and repr(model) == repr(make().eval().double())
    torch.testing.assert_close(twin[0](x, g), got)
    twin[2].detach()
    torch.testing.assert_close(twin[0](x, g), before)
    if name == "built_in":
        model.a.act, model.a.dropout = None, 0.0
    want = formula(model, x, g, top(group or 8, 4))
    want.square().sum().backward()
    torch.testing.assert_close(got, want)
    for p, grad in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(grad, p.grad)


def test_dropout_acts_in_training_alone():
    for name in ("attribute", "module", "built_in"):
        model, x, g = CASES[name][0](), torch.randn(N, 5), graph()
        attach(model)
        assert not torch.equal(model(x, g), model(x, g))
        model.eval()
        assert torch.equal(model(x, g), model(x, g))


def test_counts_steps_and_finalize_keeps_maxk():
    model, x, g = CASES["attribute"][0](), torch.randn(N, 5), graph()
    controller, optimizer = attach(model)
    for _ in range(3):
        model(x, g).sum().backward()
        optimizer.step()
    assert controller.step == 3 and controller.updates == 0 and controller.settled_at == 0
    state = controller.state_dict()
    again, _ = attach(CASES["attribute"][0]())
    again.load_state_dict(state)
    assert again.step == 3
    with pytest.raises(ValueError, match="MaxKGNN: state must have k 4, got 3"):
        again.load_state_dict({**state, "k": 3})
    assert controller.finalize() is model and isinstance(model.activation, MaxK) and not controller.attached
    controller.detach()
    assert isinstance(model.activation, MaxK)


def test_pyg():
    layers = pytest.importorskip("torch_geometric.nn")
    model = Net(attribute, a=layers.GCNConv(5, 8), b=layers.GATConv(8, 3), activation=F.relu)
    attach(model)
    assert isinstance(model.activation, MaxK) and not model.activation.compressed
    edges = torch.randint(0, N, (2, 50))
    assert model(torch.randn(N, 5), edges).isfinite().all()


def test_a_compiled_model():
    model, x, g = CASES["attribute"][0]().eval(), torch.randn(N, 5), graph()
    attach(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, g), model(x, g))


def mixed(self, x, graph):
    return self.relu(self.b(self.relu(self.a(x, graph)), graph))


def called(self, x, graph):
    h = self.relu(self.a(x, graph))
    return self.b(F.relu(self.c(h, graph)), graph)


def test_refused():
    one = {"a": GCNConv(5, 8), "b": GCNConv(8, 3)}
    for error, words, model, settings in [
        (ValueError, r"k must be in \[1, 8\], the number of columns, got 9", CASES["attribute"][0](), {"k": 9}),
        (ValueError, r"k must be in \[1, 32768\]", CASES["module"][0](), {"k": 0}),
        (TypeError, "k must be an int, got float", CASES["module"][0](), {"k": 4.0}),
        (ValueError, "group must", CASES["attribute"][0](), {"group": 3}),
        (ValueError, "model must have a ReLU between", nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), {}),
        (ValueError, "model must have a ReLU between", Net(attribute, **one, activation=F.elu), {}),
        (ValueError, "activations of their own between graph layers, got 'relu' of Net, which is called elsewhere",
         Net(mixed, **one, relu=nn.ReLU()), {}),
    ]:  # fmt: skip
        before = repr(model), vars(model).keys()
        with pytest.raises(error, match="MaxKGNN: .*" + words):
            attach(model, **settings)
        assert (repr(model), vars(model).keys()) == before
    model = CASES["attribute"][0]()
    attach(model)
    with pytest.raises(ValueError, match="model must have a ReLU between"):
        attach(model)
    model = Net(called, **one, c=GCNConv(8, 8), relu=nn.ReLU())
    with pytest.warns(UserWarning, match="ReLUs that forward.. calls as functions stay: relu"):
        attach(model)
    assert isinstance(model.relu, MaxK)


def test_nothing_is_replaced_that_is_not_between():
    model = Net(head_and_residual, a=GCNConv(5, 8), b=GCNConv(8, 8), relu=nn.ReLU(),
                head=nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)))  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach(model)
    assert isinstance(model.head[1], nn.ReLU) and isinstance(model.relu, MaxK)
