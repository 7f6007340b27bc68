"""How a sparse layer that is made from the state of another learns of that one: see :mod:`sparsegnn.nn.copies`."""

from __future__ import annotations

import sys
import weakref

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from sparsegnn.nn.copies import link, positions


class Origin:
    """The layer whose state this is in: a deep copy of that state knows it, a pickled one does not."""

    def __init__(self, layer, average: bool = False):
        self.layer, self.average = weakref.ref(layer), average

    def __deepcopy__(self, memo) -> Origin:
        link = self.layer()._link
        model = link and link.average and memo.get(id(link.origin()))
        return Origin(model, True) if model is not None and model is not False else self  # both were copied together

    def __reduce__(self):
        return type(None), ()


def attach(layer) -> None:
    """Link a layer that was just made from the state of another to that one, if it is a deep copy."""
    origin, layer._link = layer._link, None
    model = None if origin is None else origin.layer()
    tensors = () if model is None else (*layer._parameters.values(), *positions(layer))
    plain = all(t is None or (type(t) in (Tensor, nn.Parameter) and _is_counted(t)) for t in tensors)
    if model is None or "values" not in layer._parameters or layer.values is model.values or not plain:
        layer._tag = object()
    else:
        link(layer, model, origin.average or _averaged())


def _averaged() -> bool:
    """Whether an AveragedModel is being made."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code is not AveragedModel.__init__.__code__:
        frame = frame.f_back
    return frame is not None


def _is_counted(t: Tensor) -> bool:
    return not t.is_meta and not t.is_inference()
