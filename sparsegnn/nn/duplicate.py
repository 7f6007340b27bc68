"""How a sparse layer that is made from the state of another learns of that one: see :mod:`sparsegnn.nn.copies`."""

from __future__ import annotations

import sys
import weakref

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from sparsegnn.nn.copies import link, positions


class Origin:
    """Stands in the state of a layer for what it was made from: that layer, or, if it is an average, the averaged one.

    What is copied or pickled together with its average goes on together. A plain copy that is pickled is nobody's.
    """

    def __init__(self, layer, average: bool = False):
        self.layer, self.average = weakref.ref(layer), average
        self.made, self.averages = None, []  # of that state; copies of averages of ``layer``, made before its own copy

    def __deepcopy__(self, memo) -> Origin:
        layer, waiting = self.layer(), memo.setdefault("sparsegnn averages", {})
        if (averaged := _averaged_by(layer)) is None:
            mine = Origin(layer)
            mine.averages = waiting.setdefault(id(layer), [])
        elif id(averaged) in memo:
            mine = Origin(memo[id(averaged)], True)
        else:
            mine = Origin(averaged)
            waiting.setdefault(id(averaged), []).append(mine)
        return mine

    def __reduce__(self):
        averaged = _averaged_by(self.layer())
        return (type(None), ()) if averaged is None else (Origin, (averaged, True))


def attach(layer) -> None:
    """Link a layer that was just made from the state of another to that one, if it is a copy."""
    origin, layer._link = layer._link, None
    model = None if origin is None else origin.layer()
    tensors = () if model is None else (*layer._parameters.values(), *positions(layer))
    plain = all(t is None or (type(t) in (Tensor, nn.Parameter) and _is_counted(t)) for t in tensors)
    if model is None or "values" not in layer._parameters or layer.values is model.values or not plain:
        layer._tag = object()
        return
    link(layer, model, origin.average or _is_average_made())
    origin.made = weakref.ref(layer)
    for other in origin.averages:
        if other.made is not None and other.made() is not None:
            link(other.made(), layer, True)


def _averaged_by(layer):
    """The layer of which ``layer`` is an average, None if it is none."""
    return layer._link.origin() if layer._link is not None and layer._link.average else None


def _is_average_made() -> bool:
    """Whether an AveragedModel is being made."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code is not AveragedModel.__init__.__code__:
        frame = frame.f_back
    return frame is not None


def _is_counted(t: Tensor) -> bool:
    return not t.is_meta and not t.is_inference()
