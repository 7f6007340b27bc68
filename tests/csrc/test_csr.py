"""The CUDA csr kernels under the emulator, against numpy."""

import numpy as np
import pytest

SHAPES = [(1, 1, 0), (0, 0, 0), (5, 4, 0), (1, 1, 50), (3, 70_000, 60), (300, 7, 9000), (17, 16, 4096), (20, 20, 4097)]


def edges(rows, cols, count, dtype=np.int64, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, max(rows, 1), count, dtype), rng.integers(0, max(cols, 1), count, dtype)


def offsets(keys, size):
    return np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=size))])[: size + 1]


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("rows, cols, count", SHAPES)
def test_from_edges(emulated, rows, cols, count, index):
    target, source = edges(rows, cols, count, index)
    crow, col, perm, bad = emulated.csr_from_edges(target, source, rows, cols)
    order = np.lexsort((np.arange(count), source, target))
    assert not bad
    np.testing.assert_array_equal(perm, order)
    np.testing.assert_array_equal(col, source[order])
    np.testing.assert_array_equal(crow, offsets(target, rows))


@pytest.mark.parametrize(
    "target, source", [([0, 3], [0, 0]), ([0, -1], [0, 0]), ([0, 0], [0, 5]), ([0, 0], [2**33, 0])]
)
def test_index_out_of_range_is_reported(emulated, target, source):
    crow, col, perm, bad = emulated.csr_from_edges(np.array(target), np.array(source), 3, 5)
    assert bad and crow[-1] == 2 and sorted(perm) == [0, 1]  # and nothing was read or written out of bounds


def test_transpose(emulated, graph):
    ccol, row, perm, bad = emulated.csr_transpose(graph.crow, graph.col, graph.cols)
    assert not bad
    np.testing.assert_array_equal(ccol, graph.ccol)
    np.testing.assert_array_equal(row, graph.row)
    np.testing.assert_array_equal(perm, graph.perm)


def test_degrees(emulated, graph, dtype):
    val = dtype.pack(graph.normal(graph.edges))
    out = emulated.csr_degrees(graph.crow, val)
    assert out.dtype == dtype.accumulator
    expected = np.zeros(graph.rows)
    np.add.at(expected, graph.row_of, dtype.unpack(val))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(emulated.csr_degrees(graph.crow, val, weighted=False), graph.degrees)
