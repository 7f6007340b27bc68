"""Contenders that several groups share."""

from __future__ import annotations

from collections.abc import Callable

import torch


def linear_step(n: int, k: int, m: int, layer: torch.nn.Module) -> Callable:
    """Forward and backward of a layer on [n, k] through autograd, the gradient of its input included."""
    from sparsegnn import policy

    g = torch.Generator().manual_seed(4)
    x = torch.randn(n, k, generator=g).requires_grad_()
    dy = torch.randn(n, m, generator=g)

    def run():
        x.grad = None
        layer.zero_grad()
        layer(x).backward(dy)

    run.kernel = getattr(layer, "kernel", None)  # which one ran: a row of the table names it
    if run.kernel and policy.forced():
        run.kernel += " (forced)"
    return run


def sparseprop(step: Callable, k: int, m: int, sparsity: float) -> dict[str, Callable]:
    """SparseProp's linear layer, if it is installed (``SPARSEGNN_PEERS=build scripts/install_peers.sh``)."""
    try:
        from sparseprop.modules.linear import SparseLinear
    except ImportError:
        return {}
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(m, k, generator=g) * (torch.rand(m, k, generator=g) >= sparsity)
    return {"SparseProp": step(SparseLinear(weight, torch.nn.Parameter(torch.zeros(m))))}


def fan_in(bench, case: dict) -> Callable:
    """The contender of ``bench_sparse_linear`` with as many inputs for every output."""
    from sparsegnn import pattern

    x, dy, *_ = bench.inputs(case)
    m, k = case["m"], case["k"]
    crow, col = pattern.random_pattern(m, k, sparsity=case["sparsity"], kind="fan_in")
    weight, values = (crow, col, *pattern.transpose(crow, col, k)), torch.randn(col.numel())
    forward, backward = torch.ops.sparsegnn.sparse_linear, torch.ops.sparsegnn.sparse_linear_backward
    return lambda: (forward(x, values, None, *weight), backward(dy, x, values, *weight, True, True, False))
