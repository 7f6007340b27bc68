"""Regular graph pruning (Chen et al., TNNLS 2024)."""

from __future__ import annotations

import torch
from torch import nn

from sparsegnn.controllers.base import Controller
from sparsegnn.controllers.initialisers import graph_positions, regular_graph, source_of
from sparsegnn.controllers.processes import check_single
from sparsegnn.controllers.registry import register
from sparsegnn.controllers.settings import check_int
from sparsegnn.pattern import check_regular, check_sparsity


@register("rgp")
class RGP(Controller):
    """Weights along a regular graph with a short average path between its nodes, from the first step on; then static.

    Each layer is cut into as many groups of outputs, and of inputs, as the graph has nodes; the weights between groups
    that are neighbours stay. All of a layer's groups have ``degree`` neighbours, so that ``degree / nodes`` of it
    remains, which is what is nearest to ``1 - sparsity``. Layers with fewer channels than nodes stay dense, as first
    and last ones do in the paper; layers of blocks count rows and columns of blocks.

    Args:
        model: whose layers have all their weights, ``sparsify(model, 0.0)``; those that stay keep their values.
        optimizer, seed: as for :class:`Controller`.
        sparsity: of the layers that the graph is for.
        nodes: of the graph.
        tries: swaps of edges that are tried to shorten the paths.
    """

    family = "sparse"
    paper = "Chen et al., TNNLS 2024"
    patterns = "any but 2:4"
    start = "dense"
    keeps_size = False

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, sparsity: float = 0.9, nodes: int = 64,
                 tries: int = 1000, seed: int = 0):  # fmt: skip
        op = self._name
        self.sparsity, self.nodes = check_sparsity(sparsity, op), check_int(op, "nodes", nodes, 2)
        self.tries = check_int(op, "tries", tries, 0)
        self.degree = max(1, round((1 - self.sparsity) * self.nodes))
        if self.degree >= self.nodes or self.degree * self.nodes % 2:
            raise ValueError(f"{op}: nodes must be even, or more, for {self.degree} neighbours each (sparsity "
                             f"{self.sparsity}), got {self.nodes}")  # fmt: skip
        super().__init__(model, optimizer, seed=seed)

    def begin(self) -> None:
        op = self._name
        if few := [name for name, x in self.layers.items() if x.values.numel() < x.in_features * x.out_features]:
            raise ValueError(f"{op}: model must have layers with all of their weights, got {few}: begin with "
                             "sparsify(model, 0.0)")  # fmt: skip
        check_single(op, self.layers)
        wide = {name: layer for name, layer in self.layers.items() if min(layer.grid) >= self.nodes}
        if not wide:
            grids = {name: list(layer.grid) for name, layer in self.layers.items()}
            raise ValueError(f"{op}: nodes must be at most the outputs and inputs (or blocks) of a layer, of {grids}, "
                             f"got {self.nodes}")  # fmt: skip
        self.graph = regular_graph(self.nodes, self.degree, tries=self.tries, seed=self.seed)
        self._positions = {}
        for name, layer in wide.items():
            crow, col = graph_positions(layer, self.graph, self.generator(name))
            check_regular(crow, col, layer.in_features, layer.structure, f"{op}: layer {name!r}")
            self._positions[name] = crow, col

    def place(self) -> None:
        for name, positions in self.__dict__.pop("_positions").items():
            self.relocate(name, *positions, source_of(self.layers[name], *positions))

    def due(self, step: int) -> bool:
        return False

    @property
    def settled_at(self) -> int:
        return 0
