"""GraphConv: x' = W_1 x + W_2 sum of e x over the neighbours + b (Morris et al., https://arxiv.org/abs/1810.02244)."""

from __future__ import annotations

from torch import Tensor

from sparsegnn.nn.aggregate import transform_hops
from sparsegnn.nn.batches import batched
from sparsegnn.nn.checks import check_size
from sparsegnn.nn.convolution import Convolution
from sparsegnn.nn.inner import inner_linear, reset_
from sparsegnn.nn.inputs import graph_of, pair_of, widths_of
from sparsegnn.nn.maxk import dense
from sparsegnn.nn.products import add_product
from sparsegnn.nn.reductions import refuse_several


class GraphConv(Convolution):
    """Drop-in for PyG's ``GraphConv``: same arguments, same ``state_dict`` keys when dense, same results to rounding.

    Args:
        in_channels: width of ``x``, or a pair: that of sources and of targets (-1: that of the first input).
        out_channels: width of the result.
        aggr, flow, options: see :class:`Convolution`; one reduction.
        bias: learn an additive bias.
        sparsity: fraction of the weights of ``lin_rel`` and ``lin_root`` that do not exist.
        pattern: where the weights may be, see :class:`SparseLinear`.
    """

    def __init__(self, in_channels: int | tuple[int, int], out_channels: int, aggr="add", bias: bool = True, *,
                 flow: str = "source_to_target", sparsity: float = 0.0, pattern: str = "unstructured",
                 **options):  # fmt: skip
        super().__init__(aggr, flow, options)
        refuse_several("GraphConv", self.aggr, "lin_rel takes in_channels")
        self.sources, self.targets = widths_of("GraphConv", in_channels)
        many = isinstance(in_channels, (tuple, list))
        self.in_channels = (self.sources, self.targets) if many else self.sources
        self.out_channels = out_channels = check_size("GraphConv", "out_channels", out_channels, 1)
        self.lin_rel = inner_linear("GraphConv", self.sources, out_channels, sparsity, pattern, bias=bias)
        self.lin_root = inner_linear("GraphConv", self.targets, out_channels, sparsity, pattern)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """New weights, as ``nn.Linear``'s; at the same places when sparse."""
        reset_(self.lin_rel)
        reset_(self.lin_root)

    def forward(self, x, edge_index: object, edge_weight: Tensor | None = None,
                size: tuple[int, int] | None = None) -> Tensor:  # fmt: skip
        """Features of the nodes after one step of message passing.

        Args:
            x: ``[..., N, in_channels]``, a tensor, sparse where most features are 0 and need no gradient, or
                :class:`CompressedRows`; or a pair, of the sources and of the targets (None: without ``lin_root``) of a
                bipartite graph.
            edge_index: a :class:`CSRGraph`, or anything that ``CSRGraph.from_any`` takes.
            edge_weight: ``[E]`` or ``[E, 1]`` in the order of the edges that the graph was made from; differentiable.
            size: numbers of sources and targets, needed where a pair has no targets.

        Returns:
            ``[..., M, out_channels]``.
        """
        source, target, lead = pair_of("GraphConv", x, self.sources, self.targets)
        graph = graph_of("GraphConv", source, target, edge_index, edge_weight, size, self.flow, lead)
        a = self._matrix(graph, source, lead)
        y = transform_hops("GraphConv", a, source, self.lin_rel, self.out_channels, self.aggr)
        return batched(y if target is None else add_product(y, self.lin_root, dense(target)), lead)

    def extra_repr(self) -> str:
        aggr = "" if self.aggr == "add" else f", aggr={self.aggr}"
        return f"{self.in_channels}, {self.out_channels}{aggr}"
