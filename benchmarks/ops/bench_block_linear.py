"""A linear layer made of dense blocks against dense torch.mm, and against our own unstructured weights as sparse."""

import torch

from sparsegnn import pattern

SHAPES = ((4096, 256, 256), (16384, 512, 512), (65536, 256, 256), (8192, 1024, 1024))
BLOCKS = ((8, 1), (16, 16), (32, 32))


def cases() -> list[dict]:
    """``step`` is "forward", or "all": y, dx and the gradient of the blocks, as three matmuls."""
    quick = [dict(n=4096, k=256, m=256, sparsity=0.9, block=f"{h}x{w}", step="all", quick=True) for h, w in BLOCKS]
    grid = [
        dict(n=n, k=k, m=m, sparsity=sparsity, block=f"{h}x{w}", step=step)
        for n, k, m in SHAPES
        for sparsity in (0.5, 0.7, 0.9, 0.95)
        for h, w in BLOCKS
        for step in ("forward", "all")
    ]
    return quick + [c for c in grid if {**c, "quick": True} not in quick]


def inputs(case: dict, height: int, width: int):
    n, k, m = case["n"], case["k"], case["m"]
    g = torch.Generator().manual_seed(0)
    crow, col = pattern.random_pattern(m // height, k // width, sparsity=case["sparsity"], generator=g)
    weight = (crow, col, *pattern.transpose(crow, col, k // width))
    values = torch.randn(col.numel() * height * width, generator=g)
    return torch.randn(n, k, generator=g), torch.randn(n, m, generator=g), values, weight


def ours(case: dict):
    block = tuple(map(int, case["block"].split("x")))
    x, dy, values, weight = inputs(case, *block)
    forward, backward = torch.ops.sparsegnn.block_linear, torch.ops.sparsegnn.block_linear_backward
    if case["step"] == "forward":
        return lambda: forward(x, values, None, *weight, *block)
    return lambda: (
        forward(x, values, None, *weight, *block),
        backward(dy, x, values, *weight, *block, True, True, False),
    )


def baselines(case: dict) -> dict:
    x, dy, values, weight = inputs(case, 1, 1)
    dense = torch.randn(case["m"], case["k"])
    y, dx, dw = torch.empty_like(dy), torch.empty_like(x), torch.empty_like(dense)
    forward, backward = torch.ops.sparsegnn.sparse_linear, torch.ops.sparsegnn.sparse_linear_backward
    if case["step"] == "forward":
        return {
            "torch.mm(out=)": lambda: torch.mm(x, dense.T, out=y),
            "unstructured": lambda: forward(x, values, None, *weight),
        }
    return {
        "torch.mm(out=)": lambda: (
            torch.mm(x, dense.T, out=y),
            torch.mm(dy, dense, out=dx),
            torch.mm(dy.T, x, out=dw),
        ),
        "unstructured": lambda: (
            forward(x, values, None, *weight),
            backward(dy, x, values, *weight, True, True, False),
        ),
    }


def work(case: dict) -> dict:
    """Compulsory traffic: every dense operand read once, every dense result written once."""
    n, k, m = case["n"], case["k"], case["m"]
    nnz = round(m * k * (1 - case["sparsity"]))
    if case["step"] == "forward":
        return dict(flop=2 * n * nnz, bytes=4 * n * (k + m) + 4 * nnz)
    return dict(flop=6 * n * nnz, bytes=4 * n * (3 * k + 2 * m) + 12 * nnz)
