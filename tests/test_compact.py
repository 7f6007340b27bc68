"""Compaction: narrower models against the wide ones, in fp64, over a table of architectures."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import sparsegnn
from sparsegnn import CSRGraph
from sparsegnn.controllers import RigL
from sparsegnn.nn import GATConv, GATv2Conv, GCNConv, MaxK, SAGEConv, SparseLinear

N, IN, OUT = 24, 6, 3


def graph():
    g = torch.Generator().manual_seed(1)
    return CSRGraph.from_edge_index(torch.randint(0, N, (2, 80), generator=g), N)


def features(width=IN):
    return torch.randn(N, width, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def zero(*parts):
    """Zero ``tensor[index]`` of each pair; of a SparseLinear the weights in these rows."""
    with torch.no_grad():
        for tensor, index in parts:
            if isinstance(tensor, SparseLinear):
                rows = torch.repeat_interleave(tensor.crow.diff().long())
                tensor.values.view(rows.numel(), -1)[torch.isin(rows, torch.tensor(index))] = 0
            else:
                tensor[index] = 0


class Net(nn.Module):
    """Parts by name, and a forward that is handed in."""

    def __init__(self, forward, **parts):
        super().__init__()
        self._run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x, graph):
        return self._run(self, x, graph)


CASES = {}


def case(make):
    CASES[make.__name__] = make
    return make


def chain(*parts):
    def run(self, x, graph):
        for name in parts:
            part = getattr(self, name) if isinstance(name, str) else name
            x = part(x, graph) if isinstance(part, (GCNConv, SAGEConv, GATConv, GATv2Conv)) or needs(part) else part(x)
        return x

    return run


def needs(part):
    return type(part).__module__.startswith("torch_geometric")


@case
def mlp():
    m = Net(chain("a", F.relu, "b", torch.relu, "c"), a=nn.Linear(IN, 8), b=nn.Linear(8, 7), c=nn.Linear(7, OUT))
    zero((m.a.weight, [1, 4]), (m.a.bias, [1, 4]), (m.b.weight, [0]), (m.b.bias, [0]))
    return m, {"a": [1, 4], "b": [0]}


@case
def outgoing_columns():
    m = Net(chain("a", torch.tanh, "b", F.gelu, "c"), a=nn.Linear(IN, 8), b=nn.Linear(8, 7), c=nn.Linear(7, OUT))
    zero((m.c.weight, (slice(None), [2, 3])), (m.b.weight, ([0, 1, 4, 5, 6], 5)))
    return m, {"a": [5], "b": [2, 3]}  # a's unit 5 is read by units alone that go themselves


@case
def unit_read_twice():
    def run(self, x, graph):
        h = F.elu(self.a(x))
        return self.b(h) + self.c(h)

    m = Net(run, a=nn.Linear(IN, 8), b=nn.Linear(8, OUT), c=nn.Linear(8, OUT))
    zero((m.b.weight, (slice(None), [2, 3])), (m.c.weight, (slice(None), [3, 4])))
    return m, {"a": [3]}


@case
def batch_norm():
    m = Net(chain("a", "n", F.relu, "b"), a=nn.Linear(IN, 8), n=nn.BatchNorm1d(8), b=nn.Linear(8, OUT))
    nn.init.uniform_(m.n.running_mean)
    nn.init.uniform_(m.n.weight)
    nn.init.uniform_(m.n.bias)
    zero((m.n.weight, [2, 6]), (m.n.bias, [2, 6]), (m.a.weight, [1, 2]), (m.a.bias, [1, 2]))
    return m, {"a": [2, 6], "n": [2, 6]}  # unit 1 is constant after the norm, and another one in training


@case
def negative_constant():
    m = Net(chain("a", F.relu, "b"), a=nn.Linear(IN, 8), b=nn.Linear(8, OUT, bias=False))
    zero((m.a.weight, [1]))
    nn.init.constant_(m.a.bias, -0.5)
    return m, {"a": [1]}


@case
def constant_goes_into_the_bias():
    m = Net(chain("a", torch.sigmoid, "b"), a=nn.Linear(IN, 8), b=nn.Linear(8, OUT))
    zero((m.a.weight, [1, 5]), (m.a.bias, [1]))
    return m, {"a": [1, 5]}


@case
def residual():
    def run(self, x, graph):
        h = F.relu(self.a(x))
        h = h + F.relu(self.b(h))
        return self.c(self.d(h) * 2.0 - h)

    m = Net(run, a=nn.Linear(IN, 8), b=nn.Linear(8, 8), d=nn.Linear(8, 8, bias=False), c=nn.Linear(8, OUT))
    zero((m.a.weight, [1, 2]), (m.a.bias, [1, 2]), (m.b.weight, [2, 3]), (m.b.bias, [2, 3]), (m.d.weight, [2, 1, 3]))
    return m, {"a": [2], "b": [2], "d": [2]}


@case
def concatenation():
    def run(self, x, graph):
        h = F.leaky_relu(self.a(x, graph), 0.1)
        g = F.silu(self.b(h, graph))
        return self.c(torch.cat([h, g, h.detach()], dim=-1))

    m = Net(run, a=GCNConv(IN, 8), b=GCNConv(8, 5), c=nn.Linear(21, OUT))
    zero((m.a.lin.weight, [0, 7]), (m.a.bias, [0, 7]), (m.b.lin.weight, [4]), (m.b.bias, [4]))
    return m, {"a": [0, 7], "b": [4]}


@case
def products():
    def run(self, x, graph):
        return self.c(torch.sigmoid(self.a(x)) * self.b(x) / 3 + 0 * self.s * self.b(x))

    m = Net(run, a=nn.Linear(IN, 8), b=nn.Linear(IN, 8), c=nn.Linear(8, OUT))
    m.s = nn.Parameter(torch.ones(1))
    zero((m.b.weight, [3]), (m.b.bias, [3]), (m.a.weight, [4]), (m.a.bias, [4]))
    return m, {"a": [3], "b": [3]}


@case
def gcn():
    m = Net(chain("a", "b", F.relu, "c"), a=GCNConv(IN, 8, act="relu"), b=GCNConv(8, 7, aggr="max"),
            c=GCNConv(7, OUT, cached=True))  # fmt: skip
    zero((m.a.lin.weight, [1, 4]), (m.a.bias, [1]), (m.b.lin.weight, [0]), (m.b.bias, [0]))
    m.a.bias.data[4] = -1.0
    m.b.bias.data[3] = -1e9  # not constant: that is for the data to say
    return m, {"a": [1, 4], "b": [0]}


@case
def constant_before_aggregation_stays():
    m = Net(chain("a", F.relu, "b"), a=GCNConv(IN, 8), b=GCNConv(8, OUT))
    zero((m.a.lin.weight, [1, 4]))
    m.a.bias.data[4] = 1.0
    return m, {"a": [1]}


@case
def sage():
    m = Net(chain("a", F.relu, "b"), a=SAGEConv(IN, 8), b=SAGEConv(8, OUT, "max", project=True))
    zero((m.a.lin_l.weight, [1, 3]), (m.a.lin_l.bias, [1, 3]), (m.a.lin_r.weight, [1]))
    return m, {"a": [1]}


@case
def sage_normalized():
    m = Net(chain("a", F.relu, "b"), a=SAGEConv(IN, 8, normalize=True, root_weight=False), b=SAGEConv(8, OUT))
    zero((m.a.lin_l.weight, [1]), (m.a.lin_l.bias, [1]))
    zero((m.b.lin_l.weight, (slice(None), [2])), (m.b.lin_r.weight, (slice(None), [2])))  # counts in the length
    return m, {"a": [1]}


@case
def gat_heads():
    m = Net(chain("a", F.elu, "b"), a=GATConv(IN, 4, heads=3, residual=True), b=GATConv(12, OUT))
    dead = [4, 5, 6, 7, 9]  # head 1 as a whole, one channel of head 2
    nn.init.uniform_(m.a.bias)
    zero((m.a.lin.weight, dead), (m.a.bias, dead), (m.a.res.weight, dead))
    return m, {"a": [4, 5, 6, 7]}


@case
def gat_one_head():
    m = Net(chain("a", F.elu, "b", F.elu, "c"), a=GATConv(IN, 6), b=GATConv(6, 5, heads=2, concat=False),
            c=GATConv(5, OUT))  # fmt: skip
    zero((m.a.lin.weight, [1]), (m.b.lin.weight, [2, 7, 3]))
    zero((m.b.lin.weight, (slice(None), [2, 3])), (m.a.att_src, (0, 0, 3)), (m.a.att_dst, (0, 0, 3)))
    return m, {"a": [1, 3], "b": [2]}  # nothing reads 2 of a but the scores


@case
def gatv2():
    m = Net(chain("a", F.elu, "b", F.elu, "c"), a=GATv2Conv(IN, 4, heads=2, share_weights=True),
            b=GATv2Conv(8, 6), c=GATv2Conv(6, OUT))  # fmt: skip
    for conv, dead in ((m.a, [0, 1, 2, 3]), (m.b, [5, 1])):
        zero((conv.lin_l.weight, dead), (conv.lin_l.bias, dead))
    zero((m.b.lin_r.weight, [5]), (m.b.lin_r.bias, [5]))  # 1 counts in scores
    return m, {"a": [0, 1, 2, 3], "b": [5]}


@case
def edge_features_of_attention():
    def run(self, x, graph):
        return self.b(F.relu(self.a(x, graph, self.e)), graph)

    m = Net(run, a=GATConv(IN, 4, edge_dim=2), b=GCNConv(4, OUT))
    m.register_buffer("e", torch.randn(graph().num_edges, 2, dtype=torch.float64))
    zero((m.a.lin.weight, [0, 1]), (m.a.lin_edge.weight, [0]))
    return m, {"a": [0]}


@case
def adjacency_from_the_left():
    def run(self, x, graph):
        h = F.relu(self.a(x))
        h = (1 + self.eps) * h + self.adjacency @ h + sparsegnn.ops.spmm(graph, h)
        return self.c(F.relu(self.b(h))[torch.arange(5)].mean(0))

    m = Net(run, a=nn.Linear(IN, 8), b=nn.Linear(8, 7), c=nn.Linear(7, OUT))
    m.eps = nn.Parameter(torch.zeros(1))
    m.register_buffer("adjacency", torch.rand(N, N, dtype=torch.float64))
    zero((m.a.weight, [1, 4]), (m.a.bias, [1, 4]), (m.b.weight, [6]), (m.b.bias, [6]))
    return m, {"a": [1, 4], "b": [6]}


@case
def called_twice():
    def run(self, x, graph):
        h = self.act(self.a(x))
        for _ in range(2):
            h = self.drop(self.act(self.b(h)))
        return self.c(h)

    m = Net(run, a=nn.Linear(IN, 8), b=nn.Linear(8, 8), c=nn.Linear(8, OUT), act=nn.ReLU(inplace=True),
            drop=nn.Dropout(0.0))  # fmt: skip
    zero((m.a.weight, [1, 2]), (m.a.bias, [1, 2]), (m.b.weight, [2, 3]), (m.b.bias, [2, 3]))
    return m, {"a": [2], "b": [2]}


@case
def embedding():
    def run(self, x, graph):
        return self.b(F.relu(self.a(self.table(torch.arange(N)), graph)), graph)

    m = Net(run, table=nn.Embedding(N, 6), a=GCNConv(6, 5), b=GCNConv(5, OUT))
    zero((m.table.weight, (slice(None), [3])), (m.a.lin.weight, [0]), (m.a.bias, [0]))
    return m, {"table": [3], "a": [0]}


@case
def nested_and_sequential():
    inner = nn.Sequential(nn.Linear(IN, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 6), nn.ReLU()), nn.Identity())
    m = Net(chain("inner", "out"), inner=inner, out=nn.Linear(6, OUT))
    zero((inner[0].weight, [7]), (inner[0].bias, [7]), (inner[2][0].weight, [1]), (inner[2][0].bias, [1]))
    return m, {"inner.0": [7], "inner.2.0": [1]}


@case
def pyg():
    layers = pytest.importorskip("torch_geometric.nn")
    m = Net(chain("a", F.relu, "b", F.relu, "c"), a=layers.GCNConv(IN, 8), b=layers.SAGEConv(8, 6),
            c=layers.GCNConv(6, OUT))  # fmt: skip
    zero((m.a.lin.weight, [1, 4]), (m.b.lin_l.weight, [2]), (m.b.lin_l.bias, [2]), (m.b.lin_r.weight, [2]))
    return m, {"a": [1, 4], "b": [2]}


@case
def pyg_with_sparse_weights():
    m, dead = pyg()
    return sparsegnn.sparsify(m, 0.3, include=["a"]), dead


def sparse(pattern, sparsity=0.5, rows=(0, 3), units=(0, 3)):
    def make():
        m = Net(chain("a", F.relu, "b"), a=SparseLinear(IN, 32, sparsity=0.4), b=SparseLinear(32, 32, pattern=pattern,
                sparsity=sparsity), c=GCNConv(32, OUT))  # fmt: skip
        m._run = chain("a", F.relu, "b", F.relu, "c")
        zero((m.a, [2, 9]), (m.a.bias, [2, 9]), (m.b, list(rows)), (m.b.bias, list(units)))
        return m, {"a": [2, 9] if pattern not in ("2:4", "block:16x16") else [], "b": list(units)}

    return make


CASES |= {
    "sparse": sparse("unstructured"),
    "sparse_fan_in": sparse("fan_in"),
    "sparse_all_weights": sparse("unstructured", 0.0),
    "sparse_two_of_four": sparse("2:4"),
    "sparse_grouped": sparse("grouped:8", 0.2, rows=(1,), units=range(8, 16)),
    "sparse_blocks": sparse("block:16x16", 0.0, rows=(1,), units=range(16, 32)),
}


def build(name):
    torch.manual_seed(3)
    model, dead = CASES[name]()
    x, g = features(), graph()
    if "pyg" in name:
        g = torch.stack([g.col.long(), torch.repeat_interleave(g.crow.diff().long())])
    return model.double(), {k: v for k, v in dead.items() if v}, (x, g)


def widths(model):
    return {n: list(p.shape) for n, p in model.named_parameters()}


@pytest.mark.parametrize("name", CASES)
def test_outputs_stay_and_dead_units_go(name):
    model, dead, inputs = build(name)
    wide = copy.deepcopy(model)
    found = sparsegnn.dead_units(model)
    assert {n: x.tolist() for n, x in found.items()} == {n: list(x) for n, x in dead.items()}
    flags = [m.training for m in model.modules()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of dead units that must stay, see below
        assert sparsegnn.compact(model, *inputs) is model
    assert flags == [m.training for m in model.modules()]
    smaller = sum(p.numel() for p in model.parameters())
    assert smaller < sum(p.numel() for p in wide.parameters())
    for mode in (False, True):
        torch.testing.assert_close(model.train(mode)(*inputs), wide.train(mode)(*inputs), rtol=1e-12, atol=1e-12)
    layers = dict(model.named_modules())
    for name, units in dead.items():  # noqa: PLR1704
        width = dict(wide.named_modules())[name]
        for attribute in ("out_features", "num_features", "embedding_dim"):
            if hasattr(width, attribute):
                assert getattr(layers[name], attribute) == getattr(width, attribute) - len(list(units))
    again = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sparsegnn.compact(model)
    assert widths(model) == widths(again)  # nothing is left to remove
    model.load_state_dict(again.state_dict())
    torch.testing.assert_close(model(*inputs), again(*inputs), rtol=0, atol=0)


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-3, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
}
STAYS_DEAD = ("mlp", "gcn", "sage", "called_twice", "pyg", "sparse", "sparse_grouped", "batch_norm")


def losses(model, optimizer, inputs, steps, schedule=None):
    target, found = torch.linspace(-1, 1, N * OUT, dtype=torch.float64).view(N, OUT), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(*inputs) - target).square().mean()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("name, optimizer", [(n, "adam") for n in STAYS_DEAD] + [("gcn", o) for o in OPTIMIZERS])
def test_training_goes_on_as_without(name, optimizer):
    model, _, inputs = build(name)
    made = OPTIMIZERS[optimizer](model.parameters())
    losses(model, made, inputs, 3)  # units with ReLU stay dead
    wide, wide_optimizer = copy.deepcopy((model, made))
    mine = torch.optim.lr_scheduler.StepLR(made, 2, 0.5)
    other = torch.optim.lr_scheduler.StepLR(wide_optimizer, 2, 0.5)
    before = sum(p.numel() for p in model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sparsegnn.compact(model, optimizer=made)
    assert sum(p.numel() for p in model.parameters()) < before
    state = [t for s in made.state.values() for t in s.values() if torch.is_tensor(t) and t.dim()]
    assert all(any(t.shape == p.shape for p in model.parameters()) for t in state)
    want, got = losses(wide, wide_optimizer, inputs, 8, other), losses(model, made, inputs, 8, mine)
    torch.testing.assert_close(torch.tensor(got), torch.tensor(want), rtol=1e-9, atol=1e-12)


KEPT = {
    "layer_norm": (lambda: nn.LayerNorm(8), "1 of 'a', as 'n' (LayerNorm) may mix channels"),
    "softmax": (lambda: nn.Softmax(-1), "1 of 'a', as 'n' (Softmax) may mix channels"),
    "maxk": (lambda: MaxK(4), "1 of 'a', as 'n' (MaxK) may mix channels"),
    "plain_norm": (lambda: shifted(nn.BatchNorm1d(8, affine=False)), "1 of 'a', as they are constant where no bias can"),
    "prelu": (lambda: nn.PReLU(8), "1 of 'a', as 'n' (PReLU) may mix channels"),
    "hooked": (lambda: hooked(nn.ReLU()), "1 of 'a', as 'n' (ReLU) may mix channels"),
    "in_dropout": (lambda: nn.Sequential(nn.Sigmoid(), nn.Dropout(0.5)), "1 of 'a', as they are constant where no"),
}


def hooked(module):
    module.register_forward_hook(lambda m, args, y: y.flip(1))
    return module


@pytest.mark.parametrize("name", KEPT)
def test_units_that_must_stay_are_named(name):
    make, words = KEPT[name]
    model = Net(chain("a", "n", "b"), a=nn.Linear(IN, 8), n=make(), b=nn.Linear(8, OUT)).double()
    zero((model.a.weight, [2]), (model.a.bias, [2]))
    before = widths(model)
    with pytest.warns(UserWarning) as caught:
        sparsegnn.compact(model, features(), graph())
    assert words in str(caught[0].message) and widths(model) == before and not sparsegnn.dead_units(model)


def shifted(norm):
    norm.running_mean += 1
    return norm


def shape_reading(self, x, graph):
    h = F.relu(self.a(x))
    return self.b(h.view(h.shape[0], h.shape[1]))


def in_place(self, x, graph):
    h = self.a(x)
    h.sigmoid_()
    return self.b(h)


def weight_used_elsewhere(self, x, graph):
    return self.b(F.relu(self.a(x))) + self.a.weight.sum()


def sliced(self, x, graph):
    return self.b(F.relu(self.a(x))[:, list(range(8))])


def alpha(self, x, graph):
    h = F.relu(self.a(x))
    return self.b(torch.add(h, h, alpha=2))


def stacked(self, x, graph):
    h = F.relu(self.a(x))
    return self.b(torch.stack([h, h]).sum(0))


def columns_of_ones(self, x, graph):
    return self.b(F.relu(self.a(x)) + torch.ones(8, dtype=torch.float64))


@pytest.mark.parametrize("forward", [shape_reading, in_place, weight_used_elsewhere, sliced, alpha, stacked,
                                     columns_of_ones])  # fmt: skip
def test_around_what_is_not_known_all_channels_stay(forward):
    model = Net(forward, a=nn.Linear(IN, 8), b=nn.Linear(8, OUT)).double()
    zero((model.a.weight, [2]), (model.a.bias, [2]))
    before, y = widths(model), model(features(), None)
    with pytest.warns(UserWarning, match="dead units stay"):
        sparsegnn.compact(model)
    assert widths(model) == before and torch.equal(model(features(), None), y)


def test_tied_parametrized_and_hooked_layers_keep_their_width():
    def net():
        model = Net(chain("a", F.relu, "b", F.relu, "c"), a=nn.Linear(IN, 8), b=nn.Linear(8, 8),
                    c=nn.Linear(8, OUT))  # fmt: skip
        zero((model.a.weight, [2]), (model.a.bias, [2]), (model.b.weight, [4]), (model.b.bias, [4]))
        return model.double()

    tied, pruned, hook, unseen = net(), net(), net(), net()
    tied.unused = nn.Linear(8, 8)
    tied.unused.weight = tied.b.weight
    prune.l1_unstructured(pruned.b, "weight", 0.1)
    hook.b.register_forward_pre_hook(lambda m, args: (args[0].flip(1),))
    unseen.b.reset_parameters()  # its norm of a zero row is NaN
    nn.utils.parametrizations.weight_norm(unseen.b)
    for model in (tied, pruned, hook, unseen):
        y = model(features(), None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sparsegnn.compact(model)
        assert list(model.a.weight.shape) == [8, IN] and list(model.c.weight.shape) == [OUT, 8]
        torch.testing.assert_close(model(features(), None), y)


def test_one_unit_stays_where_all_are_dead():
    model, _, inputs = build("mlp")
    zero((model.a.weight, slice(None)), (model.a.bias, slice(None)))
    y = model(*inputs)
    with pytest.warns(UserWarning, match="the last of a layer"):
        sparsegnn.compact(model, *inputs)
    assert model.a.out_features == 1
    torch.testing.assert_close(model(*inputs), y)


def test_a_module_that_cannot_be_traced_stays_as_it_is():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(8, 8)

        def forward(self, x):
            return self.lin(x) if x.sum() > 0 else self.lin(-x)

    model = Net(chain("a", F.relu, "b", F.relu, "c"), a=nn.Linear(IN, 8), b=Looks(), c=nn.Linear(8, OUT)).double()
    zero((model.a.weight, [2]), (model.a.bias, [2]))
    with pytest.warns(UserWarning, match=r"1 of 'a', as 'b' \(Looks\) may mix channels"):
        sparsegnn.compact(model)

    class Root(Looks):
        pass

    with pytest.raises(ValueError, match="compact: model must have a forward.. that torch.fx can trace, got Root: symb"):
        sparsegnn.compact(Root())


def test_optional_arguments_are_those_of_the_example():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(IN, 8), nn.Linear(8, OUT)

        def forward(self, x, mix=None, double=False):
            h = F.relu(self.a(x))
            h = h if mix is None else h @ mix
            return self.b(h) * (2 if double else 1)

    model = Optional()
    zero((model.a.weight, [2]), (model.a.bias, [2]))
    with pytest.warns(UserWarning, match="dead units stay"):
        sparsegnn.compact(model, torch.randn(4, IN), torch.randn(8, 8), True)
    assert sparsegnn.compact(model, torch.randn(4, IN)).a.out_features == 7
    with pytest.raises(ValueError, match="compact: example_inputs must be what forward.* takes, got too many"):
        sparsegnn.compact(model, 1, 2, 3, 4)


def test_a_difference_undoes_everything(monkeypatch):
    from sparsegnn.width import flow

    model, _, inputs = build("gcn")
    model.extra = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam(model.parameters())
    losses(model, optimizer, inputs, 1)
    monkeypatch.setattr(flow.Flow, "kept", lambda self: torch.arange(len(self.channels)) % 8 != 2)
    before, y = copy.deepcopy((model, optimizer)), model.eval()(*inputs)
    with pytest.raises((RuntimeError, ValueError)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sparsegnn.compact(model, *inputs, optimizer=optimizer)
    assert widths(model) == widths(before[0]) and torch.equal(model(*inputs), y)
    assert model.a.out_channels == 8 and model.b.lin.in_features == 8
    torch.testing.assert_close(losses(model, optimizer, inputs, 3), losses(*before, inputs, 3), rtol=0, atol=0)


def test_copies():
    model, dead, inputs = build("sparse")
    average = torch.optim.swa_utils.AveragedModel(model)
    other = sparsegnn.compact(model, inplace=False)
    assert model.a.out_features == 32 and other.a.out_features == 30
    sparsegnn.compact(model)
    assert average.module.a.out_features == 32 and torch.isfinite(average(*inputs)).all()
    with pytest.raises(RuntimeError):
        average.update_parameters(model)


def test_refused():
    model, _, inputs = build("sparse")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    class Unknown(torch.optim.Optimizer):
        pass

    for error, words, arguments in [
        (TypeError, "compact: model must be a torch.nn.Module, got int", (3,)),
        (ValueError, "compact: optimizer must be None with inplace=False, got SGD", (model, optimizer, False)),
        (TypeError, "compact: optimizer must be a torch.optim.Optimizer, got int", (model, 3)),
        (TypeError, "compact: optimizer must be one whose state is known", (model, Unknown(model.parameters(), {}))),
    ]:
        with pytest.raises(error, match=words):
            keywords = dict(zip(("optimizer", "inplace"), arguments[1:], strict=False))
            sparsegnn.compact(arguments[0], **keywords)
    with pytest.raises(TypeError, match="dead_units: model must be"):
        sparsegnn.dead_units(None)
    controller = RigL(model, optimizer)
    with pytest.raises(ValueError, match="compact: model must have no layer that a controller moves, got those of RigL"):
        sparsegnn.compact(model)
    controller.detach()
    assert sparsegnn.compact(model).a.out_features == 30
