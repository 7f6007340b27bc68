"""What a class of the user's puts in the place of PyG's methods: then what PyG does with it has to run."""

from __future__ import annotations

from functools import cache
from types import FunctionType

from sparsegnn.pyg.products import pyg

#: what changes no result, and what PyG writes anew for every class
_HARMLESS = ("__init__", "__repr__", "reset_parameters", "propagate", "collect", "edge_updater", "edge_collect")
#: what PyG's propagate gathers the arguments of messages with
_GATHER = ("_lift", "_collect", "_index_select", "_index_select_safe")


def is_layer(kind: type, layer: type) -> bool:
    """Whether ``kind``, without machinery of its own, computes as PyG's ``layer``: it has all of its methods."""
    return issubclass(kind, layer) and all(getattr(kind, name) is function for name, function in _methods(layer))


@cache
def _methods(layer: type) -> list[tuple[str, object]]:
    own = [(n, f) for n, f in vars(layer).items() if type(f) is FunctionType and n not in _HARMLESS]
    own = [(n, f) for n, f in own if not n.startswith(("_orig_", "_jinja_"))]
    base = pyg().MessagePassing
    return own + [(n, getattr(base, n)) for n in ("aggregate", "update") if n not in vars(layer)]


def own_machinery(kind: type) -> str | None:
    """The name of a method that calls messages, or gathers their arguments, if ``kind`` has one that is not PyG's."""
    base = pyg().MessagePassing
    classes = kind.__mro__[: kind.__mro__.index(base)]
    for name in ("propagate", "edge_updater"):
        for k in classes:
            found = vars(k).get(name)
            if found is not None and (found is not vars(k).get(f"_jinja_{name}") or found is vars(k)[f"_orig_{name}"]):
                return name
    return next((n for n in _GATHER if getattr(kind, n, None) is not getattr(base, n, None)), None)
