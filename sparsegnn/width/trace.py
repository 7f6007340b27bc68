"""The calls that a model makes, by torch.fx: layers whose channels are known are single nodes."""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
from collections.abc import Callable

import torch
from torch import nn

from sparsegnn import ops
from sparsegnn.nn import MaxK


class Tracer(torch.fx.Tracer):
    """Modules for which ``is_leaf`` holds stay one node, and so do those of a forward that cannot be traced."""

    def __init__(self, is_leaf: Callable[[nn.Module], bool]):
        super().__init__(autowrap_modules=(math, ops), autowrap_functions=_pools())
        self._is_leaf = is_leaf

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, MaxK) or self._is_leaf(module) or super().is_leaf_module(module, name)

    def call_module(self, module, forward, args, kwargs):
        last = next(iter(reversed(self.graph.nodes)), None)
        try:
            return super().call_module(module, forward, args, kwargs)
        except Exception:
            for node in reversed(self.graph.nodes):
                if node is last:
                    break
                self.graph.erase_node(node)
            return self.create_proxy("call_module", self.path_of_module(module), args, kwargs)


def trace(op: str, model: nn.Module, is_leaf: Callable, example_inputs: tuple = ()) -> torch.fx.Graph:
    """The graph of a model in its present mode; ValueError where its forward looks at data."""
    try:
        return Tracer(is_leaf).trace(model, concrete_args=_concrete(op, model, example_inputs))
    except Exception as e:
        raise ValueError(
            f"{op}: model must have a forward() that torch.fx can trace, got {type(model).__name__}: {e}; move what "
            "depends on data into a module of its own"
        ) from e


def inside(model: nn.Module) -> nn.Module:
    """The model without what data parallelism and torch.compile put around it."""
    while True:
        compiled = model._modules.get("_orig_mod")
        parallel = isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel))
        if compiled is None and not parallel:
            return model
        model = model.module if compiled is None else compiled


@contextlib.contextmanager
def as_it_was(model: nn.Module):
    """Whatever happens inside, the attributes of all modules are what they were, modes of training too."""
    before = [(module, dict(module.__dict__)) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)


def _concrete(op: str, model: nn.Module, example_inputs: tuple) -> dict:
    """Arguments that are no tensors: defaults of those that are not given, and numbers, flags and None."""
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind_partial(*example_inputs)
    except TypeError as e:
        raise ValueError(f"{op}: example_inputs must be what forward{signature} takes, got {e}") from e
    given, plain = bound.arguments, (bool, int, float, str, type(None))
    found = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = given.get(name, parameter.default)
        if value is not parameter.empty and isinstance(value, plain):
            found[name] = value
    return found


def _pools() -> tuple[Callable, ...]:
    """PyG's readouts, which look at the batch."""
    if "torch_geometric.nn" not in sys.modules:
        return ()
    pyg = sys.modules["torch_geometric.nn"]
    return pyg.global_add_pool, pyg.global_mean_pool, pyg.global_max_pool
