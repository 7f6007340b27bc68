"""Classes of the user's that override a method of PyG's: accelerated they give what PyG makes of them."""

import pytest
import torch
import torch_geometric.nn as pyg
from pyg.oracle import accelerated, gradients
from torch import nn
from torch_geometric.nn.conv.gcn_conv import gcn_norm

import sparsegnn
from sparsegnn.pyg.route import route_of

N, F = 20, 6
LAYERS = {  # those wider than their input, and those narrower, aggregate in another order
    "gcn": (pyg.GCNConv, (F, 4)), "gcn-wide": (pyg.GCNConv, (F, 9)), "sage": (pyg.SAGEConv, (F, 2)),
    "sage-wide": (pyg.SAGEConv, (F, 9)), "graph": (pyg.GraphConv, (F, 2)), "graph-wide": (pyg.GraphConv, (F, 9)),
    "gin": (pyg.GINConv, (nn.Linear(F, 4),)), "appnp": (pyg.APPNP, (3, 0.1)), "sg": (pyg.SGConv, (F, 4)),
    "tag": (pyg.TAGConv, (F, 4)), "cheb": (pyg.ChebConv, (F, 4, 3)), "lg": (pyg.LGConv, ()),
    "arma": (pyg.ARMAConv, (F, 4)), "gcn2": (pyg.GCN2Conv, (F, 0.1)), "le": (pyg.LEConv, (F, 4)),
    "rgcn": (pyg.RGCNConv, (F, 4, 2)), "gat": (pyg.GATConv, (F, 4)), "gatv2": (pyg.GATv2Conv, (F, 4)),
}  # fmt: skip
ATTENTION, TYPED = ("gat", "gatv2"), ("rgcn",)


def message(base):
    if base in (pyg.GATConv, pyg.GATv2Conv):

        class Own(base):
            def message(self, x_j, alpha):
                return x_j * alpha.unsqueeze(-1).square()
    elif base is pyg.LEConv:

        class Own(base):
            def message(self, a_j, b_i, edge_weight):
                return a_j
    else:

        class Own(base):
            def message(self, x_j):
                return x_j + x_j.square()

    return Own  # fmt: skip


def plain_message(base):
    """A message that the kernels have, though not that of this layer."""

    class Own(base):
        def message(self, x_j):
            return x_j

    return Own  # fmt: skip


def aggregate(base):
    class Own(base):
        def aggregate(self, inputs, index, ptr=None, dim_size=None):
            return 2 * super().aggregate(inputs, index, ptr, dim_size)

    return Own  # fmt: skip


def update(base):
    class Own(base):
        def update(self, inputs):
            return inputs + 1

    return Own  # fmt: skip


def propagate(base):
    class Own(base):
        def propagate(self, edge_index, size=None, **kwargs):
            return 2 * super().propagate(edge_index, size=size, **kwargs)

    return Own  # fmt: skip


def lift(base):
    class Own(base):
        def _index_select(self, src, index):
            return 2 * super()._index_select(src, index)

    return Own  # fmt: skip


def below(way):
    """The method is that of a class between the layer's and PyG's."""

    def made(base):
        return type("Below", (way(base),), {})

    made.__name__ = f"below_{way.__name__}"
    return made  # fmt: skip


WAYS = (message, plain_message, aggregate, update, propagate, lift, below(aggregate), below(propagate))


def named(kind, name):
    """PyG keeps the code that it writes for a class by its name."""
    kind.__name__ = name.replace("-", "_")
    return kind


def inputs(kind):
    g = torch.Generator().manual_seed(3)
    edges = torch.randint(0, N - 2, (2, 60), generator=g)
    x = torch.randn(N, F, generator=g, dtype=torch.float64, requires_grad=True)
    given = [x, x.detach().clone()] if kind == "gcn2" else [x]
    return x, [*given, edges, *([torch.randint(0, 2, (60,), generator=g)] if kind in TYPED else [])]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", LAYERS)
def test_an_override_acts_as_in_pyg(kind, way):
    base, arguments = LAYERS[kind]
    if way is plain_message and kind in (*ATTENTION, "le"):
        pytest.skip("its message has other arguments")
    x, given = inputs(kind)
    torch.manual_seed(0)
    parent = base(*arguments).double()
    model = named(way(base), f"{way.__name__}_of_{kind}")(*arguments).double()
    model.load_state_dict(parent.state_dict())
    want, want_grads = gradients(model, lambda m: m(*given), [x])
    for other in (accelerated(model), sparsegnn.sparsify(accelerated(model), 0.0) if kind == "gcn" else None):
        if other is not None:
            got, got_grads = gradients(other, lambda m: m(*given), [x])
            torch.testing.assert_close(got, want)
            torch.testing.assert_close(got_grads[0], want_grads[0])
    acts = not torch.allclose(want[0], parent(*given))
    same = way in (plain_message, lift) or way.__name__ == "below_propagate"  # of some layers, in PyG too
    assert acts or (same and (kind, way) != ("gcn", plain_message))
    assert way.__name__ != "below_propagate" or route_of(accelerated(model)) is None


@pytest.mark.parametrize("kind", ["gcn", "sage", "graph"])
def test_fused_products_of_the_users(kind):
    SparseTensor = pytest.importorskip("torch_sparse").SparseTensor
    base, arguments = LAYERS[kind]

    class Own(base):
        def message_and_aggregate(self, *args):
            return 2 * super().message_and_aggregate(*args)

        message_and_aggregate.__signature__ = __import__("inspect").signature(base.message_and_aggregate)

    x, (_, edges) = inputs(kind)
    adj = SparseTensor(row=edges[1], col=edges[0], value=torch.ones(60).double(), sparse_sizes=(N, N))
    model = named(Own, f"fused_{kind}")(*arguments).double()
    torch.testing.assert_close(accelerated(model)(x, adj), model(x, adj))


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
def test_a_norm_is_that_of_the_flow_that_it_was_made_for(flow, told):
    class Own(pyg.MessagePassing):
        def __init__(self):
            super().__init__(aggr="add", flow=flow)
            self.lin = nn.Linear(F, 4)

        def forward(self, x, edge_index):
            edge_index, norm = gcn_norm(edge_index, None, x.size(0), **({"flow": self.flow} if told else {}))
            return self.propagate(edge_index, x=self.lin(x), norm=norm)

        def message(self, x_j, norm):
            return norm.view(-1, 1) * x_j

    x, given = inputs("own")
    model = named(Own, f"flow_{flow}_{told}")().double()
    other = accelerated(model)
    torch.testing.assert_close(other(*given), model(*given))
    assert route_of(other).last == "ours"


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("width", [3, 9])
def test_a_linear_layer_with_a_bias_in_gcn(width, grad):
    """Put there by the user: PyG aggregates its bias, too."""
    x, (_, edges) = inputs("gcn")
    x = x if grad else x.detach()
    model = pyg.GCNConv(F, width).double()
    model.lin = pyg.Linear(F, width).double()
    want = model(x, edges)
    torch.testing.assert_close(accelerated(model)(x, edges), want)
    sparse = sparsegnn.sparsify(accelerated(model), 0.5)
    torch.testing.assert_close(sparse(x, edges), sparsegnn.densify(sparse)(x, edges))


def test_a_laplacian_of_the_users_is_not_that_of_others():
    class Half(pyg.ChebConv):
        def __norm__(self, *args, **kwargs):
            edges, norm = super().__norm__(*args, **kwargs)
            return edges, 0.5 * norm

    x, (_, edges) = inputs("cheb")
    accelerated(pyg.ChebConv(F, 4, 3).double())(x, edges)
    model = Half(F, 4, 3).double()
    torch.testing.assert_close(accelerated(model)(x, edges), model(x, edges))


@pytest.mark.parametrize("name", ["_lift", "_collect", "propagate", "message", "aggregate", "update"])
def test_a_method_of_an_instance(name):
    """Put on the accelerated convolution itself."""
    x, (_, edges) = inputs("gcn")
    results = []
    for accelerate in (False, True):
        torch.manual_seed(0)
        model = pyg.GCNConv(F, 4).double()
        if accelerate:
            sparsegnn.accelerate(model)
        real = getattr(model, name)

        def own(*args, real=real, **kwargs):
            found = real(*args, **kwargs)
            return {**found, "edge_weight": 2 * found["edge_weight"]} if isinstance(found, dict) else 2 * found

        setattr(model, name, own)
        results.append(model(x, edges))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("kind", ["gcn", "sage", "graph", "gin", "appnp", "cheb", "rgcn", "gat", "gatv2"])
def test_arguments_that_are_missing_are_missed_by_the_layer(kind):
    base, arguments = LAYERS[kind]
    with pytest.raises(TypeError, match=rf"{base.__name__}\.forward\(\) missing 1 required positional argument"):
        accelerated(base(*arguments))(torch.randn(N, F))
