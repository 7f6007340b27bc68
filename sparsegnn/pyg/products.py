"""Which convolutions of PyG are products with the adjacency: told by the code of their ``message``, not by a name.

A covered message is ``x_j`` or ``x_j`` times one weight per edge, in the ways that people write it, with PyG's own
aggregation and update behind it. Two functions are the same if their instructions are, so a convolution of the user's
counts as well, and one that overrides anything does not.
"""

from __future__ import annotations

import dis
import sys
from dataclasses import dataclass
from functools import cache

from sparsegnn.nn.convolution import Convolution

REDUCTIONS = {"SumAggregation": "sum", "MeanAggregation": "mean", "MaxAggregation": "max", "MinAggregation": "min"}


@dataclass(frozen=True)
class Product:
    """``message`` of a convolution: the arguments of ``propagate`` that it takes its features and weights from."""

    features: str
    weight: str | None = None
    optional: bool = True  # the weight may be None
    column: bool = True  # the weight may have any shape with one number per edge
    kind: str = "product"  # or "difference": (x_j - target_i) w, "gated": (target_i + gate_j) x_j
    target: str | None = None
    gate: str | None = None


@dataclass(frozen=True)
class Fused:
    """``message_and_aggregate`` of a convolution, for sparse matrices."""

    features: str
    pair: bool  # the features are those of a pair's first
    valued: bool  # the values of a SparseTensor count


# --- the messages that are covered; the names of parameters do not matter, but that of the features ends in _j ---


def _plain(self, x_j):
    return x_j


def _view(self, x_j, w):
    return w.view(-1, 1) * x_j


def _view_behind(self, x_j, w):
    return x_j * w.view(-1, 1)


def _unsqueezed(self, x_j, w):
    return w.unsqueeze(-1) * x_j


def _unsqueezed_behind(self, x_j, w):
    return x_j * w.unsqueeze(-1)


def _unsqueezed_at_1(self, x_j, w):
    return x_j * w.unsqueeze(1)


def _indexed(self, x_j, w):
    return w[:, None] * x_j


def _maybe(self, x_j, w):
    return x_j if w is None else w.view(-1, 1) * x_j


def _maybe_behind(self, x_j, w):
    return x_j if w is None else x_j * w.view(-1, 1)


def _maybe_unsqueezed(self, x_j, w):
    return x_j if w is None else w.unsqueeze(-1) * x_j


def _checked(self, x_j, w):
    if w is None:
        return x_j
    return w.view(-1, 1) * x_j


def _checked_behind(self, x_j, w):
    if w is None:
        return x_j
    return x_j * w.view(-1, 1)


def _instructions(function) -> tuple | None:
    """The code of a message with the names of its parameters replaced by what they are."""
    code = getattr(function, "__code__", None)
    if code is None or code.co_kwonlyargcount or code.co_flags & 0x0C or code.co_freevars:
        return None
    names = code.co_varnames[: code.co_argcount]
    roles = {name: "features" if name.endswith("_j") else "weight" if i else "self" for i, name in enumerate(names)}
    if not 2 <= len(names) <= 3 or sorted(roles.values()) != ["features", "self", "weight"][: len(names)]:
        return None

    def told(value):
        return tuple(map(told, value)) if isinstance(value, tuple) else roles.get(value, repr(value))

    skipped = ("RESUME", "NOP", "CACHE")
    return tuple((i.opname, told(i.argval)) for i in dis.get_instructions(code) if i.opname not in skipped)


@cache
def _templates() -> dict:
    views = (_view, _view_behind), (_maybe, _maybe_behind, _checked, _checked_behind)
    others = (_unsqueezed, _unsqueezed_behind, _unsqueezed_at_1, _indexed), (_maybe_unsqueezed,)
    found = {_instructions(_plain): (True, True)}
    for column, groups in ((True, views), (False, others)):
        for optional, functions in zip((False, True), groups, strict=True):
            found |= {_instructions(f): (optional, column) for f in functions}
    return found


@cache
def _by_code(function) -> Product | None:
    code = _instructions(function)
    if code is None or code not in _templates():
        return None
    optional, column = _templates()[code]
    names = function.__code__.co_varnames[1 : function.__code__.co_argcount]
    features = next(n for n in names if n.endswith("_j"))
    weight = next((n for n in names if n != features), None)
    if features in ("edge_index_j", "size_j") or weight in SPECIAL or (weight or "").endswith("_i"):
        return None
    return Product(features[:-2], weight, optional, column)


#: arguments that PyG makes itself
SPECIAL = ("edge_index", "adj_t", "size", "size_i", "edge_index_i", "ptr", "index", "dim_size")


def pyg():
    """``torch_geometric.nn`` if the program has imported it, as a model of its must, else None."""
    return sys.modules.get("torch_geometric.nn")


def is_pygs(module) -> bool:
    """Whether a module is a convolution of PyG, or of somebody's on its base: this library's own look like one."""
    known = pyg()
    return known is not None and isinstance(module, known.MessagePassing) and not isinstance(module, Convolution)


def product_of(conv) -> Product | None:
    """What ``conv.message`` is, or None."""
    message, nn = type(conv).message, pyg()
    if message is nn.RGCNConv.message:
        return Product("x")  # where no types of edges come with it
    if message is nn.LEConv.message:
        return Product("a", "edge_weight", kind="difference", target="b")
    if message is nn.ResGatedGraphConv.message:
        return Product("v", None, kind="gated", target="k", gate="q")
    return _by_code(message)


def fused_of(conv) -> Fused | None:
    """What ``conv.message_and_aggregate`` is, or None."""
    function, nn = type(conv).message_and_aggregate, pyg()
    known = ((nn.GCNConv, False, True), (nn.SAGEConv, True, False), (nn.RGCNConv, False, False),
             (nn.GraphConv, True, True), (nn.WLConvContinuous, True, True))  # fmt: skip
    for kind, pair, valued in known:
        if same(function, kind.message_and_aggregate):
            return Fused(function.__code__.co_varnames[2], pair, valued)
    return None


@cache
def same(one, other) -> bool:
    """Whether two functions do the same, as far as their code and the globals that it names say."""
    a, b = getattr(one, "__code__", None), other.__code__
    if one is other or a is None:
        return one is other

    def parts(code, function):
        doc = function.__doc__
        return code.co_code, code.co_names, [c for c in code.co_consts if c != doc], code.co_argcount, code.co_freevars

    if parts(a, one) != parts(b, other) or one.__defaults__ != other.__defaults__:
        return False
    here, there = one.__globals__, other.__globals__
    return all(here.get(name) is there.get(name) for name in a.co_names if name in here or name in there)


def reduction_of(conv) -> str | None:
    """How PyG's own aggregation reduces, or None where it does something else, or someone listens."""
    module = conv.aggr_module
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if type(module).__module__ != "torch_geometric.nn.aggr.basic" or any(getattr(module, h) for h in hooks):
        return None
    return None if "forward" in vars(module) else REDUCTIONS.get(type(module).__name__)
