"""What a model does with its channels: a walk over its calls, in training and in evaluation."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from sparsegnn.nn import APPNP
from sparsegnn.width import rules
from sparsegnn.width.channels import Channels, Value, zero_or_unknown
from sparsegnn.width.layers import Layer, kind_of
from sparsegnn.width.trace import as_it_was, inside, trace

SCALAR = object()  # a tensor of one number
OUTPUT = "they are an output of the model"


class Flow:
    """The channels of ``model``, its ``layers`` by name, and which channels could go with nothing changed.

    With ``zeroed`` each channel is looked at as if all that makes it were zero: which are zero then, wherever they are
    read?
    """

    def __init__(self, op: str, model: nn.Module, example_inputs: tuple = (), zeroed: bool = False):
        model = inside(model)
        self.op, self.model, self.channels = op, model, Channels()
        self.layers: dict[str, Layer] = {}
        self.zeroed = zeroed
        self._foreign: set[int] = set()  # parameters that others than their layer use
        self._names = {id(module): name for name, module in model.named_modules()}
        with as_it_was(model), torch.no_grad():
            for training in (True, False):
                model.train(training)
                self._training = training
                self._walk(trace(op, model, lambda m: kind_of(m) is not None, example_inputs))
        self._pin_shared()

    def kept(self, last: bool = True) -> Tensor:
        """bool [channels]: those that must stay; with ``last``, at least one of each layer."""
        roots = self.channels.roots()
        kept = self.channels.pinned(roots)
        layers = list(self.layers.values())
        while True:
            before = kept.clone()
            for layer in layers:
                for product in layer.products:
                    needed = product.used(kept[roots[product.out]]) & ~product.harmless()
                    kept[roots[product.ins[needed]]] = True
                for ids, others in layer.needed:
                    if kept[roots[ids]].any():
                        kept[roots[ids[others]]] = True
            if torch.equal(before, kept):
                empty = next((x.out for x in layers if not kept[roots[x.out]].any()), None)
                if empty is None or not last:
                    return kept[roots]
                kept[roots[empty[0]]] = True

    def _pin_shared(self) -> None:
        """Parameters of several modules, or that are used outside of their layer, keep their size."""
        owners: dict[int, set[int]] = {}
        for module in self.model.modules():
            for p in module.parameters(recurse=False):
                owners.setdefault(id(p), set()).add(id(module))
        for name, layer in self.layers.items():
            mine = [id(p) for p in layer.module.parameters()]
            if any(p in self._foreign or len(owners[p]) > 1 for p in mine):
                for product in layer.products:
                    self.channels.pin(product.ins, f"{name!r} shares parameters")
                self.channels.pin(layer.out, f"{name!r} shares parameters")

    # --- the walk ---

    def _walk(self, graph: torch.fx.Graph) -> None:
        self._values: dict[torch.fx.Node, object] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                self._values[node] = None
            elif node.op == "get_attr":
                self._values[node] = self._attribute(node.target)
            elif node.op == "output":
                self._pin(node, OUTPUT)
            else:
                module = self.model.get_submodule(node.target) if node.op == "call_module" else None
                value = self._in_place(node, module)
                if value is None:
                    value = self._call_module(node, module) if module is not None else self._call(node)
                if value is NotImplemented:
                    what = f"{node.target!r} ({type(module).__name__})" if module is not None else f"{node.name}()"
                    self._pin(node, f"{what} may mix channels")
                    if module is not None:
                        self._foreign.update(id(p) for p in module.parameters())
                    value = None
                self._values[node] = value

    def _in_place(self, node: torch.fx.Node, module: nn.Module | None):
        """NotImplemented where others see what the call writes."""
        if rules.in_place(node, module) and node.args and isinstance(node.args[0], torch.fx.Node):
            return NotImplemented if len(node.args[0].users) > 1 else None
        return None

    def _attribute(self, target: str):
        found = self.model
        for part in target.split("."):
            found = getattr(found, part)
        if isinstance(found, Tensor):
            self._foreign.add(id(found))
            return SCALAR if found.numel() == 1 else None
        return None

    def _pin(self, node: torch.fx.Node, why: str) -> None:
        for used in node.all_input_nodes:
            if isinstance(value := self._values.get(used), Value):
                self.channels.pin(value.ids, why)

    def _call_module(self, node: torch.fx.Node, module: nn.Module):
        known = kind_of(module)
        if known is not None:
            return self._call_layer(node, module, known)
        if module._forward_hooks or module._forward_pre_hooks:
            return NotImplemented
        if type(module) is APPNP:  # its rows are sums of rows
            x = self._values.get(inspect.signature(module.forward).bind(*node.args, **node.kwargs).arguments["x"])
            return x.with_constant(zero_or_unknown(x.constant)) if isinstance(x, Value) else None
        arguments = [self._values.get(a) if isinstance(a, torch.fx.Node) else a for a in node.args]
        arguments += node.kwargs.values()
        if len(arguments) != 1 or not isinstance(arguments[0], Value):
            return NotImplemented if arguments else None
        x = arguments[0]
        if isinstance(module, nn.Identity):
            return x
        if type(module) is nn.Dropout:
            return self._dropout(x, module.p)
        if type(module) in rules.ACTIVATIONS:
            return x.with_constant(_elementwise(module, x.constant))
        return NotImplemented

    def _call_layer(self, node: torch.fx.Node, module: nn.Module, kind: type[Layer]):
        name = self._names[id(module)]
        if name not in self.layers:
            self.layers[name] = kind(name, module, self.channels)
        layer = self.layers[name]
        bound = inspect.signature(module.forward).bind(*node.args, **node.kwargs)
        first = next(iter(bound.arguments.values()))
        pair = first if isinstance(first, (tuple, list)) else (first, first)
        ports = [layer.ports[0], layer.ports[-1]] if layer.ports else []
        arrived = [self._arrive(name, x, port) for x, port in zip(pair, ports, strict=False)]
        constant = layer.zeroed(arrived, self._training) if self.zeroed else None
        return Value(layer.out, layer.constants(arrived, self._training) if constant is None else constant)

    def _arrive(self, name: str, x, port: Tensor) -> Tensor:
        """Tie what arrives to a port; its constants."""
        value = self._values.get(x) if isinstance(x, torch.fx.Node) else None
        if isinstance(value, Value) and value.ids.numel() == port.numel():
            self.channels.join(value.ids, port)
            return value.constant
        if isinstance(value, Value):
            self.channels.pin(value.ids, f"{name!r} reads another number of channels")
        if x is not None:
            self.channels.pin(port, f"{name!r} reads an input of the model, or what may mix channels")
        return torch.full((port.numel(),), float("nan"), dtype=torch.float64)

    def _call(self, node: torch.fx.Node):
        """The value of a function or method; NotImplemented where the rules do not know it."""
        name, args = rules.function_name(node), node.args
        values = [self._values.get(a) if isinstance(a, torch.fx.Node) else a for a in args]
        if name in rules.ARITHMETIC and len(values) == 2 and not node.kwargs:
            return self._arithmetic(rules.ARITHMETIC[name], *values)
        known = [n for n in node.all_input_nodes if isinstance(self._values.get(n), Value)]
        if not known:
            return None
        if name == "cat":
            return self._cat(node)
        x = self._values[known[0]]
        if len(known) > 1:
            return NotImplemented
        if name == "matrix" and len(values) > 1 and values[1] is x:
            return x.with_constant(zero_or_unknown(x.constant))
        if not values or values[0] is not x:
            return NotImplemented
        if name in rules.SAME:
            return x if name not in ("to", "type") else x.with_constant(zero_or_unknown(x.constant))
        if node.target is getattr or name in rules.HARMLESS or name == "size":
            return self._shape(node)
        if name == "dropout":
            return self._dropout(x, args[1] if len(args) > 1 else node.kwargs.get("p", 0.5))
        if name in ("getitem", "index_select", "rows"):
            at = args[1] if len(args) > 1 else None
            of_rows = {"rows": True, "index_select": at == 0}.get(name, at is not None and not isinstance(at, tuple))
            if not of_rows or x.flat:
                return NotImplemented
            return Value(x.ids, zero_or_unknown(x.constant), flat=isinstance(at, int) and name == "getitem")
        if name in rules.REDUCE:
            dim = args[1] if len(args) > 1 else node.kwargs.get("dim")
            if dim not in (0, (0,), [0]) or x.flat:
                return NotImplemented
            return Value(x.ids, zero_or_unknown(x.constant), flat=True)
        if name in rules.ELEMENTWISE and len(node.all_input_nodes) == 1:
            return x.with_constant(_elementwise(lambda c: _apply(node, c), x.constant))
        return NotImplemented

    def _arithmetic(self, function, a, b):
        values = [v for v in (a, b) if isinstance(v, Value)]
        if not values:
            scalar = SCALAR in (a, b) and all(v is SCALAR or isinstance(v, (int, float)) for v in (a, b))
            return SCALAR if scalar else None
        if any(v is None for v in (a, b)):  # a tensor of any shape
            return NotImplemented
        if len(values) == 2:
            if a.ids.numel() != b.ids.numel() or a.flat != b.flat:
                return NotImplemented
            self.channels.join(a.ids, b.ids)
        left, right = (_constant(v, values[0]) for v in (a, b))
        y = function(left, right)
        if function is rules.ARITHMETIC["mul"]:
            y = y.masked_fill((left == 0) | (right == 0), 0.0)
        return values[0].with_constant(y)

    def _cat(self, node: torch.fx.Node):
        tensors = node.args[0] if node.args else node.kwargs.get("tensors")
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        found = [self._values.get(t) if isinstance(t, torch.fx.Node) else None for t in tensors]
        if not all(isinstance(v, Value) and not v.flat for v in found):
            return NotImplemented
        if dim in (-1, 1):  # 1 of [N, width]: another rank shows where the result is read, by its width
            return Value(torch.cat([v.ids for v in found]), torch.cat([v.constant for v in found]))
        if dim != 0 or len({v.ids.numel() for v in found}) > 1:
            return NotImplemented
        for v in found[1:]:
            self.channels.join(found[0].ids, v.ids)
        constants = torch.stack([v.constant for v in found])
        return found[0].with_constant(constants[0].where((constants == constants[0]).all(0), float("nan")))

    def _dropout(self, x: Value, p):
        never = isinstance(p, (int, float)) and p == 0
        return x.with_constant(zero_or_unknown(x.constant)) if self._training and not never else x

    def _shape(self, node: torch.fx.Node):
        """None of what tells nothing of columns: a dtype, the number of rows."""
        name = node.args[1] if node.target is getattr else node.target
        if name in rules.HARMLESS:
            return None
        if name == "size" and len(node.args) > 1:
            return None if node.args[1] == 0 else NotImplemented
        rows = all(rules.function_name(u) == "getitem" and u.args[1] == 0 for u in node.users)
        return None if name in ("size", "shape") and rows else NotImplemented


def _constant(value, like: Value) -> Tensor:
    if isinstance(value, Value):
        return value.constant
    number = float("nan") if value is SCALAR else float(value)
    return torch.full_like(like.constant, number)


def _elementwise(function, constant: Tensor) -> Tensor:
    return function(constant.clone()).where(~constant.isnan(), float("nan"))


def _apply(node: torch.fx.Node, x: Tensor) -> Tensor:
    function = getattr(torch.Tensor, node.target) if node.op == "call_method" else node.target
    return function(x, *node.args[1:], **node.kwargs)
