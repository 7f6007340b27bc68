"""The two networks of the training run: GCN and GAT stacks, on this package's layers or on PyG's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsegnn.controllers import distributions
from sparsegnn.nn import SparseLinear

BACKENDS = ("sparsegnn", "pyg")
#: Features with fewer nonzeros than this fraction are passed as a sparse matrix (bench_sparse_features.py)
SPARSE_FEATURES = 0.05


class FeatureDropout(nn.Module):
    """Dropout on a constant feature matrix [N, F]: as nn.Dropout, but work only where the features are not zero.

    Bag-of-words features are 1 % dense; dropping a zero changes nothing. The output is reused by the next call.
    ``torch.sparse_csr`` features stay so.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p
        self._source: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.layout == torch.sparse_csr:
            if self._source is not x:
                self._source, self._output = x, x.clone()
            self._output.values().copy_(F.dropout(x.values(), self.p, True))
            return self._output
        if self._source is not x:
            at = torch.nonzero(x.reshape(-1)).view(-1)
            self._source, self._at = x, at if at.numel() < x.numel() // 8 else None
            self._values, self._output = (x.view(-1)[at], x.clone()) if self._at is not None else (None, None)
        if self._at is None:
            return F.dropout(x, self.p, True)
        self._output.view(-1)[self._at] = F.dropout(self._values, self.p, True)
        return self._output


class GNN(nn.Module):
    """Convolutions with an activation and dropout between them; the last one gives the logits."""

    def __init__(self, convs: Sequence[nn.Module], activation: Callable, dropout: float, input_dropout: float):
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.activation, self.dropout = activation, dropout
        self.input_dropout = FeatureDropout(input_dropout)

    def forward(self, x: Tensor, graph: object) -> Tensor:
        x = self.input_dropout(x)
        for conv in self.convs[:-1]:
            x = F.dropout(self.activation(conv(x, graph)), self.dropout, self.training)
        return self.convs[-1](x, graph)


def layer_shapes(model: str, features: int, hidden: int, classes: int, layers: int, heads: int) -> list[dict]:
    """Constructor arguments of each convolution: hidden GAT layers concatenate their heads, the last has one."""
    if model == "gcn":
        widths = [features] + [hidden] * (layers - 1) + [classes]
        return [{"in_channels": i, "out_channels": o} for i, o in zip(widths, widths[1:], strict=False)]
    inputs = [features] + [hidden * heads] * (layers - 1)
    shapes = [{"in_channels": i, "out_channels": hidden, "heads": heads} for i in inputs[:-1]]
    return [*shapes, {"in_channels": inputs[-1], "out_channels": classes, "heads": 1, "concat": False}]


def weight_counts(model: nn.Module) -> tuple[int, int]:
    """Weights that exist and weights that a dense model would have, over the linear maps of all convolutions."""
    kept = dense = 0
    for conv in model.convs:
        lin = conv.lin
        if hasattr(lin, "values"):
            kept += lin.values.numel()
            dense += lin.in_features * lin.out_features
        else:
            kept += lin.weight.numel()
            dense += lin.weight.numel()
    return kept, dense


def layer_sparsities(shapes: Sequence[dict], sparsity: float, distribution: str | Mapping[str, float]) -> list[float]:
    """Sparsity of each convolution's weight such that the whole model has `sparsity`."""
    sizes = {f"convs.{i}.lin": (s["out_channels"] * s.get("heads", 1), s["in_channels"]) for i, s in enumerate(shapes)}
    counts = distributions.allocate(sizes, sparsity, distribution)
    return [1 - counts[name] / (rows * cols) for name, (rows, cols) in sizes.items()]


def build(config, data) -> GNN:
    """The model of a TrainConfig for a graph; random weights, drawn from torch's generator."""
    conv = getattr(_layers(config.backend), {"gcn": "GCNConv", "gat": "GATConv"}[config.model])
    width = config.hidden
    shapes = layer_shapes(config.model, data.num_features, width, data.num_classes, config.layers, config.heads)
    extra: dict = {"dropout": config.dropout} if config.model == "gat" else {}
    if config.backend == "pyg" and config.model == "gcn":
        extra["cached"] = True
    method = config.controller
    start = "plain" if method is None else method.start
    each = [extra] * len(shapes)
    if start == "sparse":
        begin = method.start_sparsity(config.sparsity)
        where = {"pattern": config.pattern}
        each = [extra | where | {"sparsity": s} for s in layer_sparsities(shapes, begin, config.distribution)]
    made = [conv(**shape, **kwargs) for shape, kwargs in zip(shapes, each, strict=True)]
    if start == "dense":
        for layer in made:
            layer.lin = SparseLinear.from_dense(layer.lin, sparsity=0.0, pattern=config.pattern)
    activation = F.relu if config.model == "gcn" else F.elu
    return GNN(made, activation, config.dropout, config.input_dropout)


def prepare(backend: str, data) -> object:
    """What the layers take as their graph: made once, before the steps that are timed."""
    if backend == "pyg":
        return data.edge_index
    from sparsegnn.graph import CSRGraph

    return CSRGraph.from_edge_index(data.edge_index, data.num_nodes, data.edge_weight)


def edge_count(graph: object) -> int:
    """Edges that the layers aggregate over, without the self-loops that they add."""
    return graph.shape[1] if isinstance(graph, Tensor) else graph.num_edges


def features_of(backend: str, data) -> Tensor:
    """The features as the layers take them fastest: ``torch.sparse_csr`` where few are not 0, on the CPU.

    The kernels of aggregation multiply them then, and each nonzero by its row of the weight only.
    """
    x = data.x
    if backend == "pyg" or x.device.type != "cpu" or x.numel() == 0:
        return x
    if torch.count_nonzero(x) >= SPARSE_FEATURES * x.numel():
        return x
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse (CSR|invariant)")  # torch's: its layout is in beta
        return x.to_sparse_csr()


def _layers(backend: str):
    """The module with GCNConv and GATConv."""
    if backend == "pyg":
        try:
            from torch_geometric import nn as layers
        except ImportError as e:
            raise ValueError("backend 'pyg' needs PyTorch Geometric: pip install torch-geometric") from e
    else:
        from sparsegnn import nn as layers
    return layers
