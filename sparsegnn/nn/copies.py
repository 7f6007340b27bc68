"""Copies of a sparse layer: an average moves along with the weights that it averages, any other stays where it is.

Numbers of a copy mean something at its positions only. ``AveragedModel`` and hand-written averages mix them, slot by
slot, with those of a layer whose weights may have moved meanwhile. So a layer knows its copies, and when its weights
move it takes along those that average it: copies made by ``AveragedModel``, those that a controller was told of, and
those whose values changed though they never had a gradient. In an average a weight that is new begins with the value
of the layer. A copy that stays is refused where it is used after somebody wrote values of the new positions into it.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from sparsegnn.nn.fit import mark

POSITIONS = ("crow", "col", "ccol", "row", "perm", "shape")
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Link:
    """What a copy knows of the layer that it was made from."""

    def __init__(self, copy, origin, average: bool):
        self.origin, self.average, self.written, self.behind = weakref.ref(origin), average, False, False
        self.source = positions(origin) if average else None  # in place, they remain those of the origin
        self.remember(copy)
        if not average and copy.values.requires_grad:
            me = weakref.ref(copy)
            self.hook = copy.values.register_post_accumulate_grad_hook(lambda _: unlink(me()))

    def remember(self, copy) -> None:
        self.checksum, self.version = checksum(copy.values), copy.values._version
        self.places = positions(copy)
        self.ages = [t._version for t in self.places]

    def changed(self, copy) -> bool:
        """Whether somebody wrote to the values since they were copied. Waits for a GPU."""
        same_place = self.checksum.device == copy.values.device
        self.written = self.written or not same_place or not torch.equal(self.checksum, checksum(copy.values))
        return self.written


def link(copy, origin, average: bool) -> None:
    """Let ``origin`` know its ``copy``, which must have its positions."""
    unlink(copy)
    copy._tag, copy._link = origin._tag, Link(copy, origin, average)
    if origin._copies is None:
        origin._copies = weakref.WeakSet()
    origin._copies.add(copy)


def unlink(layer) -> None:
    """From now on the layer is nobody's copy."""
    if layer is not None and layer._link is not None:
        origin, layer._link = layer._link.origin(), None
        if origin is not None and origin._copies is not None:
            origin._copies.discard(layer)


@torch.no_grad()
def check(layer, values: bool = True) -> None:
    """Raise where the ``values`` of a copy are not of its positions; mend the positions of an average."""
    link = layer._link
    if any(t is not own for t, own in zip(positions(layer), link.places, strict=True)):
        return  # those of another layer, for one call (functional_call); or they are elsewhere between two (accelerate)
    if link.ages != [t._version for t in positions(layer)]:
        _mend(layer, link)
    if not link.behind or not values or torch._C._functorch.is_functorch_wrapped_tensor(layer.values):
        return
    if layer.values._version != link.version or (not layer.values.is_cuda and link.changed(layer)):
        if link.changed(layer) and not _renewed(layer, link):
            raise RuntimeError(
                f"{type(layer).__name__}: the values of this copy were overwritten after the weights of the layer that "
                "it was made from had moved, so they are of other positions: copy the model when averaging begins, "
                "pass the copy to controller.move_along(), or use AveragedModel or load_state_dict(); where the values "
                "are meant, use a copy.deepcopy() of this one"
            )
        link.version = layer.values._version


def _renewed(layer, known: Link) -> bool:
    """Whether somebody copied all of its origin into ``layer``, which is then a new copy."""
    origin = known.origin()
    pairs = () if origin is None else zip((layer.values, *positions(layer)), (origin.values, *positions(origin)))  # noqa: B905
    same = origin is not None and all(a.shape == b.shape and torch.equal(a, b.to(a.device)) for a, b in pairs)
    if same:
        link(layer, origin, False)
    return same


def _mend(layer, link: Link) -> None:
    mine, origin = positions(layer), link.origin()
    if link.average and (origin is None or origin._tag is layer._tag):
        torch._foreach_copy_(mine, link.source)
        mark(layer)
    elif origin is not None and origin._tag is layer._tag:
        if not all(torch.equal(t, s.to(t.device)) for t, s in zip(mine, positions(origin), strict=True)):
            raise RuntimeError(
                f"{type(layer).__name__}: the positions of this copy were overwritten (averaged integers?): average "
                "floating-point tensors alone, or use AveragedModel"
            )
    link.ages = [t._version for t in mine]


def loaded(layer) -> None:
    """A checkpoint was loaded into ``layer``, if it is a copy: its values are of its positions."""
    if (link := layer._link) is not None:
        link.behind = link.written = False
        link.remember(layer)
        if (origin := link.origin()) is not None:
            origin._copies.add(layer)


def moved(layer, before: bool) -> None:
    """``layer`` went to another device or type; ``before`` or after that."""
    if (link := layer._link) is not None and not layer.crow.is_meta and not layer.values.is_meta:
        link.changed(layer) if before else link.remember(layer)


def positions(layer) -> list[Tensor]:
    """All tensors that say where the weights are."""
    return [layer._buffers[name] for name in POSITIONS]


def checksum(values: Tensor) -> Tensor:
    """Changes with any bit, and where numbers change places."""
    bits = values.detach().contiguous().view(_BITS[values.element_size()]).long()
    return (bits * torch.arange(1, 2 * bits.numel(), 2, device=bits.device)).sum()
