"""What a graph layer keeps from one call to the next: whose graph it holds, and A x of a constant input."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from sparsegnn.graph import CSRGraph
from sparsegnn.graph_formats import outside_modes
from sparsegnn.nn.aggregate import needs_grad
from sparsegnn.ops._autograd import transformed


class Given:
    """The CSRGraph that a cached graph was made from, and its version then; a copy of it knows neither."""

    def __init__(self, graph: object):
        self.graph = graph if isinstance(graph, CSRGraph) else None
        self.version = None if self.graph is None else self.graph.version

    def fits(self, given: object) -> bool:
        """Whether what was made then may be used in a call with ``given``."""
        if self.version is None:
            return True
        return not isinstance(given, CSRGraph) if self.graph is None else self.graph.version == self.version

    def __reduce__(self):
        return _copied, (self.version is not None,)


def _copied(version: bool) -> Given:
    made = Given(None)
    made.version = -1 if version else None
    return made


class KeptAggregate:
    """A x of a constant input, from the second time on that the same tensor comes.

    The same: the same object, unchanged since (its version counter and address tell; writes through ``.data`` or numpy
    do not). Freed with the tensor. Not saved, and copies begin empty.
    """

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        self._x = self._state = self._ax = self._made = None

    def __call__(self, x: Tensor, graph: CSRGraph, make) -> Tensor | None:
        """``make()`` or what it returned before; None where ``x`` is new or is no constant."""
        val = graph.val
        if type(x) not in (Tensor, torch.nn.Parameter) or torch.compiler.is_compiling() or transformed():
            return None
        if needs_grad(x) or x.is_inference() or x.layout != torch.strided:
            return None
        if val is not None and val.requires_grad:
            return None
        device = x.device.type
        low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        state = (x._version, x.data_ptr(), id(graph), graph.version, low)
        if self._x is None or self._x() is not x or self._state != state:
            self._x, self._state, self._ax = weakref.ref(x, self._forget), state, None
            return None
        if self._ax is None or self._ax._version != self._made:  # a hook may have written to it
            self._ax = outside_modes(make)()
            self._made = self._ax._version
        return self._ax

    def _forget(self, gone) -> None:
        if gone is self._x:
            self.clear()

    def __reduce__(self):
        return KeptAggregate, ()
