"""What is put on or around the linear layer inside of a graph layer acts as in PyG, and its output is not touched."""

import copy

import pytest
import torch
from nn.twins import assert_close
from torch import nn
from torch.nn.modules import module as hooks

from sparsegnn import densify
from sparsegnn.nn import (
    GATConv,
    GATv2Conv,
    GCNConv,
    GraphConv,
    MaxK,
    SAGEConv,
    SGConv,
    SparseLinear,
    TAGConv,
)

pyg = pytest.importorskip("torch_geometric.nn")
EDGES = torch.randint(20, (2, 80), generator=torch.Generator().manual_seed(0))
ATTR = torch.randn(80, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

LAYERS = {
    "GCN, product first": (GCNConv, (8, 4), "lin", {}),
    "GCN, aggregation first": (GCNConv, (8, 12), "lin", {}),
    "GCN, aggregate kept": (GCNConv, (8, 12), "lin", dict(cached=True)),
    "SAGE, product first": (SAGEConv, (8, 4), "lin_l", {}),
    "SAGE, aggregation first": (SAGEConv, (8, 12), "lin_l", {}),
    "SAGE, targets": (SAGEConv, (8, 12), "lin_r", {}),
    "SGC, product first": (SGConv, (8, 4), "lin", {}),
    "SGC, aggregation first": (SGConv, (8, 12), "lin", dict(K=2)),
    "SGC, aggregate kept": (SGConv, (8, 12), "lin", dict(K=2, cached=True)),
    "TAG, product first": (TAGConv, (8, 4), "lins.0", dict(K=2)),
    "TAG, aggregation first": (TAGConv, (8, 12), "lins.0", dict(K=2)),
    "Graph, product first": (GraphConv, (8, 4), "lin_rel", {}),
    "Graph, aggregation first": (GraphConv, (8, 12), "lin_rel", {}),
    "Graph, targets": (GraphConv, (8, 12), "lin_root", {}),
    "GAT": (GATConv, (8, 4), "lin", {}),
    "GAT, edges": (GATConv, (8, 4), "lin_edge", dict(edge_dim=3)),
    "GATv2": (GATv2Conv, (8, 4), "lin_l", {}),
    "GATv2, edges": (GATv2Conv, (8, 4), "lin_edge", dict(edge_dim=3)),
}


def double(module, inputs, output):
    return output * 2


def double_gradients(module, gradients, *more):
    return tuple(None if g is None else g * 2 for g in gradients)


class Around(nn.Module):
    """As low-rank adapters are, and keeping what it returned."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.kept = inner, []

    def forward(self, x):
        self.kept.append(self.inner(x) * 2)
        self.copies = [y.detach().clone() for y in self.kept]
        return self.kept[-1]


def patched(conv, name):
    inner = conv.get_submodule(name)
    forward = inner.forward
    inner.forward = lambda x: forward(x) * 2


def offloaded(conv, name):
    """As accelerate does: the weight is on the meta device between two calls."""
    inner = conv.get_submodule(name)
    own, forward = dict(inner._parameters), inner.forward

    def loaded(x):
        inner._parameters.update(own)
        y = forward(x)
        inner._parameters.update({n: None if p is None else p.to("meta") for n, p in own.items()})
        return y

    inner.forward = loaded


def subclassed(conv, name):
    inner = conv.get_submodule(name)

    class Doubled(type(inner)):
        def forward(self, x):
            return super().forward(x) * 2

    inner.__class__ = Doubled


def everywhere(register, act):
    """A hook of all modules, which acts on one."""

    def put(conv, name):
        inner = conv.get_submodule(name)
        return register(lambda module, *args: act(module, *args) if module is inner else None)

    return put


WAYS = {
    "forward hook": lambda conv, name: conv.get_submodule(name).register_forward_hook(double),
    "pre-hook": lambda conv, name: conv.get_submodule(name).register_forward_pre_hook(lambda m, x: (x[0] * 2,)),
    "backward hook": lambda conv, name: conv.get_submodule(name).register_full_backward_hook(double_gradients),
    "backward pre-hook": lambda conv, name: conv.get_submodule(name).register_full_backward_pre_hook(double_gradients),
    "hook of all": everywhere(hooks.register_module_forward_hook, double),
    "pre-hook of all": everywhere(hooks.register_module_forward_pre_hook, lambda m, x: (x[0] * 2,)),
    "backward hook of all": everywhere(hooks.register_module_full_backward_hook, double_gradients),
    "backward pre-hook of all": everywhere(hooks.register_module_full_backward_pre_hook, double_gradients),
    "forward": patched,
    "offloaded": offloaded,
    "subclass": subclassed,
    "around": lambda conv, name: conv.set_submodule(name, Around(conv.get_submodule(name))),
}


def run(conv, way, name, options):
    handle = WAYS[way](conv, name)
    leaf = torch.randn(20, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaf.requires_grad_("cached" not in options)
    more = (ATTR,) if "edge_dim" in options else ()
    try:
        for _ in range(3 if "cached" in options else 1):
            y = conv(leaf, EDGES, *more)
        flow = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        gradients = torch.autograd.grad(y, leaf, flow) if leaf.requires_grad else ()
    finally:
        if handle is not None:
            handle.remove()
    return [y.detach(), *gradients]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("layer", LAYERS)
def test_acts_as_in_pyg(layer, sparsity, way):
    kind, sizes, name, options = LAYERS[layer]
    ours = kind(*sizes, sparsity=sparsity, **options).double()
    theirs = getattr(pyg, kind.__name__)(*sizes, **options).double()
    theirs.load_state_dict(densify(copy.deepcopy(ours)).state_dict())
    assert_close(run(ours, way, name, options), run(theirs, way, name, options))
    if way == "around":
        inner = ours.get_submodule(name)
        assert all(torch.equal(y, c) for y, c in zip(inner.kept, inner.copies, strict=True))


@pytest.mark.parametrize("options", [{}, dict(act="relu"), dict(cached=True), dict(cached=True, act="relu")])
@pytest.mark.parametrize("wrap", [Around, lambda inner: nn.Identity()], ids=["around", "identity"])
@pytest.mark.parametrize("out", [4, 8, 12])
def test_what_the_inner_layer_returns_is_not_overwritten(out, wrap, options):
    conv = GCNConv(8, 8 if wrap is not Around else out, **options)
    nn.init.normal_(conv.bias)
    conv.lin = wrap(conv.lin)
    x = torch.randn(20, 8)
    before, first = x.clone(), None
    for _ in range(4):
        y = conv(x, EDGES)
        first = y if first is None else first
        torch.testing.assert_close(y, first)
    assert torch.equal(x, before)
    if wrap is Around:
        assert all(torch.equal(y, c) for y, c in zip(conv.lin.kept, conv.lin.copies, strict=True))


def test_a_hook_may_write_to_the_aggregate_that_is_kept():
    conv, x = GCNConv(8, 12, cached=True), torch.randn(20, 8)
    conv.lin.register_forward_pre_hook(lambda module, inputs: (inputs[0].mul_(2),))
    first, *others = (conv(x, EDGES) for _ in range(4))
    for y in others:
        torch.testing.assert_close(y, first)


def test_hooks_see_compressed_rows():
    conv = GCNConv(8, 4, sparsity=0.5)
    handle, x = conv.lin.register_forward_hook(double), torch.randn(20, 8)
    doubled = conv(MaxK(3, compressed=True)(x), EDGES) - conv.bias
    handle.remove()
    torch.testing.assert_close(doubled, 2 * (conv(MaxK(3)(x), EDGES) - conv.bias))


@pytest.mark.parametrize("part", ["values", "bias", "crow"])
@pytest.mark.parametrize("kind", ["unstructured", "block:16x16", "2:4"])
def test_half_a_layer_on_meta_is_refused(kind, part):
    """It returned uninitialised memory."""
    layer = SparseLinear(32, 32, sparsity=0.5, pattern=kind)
    tensors = layer._parameters if part in layer._parameters else layer._buffers
    tensors[part] = nn.Parameter(torch.empty_like(layer.bias, device="meta")) if part == "bias" else None
    whole = SparseLinear(32, 32, sparsity=0.5, pattern=kind)
    tensors[part] = getattr(whole, part).detach().to("meta") if part != "bias" else tensors[part]
    with pytest.raises(ValueError, match="must be on the device of the other arguments"):
        layer(torch.randn(4, 32)).sum()


def test_a_copy_may_be_on_meta_between_two_calls():
    """accelerate's cpu_offload(offload_buffers=True) of a deepcopy."""
    layer, x = SparseLinear(8, 4, sparsity=0.5), torch.randn(5, 8)
    copied = copy.deepcopy(layer)
    own = dict(copied._parameters), dict(copied._buffers)
    for _ in range(2):
        copied._parameters.update({n: nn.Parameter(p.to("meta")) for n, p in own[0].items()})
        copied._buffers.update({n: None if b is None else b.to("meta") for n, b in own[1].items()})
        copied.eval(), copied.train(), copied.state_dict()
        copied._parameters.update(own[0]), copied._buffers.update(own[1])
        torch.testing.assert_close(copied(x), layer.to_dense()(x))
