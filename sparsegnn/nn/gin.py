"""GINConv: x' = nn((1 + eps) x + sum of x over the neighbours) (Xu et al., https://arxiv.org/abs/1810.00826)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import Sequential

from sparsegnn.graph import CSRGraph
from sparsegnn.nn.aggregate import commutes, multiply, needs_grad
from sparsegnn.nn.batches import Lead, batched
from sparsegnn.nn.checks import check_number
from sparsegnn.nn.convolution import Convolution
from sparsegnn.nn.features import is_sparse
from sparsegnn.nn.inputs import graph_of, pair_of
from sparsegnn.nn.maxk import CompressedRows, dense
from sparsegnn.nn.products import product, refuse_sparse
from sparsegnn.nn.reductions import is_one, refuse_several
from sparsegnn.nn.watched import is_unwatched
from sparsegnn.ops._autograd import transformed
from sparsegnn.ops.spmm_gcn import aggregate_first


class GINConv(Convolution):
    """Drop-in for PyG's ``GINConv``: same arguments, same ``state_dict`` keys, same results to rounding.

    Args:
        nn: maps ``[N, in_channels]`` to ``[N, out_channels]``, such as an MLP, or one with :class:`SparseLinear` in it.
            As in PyG it gets new weights here, where it has ``reset_parameters``.
        eps: what a node counts more than a neighbour, to begin with.
        train_eps: learn ``eps``.
        aggr, flow, options: see :class:`Convolution`; several reductions only where there are no targets.

    As in PyG, edge weights of the graph do not count.
    """

    def __init__(self, nn: Callable, eps: float = 0.0, train_eps: bool = False, *, aggr="add",
                 flow: str = "source_to_target", **options):  # fmt: skip
        super().__init__(aggr, flow, options)
        if not callable(nn):
            raise TypeError(f"GINConv: nn must be a Module or a function, got {type(nn).__name__}")
        self.nn, self.initial_eps = nn, check_number("GINConv", "eps", eps)
        if train_eps:
            self.eps = torch.nn.Parameter(torch.empty(1))
        else:
            self.register_buffer("eps", torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """New weights of ``nn``, and the ``eps`` of the beginning."""
        _reset(self.nn)
        with torch.no_grad():
            self.eps.fill_(self.initial_eps)

    def forward(self, x, edge_index: object, size: tuple[int, int] | None = None) -> Tensor:
        """Features of the nodes after one step of message passing.

        Args:
            x: ``[..., N, in_channels]``, a tensor or :class:`CompressedRows`; or a pair, of the sources and of the
                targets (None: without them) of a bipartite graph. ``torch.sparse_csr`` or coo where ``nn`` is a
                ``Sequential`` that begins with a linear layer, which multiplies before the sum, as where it is narrow.
            edge_index: a :class:`CSRGraph`, or anything that ``CSRGraph.from_any`` takes.
            size: numbers of sources and targets, needed where a pair has no targets.

        Returns:
            what ``nn`` makes of ``[..., M, in_channels]``.
        """
        source, target, lead = pair_of("GINConv", x, -1, -1)
        if target is not None and target.size(1) != source.size(1):
            raise ValueError(f"GINConv: x must have targets as wide as sources ({source.size(1)}), "
                             f"got {target.size(1)}")  # fmt: skip
        if target is not None:
            refuse_several("GINConv", self.aggr, "the result is added to the features of the targets")
        graph = graph_of("GINConv", source, target, edge_index, None, size, self.flow, lead)
        graph = graph if graph.val is None else graph.weighted(None)
        y = None if lead else self._multiplied_first(graph, source, target)  # nn may look at the leading sizes
        if y is not None:
            return y
        refuse_sparse("GINConv", source)
        refuse_sparse("GINConv", target)
        return self.nn(batched(self._sum(graph, source, target, lead), lead))

    def _multiplied_first(self, graph: CSRGraph, source, target) -> Tensor | None:
        """The same with the first linear map of ``nn`` before the sum, where that is narrower or x is sparse."""
        if type(self.nn) is not Sequential or not len(self.nn) or not commutes(self.aggr):
            return None
        first, inputs = self.nn[0], [x for x in (source, target) if x is not None]
        outputs = getattr(first, "out_features", 0)
        if any(isinstance(x, CompressedRows) for x in inputs) or not is_unwatched(self.nn) or not outputs:
            return None
        if all(not is_sparse(x) and aggregate_first(x, outputs) for x in inputs):
            return None
        y = product(first, source)
        if y is None:
            return None
        other = y if target is source else None if target is None else product(first, target)
        y = self._sum(graph, y, other)
        if first.bias is not None:
            y = y + first.bias.to(y.dtype) if transformed() else y.add_(first.bias.to(y.dtype))
        for layer in list(self.nn)[1:]:
            y = layer(y)
        return y

    def _sum(self, graph: CSRGraph, source, target, lead: Lead = ()) -> Tensor:
        """(1 + eps) of the targets and their neighbours; in one pass where eps is constant."""
        a = self._matrix(graph, source, lead)
        if target is None:
            return multiply(a, source, self.aggr)
        root = 1 + self.eps.to(torch.promote_types(source.dtype, torch.float32))
        if target is source and is_one(self.aggr, "sum") and not needs_grad(root):
            return multiply(a._replace(diag=root.expand(graph.num_rows)), source)
        y, target = multiply(a, source, self.aggr), dense(target)
        if transformed():  # root may have a batch that y has not
            return y.addcmul(target.to(y.dtype), root.to(y.dtype))
        return y.addcmul_(target, root.to(target.dtype))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"  # all of nn

    def extra_repr(self) -> str:
        return f"nn={self.nn}" + ("" if self.aggr == "add" else f", aggr={self.aggr}")


def _reset(module: object) -> None:
    """As PyG's ``reset``: of the outermost modules that know how."""
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()
    elif isinstance(module, torch.nn.Module):
        for child in module.children():
            _reset(child)
