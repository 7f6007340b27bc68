"""What each kind of layer does with channels: which it makes and reads, which tensors have a place for each of them."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsegnn.nn import GATConv, GATv2Conv, GCNConv, GraphConv, SAGEConv, SGConv, SparseLinear, TAGConv
from sparsegnn.nn.aggregate import REDUCTIONS
from sparsegnn.nn.inner import Linear as InnerLinear
from sparsegnn.width.channels import Channels, unknown, zero_or_unknown
from sparsegnn.width.product import Product


@dataclass
class Slice:
    """A tensor of a module whose entries along ``dim`` are those of ``ids``.

    ``made``: they make the channel, which is zero where all such entries are.
    """

    owner: nn.Module
    name: str
    dim: int
    ids: Tensor
    made: bool = True


class Layer:
    """One module that makes and reads channels. ``ports`` are those of its inputs, ``out`` those of its output."""

    def __init__(self, name: str, module: nn.Module, channels: Channels):
        self.name, self.module, self.channels = name, module, channels
        self.products: list[Product] = []
        self.slices: list[Slice] = []
        self.sparse: list[Product] = []  # of SparseLinear, whose positions are rewritten
        self.sizes: list[tuple[nn.Module, str, Tensor | tuple[Tensor, ...]]] = []  # attributes that are a width
        self.needed: list[tuple[Tensor, Tensor]] = []  # channels, and which of them the others are made with
        self.build()

    def build(self) -> None:
        raise NotImplementedError

    def constants(self, arrived: list[Tensor], training: bool) -> Tensor:
        """Constants of the output, of those that arrive at the ports."""
        raise NotImplementedError

    def zeroed(self, arrived: list[Tensor], training: bool) -> Tensor | None:
        """The same if all that makes its channels were zero; None where they would not be."""
        self.arrive(arrived)
        return torch.zeros(self.out.numel(), dtype=torch.float64)

    def arrive(self, arrived: list[Tensor]) -> None:
        """Note what arrives at each product."""

    def dead(self) -> Tensor:
        """bool [width]: outputs that have no weights coming in, so that they are constant."""
        dead = torch.ones(self.out.numel(), dtype=torch.bool)
        place = {channel: i for i, channel in enumerate(self.out.tolist())}
        for product in self.products:
            full = ~product.constants(unknown(product.ins.numel())).isnan()
            for channel, empty in zip(product.out.tolist(), full.tolist(), strict=True):
                if channel in place and not empty:
                    dead[place[channel]] = False
        return dead if self.products else dead & False

    def linear(self, linear: nn.Module, out: Tensor, ins: Tensor, folds: bool = False) -> Product:
        product = Product(linear, out, ins, folds and linear.bias is not None)
        self.products.append(product)
        if isinstance(linear, SparseLinear):
            self.sparse.append(product)
            for ids, size in ((out, linear.block[0]), (ins, linear.block[1])):
                if size > 1:  # blocks go as a whole
                    for block in ids.view(-1, size):
                        self.channels.join_all(block)
            if linear.structure == "2:4":
                self.channels.pin(ins, f"pattern '2:4' of {self.name!r} has two of every four inputs")
        else:
            self.slices += [Slice(linear, "weight", 0, out), Slice(linear, "weight", 1, ins, made=False)]
        self.vector(linear, "bias", out)
        for name, ids in (("in_features", ins), ("out_features", out), ("in_channels", ins), ("out_channels", out)):
            if hasattr(linear, name):
                self.sizes.append((linear, name, ids))
        return product

    def vector(self, owner: nn.Module, name: str, ids: Tensor, made: bool = True) -> None:
        if getattr(owner, name, None) is not None:
            self.slices.append(Slice(owner, name, 0, ids, made))

    def input(self, linear: nn.Module) -> Tensor:
        width = linear.in_features if hasattr(linear, "in_features") else linear.in_channels
        return self.channels.new(width)


def bias_of(module: nn.Module, width: int) -> Tensor:
    bias = getattr(module, "bias", None)
    return torch.zeros(width, dtype=torch.float64) if bias is None else bias.detach().double().cpu()


class LinearLayer(Layer):
    def build(self):
        self.ports, self.out = [self.input(self.module)], self.channels.new(self.module.out_features)
        self.product = self.linear(self.module, self.out, self.ports[0], folds=True)

    def arrive(self, arrived):
        self.product.arrivals.append(arrived[0])

    def constants(self, arrived, training):
        self.arrive(arrived)
        return self.product.constants(arrived[0]) + bias_of(self.module, self.out.numel())


class GCNLayer(Layer):
    """Ours or PyG's: A x W^T + b. Constants other than zero are none after A, which mixes rows."""

    def build(self):
        conv = self.module
        self.ports, self.out = [self.input(conv.lin)], self.channels.new(conv.out_channels)
        self.product = self.linear(conv.lin, self.out, self.ports[0])
        self.vector(conv, "bias", self.out)
        self.sizes += [(conv, "in_channels", self.ports[0]), (conv, "out_channels", self.out)]

    def arrive(self, arrived):
        self.product.arrivals.append(arrived[0])

    def constants(self, arrived, training):
        self.arrive(arrived)
        y = self.product.constants(arrived[0]) + bias_of(self.module.lin, self.out.numel())
        y = zero_or_unknown(y) + bias_of(self.module, y.numel())
        if getattr(self.module, "act", None) == "relu":
            y = y.relu()
        dropped = training and isinstance(self.module, GCNConv) and self.module.dropout > 0
        return zero_or_unknown(y) if dropped else y


class SGLayer(GCNLayer):
    """A^K x W^T + b, with the bias in the product."""

    def constants(self, arrived, training):
        self.arrive(arrived)
        return self.product.constants(zero_or_unknown(arrived[0])) + bias_of(self.module.lin, self.out.numel())


class TAGLayer(Layer):
    """x W_0^T + A x W_1^T + ... + b."""

    def build(self):
        conv = self.module
        self.ports, self.out = [self.input(conv.lins[0])], self.channels.new(conv.out_channels)
        for linear in conv.lins:
            self.linear(linear, self.out, self.ports[0])
        self.vector(conv, "bias", self.out)
        self.sizes += [(conv, "in_channels", self.ports[0]), (conv, "out_channels", self.out)]

    def arrive(self, arrived):
        for product in self.products:
            product.arrivals.append(arrived[0])

    def constants(self, arrived, training):
        self.arrive(arrived)
        first, *others = self.products
        mixed = zero_or_unknown(arrived[0])
        y = sum((product.constants(mixed) for product in others), first.constants(arrived[0]))
        return y + bias_of(self.module, self.out.numel())


class GraphLayer(Layer):
    """(A x) W_1^T + x W_2^T + b."""

    def build(self):
        conv, new = self.module, self.channels.new
        pair = isinstance(conv.in_channels, (tuple, list))
        widths = tuple(conv.in_channels) if pair else (conv.in_channels,)
        self.ports, self.out = [new(width) for width in widths], new(conv.out_channels)
        self.left = self.linear(conv.lin_rel, self.out, self.ports[0])
        self.right = self.linear(conv.lin_root, self.out, self.ports[-1])
        self.sizes += [(conv, "in_channels", tuple(self.ports) if pair else self.ports[0]),
                       (conv, "out_channels", self.out),
                       (conv, "sources", self.ports[0]), (conv, "targets", self.ports[-1])]  # fmt: skip

    def arrive(self, arrived):
        self.left.arrivals.append(arrived[0])
        self.right.arrivals.append(arrived[-1])

    def constants(self, arrived, training):
        self.arrive(arrived)
        y = self.left.constants(zero_or_unknown(arrived[0])) + bias_of(self.module.lin_rel, self.out.numel())
        return y + self.right.constants(arrived[-1])


class SAGELayer(Layer):
    def build(self):
        conv, new = self.module, self.channels.new
        pair = isinstance(conv.in_channels, (tuple, list))
        widths = tuple(conv.in_channels) if pair else (conv.in_channels,)
        self.ports, self.out = [new(width) for width in widths], new(conv.out_channels)
        inner, self.project = self.ports[0], None
        if conv.project:
            inner = new(conv.lin.out_features if hasattr(conv.lin, "out_features") else conv.lin.out_channels)
            self.project = self.linear(conv.lin, inner, self.ports[0], folds=True)
        self.left = self.linear(conv.lin_l, self.out, inner)
        self.right = self.linear(conv.lin_r, self.out, self.ports[-1]) if conv.root_weight else None
        self.sizes += [(conv, "in_channels", tuple(self.ports) if pair else self.ports[0]),
                       (conv, "out_channels", self.out)]  # fmt: skip
        if hasattr(conv, "sources"):
            self.sizes += [(conv, "sources", self.ports[0]), (conv, "targets", self.ports[-1])]

    def inner(self, source: Tensor) -> Tensor:
        if self.project is None:
            return source
        return (self.project.constants(source) + bias_of(self.module.lin, self.project.out.numel())).relu()

    def arrive(self, arrived):
        if self.project is not None:
            self.project.arrivals.append(arrived[0])
        self.left.arrivals.append(self.inner(arrived[0]))
        if self.right is not None:
            self.right.arrivals.append(arrived[-1])

    def constants(self, arrived, training):
        self.arrive(arrived)
        y = self.left.constants(zero_or_unknown(self.inner(arrived[0]))) + bias_of(self.module.lin_l, self.out.numel())
        y = y if self.right is None else y + self.right.constants(arrived[-1])
        if self.module.normalize:
            self.needed.append((self.out, y != 0))  # the length of a row is that of all its channels
            y = zero_or_unknown(y)
        return y

    def zeroed(self, arrived, training):
        y = super().zeroed(arrived, training)
        if self.project is not None:
            self.left.arrivals[-1] = torch.zeros_like(self.left.arrivals[-1])
        return y


class AttentionLayer(Layer):
    """Heads that are concatenated go as a whole, as scores are made of all channels of a head."""

    sources: tuple[str, ...]  # names of the transforms of sources, and of targets
    targets: tuple[str, ...]
    scores: tuple[str, ...]  # names of the parameters [1, heads, channels]

    def build(self):
        conv, new = self.module, self.channels.new
        pair = isinstance(conv.in_channels, (tuple, list))
        self.ports = [new(width) for width in (tuple(conv.in_channels) if pair else (conv.in_channels,))]
        self.out = new(conv.out_channels * (conv.heads if conv.concat else 1))
        wide = self.out if conv.concat else self.out.repeat(conv.heads)
        self.whole = conv.concat and conv.heads > 1
        linears = {}
        for names, port in ((self.sources, self.ports[0]), (self.targets, self.ports[-1])):
            for name in names:
                linear = getattr(conv, name)
                if id(linear) in linears:
                    self.channels.join(linears[id(linear)].ins, port)  # one transform for both
                elif linear is not None:
                    linears[id(linear)] = self.linear(linear, wide, port)
        found = [[linears.get(id(getattr(conv, name))) for name in names] for names in (self.sources, self.targets)]
        self.source, self.target = (next(p for p in products if p is not None) for products in found)
        self.edge = None
        if conv.lin_edge is not None:
            self.edge = self.linear(conv.lin_edge, wide, new(conv.edge_dim))
            self.channels.pin(self.edge.ins, "features of edges are an input of the model")
        self.res = None if conv.res is None else self.linear(conv.res, self.out, self.ports[-1])
        self.vector(conv, "bias", self.out)
        heads = self.out.view(conv.heads, -1) if self.whole else self.out.view(1, -1)
        if self.whole:
            for head in heads:
                self.channels.join_all(head)
        for name in self.scores:
            if getattr(conv, name, None) is not None:
                dim, ids = (1, heads[:, 0]) if self.whole else (2, self.out)
                self.slices.append(Slice(conv, name, dim, ids, made=False))
        self.sizes.append((conv, "in_channels", tuple(self.ports) if pair else self.ports[0]))
        self.sizes.append((conv, "heads", heads[:, 0]) if self.whole else (conv, "out_channels", self.out))

    def arrive(self, arrived):
        self.source.arrivals.append(arrived[0])
        for product in (self.target, self.res):
            if product is not None:
                product.arrivals.append(arrived[-1])

    def made(self, product: Product | None, constant: Tensor | None = None) -> Tensor:
        """bool [heads, channels]: which rows of a transform are always zero."""
        if product is None:
            return torch.ones(self.module.heads, self.module.out_channels, dtype=torch.bool)
        constant = unknown(product.ins.numel()) if constant is None else zero_or_unknown(constant)
        y = product.constants(constant) + bias_of(product.linear, product.out.numel())
        return (y == 0).view(self.module.heads, -1)

    def constants(self, arrived, training):
        self.arrive(arrived)
        source, target = self.made(self.source, arrived[0]), self.made(self.target, arrived[-1])
        zero = source.flatten() if self.module.concat else source.all(0)
        y = torch.zeros(self.out.numel(), dtype=torch.float64).masked_fill(~zero, float("nan"))
        if self.res is not None:
            y = y + self.res.constants(arrived[-1])
        if not self.whole and self.module.out_channels > 1:
            self.needed.append((self.out, self.scored(source, target, self.made(self.edge)).any(0)))
        return y + bias_of(self.module, y.numel())

    def scored(self, source: Tensor, target: Tensor, edge: Tensor) -> Tensor:
        """bool [heads, channels]: which take part in a score."""
        raise NotImplementedError

    def nonzero(self, name: str) -> Tensor:
        found = getattr(self.module, name)
        return torch.tensor(False) if found is None else (found.detach().cpu()[0] != 0)


class GATLayer(AttentionLayer):
    sources, targets, scores = ("lin", "lin_src"), ("lin", "lin_dst"), ("att_src", "att_dst", "att_edge")

    def scored(self, source, target, edge):
        y = (~source & self.nonzero("att_src")) | (~target & self.nonzero("att_dst"))
        return y | (~edge & self.nonzero("att_edge"))


class GATv2Layer(AttentionLayer):
    sources, targets, scores = ("lin_l",), ("lin_r",), ("att",)

    def scored(self, source, target, edge):
        return self.nonzero("att") & ~(source & target & edge)


class BatchNormLayer(Layer):
    def build(self):
        self.out = self.channels.new(self.module.num_features)
        self.ports = [self.out]
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.vector(self.module, name, self.out, made=name in ("weight", "bias"))
        self.sizes.append((self.module, "num_features", self.out))

    def constants(self, arrived, training):
        norm, width, varies = self.module, self.out.numel(), arrived[0].isnan()
        weight = torch.ones(width, dtype=torch.float64) if norm.weight is None else norm.weight.detach().double().cpu()
        if (training and norm.training) or norm.running_mean is None:
            scaled = torch.zeros(width, dtype=torch.float64)  # a constant is its own mean
        else:
            mean, var = norm.running_mean.double().cpu(), norm.running_var.double().cpu()
            scaled = (arrived[0] - mean) / (var + norm.eps).sqrt()
        scaled = scaled.masked_fill(varies, float("nan")) * weight
        return scaled.masked_fill(weight == 0, 0.0) + bias_of(norm, width)

    def zeroed(self, arrived, training):
        return None if self.module.weight is None else super().zeroed(arrived, training)


class EmbeddingLayer(Layer):
    def build(self):
        self.ports, self.out = [], self.channels.new(self.module.embedding_dim)
        self.slices.append(Slice(self.module, "weight", 1, self.out))
        self.sizes.append((self.module, "embedding_dim", self.out))

    def constants(self, arrived, training):
        zero = (self.module.weight.detach().cpu() == 0).all(0)
        return torch.zeros(self.out.numel(), dtype=torch.float64).masked_fill(~zero, float("nan"))


KINDS: dict[type[nn.Module], type[Layer]] = {
    nn.Linear: LinearLayer,
    InnerLinear: LinearLayer,
    SparseLinear: LinearLayer,
    GCNConv: GCNLayer,
    SAGEConv: SAGELayer,
    SGConv: SGLayer,
    TAGConv: TAGLayer,
    GraphConv: GraphLayer,
    GATConv: GATLayer,
    GATv2Conv: GATv2Layer,
    nn.BatchNorm1d: BatchNormLayer,
    nn.Embedding: EmbeddingLayer,
}


def kind_of(module: nn.Module) -> type[Layer] | None:
    """How its channels are known; None where they are not, as of a module that hooks or parametrizations change."""
    kind = KINDS.get(type(module))
    if not isinstance(getattr(module, "aggr", ""), str):  # several reductions, side by side
        return None
    if kind is None and "torch_geometric.nn" in sys.modules:
        pyg = sys.modules["torch_geometric.nn"]
        known = {pyg.GCNConv: GCNLayer, pyg.SAGEConv: SAGELayer}.get(type(module))
        kind = known if known is not None and str(module.aggr) in REDUCTIONS else None
    if kind is None or any(m._forward_hooks or m._forward_pre_hooks for m in module.modules()):
        return None
    children = [m for child in module.children() for m in (child if isinstance(child, nn.ModuleList) else [child])]
    if any(kind_of(m) is not LinearLayer and not _pyg_linear(m) for m in children):
        return None
    if kind is EmbeddingLayer and module.max_norm is not None:
        return None
    return kind


def _pyg_linear(module: nn.Module) -> bool:
    """PyG's Linear, or the aggregation that its layers hold, which has no parameters."""
    if "torch_geometric.nn" not in sys.modules:
        return False
    pyg = sys.modules["torch_geometric.nn"]
    return type(module) is pyg.Linear or (isinstance(module, pyg.Aggregation) and not list(module.parameters()))
