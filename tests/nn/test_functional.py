"""activation_dropout, and the epilogue of layers whose product leaves it to a pass of its own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import sparsegnn
from sparsegnn.nn import GCNConv
from sparsegnn.nn.functional import activation_dropout

PLAIN = {"none": lambda x: x, "relu": torch.relu, "elu": F.elu, "gelu": F.gelu}
FORMS = [("none", None), ("none", "none"), ("relu", "relu"), ("relu", F.relu), ("relu", torch.relu), ("elu", "elu"),
         ("elu", F.elu), ("relu", nn.ReLU()), ("elu", nn.ELU()), ("gelu", F.gelu)]  # fmt: skip


class Calls(TorchDispatchMode):
    """Names of the operators that run, and of those of torch that write a matrix of nodes."""

    def __init__(self):
        super().__init__()
        self.names, self.matrices = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        space, _, name = func._schema.name.partition("::")
        self.names.add(name)
        if space == "aten" and isinstance(out, torch.Tensor) and out.dim() == 2 and len(out) == 50 and out.size(1) > 1:
            self.matrices.add(name.rstrip("_"))
        return out


@pytest.mark.parametrize("shape", [(40, 9), (2, 5, 8), (7,)], ids=str)
@pytest.mark.parametrize("p, training", [(0.0, True), (0.4, False), (0.4, True), (1.0, True)])
@pytest.mark.parametrize("name, act", FORMS)
def test_values_and_gradients(name, act, p, training, shape):
    g = torch.Generator().manual_seed(1)
    x, dy = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    bias = torch.randn(shape[-1], generator=g, dtype=torch.float64)
    for b in (None, bias):
        leaves = [t.clone().requires_grad_() for t in (x, bias)]
        y = activation_dropout(leaves[0], None if b is None else leaves[1], act, p, training)
        plain = [t.clone().requires_grad_() for t in (x, bias)]
        want = PLAIN[name](plain[0] if b is None else plain[0] + plain[1])
        if training and p > 0:
            kept = (y != 0) / ((1 - p) or 1)
            assert kept.any() == (p < 1) and not (p < 1 and y.numel() > 9 and name != "relu" and kept.all())
            want = want * kept
        torch.testing.assert_close(y, want)
        found = [torch.autograd.grad(t, v, dy, allow_unused=True) for t, v in ((y, leaves), (want, plain))]
        torch.testing.assert_close(*found)


def test_seeds_come_from_torch():
    x = torch.ones(300, 40)
    torch.manual_seed(3)
    first, second = activation_dropout(x, p=0.3), activation_dropout(x, act="relu", p=0.3)
    torch.manual_seed(3)
    assert torch.equal(activation_dropout(x, act="elu", p=0.3), first) and not torch.equal(first, second)
    assert abs((first != 0).float().mean() - 0.7) < 0.02


def test_a_module_is_called():
    """With its hooks; so is what a controller put in its place."""
    seen, act = [], nn.ReLU()
    act.register_forward_hook(lambda module, args, y: seen.append(y))
    activation_dropout(torch.randn(3, 4), act=act)
    assert len(seen) == 1
    rows = activation_dropout(torch.randn(3, 8), act=sparsegnn.nn.MaxK(4, compressed=True), p=0.5)
    assert isinstance(rows, sparsegnn.nn.CompressedRows)


def test_autocast_and_compile():
    x, bias = torch.randn(30, 8, requires_grad=True), torch.randn(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert activation_dropout(x, bias, "relu").dtype == torch.float32
        assert activation_dropout(x.bfloat16(), bias, "relu").dtype == torch.bfloat16
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, b: activation_dropout(x, b, F.elu, 0.5), fullgraph=True, backend="aot_eager")
    y = compiled(x, bias)
    kept = (y != 0) * 2.0
    torch.testing.assert_close(y, F.elu(x + bias) * kept)
    each = torch.func.vmap(lambda v: activation_dropout(v, None, "elu", 0.5), randomness="different")(
        x.expand(3, 30, 8)
    )
    assert not torch.equal(each[0] != 0, each[1] != 0)
    torch.testing.assert_close(each, F.elu(x) * 2 * (each != 0))


@pytest.mark.parametrize(
    "options, error, message",
    [
        (dict(act="tanh"), ValueError, "activation_dropout: act must be 'none', 'relu' or 'elu', got 'tanh'"),
        (dict(act=3), TypeError, "activation_dropout: act must be a str, a function or None, got int"),
        (dict(p=1.5), ValueError, r"activation_dropout: p must be in \[0, 1\], got 1.5"),
        (dict(p=True), TypeError, "activation_dropout: p must be a float, got bool"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        activation_dropout(torch.randn(3, 4), **options)


# --- the epilogue of layers


def layer(inputs: int, outputs: int, sparse_x: bool, **options):
    torch.manual_seed(0)
    graph = sparsegnn.CSRGraph.from_edge_index(torch.randint(50, (2, 300)), 50)
    x = torch.randn(50, inputs) * (torch.rand(50, inputs) < 0.2)
    conv = GCNConv(inputs, outputs, **options)
    nn.init.normal_(conv.bias)
    return graph, x.to_sparse_csr() if sparse_x else x, conv


LAYERS = {
    "aggregates last": dict(inputs=60, outputs=16),
    "aggregates first": dict(inputs=8, outputs=30),
    "sparse features": dict(inputs=60, outputs=16, sparse_x=True),
    "sparse weight": dict(inputs=60, outputs=16, sparsity=0.8),
    "an extremum": dict(inputs=60, outputs=16, aggr="max"),
    "a hook": dict(inputs=8, outputs=30),
}


@pytest.mark.parametrize("act, dropout", [(None, 0.0), ("relu", 0.0), (None, 0.5), ("relu", 0.5)])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_ends_in_one_pass(name, act, dropout):
    """To the numbers of the same layer without it, and its gradients, with no elementwise operator of torch."""
    graph, x, conv = layer(**{"sparse_x": False} | LAYERS[name], act=act, dropout=dropout)
    if name == "a hook":
        conv.lin.register_forward_hook(lambda *_: None)
    dy = torch.arange(50.0)[:, None].expand(50, conv.out_channels)
    conv(x, graph).backward(dy)  # makes the norm and the transpose of the graph
    conv.zero_grad()
    with Calls() as calls:
        y = conv(x, graph)
        y.backward(dy)
    if act or dropout:
        assert calls.matrices <= {"mm", "t", "detach", "clone", "to_sparse_csr", "expand"}
        assert ("act_dropout" in calls.names) or name == "sparse weight"
    grads = [p.grad.clone() for p in conv.parameters()]
    conv.zero_grad()
    conv.act, conv.dropout = None, 0.0
    plain = conv(x, graph)
    want = plain.relu() if act else plain
    want = want * (y.detach() != 0) / (1 - dropout) if dropout else want
    torch.testing.assert_close(y, want)
    want.backward(dy)
    torch.testing.assert_close(grads, [p.grad for p in conv.parameters()], rtol=1e-4, atol=1e-4)
    assert dropout == 0 or 0.2 < (y != 0).float().mean() / (0.5 if act else 1.0) < 0.9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_of_a_layer_under_autocast(dtype):
    graph, x, conv = layer(60, 16, False, act="relu", dropout=0.5)
    with torch.autocast("cpu", dtype=dtype):
        y = conv(x, graph)
    assert y.dtype == dtype
    y.sum().backward()
    assert conv.bias.grad.dtype == torch.float32
