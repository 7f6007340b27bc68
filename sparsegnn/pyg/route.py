"""What an accelerated convolution is given: a ``forward`` and a ``propagate`` of its own, beside those of its class.

They are ordinary attributes of the instance, neither parameters nor modules: the class, ``state_dict``, ``repr`` and
hooks stay as they are, and copies and pickles carry them along.
"""

from __future__ import annotations

import torch

from sparsegnn.pyg import attention, layers
from sparsegnn.pyg.norms import with_memory
from sparsegnn.pyg.propagate import NotOurs, run

OURS = "ours"


class Forward:
    """``conv.forward``: PyG's, with a norm that is kept per graph; or the whole layer in another order."""

    def __init__(self, conv):
        self.conv = conv
        self.last = None  # OURS, or why PyG's own path ran; None before the first call

    @property
    def __wrapped__(self):
        """For whoever inspects the signature."""
        return type(self.conv).forward.__get__(self.conv)

    def __call__(self, *args, **kwargs):
        conv = self.conv
        forward = type(conv).forward
        if _traced():
            return forward(conv, *args, **kwargs)
        self._renew()
        layer = layers.of(forward) or attention.of(forward)
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

    def _renew(self) -> None:
        """An explainer, and a change of ``decomposed_layers``, leave PyG's ``propagate`` on the instance."""
        conv = self.conv
        own = vars(conv).get("propagate")
        if type(own) is Propagate:
            return
        if conv._explain or conv._decomposed_layers != 1:
            self.last = "explain" if conv._explain else "decomposed_layers"
        elif own is None or getattr(own, "__func__", None) in (type(conv)._jinja_propagate, type(conv)._orig_propagate):
            conv.propagate = Propagate(conv)
        else:
            self.last = "its own propagate"


class Propagate:
    """``conv.propagate``."""

    def __init__(self, conv):
        self.conv = conv

    @property
    def __wrapped__(self):
        return type(self.conv).propagate.__get__(self.conv)

    @property
    def __module__(self):  # PyG asks where a propagate comes from
        return type(self.conv).propagate.__module__

    def __call__(self, edge_index, *args, **kwargs):
        conv = self.conv
        if _traced() or args:
            return type(conv).propagate(conv, edge_index, *args, **kwargs)
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
        return type(conv).propagate(conv, edge_index, **kwargs)


def _traced() -> bool:
    """Whether the calls are recorded: then PyG's own path is."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def install(conv) -> None:
    conv.forward, conv.propagate = Forward(conv), Propagate(conv)


def remove(conv) -> None:
    for name, kind in (("forward", Forward), ("propagate", Propagate)):
        if type(vars(conv).get(name)) is kind:
            delattr(conv, name)


def route_of(module) -> Forward | None:
    found = vars(module).get("forward")
    return found if type(found) is Forward else None
