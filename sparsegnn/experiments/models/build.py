"""The network of a TrainConfig, on this package's layers or on PyG's, and what it is called with."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from sparsegnn.experiments.models.features import compressed, powers
from sparsegnn.experiments.models.shapes import Shapes, patterns, sparsities, weight_shapes
from sparsegnn.experiments.models.stack import GNN, MaxKConv, Perceptron
from sparsegnn.nn import MaxK, SparseLinear
from sparsegnn.nn.inner import inner_linear

BACKENDS = ("sparsegnn", "pyg")
MODELS = ("gcn", "gat", "sage", "gin", "sign", "mlp")
ROWWISE = ("sign", "mlp")  # of which a node's logits need no other node


class Maker:
    """Makes the parts of a model: linear maps by name, each with its sparsity."""

    def __init__(self, config, shapes: Shapes):
        self.config, self.shapes = config, shapes
        method = config.controller
        self.start = "plain" if method is None else method.start
        self.fuses = config.backend == "sparsegnn" and not (method and method.changes_activations)
        self.sparsity: dict[str, float] = {}
        if self.start == "sparse":
            self.sparsity = sparsities(shapes, method.start_sparsity(config.sparsity), config.distribution)
        self.patterns = {} if self.start == "plain" else patterns(shapes, config.pattern)

    def linear(self, name: str, bias: bool = True) -> nn.Module:
        outputs, inputs = self.shapes[name]
        if self.config.backend == "pyg":
            return nn.Linear(inputs, outputs, bias)
        pattern = self.patterns[name] if self.sparsity else "unstructured"
        return inner_linear(name, inputs, outputs, self.sparsity.get(name, 0.0), pattern, bias)

    def where(self, name: str) -> dict:
        """For the constructor of a layer that makes the map ``name`` itself."""
        return {"sparsity": self.sparsity[name], "pattern": self.patterns[name]} if self.sparsity else {}

    def complete(self, model: nn.Module) -> nn.Module:
        """The model as the method starts with it: layers that have all their weights are sparse ones too, or the method
        would take its sparsity as that of the others."""
        for name in self.shapes if self.start != "plain" else ():
            if self.start == "dense" or not self.sparsity[name]:
                whole = SparseLinear.from_dense(model.get_submodule(name), sparsity=0.0, pattern=self.patterns[name])
                model.set_submodule(name, whole)
        return model


def build(config, data) -> nn.Module:
    """The model of a TrainConfig for a graph; random weights, drawn from torch's generator."""
    shapes = weight_shapes(config, data.num_features, data.num_classes)
    make = Maker(config, shapes)
    hidden = config.hidden * (config.heads if config.model == "gat" else 1)
    norms = [nn.LayerNorm(hidden) for _ in range(config.layers - 1)] if config.layer_norm else []
    between = {"norms": norms, "residual": config.residual}
    if config.model in ROWWISE:
        inputs = [make.linear(name, bias=name == "inputs.0") for name in shapes if name.startswith("inputs")]
        layers = [make.linear(name) for name in shapes if name.startswith("layers")]
        model = Perceptron(inputs, layers, config.dropout, config.input_dropout, **between, maxk=config.maxk)
    else:
        convs, activation = _CONVS[config.model](make)
        model = GNN(convs, activation, config.dropout, config.input_dropout, **between)
    return make.complete(model)


def _gcn(make: Maker):
    """With what follows a layer fused into it where nothing comes between."""
    config = make.config
    conv, convs = _layers(config.backend).GCNConv, []
    extra: dict = {"cached": True} if config.backend == "pyg" else {}
    fused = make.fuses and config.maxk is None and not config.layer_norm and not config.residual
    for i, (outputs, inputs) in enumerate(make.shapes.values()):
        last = i + 1 == config.layers
        if config.maxk is not None and not last:
            convs.append(MaxKConv(make.linear(f"convs.{i}.lin"), config.maxk, config.dropout))
            continue
        follows = {"act": "relu", "dropout": config.dropout} if fused and not last else {}
        convs.append(conv(inputs, outputs, **extra, **follows, **make.where(f"convs.{i}.lin")))
    return convs, None if fused or config.maxk is not None else F.relu


def _gat(make: Maker):
    """Hidden layers concatenate their heads, the last has one."""
    config = make.config
    conv, convs = _layers(config.backend).GATConv, []
    for i, (outputs, inputs) in enumerate(make.shapes.values()):
        last = i + 1 == config.layers
        shape = (outputs, 1, False) if last else (config.hidden, config.heads, True)
        convs.append(conv(inputs, *shape, dropout=config.dropout, **make.where(f"convs.{i}.lin")))
    return convs, F.elu if config.maxk is None else MaxK(config.maxk)


def _sage(make: Maker):
    config, convs = make.config, []
    for i in range(config.layers):
        outputs, inputs = make.shapes[f"convs.{i}.lin_l"]
        conv = _layers(config.backend).SAGEConv(inputs, outputs)
        if make.sparsity:
            conv.lin_l, conv.lin_r = make.linear(f"convs.{i}.lin_l"), make.linear(f"convs.{i}.lin_r", bias=False)
        convs.append(conv)
    return convs, F.relu if config.maxk is None else MaxK(config.maxk, compressed=True)


def _gin(make: Maker):
    config = make.config
    conv, convs = _layers(config.backend).GINConv, []
    for i in range(config.layers):
        first, second = make.linear(f"convs.{i}.nn.0"), make.linear(f"convs.{i}.nn.2")
        convs.append(conv(nn.Sequential(first, nn.ReLU(inplace=True), second)))
    return convs, F.relu if config.maxk is None else MaxK(config.maxk, compressed=True)


_CONVS = {"gcn": _gcn, "gat": _gat, "sage": _sage, "gin": _gin}


def prepare(backend: str, data) -> object:
    """What the layers take as their graph: made once, before the steps that are timed."""
    if backend == "pyg":
        return data.edge_index
    from sparsegnn.graph import CSRGraph

    return CSRGraph.from_edge_index(data.edge_index, data.num_nodes, data.edge_weight)


def edge_count(graph: object) -> int:
    """Edges that the layers aggregate over, without the self-loops that they add."""
    return graph.shape[1] if isinstance(graph, Tensor) else graph.num_edges


def inputs_of(config, data, graph) -> list[Tensor]:
    """What the first layer multiplies: the features, or for SIGN their powers; sparse where few are not 0."""
    if config.backend == "pyg":
        return [data.x]
    if config.model == "sign":
        return powers(graph, data.x, config.hops)
    return [compressed(data.x)]


def _layers(backend: str):
    """The module with the graph layers."""
    if backend == "pyg":
        try:
            from torch_geometric import nn as layers
        except ImportError as e:
            raise ValueError("backend 'pyg' needs PyTorch Geometric: pip install torch-geometric") from e
    else:
        from sparsegnn import nn as layers
    return layers
