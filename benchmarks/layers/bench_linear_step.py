"""SparseLinear against nn.Linear as a user calls them: forward and backward through autograd, fresh outputs."""

import torch

from sparsegnn.nn import SparseLinear


def cases() -> list[dict]:
    return [dict(rows=4096, features=256, sparsity=0.9, quick=True)] + [
        dict(rows=rows, features=features, sparsity=sparsity)
        for rows, features in ((16384, 512), (65536, 256), (8192, 1024))
        for sparsity in (0.5, 0.9, 0.95)
    ]


def step(layer: torch.nn.Module, case: dict):
    g = torch.Generator().manual_seed(4)
    x = torch.randn(case["rows"], case["features"], generator=g).requires_grad_()
    dy = torch.randn(case["rows"], case["features"], generator=g)

    def run():
        x.grad = None
        layer.zero_grad()
        layer(x).backward(dy)

    return run


def ours(case: dict):
    return step(SparseLinear(case["features"], case["features"], sparsity=case["sparsity"]), case)


def baselines(case: dict) -> dict:
    return {"nn.Linear": step(torch.nn.Linear(case["features"], case["features"]), case)}


def work(case: dict) -> dict:
    n, k = case["rows"], case["features"]
    nnz = round(k * k * (1 - case["sparsity"]))
    return dict(flop=6 * n * nnz, bytes=20 * n * k + 20 * nnz)
