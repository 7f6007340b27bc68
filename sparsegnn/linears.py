"""Which linear layers of a model can become sparse: those that are merely called; and why others cannot."""

from __future__ import annotations

import dis
import types
from dataclasses import dataclass
from functools import cache

from torch import nn
from torch.nn.parameter import is_lazy

from sparsegnn.nn import GCN2Conv, SparseLinear
from sparsegnn.nn.inner import Linear as InnerLinear
from sparsegnn.nn.sparse_weight import SparseWeight
from sparsegnn.pyg.products import is_pygs, pyg

#: modules that only hold others, so that the one around them calls
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
#: methods that prepare a layer or describe it, and compute nothing
ASIDE = ("__init__", "reset_parameters", "_reset_parameters", "__repr__", "extra_repr")


@dataclass(frozen=True)
class Dense:
    """A weight that stays dense."""

    name: str
    size: int
    reason: str


def linears(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that can become sparse, by the first of their names."""
    return {name: m for name, (m, reason) in _judged(model).items() if reason is None}


def staying_dense(model: nn.Module) -> list[Dense]:
    """The weight matrices that cannot become sparse: of other linear layers, and those that convolutions of PyG and
    torch's recurrent and attention layers hold."""
    found = [Dense(name, m.weight.numel(), reason) for name, (m, reason) in _judged(model).items()
             if reason is not None and not is_lazy(m.weight)]  # fmt: skip
    for name, module in model.named_modules():
        if is_pygs(module) or isinstance(module, HOLDERS):
            held = {n: p for n, p in module.named_parameters(recurse=False) if not is_lazy(p)}
            matrices = {
                n: p for n, p in held.items() if p.dim() > 1 and min(p.shape[-2:]) > 1 and n.startswith(WEIGHTS)
            }
            reason = f"{type(module).__name__} holds it itself"
            found += [Dense(f"{name}.{n}".lstrip("."), p.numel(), reason) for n, p in matrices.items()]
    return found


#: names of the matrices that convolutions hold; others are attention vectors and biases
WEIGHTS = ("weight", "init_weight", "root", "comp", "lin", "in_proj_weight")
#: modules of torch that hold matrices themselves
HOLDERS = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


def _judged(model: nn.Module) -> dict[str, tuple[nn.Module, str | None]]:
    """Every linear layer, by the first of its names, and why it cannot become sparse."""
    known = pyg()
    pyg_linear = () if known is None else (known.Linear,)
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[int, list] = {}
    for name, m in modules.items():
        if isinstance(m, (nn.Linear, *pyg_linear)) and not isinstance(m, SparseWeight):
            found.setdefault(id(m), [name, m, None])
            reason = _reason(modules, name, m, pyg_linear)
            found[id(m)][2] = found[id(m)][2] or reason
    return {name: (m, reason) for name, m, reason in found.values()}


def _reason(modules: dict, name: str, m: nn.Module, pyg_linear: tuple) -> str | None:
    kind, parent = type(m), _parent(modules, name)
    plain = kind in (nn.Linear, InnerLinear) or isinstance(m, nn.LazyLinear)
    forward = (nn.Linear.forward, InnerLinear.forward, *(k.forward for k in pyg_linear))
    if kind.forward not in forward or "forward" in vars(m):
        return f"{kind.__name__} has a forward of its own"
    if not plain and (m._modules or m._buffers or set(m._parameters) - {"weight", "bias"}):
        return f"{kind.__name__} holds more than a weight and a bias"
    convolution = is_pygs(parent)
    if parent is None or (plain and not convolution):
        return None
    if convolution and name.rpartition(".")[2] == "lin_edge":
        return "a few numbers for every edge, which attention folds into its scores"
    where = reads_weights(type(parent))
    return where and f"{where} uses its weight past the call"


def _parent(modules: dict, name: str) -> nn.Module | None:
    """The module that calls the layer ``name``."""
    while name:
        name = name.rpartition(".")[0]
        if not isinstance(modules[name], CONTAINERS):
            return modules[name]
    return None


@cache
def reads_weights(kind: type) -> str | None:
    """A method of a class of modules that reads the weight or bias of another module, if there is one."""
    known = pyg()
    bases = (nn.Module, object, *CONTAINERS, *(() if known is None else (known.MessagePassing,)))
    for cls in (c for c in kind.__mro__ if c not in bases):
        for name, member in vars(cls).items():
            function = member.fget if isinstance(member, property) else member
            if name not in ASIDE and isinstance(function, types.FunctionType) and _reads(function.__code__):
                return f"{cls.__name__}.{name}"
    return None


def _reads(code: types.CodeType) -> bool:
    before = None
    for i in dis.get_instructions(code):
        if i.opname in ("CACHE", "PRECALL"):
            continue
        if i.opname in ("LOAD_ATTR", "LOAD_METHOD") and i.argval in ("weight", "bias") and before != "self":
            return True
        before = i.argval
    return any(_reads(inner) for inner in code.co_consts if isinstance(inner, types.CodeType))


def sparse_of(linear: nn.Module, **options) -> SparseLinear:
    """A sparse layer that remembers what it was."""
    layer = SparseLinear.from_dense(linear, **options)
    if type(linear) not in (nn.Linear, InnerLinear) and not isinstance(linear, nn.LazyLinear):
        layer.dense_kind = type(linear), {k: v for k, v in vars(linear).items() if not k.startswith("_")}
    return layer


def dense_of(parent: nn.Module, layer: SparseLinear) -> nn.Module | nn.Parameter:
    """A dense copy of the class that the layer had, or that ``parent`` is made with."""
    if isinstance(parent, GCN2Conv):
        weight = layer.to_dense().weight
        return nn.Parameter(weight.detach().t().contiguous(), requires_grad=weight.requires_grad)
    dense, (kind, settings) = layer.to_dense(), getattr(layer, "dense_kind", (None, None))
    if kind is None and is_pygs(parent):
        kind, settings = pyg().Linear, dict(in_channels=layer.in_features, out_channels=layer.out_features,
                                            weight_initializer="glorot", bias_initializer=None)  # fmt: skip
    if kind is not None:
        other = kind.__new__(kind)
        nn.Module.__init__(other)
        vars(other).update(settings)
    elif type(parent).__module__.startswith("sparsegnn.nn."):
        other = nn.utils.skip_init(InnerLinear, layer.in_features, layer.out_features, dense.bias is not None)
    else:
        return dense
    other.weight, other.bias = dense.weight, dense.bias
    return other.train(dense.training)
