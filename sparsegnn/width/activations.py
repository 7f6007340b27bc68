"""ReLUs between graph layers: where they are, how wide, and whether what reads them takes compressed rows."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from sparsegnn.nn import (
    APPNP,
    GATConv,
    GATv2Conv,
    GCN2Conv,
    GCNConv,
    GINConv,
    GraphConv,
    SAGEConv,
    SGConv,
    TAGConv,
)
from sparsegnn.width import rules
from sparsegnn.width.channels import Channels
from sparsegnn.width.layers import kind_of
from sparsegnn.width.trace import as_it_was, trace

RELUS = (F.relu, torch.relu)
TAKE_COMPRESSED = (GCNConv, SAGEConv, GINConv, SGConv, APPNP, GraphConv, TAGConv, GCN2Conv)


class Marked(nn.Module):
    """Stands for an activation while the model is traced."""


@dataclass
class Site:
    """An activation: attribute ``name`` of ``owner``, a ReLU module or function, or ``act`` of a GCNConv."""

    owner: nn.Module
    name: str
    width: int | None  # None where that is not known before a call
    compressed: bool  # whether graph layers alone read it, and take compressed rows


class Activations:
    """All ReLUs of ``model`` between two graph layers that can be replaced; ValueError where there is none."""

    def __init__(self, op: str, model: nn.Module):
        self.model = model
        places = [(owner, name) for owner in model.modules() for name in (*owner._modules, *vars(owner))
                  if type(getattr(owner, name)) is nn.ReLU or _is_function(owner, name)]  # fmt: skip
        calls: dict[tuple[int, str], list[torch.fx.Node]] = {}
        with as_it_was(model), _marked(places) as marks:
            model.eval()
            graph = trace(op, model, lambda m: isinstance(m, Marked) or is_graph_layer(m) or kind_of(m) is not None)
            self._modules = {n: model.get_submodule(n.target) for n in graph.nodes if n.op == "call_module"}
        before, behind = self._between(graph)
        for owner, name in places:
            mark = marks[id(owner), name]
            calls[id(owner), name] = [n for n, m in self._modules.items() if m is mark]
        for node, module in self._modules.items():
            if type(module) is GCNConv and module.act == "relu":
                calls.setdefault((id(module), "act"), []).append(node)
                places.append((module, "act"))
        self.sites: list[Site] = []
        for owner, name in dict.fromkeys(places):
            nodes = calls[id(owner), name]
            inner = [n in before and n in behind for n in nodes]
            if any(inner) and not all(inner):
                raise ValueError(f"{op}: model must have activations of their own between graph layers, got {name!r} "
                                 f"of {type(owner).__name__}, which is called elsewhere too")  # fmt: skip
            if nodes and all(inner):
                widths = {self._width(n if name == "act" else n.all_input_nodes[0]) for n in nodes} - {None}
                self.sites.append(Site(owner, name, min(widths, default=None), all(map(self._compressed, nodes))))
        stay = [n.name for n in graph.nodes if n in before and n in behind and rules.function_name(n) == "relu"]
        if not self.sites:
            raise ValueError(f"{op}: model must have a ReLU between graph layers that can be replaced (nn.ReLU, "
                             "act='relu', an attribute that is F.relu), got none")  # fmt: skip
        if stay:
            warnings.warn(f"{op}: ReLUs that forward() calls as functions stay: {', '.join(stay)}; make them nn.ReLU",
                          stacklevel=5)  # fmt: skip

    def _between(self, graph: torch.fx.Graph) -> tuple[set, set]:
        """Nodes that read what a graph layer made, or are one; and nodes that a later graph layer reads."""
        before, behind = set(), set()
        for node in graph.nodes:
            if is_graph_layer(self._modules.get(node)) or any(n in before for n in node.all_input_nodes):
                before.add(node)
        for node in reversed(graph.nodes):
            if any(u in behind or is_graph_layer(self._modules.get(u)) for u in node.users):
                behind.add(node)
        return before, behind

    def _width(self, node: torch.fx.Node) -> int | None:
        module = self._modules.get(node)
        if module is not None and (kind := kind_of(module)) is not None:
            return kind("", module, Channels()).out.numel()
        same = isinstance(module, (nn.Dropout, nn.LayerNorm, APPNP, Marked, *rules.ACTIVATIONS))
        name = rules.function_name(node) if module is None and node.op.startswith("call_") else ""
        if not same and name not in (*rules.ELEMENTWISE, *rules.ARITHMETIC, "dropout"):
            return None
        return next((w for n in node.all_input_nodes if (w := self._width(n)) is not None), None)

    def _compressed(self, node: torch.fx.Node) -> bool:
        """Whether all that reads a node is a graph layer of ours that takes compressed rows, maybe after dropout."""

        def takes(user: torch.fx.Node, source: torch.fx.Node) -> bool:
            module = self._modules.get(user)
            if type(module) in TAKE_COMPRESSED:
                return [n for n in user.all_input_nodes if n is source] == [source] and source in (
                    *user.args[:1], user.kwargs.get("x"))  # fmt: skip
            dropped = type(module) is nn.Dropout or (module is None and rules.function_name(user) == "dropout")
            return dropped and all(takes(u, user) for u in user.users)

        return bool(node.users) and all(takes(u, node) for u in node.users)


def is_graph_layer(module: nn.Module | None) -> bool:
    if isinstance(module, (*TAKE_COMPRESSED, GATConv, GATv2Conv)):
        return True
    pyg = sys.modules.get("torch_geometric.nn")
    return pyg is not None and isinstance(module, pyg.MessagePassing)


def _is_function(owner: nn.Module, name: str) -> bool:
    return name in vars(owner) and any(vars(owner)[name] is f for f in RELUS)


class _marked:
    """While this holds, marks stand in the place of activations; names of one module have one mark."""

    def __init__(self, places):
        self.places, self.before = places, []

    def __enter__(self) -> dict:
        marks, shared = {}, {}
        for owner, name in self.places:
            old = getattr(owner, name)
            mark = shared.setdefault(id(old), Marked()) if isinstance(old, nn.Module) else Marked()
            self.before.append((owner, dict(owner._modules)))
            if not isinstance(old, nn.Module):
                del vars(owner)[name]
            owner._modules[name] = marks[id(owner), name] = mark
        return marks

    def __exit__(self, *error) -> None:
        for owner, modules in reversed(self.before):  # as_it_was() puts functions back
            owner._modules.clear()
            owner._modules.update(modules)
