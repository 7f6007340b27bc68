"""Arrays of more than 2^31 elements: every offset is 64-bit. Runs where 14 GiB of memory are free."""

from pathlib import Path

import pytest
import torch

from sparsegnn import CSRGraph, empty_cache
from sparsegnn.nn import SparseLinear
from sparsegnn.ops import spmm

ROWS, WIDTH = 2**21 + 3, 1024  # 4 GiB in bfloat16
SAMPLE = torch.tensor([0, 5, 2**20, 2**21 - 1, 2**21, ROWS - 1])  # both sides of element 2^31


def free_gib() -> float:
    try:
        line = next(t for t in Path("/proc/meminfo").read_text().splitlines() if t.startswith("MemAvailable"))
        return int(line.split()[1]) / 2**20
    except (OSError, StopIteration):
        return 0


pytestmark = [pytest.mark.deep, pytest.mark.skipif(free_gib() < 14, reason="needs 14 GiB of free memory")]


@pytest.fixture
def x():
    x = torch.zeros(ROWS, WIDTH, dtype=torch.bfloat16)
    x[SAMPLE] = torch.randn(len(SAMPLE), WIDTH).bfloat16()
    yield x
    empty_cache()


def close(actual, expected):
    assert (actual.double() - expected).norm() <= 1e-2 * expected.norm()


def test_sparse_linear(x):
    layer = SparseLinear(WIDTH, 8, sparsity=0.5, bias=False, dtype=torch.bfloat16)
    weight = layer.dense_weight().detach().double()
    x.requires_grad_()
    y = layer(x)
    close(y.detach()[SAMPLE], x.detach()[SAMPLE].double() @ weight.T)
    dy = torch.zeros(ROWS, 8, dtype=torch.bfloat16)
    dy[SAMPLE] = torch.randn(len(SAMPLE), 8).bfloat16()
    y.backward(dy)
    close(x.grad[SAMPLE], dy[SAMPLE].double() @ weight)
    assert x.grad[2**20 + 1 : 2**20 + 99].count_nonzero() == 0
    expected = dy[SAMPLE].double().T @ x.detach()[SAMPLE].double()
    close(layer.values.grad, expected[weight != 0])


@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_spmm_reads_past_two_to_the_31(x, reduce):
    target = torch.arange(len(SAMPLE)) % 3
    graph = CSRGraph.from_edge_index(torch.stack([SAMPLE, target]), (3, ROWS))
    y = spmm(graph, x, reduce=reduce)
    pairs = x[SAMPLE].double().view(2, 3, WIDTH)
    close(y, pairs.sum(0) if reduce == "sum" else pairs.amax(0))


def test_spmm_writes_past_two_to_the_31():
    x = torch.randn(2, WIDTH).bfloat16()
    graph = CSRGraph.from_edge_index(torch.stack([torch.arange(len(SAMPLE)) % 2, SAMPLE]), (ROWS, 2))
    y = spmm(graph, x)
    empty_cache()
    assert torch.equal(y[SAMPLE], x.repeat(3, 1))
    assert y[2**21 - 99 : 2**21 - 1].count_nonzero() == 0
