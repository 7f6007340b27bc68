"""The first layer over bag-of-words features: X W^T with X 1 % dense, and the gradient of W, as a user calls it.

``sparsegnn`` gets X as ``torch.sparse_csr`` and has a dense weight; ``sparse weight`` is the same at 90 %. Against
``nn.Linear`` on dense features, and against torch's own CSR: its product forward, that with the transpose, made
beforehand, for the gradient. ``pass_`` forward leaves out the gradient. Cora's own features where the data is there.
"""

import functools

import torch

from sparsegnn.data import folders, load
from sparsegnn.nn import SparseLinear
from sparsegnn.nn.inner import Linear


def cases() -> list[dict]:
    shape = dict(rows=2708, features=1433, nonzero=0.0127)
    return [
        dict(data="cora", **shape, outputs=16, pass_="forward", quick=True),
        dict(data="cora", **shape, outputs=16, pass_="training"),
        dict(data="cora", **shape, outputs=64, pass_="forward"),
        dict(data="cora", **shape, outputs=64, pass_="training"),
    ]


@functools.lru_cache(maxsize=1)
def features(data: str, rows: int, columns: int, nonzero: float) -> torch.Tensor:
    """Dense features; random where the data set is not there."""
    if any((folder / f"{data}.npz").is_file() for folder in folders()):
        return load(data, normalize=False).x
    return (torch.rand(rows, columns, generator=torch.Generator().manual_seed(2)) < nonzero).float()


def inputs(case: dict):
    x = features(case["data"], case["rows"], case["features"], case["nonzero"])
    return x, torch.randn(case["rows"], case["outputs"], generator=torch.Generator().manual_seed(3))


def pass_of(layer: torch.nn.Module, x: torch.Tensor, dy: torch.Tensor, case: dict):
    def forward():
        with torch.no_grad():
            return layer(x)

    def training():
        layer.zero_grad()
        layer(x).backward(dy)

    return dict(forward=forward, training=training)[case["pass_"]]


def ours(case: dict):
    x, dy = inputs(case)
    return pass_of(Linear(case["features"], case["outputs"], bias=False), x.to_sparse_csr(), dy, case)


def baselines(case: dict) -> dict:
    x, dy = inputs(case)
    size = (case["features"], case["outputs"])
    weight_t, csr, csc = torch.randn(size), x.to_sparse_csr(), x.t().to_sparse_csr()

    @torch.no_grad()
    def torch_csr():
        y = csr @ weight_t
        return (y, csc @ dy) if case["pass_"] == "training" else y

    return {
        "sparse weight": pass_of(SparseLinear(*size, bias=False, sparsity=0.9), csr, dy, case),
        "torch CSR": torch_csr,
        "nn.Linear": pass_of(torch.nn.Linear(*size, bias=False), x, dy, case),
    }


def work(case: dict) -> dict:
    n, k, m = case["rows"], case["features"], case["outputs"]
    passes, nonzeros = 1 + (case["pass_"] == "training"), int(n * k * case["nonzero"])
    return dict(flop=2 * nonzeros * m * passes, bytes=(8 * nonzeros + 4 * (n + k) * m) * passes)
