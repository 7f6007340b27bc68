"""Models with dead units: each builder says which of which layers :func:`sparsegnn.compact` removes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparsegnn
from sparsegnn import CSRGraph
from sparsegnn.nn import (
    APPNP,
    GATConv,
    GATv2Conv,
    GCN2Conv,
    GCNConv,
    GINConv,
    GraphConv,
    SAGEConv,
    SGConv,
    SparseLinear,
    TAGConv,
)

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
            x = part(x, graph) if needs(part) else part(x)
        return x

    return run


def needs(part):
    return type(part).__name__.endswith(("Conv", "APPNP")) or type(part).__module__.startswith("torch_geometric")


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
    m = Net(chain("a", torch.sigmoid, "b", F.relu, "c"), a=nn.Linear(IN, 8), b=SparseLinear(8, 6, sparsity=0),
            c=nn.Linear(6, OUT))  # fmt: skip
    zero((m.a.weight, [1, 5]), (m.a.bias, [1]))
    weight = m.b.values.data.view(6, 8)
    weight[2], weight[4] = 0, 0
    weight[4, 1] = 3.0  # of a constant alone
    m.b.bias.data[2] = -0.1
    return m, {"a": [1, 5], "b": [2, 4]}


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
    m = Net(chain("a", F.relu, "b", F.relu, "c"), a=GCNConv(IN, 8), b=GCNConv(8, 6), c=nn.Linear(6, OUT))
    zero((m.a.lin.weight, [1, 4]), (m.b.lin.weight, [2, 3]))
    m.a.bias.data[4] = 1.0
    m.b.lin.weight.data[2, 4] = 1.0  # reads a constant alone, but nodes have other sums of it
    return m, {"a": [1], "b": [3]}


@case
def sage():
    m = Net(chain("a", F.relu, "b"), a=SAGEConv(IN, 8), b=SAGEConv(8, OUT, "max", project=True))
    zero((m.a.lin_l.weight, [1, 3]), (m.a.lin_l.bias, [1, 3]), (m.a.lin_r.weight, [1]))
    return m, {"a": [1]}


@case
def sgc_and_appnp():
    m = Net(chain("a", F.relu, "p", "b"), a=SGConv(IN, 8, K=2), p=APPNP(2, 0.1), b=SGConv(8, OUT, K=0))
    zero((m.a.lin.weight, [1, 3, 4]), (m.a.lin.bias, [1, 3]), (m.b.lin.weight, (slice(None), [6])))
    return m, {"a": [1, 3, 6]}


@case
def tag():
    m = Net(chain("a", F.relu, "b"), a=TAGConv(IN, 8, K=2), b=TAGConv(8, OUT, K=1, sparsity=0.5))
    zero(*((linear.weight, [1, 4]) for linear in m.a.lins), (m.a.lins[1].weight, [5]), (m.a.bias, [1, 4]))
    return m, {"a": [1, 4]}


@case
def graph_conv():
    m = Net(chain("a", F.relu, "b", F.relu, "c"), a=GraphConv(IN, 8), b=GraphConv(8, 7), c=SGConv(7, OUT, cached=True))
    zero((m.a.lin_rel.weight, [1, 3]), (m.a.lin_rel.bias, [1, 3]), (m.a.lin_root.weight, [1]))
    zero((m.b.lin_rel.weight, [2]), (m.b.lin_rel.bias, [2]), (m.b.lin_root.weight, [2]))
    return m, {"a": [1], "b": [2]}


@case
def channels_stay_around_gin_and_gcn2():
    def run(self, x, graph):
        h = F.relu(self.gin(F.relu(self.a(x, graph)), graph))
        return self.c(F.relu(self.b(self.gcn2(h, h, graph), graph)), graph)

    m = Net(run, a=GCNConv(IN, 8), gin=GINConv(nn.Linear(8, 8)), gcn2=GCN2Conv(8, 0.1), b=GCNConv(8, 7),
            c=GCNConv(7, OUT))  # fmt: skip
    zero((m.a.lin.weight, [1]), (m.b.lin.weight, [2]))
    return m, {"b": [2]}


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
def gat_of_which_one_head_is_left():
    m = Net(chain("a", F.relu, "b"), a=GATConv(IN, 4, heads=2), b=GCNConv(8, OUT))
    zero((m.a.lin.weight, [0, 1, 2, 3, 6]))
    return m, {"a": [0, 1, 2, 3]}  # and then 6


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
        return self.b(F.relu(self.a(x, graph, self.e)) + F.relu(self.c(x, graph, self.e)), graph)

    m = Net(run, a=GATConv(IN, 4, edge_dim=2), b=GCNConv(4, OUT), c=GATConv(IN, 2, heads=2, edge_dim=2))
    m.register_buffer("e", torch.randn(graph().num_edges, 2, dtype=torch.float64))
    zero((m.a.lin.weight, [0, 1, 2]), (m.a.lin_edge.weight, [0, 1]), (m.c.lin.weight, [0, 1, 2]))
    return m, {"a": [0, 1], "c": [0, 1]}


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
