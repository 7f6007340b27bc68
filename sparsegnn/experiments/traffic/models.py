"""Spatio-temporal networks: gated convolutions over time around a GCN or a GAT over the sensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsegnn.experiments.models import Maker
from sparsegnn.experiments.models.shapes import Shapes
from sparsegnn.experiments.traffic.config import WINDOW
from sparsegnn.graph import CSRGraph
from sparsegnn.nn import GATConv, GCNConv
from sparsegnn.nn.functional import activation_dropout


def weight_shapes(config) -> Shapes:
    """``{name: (outputs, inputs)}`` of every linear map of the model of a TrafficConfig."""
    h, shapes = config.hidden, {}
    for i in range(config.layers):
        shapes[f"blocks.{i}.before"] = (2 * h, WINDOW * (h if i else 1))
        shapes[f"blocks.{i}.conv.lin"] = (h, h)
        shapes[f"blocks.{i}.after"] = (2 * h, WINDOW * h)
    return shapes | {"out.0": (h, config.remaining * h), "out.1": (len(config.horizons), h)}


def build(config) -> nn.Module:
    """The model of a TrafficConfig; random weights, drawn from torch's generator."""
    make = Maker(config, weight_shapes(config))
    blocks = []
    for i in range(config.layers):
        where = make.where(f"blocks.{i}.conv.lin")
        if config.model == "stgat":
            conv = GATConv(config.hidden, config.hidden // config.heads, config.heads, **where)
        else:
            conv = GCNConv(config.hidden, config.hidden, **where)
        ends = (make.linear(f"blocks.{i}.{name}") for name in ("before", "after"))
        blocks.append(Block(conv, *ends, config.hidden, config.dropout, 1 if i else config.stride))
    return make.complete(Forecaster(blocks, make.linear("out.0"), make.linear("out.1")))


class Copies:
    """A graph side by side with itself, for features of many batches and times at once: the weights are shared.

    Args:
        graph: of the sensors, square.
    """

    def __init__(self, graph: CSRGraph):
        self.graph = graph
        self._made: dict[int, CSRGraph] = {}

    def of(self, count: int) -> CSRGraph:
        """``count`` copies: node ``i`` of copy ``c`` is number ``c * N + i``. Made once for each count."""
        if count not in self._made:
            g, n = self.graph, self.graph.num_rows
            step = torch.arange(count, device=g.device)[:, None]
            crow = torch.cat([g.crow.new_zeros(1).long(), (g.crow[1:].long() + g.num_edges * step).flatten()])
            val = None if g.val is None else g.val.repeat(count)
            self._made[count] = CSRGraph.from_csr(crow, (g.col.long() + n * step).flatten(), val, count * n)
        return self._made[count]


def over_time(x: Tensor, linear: nn.Module, stride: int = 1) -> Tensor:
    """A gated temporal convolution: ``a * sigmoid(b)``, ``[a, b] = linear`` of :data:`WINDOW` steps side by side.

    ``x`` [B, T, N, F] becomes [B, (T - WINDOW) // stride + 1, N, H].
    """
    last = x.size(1) - WINDOW + 1
    return F.glu(linear(torch.cat([x[:, i : i + last : stride] for i in range(WINDOW)], -1)), -1)


class Block(nn.Module):
    """``norm(after(relu(conv(y) + y)))``, ``y = before(x)``: time, sensors, time (Yu et al., STGCN, IJCAI 2018).

    Args:
        conv: graph layer, called with features of all batches, times and sensors, and a graph of as many nodes.
        before, after: linear maps of the temporal convolutions.
        stride: of the first of them.
    """

    def __init__(self, conv: nn.Module, before: nn.Module, after: nn.Module, hidden: int, dropout: float,
                 stride: int = 1):  # fmt: skip
        super().__init__()
        self.before, self.conv, self.after, self.norm = before, conv, after, nn.LayerNorm(hidden)
        self.dropout, self.stride = dropout, stride

    def forward(self, x: Tensor, copies: Copies) -> Tensor:
        x = over_time(x, self.before, self.stride)
        rows = x.flatten(0, 2)
        y = rows + self.conv(rows, copies.of(x.size(0) * x.size(1)))
        y = activation_dropout(y, None, F.relu, self.dropout, self.training)
        return self.norm(over_time(y.view(x.shape), self.after))


class Forecaster(nn.Module):
    """Blocks, then for each sensor an MLP on what they leave, added to what was measured last.

    Args:
        blocks: each shortens the time.
        first, last: linear maps of the MLP, from all remaining times to the horizons.
    """

    def __init__(self, blocks: list[nn.Module], first: nn.Module, last: nn.Module):
        super().__init__()
        self.blocks, self.out = nn.ModuleList(blocks), nn.ModuleList([first, last])

    def forward(self, x: Tensor, copies: Copies) -> Tensor:
        """``x`` [B, T, N] becomes the forecast [B, H, N]."""
        y = x.unsqueeze(-1)
        for block in self.blocks:
            y = block(y, copies)
        y = self.out[0](y.transpose(1, 2).flatten(2))
        y = self.out[1](activation_dropout(y, None, F.relu, 0.0))
        return x[:, -1:] + y.transpose(1, 2)
