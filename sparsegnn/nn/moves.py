"""The weights of a sparse layer move, and with them those of its averages: see :mod:`sparsegnn.nn.copies`."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from sparsegnn import pattern as patterns
from sparsegnn.nn.copies import positions, unlink
from sparsegnn.nn.storage import resize_


def check_own(layer) -> None:
    """Raise unless the values of ``layer`` are a parameter of its own, which may move."""
    if "values" not in layer._parameters:
        raise RuntimeError(
            f"{type(layer).__name__}: values must be a parameter for the weights to move, got what is made at each "
            "call (nn.utils.prune, weight_norm, spectral_norm, a parametrization): remove that first"
        )


class Move:
    """A change of the positions of ``layer``, and the copies that take part in it; nothing happens before ``done``."""

    def __init__(self, layer):
        self.layer, self.along, self.others, self.moved = layer, [], [], []
        for copy in list(layer._copies or ()):
            link = copy._link
            if link is None or link.origin() is not layer or not _same_place(copy, layer):
                unlink(copy)
            elif link.average or (not _capturing(layer) and link.changed(copy) and _suspect(copy)):
                self.along.append(copy)
            else:
                self.others.append(copy)

    def by_source(self, source: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Values of the averages and what they will be; ``source`` says where each entry was, -1 for a new one."""
        return [(c.values, patterns.rearrange(c.values, source.to(c.values.device), 0)) for c in self.along]

    def by_position(self, crow: Tensor, col: Tensor, values: Tensor) -> None:
        """The layer will be at these positions, with these values, with which a new weight of an average begins."""
        if not self.along:
            return
        cols = self.layer.grid[1]
        new, old = patterns.flat(crow, col, cols), patterns.flat(*self.layer.pattern(), cols)
        at = torch.searchsorted(old, new).clamp_(max=old.numel() - 1)
        for c in self.along:
            kept = c.values.detach().view(old.numel(), -1).index_select(0, at.to(c.values.device))
            live, stays = values.detach().to(kept).view(kept.shape), (old[at] == new).to(kept.device)
            self.moved.append(torch.where(stays[:, None], kept, live).flatten())

    @torch.no_grad()
    def done(self) -> None:
        """The layer has moved: so do its averages."""
        for c, values in zip(self.along, self.moved, strict=False):
            if values.shape != c.values.shape:
                resize_(c.values, values.shape)
            c.values.copy_(values)
        for c in self.along:
            crow, col, *derived, _ = (t.to(c.crow.device, copy=True) for t in positions(self.layer))
            c._place(crow, col, tuple(derived))
            c._tag, c._link.source = self.layer._tag, positions(self.layer)
            c._link.remember(c)
        for c in self.others:
            c._link.behind = True
            self.layer._copies.discard(c)


def _same_place(copy, layer) -> bool:
    if copy._tag is layer._tag:
        return copy.values.numel() == layer.values.numel()
    mine, other = copy.pattern(), layer.pattern()
    same = all(a.shape == b.shape and torch.equal(a, b.to(a.device)) for a, b in zip(mine, other, strict=True))
    if not same and copy._link.average:
        raise RuntimeError(
            f"{type(layer).__name__}: an average of this layer must be at its positions, which load_state_dict() "
            "replaced in one of the two: load both, or make the average anew"
        )
    return same


def _suspect(copy) -> bool:
    warnings.warn(
        f"{type(copy).__name__}: a copy of this layer changes without a gradient, so it is taken for an average, and "
        "its weights move along with those of the layer; use AveragedModel or controller.move_along() to say so, "
        "load_state_dict() or reset_parameters() where it is something else",
        stacklevel=2,
    )
    copy._link.average, copy._link.source = True, positions(copy._link.origin())
    return True


def _capturing(layer) -> bool:
    return layer.values.is_cuda and torch.cuda.is_current_stream_capturing()
