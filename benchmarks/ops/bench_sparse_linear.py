"""A linear layer with sparse weights against dense torch.mm and torch.sparse, forward and both gradients."""

import torch

from sparsegnn import pattern

SHAPES = ((4096, 256, 256), (16384, 512, 512), (65536, 256, 256), (8192, 1024, 1024), (2708, 1433, 16))


def cases() -> list[dict]:
    """``step`` is "forward", or "all": y, dx and the gradient at the nonzeros, as three matmuls."""
    quick = [dict(n=4096, k=256, m=256, sparsity=0.9, step="all", quick=True)]
    grid = [
        dict(n=n, k=k, m=m, sparsity=sparsity, step=step)
        for n, k, m in SHAPES
        for sparsity in (0.5, 0.7, 0.9, 0.95, 0.98)
        for step in ("forward", "all")
    ]
    return quick + [c for c in grid if {**c, "quick": True} not in quick]


def inputs(case: dict):
    n, k, m = case["n"], case["k"], case["m"]
    g = torch.Generator().manual_seed(0)
    crow, col = pattern.random_pattern(m, k, sparsity=case["sparsity"], generator=g)
    weight = (crow, col, *pattern.transpose(crow, col, k))
    values = torch.randn(col.numel(), generator=g)
    return torch.randn(n, k, generator=g), torch.randn(n, m, generator=g), values, weight


def ours(case: dict):
    x, dy, values, weight = inputs(case)
    forward, backward = torch.ops.sparsegnn.sparse_linear, torch.ops.sparsegnn.sparse_linear_backward
    if case["step"] == "forward":
        return lambda: forward(x, values, None, *weight)
    return lambda: (forward(x, values, None, *weight), backward(dy, x, values, *weight, True, True, False))


def baselines(case: dict) -> dict:
    x, dy, values, (crow, col, *_) = inputs(case)
    csr = torch.sparse_csr_tensor(crow, col, values, (case["m"], case["k"]))
    dense = csr.to_dense()
    y, dx, dw = torch.empty_like(dy), torch.empty_like(x), torch.empty_like(dense)
    forward = {
        "torch.mm(out=)": lambda: torch.mm(x, dense.T, out=y),
        "torch.mm": lambda: torch.mm(x, dense.T),
        "torch.sparse CSR": lambda: torch.sparse.mm(csr, x.T),
    }
    if case["step"] == "forward":
        return forward
    return {
        "torch.mm(out=)": lambda: (
            torch.mm(x, dense.T, out=y),
            torch.mm(dy, dense, out=dx),
            torch.mm(dy.T, x, out=dw),
        ),
        "torch.mm": lambda: (torch.mm(x, dense.T), torch.mm(dy, dense), torch.mm(dy.T, x)),
    }


def work(case: dict) -> dict:
    """Compulsory traffic: every dense operand read once, every dense result written once."""
    n, k, m = case["n"], case["k"], case["m"]
    nnz = round(m * k * (1 - case["sparsity"]))
    if case["step"] == "forward":
        return dict(flop=2 * n * nnz, bytes=4 * n * (k + m) + 8 * nnz)
    return dict(flop=6 * n * nnz, bytes=4 * n * (3 * k + 2 * m) + 20 * nnz)
