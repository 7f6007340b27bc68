"""The input features of a training run: sparse where few are not zero, their dropout, their powers over the graph."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from sparsegnn.nn.aggregate import matrix, multiply
from sparsegnn.nn.functional import activation_dropout

#: Features with fewer nonzeros than this fraction are passed as a sparse matrix (bench_sparse_features.py)
SPARSE_FEATURES = 0.05


class FeatureDropout(nn.Module):
    """Dropout on a constant feature matrix [N, F]: as nn.Dropout, but work only where the features are not zero.

    Bag-of-words features are 1 % dense; dropping a zero changes nothing. The output is reused by the next call.
    ``torch.sparse_csr`` features stay so.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p
        self._source: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.layout == torch.sparse_csr:
            if self._source is not x:
                self._source, self._output = x, x.clone()
            self._output.values().copy_(activation_dropout(x.values(), p=self.p))
            return self._output
        if self._source is not x:
            at = torch.nonzero(x.reshape(-1)).view(-1)
            self._source, self._at = x, at if at.numel() < x.numel() // 8 else None
            self._values, self._output = (x.view(-1)[at], x.clone()) if self._at is not None else (None, None)
        if self._at is None:
            return activation_dropout(x, p=self.p)
        self._output.view(-1)[self._at] = activation_dropout(self._values, p=self.p)
        return self._output


def compressed(x: Tensor) -> Tensor:
    """``x`` [N, F] as the layers multiply it fastest: ``torch.sparse_csr`` where few are not 0, on the CPU.

    The kernels of aggregation multiply it then, and each nonzero by its row of the weight only.
    """
    if x.layout == torch.strided and (x.device.type != "cpu" or x.numel() == 0):
        return x
    count = x.values().numel() if x.layout == torch.sparse_csr else int(torch.count_nonzero(x))
    if count >= SPARSE_FEATURES * x.size(0) * x.size(1):
        return x.to_dense()
    if x.layout == torch.sparse_csr:
        return x
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse (CSR|invariant)")
        return x.to_sparse_csr()


def rows(x: Tensor, at: Tensor) -> Tensor:
    """The rows ``at`` [n] of ``x`` [N, F], which stays sparse if it is."""
    if x.layout != torch.sparse_csr:
        return x[at]
    crow, count = x.crow_indices(), x.crow_indices().diff()[at]
    starts = torch.repeat_interleave(crow[at] - (count.cumsum(0) - count), count)
    entries = starts + torch.arange(starts.numel(), device=starts.device)
    new = torch.cat([count.new_zeros(1), count.cumsum(0)])
    made = new, x.col_indices()[entries], x.values()[entries]
    return _csr(*made, (at.numel(), x.size(1)))


@torch.no_grad()
def powers(graph, x: Tensor, hops: int) -> list[Tensor]:
    """``[x, A x, ..., A^hops x]`` with the symmetric GCN norm, each as :func:`compressed` leaves it (SIGN)."""
    a = matrix(graph, torch.float32, explicit=True)

    def propagate(now: Tensor) -> Tensor:
        if now.layout == torch.sparse_csr:
            try:
                return _sorted(_csr(a.graph.crow, a.graph.col, a.val, a.graph.shape) @ now)
            except RuntimeError:  # a torch without MKL multiplies no two sparse matrices
                now = now.to_dense()
        return multiply(a, now)

    found = [compressed(x)]
    for _ in range(hops):
        found.append(compressed(propagate(found[-1])))
    return found


def _csr(crow: Tensor, col: Tensor, val: Tensor, shape) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse (CSR|invariant)")  # torch's: its layout is in beta
        return torch.sparse_csr_tensor(crow, col, val, tuple(shape), check_invariants=False)


def _sorted(x: Tensor) -> Tensor:
    """``x`` in CSR with columns ascending within rows, which a product of two sparse matrices has not."""
    crow, col = x.crow_indices(), x.col_indices().long()
    row = torch.repeat_interleave(torch.arange(x.size(0), device=col.device), crow.diff())
    order = torch.argsort(row * x.size(1) + col)
    return _csr(crow, col[order], x.values()[order], x.shape)
