"""What functions between layers do to channels: a column that is zero, or constant, before is what after?"""

from __future__ import annotations

import operator

import torch
from torch import nn
from torch.nn import functional as F

from sparsegnn import ops

#: functions of each entry alone, as torch, Tensor, F or modules have them
ELEMENTWISE = (
    "relu relu6 elu celu selu gelu silu mish tanh sigmoid logsigmoid softplus softsign tanhshrink hardtanh hardswish "
    "hardsigmoid hardshrink softshrink leaky_relu threshold abs square sqrt exp expm1 log1p sin cos neg clamp clip pow"
).split()
ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.LogSigmoid,
    nn.Softplus, nn.Softsign, nn.Tanhshrink, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink,
    nn.LeakyReLU, nn.Threshold,
)  # fmt: skip
SAME = ("contiguous", "clone", "detach", "to", "float", "double", "half", "bfloat16", "type", "cpu", "cuda")
#: the matrix before the features mixes rows
MATRIX = (operator.matmul, torch.matmul, torch.mm, torch.spmm, torch.sparse.mm, ops.spmm)
DROPOUT = (F.dropout, torch.dropout)
CAT = (torch.cat, torch.concat, torch.concatenate)
ARITHMETIC = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "truediv": operator.truediv, "div": operator.truediv,
    "iadd": operator.add, "isub": operator.sub, "imul": operator.mul, "rsub": lambda a, b: b - a,
}  # fmt: skip
REDUCE = ("sum", "mean", "amax", "amin")
#: attributes and methods that tell nothing of the columns
HARMLESS = ("device", "dtype", "layout", "is_cuda", "requires_grad", "ndim", "dim", "is_sparse")

_FUNCTIONS = {getattr(where, name): name for name in ELEMENTWISE for where in (torch, F) if hasattr(where, name)}
_ARITHMETIC = {getattr(operator, name): name for name in ARITHMETIC if hasattr(operator, name)}
_ARITHMETIC |= {torch.add: "add", torch.sub: "sub", torch.mul: "mul", torch.div: "div"}
_REDUCE = {getattr(torch, name): name for name in REDUCE}


def function_name(node: torch.fx.Node) -> str:
    """The name under which the rules know what a node calls, "" if they do not."""
    target = node.target
    if node.op == "call_method" and target in ("matmul", "mm"):
        return "matrix"
    if node.op == "call_method":
        return target.removesuffix("_") if not target.startswith("__") else ""
    if target in MATRIX:
        return "matrix"
    if target in DROPOUT:
        return "dropout"
    if target in CAT:
        return "cat"
    if target is operator.getitem:
        return "getitem"
    if getattr(target, "__name__", "").startswith("global_") and "torch_geometric" in getattr(target, "__module__", ""):
        return "rows"
    for known in (_FUNCTIONS, _ARITHMETIC, _REDUCE):
        if target in known:
            return known[target]
    return ""


def in_place(node: torch.fx.Node, module: nn.Module | None = None) -> bool:
    """Whether a call writes to its first argument."""
    if node.op == "call_module":
        return bool(getattr(module, "inplace", False))
    named = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.kwargs.get("inplace") is True or (named.endswith("_") and not named.endswith("__"))
