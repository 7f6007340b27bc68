"""Single messages of a graph layer, which the kernels never make: PyG's layer of that name makes them.

What listens to messages, or puts a method of its own in the place of one of PyG's, gets PyG's layer with the parameters
and settings of this library's: its methods and hooks are those, and as long as one of them is wanted a call is PyG's.
"""

from __future__ import annotations

import functools
import inspect

from torch import nn

from sparsegnn.graph import CSRGraph
from sparsegnn.nn.maxk import dense
from sparsegnn.nn.pygs import edges_of, made_of, overridden, settings, theirs

#: methods of PyG's MessagePassing, and the ways to listen to them
HOOKED = ("propagate", "message", "aggregate", "message_and_aggregate", "edge_update")
METHODS = (*HOOKED, "update", "edge_updater", "explain_message")
HOOKS = tuple(f"register_{name}_forward_{when}hook" for name in HOOKED for when in ("pre_", ""))
LISTENERS = tuple(f"_{name}_forward_{when}hooks" for name in HOOKED for when in ("pre_", ""))


def with_messages(forward):
    """``forward`` of a layer of this library, or PyG's as long as single messages are wanted."""

    @functools.wraps(forward)
    def call(self, *args, **kwargs):
        if wants_messages(self):
            return of(self).forward(*args, **kwargs)
        return forward(self, *args, **kwargs)

    return call


def wants_messages(module: nn.Module) -> bool:
    """Whether a call of ``module`` is PyG's, for single messages."""
    return "_messages" in vars(module) and of(module).wanted()


def begin(layer: nn.Module) -> None:
    """A class of the user's that overrides methods of messages has them from its first call on."""
    if overridden(type(layer), METHODS):
        of(layer)


def of(layer: nn.Module) -> Messages:
    found = vars(layer).get("_messages")
    if found is None or found.layer is not layer:  # else that of a shallow copy
        vars(layer)["_messages"] = Messages(layer, {} if found is None else found.wishes())
        return vars(layer)["_messages"]
    return found


class Messages:
    """PyG's layer for a ``layer`` of this library, made when it is first needed."""

    def __init__(self, layer: nn.Module, wishes: dict | None = None):
        theirs(type(layer))  # or it says what is missing
        self.layer, self._twin, self._always = layer, None, overridden(type(layer), METHODS)
        self._wishes = wishes or {}  # what listens, or replaces a method, from before the twin was made

    @property
    def twin(self) -> nn.Module:
        """PyG's layer as it has to be now: of the same parameters, settings and mode."""
        layer = self.layer
        if self._twin is None:
            self._twin = made_of(layer, METHODS)
            self._names = list(self._twin._parameters)
            vars(self._twin).update(self._wishes, layer=layer)
        twin, own = self._twin, vars(self._twin)
        there = layer._parameters | layer._modules
        own |= {name: vars(layer).get(name) for name in self._names if name not in there}  # None; tensors of a replica
        modules = {"aggr_module": twin._modules["aggr_module"]} | layer._modules
        own.update(_parameters=layer._parameters, _buffers=layer._buffers, _modules=modules, training=layer.training)
        own |= {name: getattr(layer, name) for name in ("_edge_mask", "_loop_mask", "_apply_sigmoid")}
        own |= {name: vars(layer)[name] for name in METHODS if name in vars(layer)}
        for name in (*settings(type(twin)), "flow", "fuse", "beta"):
            if name in vars(layer):
                setattr(twin, name, getattr(layer, name))
        for name in ("weight1", "weight2"):  # of GCN2Conv: a sparse one has the transpose
            if isinstance(layer._modules.get(name), nn.Module):
                own[name] = layer._modules[name].dense_weight().t()
        self._explain()
        return twin

    def _explain(self) -> None:
        layer, twin = self.layer, self._twin
        if layer.explain:
            twin.decomposed_layers = 1
            twin.explain = None  # what explains may be another than before
        twin.explain = layer.explain
        if not layer.explain:
            twin.decomposed_layers = layer.decomposed_layers

    def wanted(self) -> bool:
        """Whether somebody listens to messages, or has put a method of another in the place of PyG's."""
        return self._always or any(name != "explain_message" or self.layer.explain for name in self.wishes())

    def wishes(self) -> dict:
        """What listens, and what replaces a method."""
        if self._twin is None:
            return self._wishes
        own, kind = vars(self._twin), type(self._twin)
        pygs = (kind._jinja_propagate, kind._orig_propagate)  # what PyG itself puts there
        found = {name: own[name] for name in LISTENERS if own[name]}
        replaced = (name for name in METHODS if name in own and getattr(own[name], "__func__", None) not in pygs)
        return found | {name: own[name] for name in replaced}

    def __getstate__(self) -> dict:
        return vars(self) | {"_twin": None, "_wishes": self.wishes()}

    def forward(self, *args, **kwargs):
        """A call of the layer as PyG computes it; graphs and compressed features may be this library's."""
        twin, layer = self.twin, self.layer
        forward = theirs(type(layer)).forward
        signature = inspect.signature(forward)
        call = signature.bind(twin, *args, **kwargs).arguments
        graph = getattr(layer, "_cached_graph", None)
        graph = call["edge_index"] if graph is None else graph
        if isinstance(graph, CSRGraph):
            call["edge_index"], weight = edges_of(graph)
            told = {"edge_weight": weight, "size": graph.shape[::-1]}
            call |= {name: told[name] for name in told if name in signature.parameters and call.get(name) is None}
        x = call["x"]
        call["x"] = tuple(map(dense, x)) if isinstance(x, (tuple, list)) else dense(x)
        return layer._finished(forward(**call))

    def listen(self, name: str, hook):
        """``twin.<name>(hook)``, whose first argument is the layer of this library."""
        return getattr(self.twin, name)(Hook(self.layer, hook))

    def replace(self, name: str, value) -> None:
        vars(self.twin)[name] = value

    def restore(self, name: str) -> None:
        if name not in vars(self.twin):
            raise AttributeError(f"{type(self.layer).__name__}: {name} is not replaced")
        del vars(self.twin)[name]


class Hook:
    def __init__(self, layer: nn.Module, hook):
        self.layer, self.hook = layer, hook

    def __call__(self, twin, *args):
        return self.hook(self.layer, *args)
