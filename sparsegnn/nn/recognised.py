"""What PyG's tools see of a graph layer, where PyG is imported: a message-passing layer, without messages.

``isinstance(layer, torch_geometric.nn.MessagePassing)`` is true, so that ``to_hetero``, ``get_embeddings``, explainers,
``HeteroConv`` and whatever counts layers treat it as one of PyG's. An edge mask of an explainer acts. Methods and hooks
that are about single messages raise.
"""

from __future__ import annotations

import copyreg
import sys
from functools import cache

from torch import nn

#: methods of PyG's MessagePassing that the kernels do not call, and that nothing may replace unnoticed
PARTS = ("message", "aggregate", "message_and_aggregate", "update", "edge_update")
ABOUT_MESSAGES = (*PARTS, "propagate", "edge_updater", "explain_message")
HOOKED = ("propagate", "message", "aggregate", "message_and_aggregate", "edge_update")
HOOKS = tuple(f"register_{name}_forward_{when}hook" for name in HOOKED for when in ("pre_", ""))


def message_passing() -> type | None:
    """PyG's base class, where the program has imported it."""
    return getattr(sys.modules.get("torch_geometric.nn.conv.message_passing"), "MessagePassing", None)


@cache
def _both(kind: type, base: type) -> type:
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind, base), names)


class Refused:
    """A method that a layer cannot have: raises where it is called, or where one of another is put in its place."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, layer, kind=None):
        return self if layer is None else lambda *args, **kwargs: self.__set__(layer, None)

    def __set__(self, layer, value):
        kind = type(layer).__name__
        raise NotImplementedError(
            f"{kind}: {self.name} is about single messages, which the kernels never make: use PyG's layer "
            f"(torch_geometric.nn.{kind}) with sparsegnn.accelerate, which takes PyG's path where that is needed"
        )


class Recognised:
    """Base of a layer that is one of PyG's to ``isinstance``. Its type stays what it is."""

    def _seen(self) -> type:
        base, kind = message_passing(), type(self)
        return kind if base is None or issubclass(kind, base) else _both(kind, base)

    def _become(self, kind: type) -> None:
        object.__dict__["__class__"].__set__(self, kind)

    __class__ = property(_seen, _become)
    __repr__ = nn.Module.__repr__  # where torch has put PyG's class among the bases, as for a parametrization
    __setstate__ = nn.Module.__setstate__

    def __reduce_ex__(self, protocol: int):
        make, *rest = object.__reduce_ex__(self, max(protocol, 2))  # older ones ask __class__
        return (_new if make is copyreg.__newobj__ else make, *rest)


for _name in (*ABOUT_MESSAGES, *HOOKS):
    setattr(Recognised, _name, Refused(_name))


def _new(kind: type, *args):
    return kind.__new__(kind, *args)
