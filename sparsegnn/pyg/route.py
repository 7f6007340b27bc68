"""What an accelerated convolution is given: a ``forward`` and a ``propagate`` of its own, beside those of its class.

They are ordinary attributes of the instance, neither parameters nor modules: the class, ``state_dict``, ``repr`` and
hooks stay as they are, and copies and pickles carry them along.
"""

from __future__ import annotations

import types

import torch

from sparsegnn.pyg import layers
from sparsegnn.pyg.norms import with_memory
from sparsegnn.pyg.propagate import NotOurs, run

OURS = "ours"


class _Method:
    """A callable in the place of a method of ``conv``.

    To whoever reads code instead of calling it (inspection, TorchScript, torch.compile) it is the method of the class,
    as a mock is what it stands for: they record PyG's own path.
    """

    name = ""

    def __init__(self, conv):
        self.conv = conv

    @property
    def __class__(self):
        return types.MethodType

    @property
    def __wrapped__(self):
        return getattr(type(self.conv), self.name).__get__(self.conv)

    def __getattr__(self, name: str):
        if name == "conv" or name not in READ:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.__wrapped__, name)

    def __reduce__(self):
        return _made, (type(self),), vars(self)


READ = ("__func__", "__self__", "__code__", "__globals__", "__closure__", "__defaults__", "__kwdefaults__",
          "__name__", "__qualname__", "__annotations__")  # fmt: skip


def _made(kind: type) -> _Method:
    return object.__new__(kind)


class Forward(_Method):
    """``conv.forward``: PyG's, with a norm that is kept per graph; or the whole layer in another order."""

    name = "forward"

    def __init__(self, conv):
        super().__init__(conv)
        self.last = None  # OURS, or why PyG's own path ran; None before the first call

    def __call__(self, *args, **kwargs):
        conv = self.conv
        forward = type(conv).forward
        if _traced():
            return forward(conv, *args, **kwargs)
        layer = layers.of(type(conv)) if self._renew() else None
        why = None
        if layer is not None:
            try:
                y = layer(conv, *args, **kwargs)
            except NotOurs as refusal:
                why = str(refusal)
            else:
                self.last = OURS
                return y
        y = with_memory(forward)(conv, *args, **kwargs)
        if why is not None and self.last != OURS:
            self.last = why
        return y

    def _renew(self) -> bool:
        """Whether ``propagate`` is ours. An explainer, and a change of ``decomposed_layers``, leave PyG's on the
        instance, which goes when they are done."""
        conv = self.conv
        own = vars(conv).get("propagate")
        if type(own) is Propagate:
            return True
        if conv._explain or conv._decomposed_layers != 1:
            self.last = "explain" if conv._explain else "decomposed_layers"
        elif own is None or getattr(own, "__func__", None) in (type(conv)._jinja_propagate, type(conv)._orig_propagate):
            conv.propagate = Propagate(conv)
            return True
        else:
            self.last = "its own propagate"
        return False


class Propagate(_Method):
    """``conv.propagate``: the product with the adjacency, or PyG's own."""

    name = "propagate"

    def __call__(self, edge_index, *args, **kwargs):
        conv = self.conv
        if _traced() or args:
            return theirs(conv)(edge_index, *args, **kwargs)
        route = vars(conv).get("forward")
        try:
            y = run(conv, edge_index, kwargs.get("size"), kwargs)
        except NotOurs as why:
            if type(route) is Forward:
                route.last = str(why)
        else:
            if type(route) is Forward:
                route.last = OURS
            return y
        return theirs(conv)(edge_index, **kwargs)


class Replicate(_Method):
    """``conv._replicate_for_data_parallel``: a shallow copy whose calls are its own."""

    name = "_replicate_for_data_parallel"

    def __call__(self):
        replica = self.__wrapped__()
        install(replica)
        return replica


def theirs(conv):
    """The ``propagate`` that PyG would have on the instance."""
    whole = conv._explain or conv._decomposed_layers != 1
    return (type(conv)._orig_propagate if whole else type(conv).propagate).__get__(conv)


METHODS = (Forward, Propagate, Replicate)


def _traced() -> bool:
    """Whether the calls are recorded: then PyG's own path is."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def install(conv) -> None:
    for kind in METHODS:
        setattr(conv, kind.name, kind(conv))


def remove(conv) -> None:
    for kind in METHODS:
        if type(vars(conv).get(kind.name)) is kind:
            delattr(conv, kind.name)
            if kind is Propagate and (conv._explain or conv._decomposed_layers != 1):
                conv.propagate = theirs(conv)


def route_of(module) -> Forward | None:
    found = vars(module).get("forward")
    return found if type(found) is Forward and found.conv is module else None  # else it is a shallow copy's
