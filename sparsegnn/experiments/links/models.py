"""The networks of link prediction: an MLP on given embeddings, and a GCN with an MLP on pairs of its rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsegnn.experiments.models import Maker
from sparsegnn.experiments.models.shapes import Shapes
from sparsegnn.experiments.models.stack import GNN, Perceptron
from sparsegnn.nn import GCNConv
from sparsegnn.nn.functional import activation_dropout


def weight_shapes(config) -> Shapes:
    """``{name: (outputs, inputs)}`` of every linear map of the model of a LinkConfig."""
    hidden, features = config.hidden, config.features
    if config.model == "walk":
        widths = [2 * features, *[hidden] * (config.layers - 1), 1]
        names = ["inputs.0", *(f"layers.{i}" for i in range(config.layers - 1))]
        return dict(zip(names, zip(widths[1:], widths, strict=False), strict=True))
    convs = {f"encoder.convs.{i}.lin": (hidden, hidden if i else features) for i in range(config.layers)}
    return convs | {"ends": (2 * hidden, hidden), "out": (1, hidden)}


def build(config, num_nodes: int) -> nn.Module:
    """The model of a LinkConfig; random weights, drawn from torch's generator."""
    make = Maker(config, weight_shapes(config))
    if config.model == "walk":
        first, *rest = (make.linear(name) for name in make.shapes)
        return make.complete(Perceptron([first], rest, config.dropout, 0.0))
    shapes = [(name, shape) for name, shape in make.shapes.items() if name.startswith("encoder")]
    follows = {"act": "relu", "dropout": config.dropout} if make.fuses else {}
    convs = []
    for i, (name, (outputs, inputs)) in enumerate(shapes):
        last = i + 1 == config.layers
        convs.append(GCNConv(inputs, outputs, **({} if last else follows), **make.where(name)))
    encoder = GNN(convs, None if make.fuses else F.relu, config.dropout, 0.0)
    ends, out = make.linear("ends"), make.linear("out")
    return make.complete(PairScorer(num_nodes, config.features, encoder, config.dropout, ends, out))


class PairScorer(nn.Module):
    """The logit that a source has events with a target: ``out(relu(W [z_source; z_target] + b))``, ``z = relu(GCN)``.

    The product by W is made once a node, not once a pair: ``ends`` has the halves of W for sources and for targets.

    Args:
        num_nodes, features: of the embedding that is learned for each node.
        encoder: called with features and graph; ReLU and dropout come behind it.
        ends: linear map to twice the width of the hidden layer.
        out: linear map from this width to 1.
    """

    def __init__(self, num_nodes: int, features: int, encoder: nn.Module, dropout: float, ends: nn.Module,
                 out: nn.Module):  # fmt: skip
        super().__init__()
        self.nodes = nn.Parameter(torch.randn(num_nodes, features) / features**0.5)
        self.encoder, self.dropout, self.ends, self.out = encoder, dropout, ends, out

    def forward(self, graph, source: Tensor, target: Tensor) -> Tensor:
        """Logits [P] of pairs ``source``, ``target`` int64 [P]; ``graph`` is what the encoder aggregates over."""
        z = activation_dropout(self.encoder(self.nodes, graph), None, F.relu, self.dropout, self.training)
        first, second = self.ends(z).chunk(2, dim=1)
        hidden = first.index_select(0, source) + second.index_select(0, target)
        return self.out(activation_dropout(hidden, None, F.relu, 0.0))[:, 0]
