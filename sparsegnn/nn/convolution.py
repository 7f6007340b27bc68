"""What all graph layers share: the arguments of PyG's MessagePassing, and an explainer's mask of the edges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral

import torch
from torch import Tensor, nn

from sparsegnn.graph import CSRGraph, extend
from sparsegnn.nn.aggregate import Matrix, matrix
from sparsegnn.nn.batches import Lead
from sparsegnn.nn.loops import with_loops
from sparsegnn.nn.messages import begin, with_messages
from sparsegnn.nn.recognised import Recognised
from sparsegnn.nn.reductions import reduction_of
from sparsegnn.nn.sparse_weight import SparseWeight

FLOWS = ("source_to_target", "target_to_source")


class Convolution(Recognised, nn.Module):
    """Base of the graph layers.

    Args:
        aggr: ``"add"`` (or ``"sum"``), ``"mean"``, ``"max"`` or ``"min"``; PyG's module that does the same; or a list
            of these, whose results are concatenated, where the layer has a place for that.
        flow: ``"source_to_target"``, or ``"target_to_source"`` for raw edge lists.
        options: other arguments of PyG's ``MessagePassing``. ``node_dim`` must be -2; ``decomposed_layers`` changes no
            result and nothing here; ``aggr_kwargs`` must be empty.
    """

    flow = FLOWS[0]  # of layers that were saved without one
    explain: bool | None = None  # what PyG's explainers set, with a mask of the edges
    _apply_sigmoid = True
    node_dim, decomposed_layers = -2, 1

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if cls.__module__.startswith("sparsegnn.nn.") and "forward" in vars(cls):
            cls.forward = with_messages(cls.forward)

    def __init__(self, aggr, flow: str, options: Mapping | None = None):
        super().__init__()
        layer = type(self).__name__
        if flow not in FLOWS:
            raise ValueError(f"{layer}: flow must be source_to_target or target_to_source, got {flow!r}")
        self.aggr, self.flow = reduction_of(layer, aggr), flow
        _check_options(layer, options or {}, self.node_dim)
        self._edge_mask = self._loop_mask = None
        begin(self)

    def __repr__(self) -> str:
        """As PyG's, or with what is in it where some of that is sparse, or parametrized."""
        if any(isinstance(m, SparseWeight) or "parametrizations" in m._modules for m in self.modules()):
            return nn.Module.__repr__(self)
        return f"{type(self).__name__}({self.extra_repr()})"

    def _finished(self, y: Tensor) -> Tensor:
        """What follows PyG's part of a call, of its result."""
        return y

    def _matrix(self, graph: CSRGraph, x: Tensor, lead: Lead = (), explicit: bool = False,
                norm: tuple[bool, bool, bool] = (False, False, False)) -> Matrix:  # fmt: skip
        """The matrix of ``graph`` for features like ``x``; ``norm``: (normalize, improved, add_self_loops)."""
        a = matrix(graph, x.dtype, self.aggr, *norm, explicit or bool(self.explain))
        if self.explain:
            mask = self._mask(graph, norm[0] and norm[2])
            a = a._replace(val=a.val * mask.to(a.val.dtype))
        return a._replace(batch=math.prod(lead)) if lead else a

    def _mask(self, graph: CSRGraph, loops: bool) -> Tensor:
        """An explainer's mask, in the order of the edges; of self-loops that the layer adds or replaces: 1."""
        mask, layer = self._edge_mask, type(self).__name__
        if mask is None:
            raise ValueError(f"{layer}: an explainer must set a mask of the edges together with explain, got None")
        if mask.shape != (graph.given,):
            raise ValueError(f"{layer}: an explainer's mask must have one entry for each of {graph.given} edges, "
                             f"got {list(mask.shape)}")  # fmt: skip
        mask = mask.sigmoid() if self._apply_sigmoid else mask
        mask = mask if graph.perm is None else mask.index_select(0, graph.perm)
        if not loops:
            return mask
        graph, slot = with_loops(graph)
        return torch.where(graph.rows() == graph.col, 1, extend(mask, slot, 1.0))


def _check_options(layer: str, options: Mapping, node_dim: int) -> None:
    for name, value in options.items():
        if name == "node_dim":
            if value != node_dim or isinstance(value, bool):
                raise ValueError(f"{layer}: node_dim must be {node_dim}, got {value!r}: move the dimension of the "
                                 "nodes (x.movedim), or use PyG's layer and sparsegnn.accelerate")  # fmt: skip
        elif name == "aggr_kwargs":
            if value:
                raise ValueError(f"{layer}: aggr_kwargs must be empty, got {value!r}: for such an aggregation use "
                                 f"torch_geometric.nn.{layer} and sparsegnn.accelerate")  # fmt: skip
        elif name == "decomposed_layers":
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{layer}: decomposed_layers must be an int of at least 1, got {value!r}")
        else:
            raise TypeError(f"{layer}: got an unexpected argument {name!r}")
