"""What PyG's tools see of a graph layer, where PyG is imported: a message-passing layer.

``isinstance(layer, torch_geometric.nn.MessagePassing)`` is true, so that ``to_hetero``, ``get_embeddings``, explainers,
``HeteroConv`` and whatever counts layers treat it as one of PyG's. An edge mask of an explainer acts. Methods and hooks
that are about single messages are those of PyG's layer: see :mod:`sparsegnn.nn.messages`.
"""

from __future__ import annotations

import copyreg
import sys
from functools import cache

from torch import nn

from sparsegnn.nn import messages
from sparsegnn.nn.pygs import known


def message_passing() -> type | None:
    """PyG's base class, where the program has imported it."""
    return getattr(sys.modules.get("torch_geometric.nn.conv.message_passing"), "MessagePassing", None)


@cache
def _both(kind: type, base: type) -> type:
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind, base), names)


class Method:
    """A method of PyG's layer: called, or replaced on an instance by one of another."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, layer, kind=None):
        if layer is None:
            return self
        if self.name in messages.HOOKS:
            return lambda *args, **kwargs: messages.of(layer).listen(self.name, *args, **kwargs)
        if not known():  # an error where it is called
            return lambda *args, **kwargs: messages.of(layer)
        return getattr(messages.of(layer).twin, self.name)

    def __set__(self, layer, value):
        messages.of(layer).replace(self.name, value)

    def __delete__(self, layer):
        messages.of(layer).restore(self.name)


class Recognised:
    """Base of a layer that is one of PyG's to ``isinstance``. Its type stays what it is."""

    def _seen(self) -> type:
        base, kind = message_passing(), type(self)
        return kind if base is None or issubclass(kind, base) else _both(kind, base)

    def _become(self, kind: type) -> None:
        object.__dict__["__class__"].__set__(self, kind)

    __class__ = property(_seen, _become)
    __setstate__ = nn.Module.__setstate__

    def __reduce_ex__(self, protocol: int):
        make, *rest = object.__reduce_ex__(self, max(protocol, 2))  # older ones ask __class__
        return (_new if make is copyreg.__newobj__ else make, *rest)


for _name in (*messages.METHODS, *messages.HOOKS):
    setattr(Recognised, _name, Method(_name))


def _new(kind: type, *args):
    return kind.__new__(kind, *args)
