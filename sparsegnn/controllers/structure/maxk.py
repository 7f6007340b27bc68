"""MaxK-GNN: the k largest features of every node in place of ReLU (Peng et al., ASPLOS 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsegnn.controllers.base import Controller
from sparsegnn.controllers.registry import register
from sparsegnn.nn import GCNConv, MaxK
from sparsegnn.ops.maxk import check_k
from sparsegnn.width.activations import Activations
from sparsegnn.width.trace import inside


class Epilogue:
    """Forward hook of a convolution: MaxK, then dropout, in place of its own ReLU and dropout."""

    def __init__(self, maxk: MaxK, dropout: float):
        self.maxk, self.dropout = maxk, dropout

    def __call__(self, conv: nn.Module, args: tuple, y: Tensor):
        return F.dropout(self.maxk(y), self.dropout, conv.training)


def put(owner: nn.Module, name: str, new: object) -> None:
    """``owner.name = new``; a module takes the place of another one in the order of both."""
    if isinstance(new, nn.Module) and name in owner._modules:
        owner._modules[name] = new
        return
    delattr(owner, name)
    setattr(owner, name, new)


@register("maxk")
class MaxKGNN(Controller):
    """Every ReLU between graph layers becomes :class:`~sparsegnn.nn.MaxK`, and training goes on as it did.

    Replaced are ``nn.ReLU`` modules, ``act="relu"`` of :class:`~sparsegnn.nn.GCNConv`, and attributes of modules that
    hold ``F.relu`` or ``torch.relu`` (``model.activation``), where torch.fx finds them between two graph layers; a ReLU
    that ``forward`` calls as a function stays, with a warning. Where sums over neighbours of this package, or dropout
    and then those, are all that read the result, it is handed to them compressed, and the aggregation reads ``k``
    features per edge. ``detach()`` puts the ReLUs back, ``finalize()`` leaves MaxK in the model. Parameters and their
    names stay as they are.

    Args:
        model: with graph layers, of this package or PyG's, and ReLUs between them.
        optimizer, seed: as for :class:`Controller` (nothing here is random).
        k: features of a node that are kept. The paper keeps the accuracy of ReLU with 32 of 256.
        group: keep equally many of every ``group`` neighbouring features; None: of all.
    """

    family = "structure"
    target = "activations"
    start = "plain"
    paper = "Peng et al., ASPLOS 2024"
    moves_weights = False
    changes_activations = True

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, k: int = 32, group: int | None = None,
                 seed: int = 0):  # fmt: skip
        check_k(self._name, k, None, 1 << 15)
        self.k, self.group = k, group
        super().__init__(model, optimizer, seed=seed)

    def begin(self) -> None:
        self._undo: list[tuple] = []
        found = Activations(self._name, inside(self.model))
        for site in found.sites:
            if site.width is not None:
                check_k(self._name, self.k, self.group, site.width)
        replaced: dict[int, MaxK] = {}  # a ReLU may have several names
        for site in found.sites:
            old = getattr(site.owner, site.name)
            maxk = MaxK(self.k, self.group, site.compressed)
            if isinstance(site.owner, GCNConv):
                conv = site.owner
                self._undo.append((conv, {"act": conv.act, "dropout": conv.dropout},
                                   conv.register_forward_hook(Epilogue(maxk, conv.dropout))))  # fmt: skip
                conv.act, conv.dropout = None, 0.0
            else:
                maxk = replaced.setdefault(id(old), maxk) if isinstance(old, nn.Module) else maxk
                self._undo.append((site.owner, {site.name: old}, None))
                put(site.owner, site.name, maxk)

    def due(self, step: int) -> bool:
        return False

    @property
    def settled_at(self) -> int:
        return 0

    def detach(self) -> None:
        """Put the ReLUs back, and leave the optimizer alone from now on."""
        super().detach()
        for owner, attributes, handle in reversed(self._undo):
            if handle is not None:
                handle.remove()
            for name, old in attributes.items():
                put(owner, name, old)
        self._undo = []

    def finalize(self) -> nn.Module:
        """End the method; MaxK stays in the model."""
        self._undo = []
        return super().finalize()

    def extra_state(self) -> dict:
        return {"k": self.k, "group": self.group or 0}

    def read_state(self, state):
        for name, mine in self.extra_state().items():
            if state[name] != mine:
                raise ValueError(f"{self._name}: state must have {name} {mine}, got {state[name]!r}")
        return lambda: None

    def _find_layers(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
        return {}  # it moves no weights
