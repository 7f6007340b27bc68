"""A weight that is made for whoever reads ``layer.weight``, of which a write would reach no one."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsegnn.ops._autograd import transformed


class ReadOnlyWeight(Tensor):
    """A tensor whose values cannot be written; what is computed of it is an ordinary tensor."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        first = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(kwargs.get("out"), cls) or (isinstance(first, cls) and _writes(name)):
            refuse("SparseLinear", f"a call of {name.strip('_')} that writes to it", RuntimeError)
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **kwargs)
        return result.as_subclass(cls) if function in (DATA, Tensor.detach, torch.detach) else result


DATA = Tensor.data.__get__  # shares memory with it, as what detach makes


def _writes(name: str) -> bool:
    dunder = name.startswith("__") and name.endswith("__")
    return name in ("__setitem__", "__set__") or name.startswith("__i") and dunder and name not in READS or (
        name.endswith("_") and not dunder)  # fmt: skip


READS = ("__invert__", "__index__", "__int__", "__iter__")


def read_only(weight: Tensor) -> Tensor:
    traced = torch.compiler.is_compiling() or not isinstance(weight, Tensor) or transformed()
    return weight if traced else weight.as_subclass(ReadOnlyWeight)


def refuse(layer: str, got: str, error: type[Exception] = AttributeError):
    raise error(f"{layer}: weight must only be read, as it is made of the values each time, got {got}: write to "
                "values, or use set_pattern_() for other positions, or SparseLinear.from_dense()")  # fmt: skip
