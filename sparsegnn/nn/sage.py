"""SAGEConv: x' = W_l aggregate(x) + W_r x + b (Hamilton et al., https://arxiv.org/abs/1706.02216)."""

from __future__ import annotations

from torch import Tensor, nn

from sparsegnn.nn.aggregate import transform_hops
from sparsegnn.nn.batches import batched
from sparsegnn.nn.checks import check_size
from sparsegnn.nn.convolution import Convolution
from sparsegnn.nn.inner import inner_linear, reset_
from sparsegnn.nn.inputs import graph_of, pair_of, widths_of
from sparsegnn.nn.maxk import dense
from sparsegnn.nn.products import add_product


class SAGEConv(Convolution):
    """Drop-in for PyG's ``SAGEConv``: same arguments, same ``state_dict`` keys when dense, same results to rounding.

    Args:
        in_channels: width of ``x``, or a pair: that of sources and of targets (-1: that of the first input).
        out_channels: width of the result.
        aggr, flow, options: see :class:`Convolution`; of several reductions ``lin_l`` takes all results.
        normalize: scale every row of the result to length 1.
        root_weight: add ``W_r x`` of the node itself.
        project: first replace the features of the sources by ``relu(W x + b)``.
        bias: learn an additive bias.
        sparsity: fraction of the weights of ``lin_l`` and ``lin_r`` that do not exist.
        pattern: where the weights may be, see :class:`SparseLinear`.

    As in PyG, edge weights of the graph do not count.
    """

    def __init__(self, in_channels: int | tuple[int, int], out_channels: int, aggr="mean",
                 normalize: bool = False, root_weight: bool = True, project: bool = False, bias: bool = True, *,
                 flow: str = "source_to_target", sparsity: float = 0.0, pattern: str = "unstructured",
                 **options):  # fmt: skip
        super().__init__(aggr, flow, options)
        self.sources, self.targets = widths_of("SAGEConv", in_channels)
        many = isinstance(in_channels, (tuple, list))
        self.in_channels = (self.sources, self.targets) if many else self.sources
        self.out_channels = out_channels = check_size("SAGEConv", "out_channels", out_channels, 1)
        self.normalize, self.root_weight, self.project = normalize, root_weight, project
        if project and self.sources == -1:
            raise ValueError(
                "SAGEConv: in_channels must be given with project, got -1: that does not support lazy widths"
            )
        if project:
            self.lin = inner_linear("SAGEConv", self.sources, self.sources, 0.0, "unstructured", bias=True)
        several = 1 if isinstance(self.aggr, str) or self.sources == -1 else len(self.aggr)
        self.lin_l = inner_linear("SAGEConv", several * self.sources, out_channels, sparsity, pattern, bias=bias)
        if root_weight:
            self.lin_r = inner_linear("SAGEConv", self.targets, out_channels, sparsity, pattern)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """New weights, as ``nn.Linear``'s; at the same places when sparse."""
        for linear in self.children():
            reset_(linear)

    def forward(self, x, edge_index: object, size: tuple[int, int] | None = None) -> Tensor:
        """Features of the nodes after one step of message passing.

        Args:
            x: ``[..., N, in_channels]``, a tensor or :class:`CompressedRows`; or a pair, of the sources and of the
                targets (None: without ``root_weight``) of a bipartite graph.
            edge_index: a :class:`CSRGraph`, or anything that ``CSRGraph.from_any`` takes.
            size: numbers of sources and targets, needed where a pair has no targets.

        Returns:
            ``[..., M, out_channels]``.
        """
        source, target, lead = pair_of("SAGEConv", x, self.sources, self.targets)
        graph = graph_of("SAGEConv", source, target, edge_index, None, size, self.flow, lead)
        graph = graph if graph.val is None else graph.weighted(None)
        if self.project:
            source = self.lin(dense(source)).relu()
        a = self._matrix(graph, source, lead)
        y = transform_hops("SAGEConv", a, source, self.lin_l, self.out_channels, self.aggr)
        if self.root_weight and target is not None:
            y = add_product(y, self.lin_r, dense(target))
        return batched(nn.functional.normalize(y, p=2.0, dim=-1) if self.normalize else y, lead)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, aggr={self.aggr}"
