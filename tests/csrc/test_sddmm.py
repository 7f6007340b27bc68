"""The CUDA sddmm kernel under the emulator, against numpy in fp64."""

import numpy as np
import pytest

from .conftest import counts_loads

WIDTHS = [1, 2, 3, 4, 7, 8, 16, 24, 31, 32, 33, 64, 67, 130]


def expected(g, a, b, arg=None):
    product = a[g.row_of] * b[g.col]
    if arg is not None:
        product = np.where(arg[g.row_of] == np.arange(g.edges)[:, None], product, 0)
    return product.sum(1)


@pytest.mark.parametrize("width", [5, 32])
def test_values(emulated, graph, dtype, width):
    a, b = dtype.pack(graph.normal(graph.rows, width)), dtype.pack(graph.normal(graph.cols, width))
    out = emulated.sddmm(a, b, graph.crow, graph.col)
    dtype.close(out, expected(graph, dtype.unpack(a), dtype.unpack(b)))


@pytest.mark.parametrize("width", WIDTHS)
def test_odd_widths(emulated, csr, dtype, width):
    g = csr([3, 0, 70, 1, 40, 0, 2], 9, seed=width)
    a, b = dtype.pack(g.normal(g.rows, width)), dtype.pack(g.normal(g.cols, width))
    dtype.close(emulated.sddmm(a, b, g.crow, g.col), expected(g, dtype.unpack(a), dtype.unpack(b)))


def test_misaligned_rows_take_the_scalar_path(emulated, csr, dtype):
    g = csr([3, 0, 70, 1], 9)
    a, b = dtype.pack(g.normal(g.rows, 8)), dtype.pack(g.normal(g.cols, 8))
    emulated.set_misalignment(1)
    out = emulated.sddmm(a, b, g.crow, g.col)
    emulated.set_misalignment(0)
    dtype.close(out, expected(g, dtype.unpack(a), dtype.unpack(b)))


@pytest.mark.parametrize("width", [5, 16])
def test_gradient_of_edge_values_under_max(emulated, graph, dtype, width):
    a, b = dtype.pack(graph.normal(graph.rows, width)), dtype.pack(graph.normal(graph.cols, width))
    arg = emulated.spmm(b, graph.crow, graph.col, reduce="max")[1]
    out = emulated.sddmm(a, b, graph.crow, graph.col, arg)
    dtype.close(out, expected(graph, dtype.unpack(a), dtype.unpack(b), arg))


def test_zero_width(emulated, csr):
    g = csr([2, 0, 3], 4)
    empty = np.zeros((3, 0), np.float32), np.zeros((4, 0), np.float32)
    np.testing.assert_array_equal(emulated.sddmm(*empty, g.crow, g.col), np.zeros(5))


@counts_loads
def test_hub_is_shared_by_many_warps(emulated, csr):
    degrees = np.full(200, 4)
    degrees[60] = 10_000
    g = csr(degrees, 200)
    emulated.sddmm(g.normal(200, 128).astype(np.float32), g.normal(200, 128).astype(np.float32), g.crow, g.col)
    loads = emulated.take_warp_loads()
    assert loads.max() == 16 * 32 * 2 and loads.mean() > 0.95 * loads.max()  # equal work but for the last
