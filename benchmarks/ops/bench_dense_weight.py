"""The matrix of a sparse weight and the gradient of its values, against PyTorch's indexing of a matrix of zeros."""

import torch

from sparsegnn import pattern


def cases() -> list[dict]:
    shapes = ((16, 1433), (256, 256), (1024, 1024))
    grid = [dict(m=m, k=k, sparsity=sparsity) for m, k in shapes for sparsity in (0.3, 0.9)]
    return [dict(grid[0], quick=True), *grid[1:]]


def inputs(case: dict):
    g = torch.Generator().manual_seed(0)
    crow, col = pattern.random_pattern(case["m"], case["k"], sparsity=case["sparsity"], generator=g)
    return crow, col, torch.randn(col.numel(), generator=g), torch.randn(case["m"], case["k"], generator=g)


def ours(case: dict):
    crow, col, values, ddense = inputs(case)
    fill, gather = torch.ops.sparsegnn.dense_weight, torch.ops.sparsegnn.dense_weight_values
    return lambda: (fill(values, crow, col, case["k"]), gather(ddense, crow, col))


def baselines(case: dict) -> dict:
    crow, col, values, ddense = inputs(case)
    m, k = case["m"], case["k"]
    flat = pattern.flat(crow, col, k)
    csr = torch.sparse_csr_tensor(crow, col, values, (m, k))
    return {
        "index_copy_, index_select": lambda: (
            torch.zeros(m * k).index_copy_(0, flat, values).view(m, k),
            ddense.flatten().index_select(0, flat),
        ),
        "sparse_csr.to_dense, index_select": lambda: (csr.to_dense(), ddense.flatten().index_select(0, flat)),
    }


def work(case: dict) -> dict:
    nnz, size = round(case["m"] * case["k"] * (1 - case["sparsity"])), case["m"] * case["k"]
    return dict(flop=0, bytes=16 * nnz + 4 * size + min(64 * nnz, 4 * size))
