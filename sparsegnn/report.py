"""What a model consists of, what it computes, and what runs it: summary, flops, info. They return data and print it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

from sparsegnn import _console, _info, _native, policy
from sparsegnn.nn import GCN2Conv
from sparsegnn.nn import linear as _linear
from sparsegnn.nn import sparse_weight as _sparse_weight
from sparsegnn.nn.messages import wants_messages
from sparsegnn.pyg.products import is_pygs, pyg
from sparsegnn.pyg.route import OURS, route_of

#: the op that a layer of ours calls
OPS = {"SparseLinear": "sparse_linear", "GATConv": "gat", "GATv2Conv": "gatv2"}
OPS |= dict.fromkeys(("GCNConv", "GINConv", "TAGConv"), "spmm")


def summary(model: nn.Module, *, show: bool = True) -> list[dict]:
    """One row per module that owns parameters, or is a convolution of PyG, and a last row with the totals.

    Each row has
        layer           its name in the model, and ``type``, its class
        shape           [out, in] of its weight, or the shapes of its parameters
        sparsity        fraction of weights that do not exist, or None
        weights         number of parameters that it stores; a shared one counts where it comes first
        flops_per_row   floating-point operations of one forward pass per row of its input, or None
        bytes           of its parameters and buffers, index tensors included
        kernel          what multiplies: cpu/<instruction set>, cuda, reference (plain PyTorch), dense, or torch 2:4 for
                        torch's semi-structured product; followed by "(forced)" where :func:`sparsegnn.use_kernel` or
                        ``SPARSEGNN_KERNEL`` chose it. Of a convolution of PyG, what ran at its last call after
                        :func:`sparsegnn.accelerate`: a kernel, or "PyG" and why
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"summary: model must be an nn.Module, got {type(model).__name__}")
    seen: set[int] = set()
    rows = [
        _row(name or type(model).__name__, module, seen)
        for name, module in model.named_modules()
        if is_pygs(module) or any(True for _ in module.parameters(recurse=False))
    ]
    stored = sum(row["weights"] for row in rows)
    missing = sum(row.pop("missing") for row in rows)
    total = {
        "layer": "total",
        "type": type(model).__name__,
        "shape": None,
        "sparsity": missing / (stored + missing) if stored else None,
        "weights": stored,
        "flops_per_row": sum(row["flops_per_row"] or 0 for row in rows),
        "bytes": sum(row["bytes"] for row in rows),
        "kernel": "",
    }
    rows.append(total)
    if show:
        _print_table("sparsegnn summary", rows)
    return rows


def _row(name: str, module: nn.Module, seen: set[int]) -> dict:
    parameters = [p for p in module.parameters(recurse=False) if id(p) not in seen]
    seen.update(id(p) for p in parameters)
    known = [p for p in parameters if not is_lazy(p)]
    tensors = known + [b for b in module.buffers(recurse=False)]
    row = {
        "layer": name,
        "type": type(module).__name__,
        "shape": [list(p.shape) for p in known],
        "sparsity": None,
        "weights": sum(p.numel() for p in known),
        "flops_per_row": None,
        "bytes": sum(t.numel() * t.element_size() for t in tensors),
        "kernel": kernel(module),
        "missing": 0,
    }
    if isinstance(module, _sparse_weight.SparseWeight):
        size, kept = module.out_features * module.in_features, module.values.numel()
        row |= {"shape": [module.out_features, module.in_features], "sparsity": module.sparsity, "missing": size - kept}
        row["flops_per_row"] = 2 * (size if row["kernel"].startswith("dense") else kept)
    elif isinstance(module, GCN2Conv) and known:
        row |= {"sparsity": 0.0, "flops_per_row": 2 * row["weights"]}
    elif isinstance(module, _linears()) and not is_lazy(module.weight):
        row |= {"shape": list(module.weight.shape), "sparsity": 0.0, "flops_per_row": 2 * module.weight.numel()}
    return row


def _linears() -> tuple[type, ...]:
    return (nn.Linear,) if pyg() is None else (nn.Linear, pyg().Linear)


def _route(module: nn.Module) -> str:
    """What aggregates in a convolution of PyG."""
    route = route_of(module)
    if route is None:
        return "PyG"
    if route.last not in (OURS, None):
        return f"PyG: {route.last}"
    attention = {"GATConv": "gat", "GATv2Conv": "gatv2"}
    op = next((attention[t.__name__] for t in type(module).__mro__ if t.__name__ in attention), "spmm")
    ours = kernel_of(op, next((t.device.type for t in (*module.parameters(), *module.buffers())), "cpu"))
    return ours if route.last == OURS else f"{ours} (not run yet)"


def kernel(module: nn.Module) -> str:
    """What multiplies in ``module``: cpu/<instruction set>, cuda, reference, dense or torch 2:4, perhaps "(forced)"."""
    if is_pygs(module):
        return _route(module)
    if wants_messages(module):
        return "PyG: single messages"
    ours = (t.__name__ for t in type(module).__mro__ if t.__module__.startswith("sparsegnn."))
    op = next((OPS[name] for name in ours if name in OPS), None)
    if getattr(module, "block", (1, 1)) != (1, 1):
        op = "block_linear"
    sparse = isinstance(module, _linear.SparseLinear)
    if op is None or (sparse and module.kernel == "dense"):
        name = "dense"
    elif sparse and module.kernel == "2:4":
        name = "torch 2:4"
    else:
        name = kernel_of(op, next((t.device.type for t in (*module.parameters(), *module.buffers())), "cpu"))
    return f"{name} (forced)" if sparse and policy.forced() else name


def kernel_of(op: str, device: str) -> str:
    """What runs ``torch.ops.sparsegnn.<op>`` on a device."""
    if _native.reason(device) or not _native.has_kernel(op, device.upper()):
        return "reference"
    return f"cpu/{torch.ops.sparsegnn.isa()}" if device == "cpu" else device


def flops(model: nn.Module, *inputs, backward: bool = False, show: bool = True) -> dict:
    """Floating-point operations of ``model(*inputs)``, counted while it runs once.

    A multiplication and an addition are two. Counted are matrix products, dense or sparse, aggregation and attention;
    not counted are elementwise functions, and the gather and scatter of layers that are not ours.

    Args:
        backward: count the gradients of the parameters too; changes no ``.grad``.

    Returns:
        ``total``, ``operators`` (a number for each) and ``modules`` (the same for each module).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"flops: model must be an nn.Module, got {type(model).__name__}")
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        y = model(*inputs)
        leaves = [p for p in model.parameters() if p.requires_grad]
        if backward and leaves:
            torch.autograd.grad(y.sum(), leaves, allow_unused=True)
    counts = {m: {str(op): n for op, n in ops.items()} for m, ops in counter.get_flop_counts().items()}
    operators = counts.pop("Global", {})
    found = {"total": counter.get_total_flops(), "operators": operators, "modules": counts}
    if show:
        rows = [{"operator": op, "flops": n} for op, n in operators.items()]
        _print_table("sparsegnn flops", rows + [{"operator": "total", "flops": found["total"]}])
    return found


def info(*, show: bool = True) -> dict:
    """Versions, build flags, environment variables, libraries, and what runs every op on CPU and CUDA, and why."""
    content = _info.info()
    if show:
        _console.write(_info.plain_text(content) + "\n")
    return content


def _print_table(title: str, rows: Sequence[dict]) -> None:
    columns = list(rows[0])
    cells = [[_text(name, row[name]) for name in columns] for row in rows]
    numbers = [i for i, name in enumerate(columns) if isinstance(rows[-1][name], (int, float))]
    head = [name.replace("_", " ") for name in columns]
    _console.write(_console.table(title, cells, head, box="SIMPLE_HEAD", right=numbers))


def _text(name: str, value) -> str:
    if value is None:
        return "-"
    if name == "sparsity":
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
