"""The triple pipeline: graph, weights and embeddings sparse at once (Rahman and Azad, arXiv 2208.03559)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

from sparsegnn.controllers.pruning.shrinking import Ramp
from sparsegnn.controllers.registry import register
from sparsegnn.controllers.settings import check_int
from sparsegnn.controllers.structure.edge_method import EdgeMethod
from sparsegnn.controllers.structure.edges import check_fraction
from sparsegnn.controllers.structure.fastgat import sample
from sparsegnn.controllers.structure.resistance import effective_resistance
from sparsegnn.graph import CSRGraph
from sparsegnn.nn.maxk import MaxK

ACTIVATIONS = (F.relu, torch.relu, F.elu)


@register("triple")
class Triple(EdgeMethod, Ramp):
    """Removes edges by effective resistance when it is made, then weights by magnitude along a cubic; the activations
    between layers become :class:`~sparsegnn.nn.MaxK`, so that embeddings are sparse too.

    The paper's own criteria for edges and embeddings are not public; these are what :class:`FastGAT` and MaxK-GNN use.
    MaxK takes the place of ``model.activation`` where the model has that, else of every ``nn.ReLU``; it has no
    parameters, so checkpoints of the model fit. :meth:`densities` says what is left.

    Args:
        model, optimizer, distribution, update_every, start_at, stop_at: as for :class:`GradualMagnitude`.
        graph: as for :class:`EdgeMethod`; symmetric.
        sparsity: of the weights.
        edge_sparsity: of the undirected edges.
        k: features that each node keeps; None: half of the narrowest of the layers before the last.
        seed: of the sample of edges.
    """

    paper = "Rahman and Azad, 2022"
    target = "edges, weights, embeddings"
    patterns = Ramp.patterns
    start = "dense"
    moves_weights = True
    changes_activations = True

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, graph: CSRGraph | None = None,
                 sparsity: float = 0.9, edge_sparsity: float = 0.5, k: int | None = None,
                 distribution: str | Mapping[str, float] = "erk", start_at: int = 0, update_every: int = 100,
                 stop_at: int | None = None, seed: int = 0):  # fmt: skip
        self.edge_sparsity = check_fraction(self._name, "edge_sparsity", edge_sparsity)
        self.k = k if k is None else check_int(self._name, "k", k, 1)
        super().__init__(model, optimizer, graph=graph, sparsity=sparsity, distribution=distribution, start_at=start_at,
                         update_every=update_every, stop_at=stop_at, seed=seed)  # fmt: skip

    def begin(self) -> None:
        replaced = places(self._name, self.model)
        widths = [layer.out_features for layer in self.layers.values()][:-1]
        if not widths or (self.k is not None and self.k > min(widths)):
            raise ValueError(f"{self._name}: k must be at most the width of the layers before the last, {widths}, "
                             f"got {self.k}")  # fmt: skip
        self.width, self.k = min(widths), max(1, min(widths) // 2) if self.k is None else self.k
        resistance = effective_resistance(self.graph, seed=self.seed)
        super().begin()
        n = self.edges.count(self.edge_sparsity)
        self.edges.keep(sample(self.edges, resistance, self.generator("edges", step=0), n, 0)[0])
        for replace in replaced:
            replace(MaxK(self.k))

    def counts(self) -> dict[str, int]:
        return self.counts_at(self.share(self.step))

    def densities(self) -> dict[str, float]:
        """What is left: fractions of the edges, of the weights, and of the features that layers read from another."""
        kept = sum(layer.values.numel() for layer in self.layers.values())
        return {
            "edges": len(self.edges) / self.edges.total,
            "weights": kept / sum(self.sizes.values()),
            "embeddings": self.k / self.width,
        }


def places(op: str, model: nn.Module) -> list[Callable[[nn.Module], None]]:
    """What puts a module into the place of each activation between the layers of ``model``."""
    now = getattr(model, "activation", None)
    if now in ACTIVATIONS or isinstance(now, (nn.ReLU, nn.ELU, MaxK)):
        return [lambda module: setattr(model, "activation", module)]
    found = [(parent, name) for parent in model.modules() for name, m in parent.named_children() if type(m) is nn.ReLU]
    if not found:
        raise ValueError(f"{op}: model must have an attribute 'activation', or modules nn.ReLU, for MaxK to replace, "
                         "got none: use nn.ReLU() in place of F.relu")  # fmt: skip
    return [lambda module, parent=parent, name=name: setattr(parent, name, module) for parent, name in found]
