"""One training step, operator by operator: floating-point operations and seconds of weights, aggregation and so on.

Operations are what ``torch.utils.flop_counter`` counts, by its registry of formulas, which has ours; beside them one
for each element that an elementwise operator writes (activation, dropout, loss, optimizer; reductions by what comes
out, foreach and fused operators by every tensor they write). Copies, fills, indexing and random numbers are none, nor
is what a kernel does at the end of a product (bias, ReLU, dropout).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from sparsegnn.nn.feature_structure import multiplies

PARTS = ("weights", "aggregation", "elementwise", "mask_updates")
#: our operators over the edges of a graph
AGGREGATION = ("spmm", "gat", "sddmm", "maxk_spmm", "csr_")
#: what layers that are not ours aggregate with
GATHERS = ("gather", "index_select", "index_add", "scatter", "segment_reduce", "embedding_dense_backward")
_FUSED = ("spmm_linear", "spmm_linear_backward")
_TAGS = {torch.Tag.pointwise, getattr(torch.Tag, "reduction", torch.Tag.pointwise)}
_ELEMENTWISE = (
    "native_dropout",
    "_log_softmax",
    "_softmax",
    "nll_loss",
    "cumsum",
    "dot",
    "_foreach_",
    "_fused_",
    "act_dropout",
)
_MOVES = ("clone", "copy_", "_foreach_copy_", "_foreach_zero_")
_COSTS_AT_UPDATES = ("sort", "topk", "kthvalue")
_HOOKS = ("before_step", "update", "after_step", "skipped", "arm")  # where a controller acts


class Meter(TorchDispatchMode):
    """Counts and times what runs within it, on a CPU by the clock around each operator, on a GPU by events."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter):
        super().__init__()
        self._clock = clock
        self.flops = dict.fromkeys(PARTS, 0)
        self.products = 0  # what torch.utils.flop_counter would say
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.operators = 0
        self._updating = False
        self._gpu = device if device.type == "cuda" else None
        self._events: list[tuple[list, torch.cuda.Event, torch.cuda.Event]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.OpOverload):
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if self._gpu is None:
            start = self._clock()
            out = func(*args, **kwargs)
            took = self._clock() - start
            self._spend(self._count(func, args, kwargs, out), took)
            return out
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        out = func(*args, **kwargs)
        end.record()
        self._events.append((self._count(func, args, kwargs, out), start, end))
        return out

    @contextmanager
    def controllers(self, controllers) -> Iterator[None]:
        """What these do belongs to the updates of masks."""
        before = [(c, name, vars(c).get(name)) for c in controllers for name in _HOOKS]
        try:
            for controller, name, _ in before:
                setattr(controller, name, self._watched(getattr(controller, name)))
            yield
        finally:
            for controller, name, own in before:
                if own is None:
                    delattr(controller, name)
                else:
                    setattr(controller, name, own)

    def finish(self) -> None:
        """Wait for the GPU and read its times."""
        for shares, start, end in self._events:
            end.synchronize()
            self._spend(shares, start.elapsed_time(end) / 1e3)
        self._events.clear()

    # --- inner works ---

    def _watched(self, function):
        def run(*args, **kwargs):
            outer, self._updating = self._updating, True
            try:
                return function(*args, **kwargs)
            finally:
                self._updating = outer

        return run

    def _spend(self, shares: list[tuple[str, float]], seconds: float) -> None:
        for part, share in shares:
            self.seconds[part] += seconds * share

    def _count(self, func, args, kwargs, out) -> list[tuple[str, float]]:
        """Add the operations of a call; returns its parts and their shares of its time."""
        self.operators += 1
        space, _, name = func._schema.name.partition("::") if hasattr(func, "_schema") else ("", "", str(func))
        formula = flop_registry.get(getattr(func, "_overloadpacket", None))
        product = formula(*args, **kwargs, out_val=out) if formula is not None else 0
        self.products += product
        part = self._part(space, name, args, formula is not None)
        if name in _FUSED and part != "mask_updates" and product:
            aggregation = _gathered(name, args)
            self.flops["aggregation"] += aggregation
            self.flops["weights"] += product - aggregation
            return [("aggregation", aggregation / product), ("weights", 1 - aggregation / product)]
        self.flops[part] += product or (_written(func, args, out) if self._costs(func, name) else 0)
        return [(part, 1.0)]

    def _part(self, space: str, name: str, args, is_product: bool) -> str:
        if self._updating:
            return "mask_updates"
        if space == "sparsegnn":
            if name.startswith(AGGREGATION):
                return "weights" if name == "spmm" and multiplies(args[1]) else "aggregation"
            return "elementwise" if name.startswith(("maxk", "act_dropout")) else "weights"
        if is_product:
            return "weights"
        return "aggregation" if name.startswith(GATHERS) else "elementwise"

    def _costs(self, func, name: str) -> bool:
        if name in _MOVES:
            return False
        if self._updating and name in _COSTS_AT_UPDATES:
            return True
        return (
            not _TAGS.isdisjoint(getattr(func, "tags", ()))
            or name.startswith(_ELEMENTWISE)
            or name.endswith(("_backward", "_backward_data"))
        )


def _gathered(name: str, args) -> int:
    """Of a fused operator, the operations over the edges."""
    if name == "spmm_linear":
        return 2 * args[2].numel() * args[0].size(1)
    dy, row, (need_dx, need_dvalues) = args[0], args[3], args[14:16]
    return 2 * row.numel() * dy.size(1) if need_dx or need_dvalues else 0


def _written(func, args, out) -> int:
    """Elements of floating point that a call writes, in place or not."""
    places = [i for i, a in enumerate(func._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
    written = [args[i] for i in places if i < len(args)] or out
    tensors = (t for t in tree_leaves(written) if isinstance(t, Tensor))
    return sum(t.numel() for t in tensors if t.is_floating_point() and t.layout == torch.strided)
