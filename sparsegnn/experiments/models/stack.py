"""Networks of graph layers with what is between them: activation or MaxK, dropout, LayerNorm, residuals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from sparsegnn.experiments.models.features import FeatureDropout
from sparsegnn.nn.aggregate import matrix, multiply
from sparsegnn.nn.functional import activation_dropout
from sparsegnn.nn.maxk import CompressedRows, MaxK, dense


class GNN(nn.Module):
    """Convolutions with an activation and dropout between them; the last one gives the logits.

    Args:
        convs: graph layers, called with features and graph.
        activation: after each but the last; None where the layers have it, and dropout, themselves.
        dropout, input_dropout: probabilities, of what is between the layers and of the features.
        norms: what comes between a layer and its activation, one for each but the last; empty: nothing.
        residual: add a layer's input to its output, before the activation, where both have the same width.
    """

    takes_graph = True

    def __init__(self, convs: Sequence[nn.Module], activation: Callable | None, dropout: float, input_dropout: float,
                 norms: Sequence[nn.Module] = (), residual: bool = False):  # fmt: skip
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.activation, self.dropout, self.residual = activation, dropout, residual
        self.input_dropout = FeatureDropout(input_dropout)
        self.norms = nn.ModuleList(norms)

    @property
    def first(self) -> nn.Module:
        """The layer whose weights decay in the recipe of GCN."""
        return self.convs[0]

    def forward(self, x: Tensor, graph: object) -> Tensor:
        x = self.input_dropout(x)
        for i, conv in enumerate(self.convs[:-1]):
            y = conv(x, graph)
            if self.residual and i and y.shape == x.shape:
                y = y + dense(x)
            y = self.norms[i](y) if self.norms else y
            if self.activation is not None:
                y = activation_dropout(y, None, self.activation, self.dropout, self.training)
            x = y
        return self.convs[-1](x, graph)


class MaxKConv(nn.Module):
    """``A MaxK(x W^T + b)``: the layer of MaxK-GNN (Peng et al., ASPLOS 2024), which aggregates k features an edge.

    Args:
        lin: the linear map, with its bias.
        k: features of a node that are kept.
        dropout: of the features that are kept, in training.
    """

    def __init__(self, lin: nn.Module, k: int, dropout: float):
        super().__init__()
        self.lin, self.maxk, self.dropout = lin, MaxK(k, compressed=True), dropout

    def forward(self, x: Tensor, graph) -> Tensor:
        rows: CompressedRows = self.maxk(self.lin(x))
        rows = activation_dropout(rows, None, None, self.dropout, self.training)
        return multiply(matrix(graph, rows.dtype), rows)


class Perceptron(nn.Module):
    """Linear maps with ReLU and dropout between them; of several inputs, the first layer of each is added (SIGN).

    Args:
        inputs: the first linear maps, one for each input, the first of which has the bias.
        layers: those behind.
        maxk: features of a row that are kept in place of ReLU; None: ReLU.
    """

    takes_graph = False

    def __init__(self, inputs: Sequence[nn.Module], layers: Sequence[nn.Module], dropout: float, input_dropout: float,
                 norms: Sequence[nn.Module] = (), residual: bool = False, maxk: int | None = None):  # fmt: skip
        super().__init__()
        self.inputs, self.layers, self.norms = nn.ModuleList(inputs), nn.ModuleList(layers), nn.ModuleList(norms)
        self.input_dropouts = nn.ModuleList(FeatureDropout(input_dropout) for _ in inputs)
        self.activation = F.relu if maxk is None else MaxK(maxk)
        self.dropout, self.residual = dropout, residual

    @property
    def first(self) -> nn.Module:
        return self.inputs

    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """``x`` [N, F], or one such for each of several inputs."""
        parts = [x] if len(self.inputs) == 1 else [x[i] for i in range(len(self.inputs))]
        y = self.inputs[0](self.input_dropouts[0](parts[0]))
        for i in range(1, len(self.inputs)):
            y = y.add_(self.inputs[i](self.input_dropouts[i](parts[i])))
        x = None
        for i, layer in enumerate(self.layers):
            y = y + x if self.residual and x is not None and x.shape == y.shape else y
            y = self.norms[i](y) if self.norms else y
            x = activation_dropout(y, None, self.activation, self.dropout, self.training)
            y = layer(x)
        return y
