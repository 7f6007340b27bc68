"""PyG's layer of the same name as one of this library, on its parameters: made where single messages are wanted."""

from __future__ import annotations

import functools
import inspect
import sys
import types

import torch
from torch import Tensor, nn

from sparsegnn.graph import CSRGraph

#: arguments of PyG's layers that are told otherwise, or not: cached edges would be older than a change of the graph
_OTHERS = ("aggr", "bias", "nn", "eps", "theta", "layer", "cached", "self", "kwargs")
#: what a class of the user's keeps for itself
_LEFT = ("forward", "reset_parameters", "__init__", "__init_subclass__", "__dict__", "__weakref__", "__classcell__")
_PYGS: dict[type, type] = {}


def theirs(kind: type) -> type:
    """PyG's layer of the same name as the layer of this library that ``kind`` is or derives from."""
    ours = ours_of(kind)
    if ours not in _PYGS:
        known = sys.modules.get("torch_geometric.nn")
        if known is None:
            raise NotImplementedError(f"{kind.__name__}: the kernels make no single messages (hooks and methods of "
                                      "these, attention weights), PyG's layer does: import torch_geometric.nn first"
                                      )  # fmt: skip
        _PYGS[ours] = getattr(known, ours.__name__)
    return _PYGS[ours]


def known() -> bool:
    """Whether the program has imported PyG."""
    return "torch_geometric.nn" in sys.modules


def ours_of(kind: type) -> type:
    return next(k for k in kind.__mro__ if k.__module__.startswith("sparsegnn.nn."))


def above(kind: type) -> tuple[type, ...]:
    """The user's classes between ``kind`` and the layer of this library that it derives from."""
    return kind.__mro__[: kind.__mro__.index(ours_of(kind))]


def settings(kind: type) -> list[str]:
    """Arguments of PyG's layer that are attributes of both."""
    return [name for name in inspect.signature(kind.__init__).parameters if name not in _OTHERS]


def made_of(layer: nn.Module, parts: tuple[str, ...]) -> nn.Module:
    """PyG's layer, without parameters of its own; of the user's class, if that overrides one of ``parts``."""
    base = theirs(type(layer))
    arguments = {name: getattr(layer, name) for name in settings(base) if hasattr(layer, name)}
    wanted = inspect.signature(base.__init__).parameters
    arguments |= {"nn": nn.Identity()} if "nn" in wanted else {}
    if "shared_weights" in wanted:
        arguments["shared_weights"] = layer.weight2 is None
    kind = twin_of(type(layer), base) if overridden(type(layer), parts) else base
    with torch.device("meta"):
        return kind(**arguments, aggr=layer.aggr, flow=layer.flow)


def overridden(kind: type, parts: tuple[str, ...]) -> bool:
    return any(name in vars(k) for k in above(kind) for name in parts)


@functools.cache
def twin_of(kind: type, base: type) -> type:
    """PyG's class with the methods of the user's ``kind``."""
    made = base
    for k in reversed(above(kind)):
        names = {name: value for name, value in vars(k).items() if name not in _LEFT}
        made = type(k.__name__, (made,), names | {"__getattr__": _from_layer})
        for name, value in names.items():
            if isinstance(value, types.FunctionType):
                setattr(made, name, _moved(value, made))
    return made


def _moved(function, kind: type):
    """A method whose ``super()`` is that of ``kind``."""
    code = function.__code__
    if "__class__" not in code.co_freevars:
        return function
    cells = zip(code.co_freevars, function.__closure__, strict=True)
    cells = tuple(types.CellType(kind) if name == "__class__" else cell for name, cell in cells)
    moved = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, cells)
    return functools.update_wrapper(moved, function)


def _from_layer(self, name: str):
    """Attributes that the user's class has set."""
    try:
        return nn.Module.__getattr__(self, name)
    except AttributeError:
        layer = vars(self).get("layer")
        if layer is None or name.startswith("__"):
            raise
        return getattr(layer, name)


def edges_of(graph: CSRGraph) -> tuple[Tensor, Tensor | None]:
    """The edge list of a graph, int64 [2, E], in the order that its weights are given in; and its weights."""
    edges = torch.stack([graph.col.long(), graph.rows()])
    if graph.perm is None or graph.given != graph.num_edges:
        return edges, graph.val
    place = torch.empty_like(graph.perm, dtype=torch.long)
    place[graph.perm.long()] = torch.arange(graph.num_edges, device=graph.device)
    return edges[:, place], None if graph.val is None else graph.val[place]
