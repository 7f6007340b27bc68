"""The CUDA dense_weight kernel under the emulator, against numpy."""

import numpy as np
import pytest

DEGREES = ([3, 0, 70, 1, 40, 0, 2], [0, 0], [1], [300])
BLOCKS = ((1, 1), (4, 1), (16, 16))


def pattern(csr, degrees, cols=400):
    """Columns without repetition."""
    g = csr(degrees, cols)
    columns = [np.sort(g.rng.permutation(cols)[:n]) for n in g.degrees]
    g.col = np.concatenate(columns).astype(np.int32)
    return g


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("degrees", DEGREES, ids=str)
def test_values(emulated, csr, dtype, degrees, block):
    g, (height, width) = pattern(csr, degrees), block
    values = dtype.pack(g.normal(g.edges, height, width))
    wanted = np.zeros((g.rows, g.cols, height, width), values.dtype)
    wanted[g.row_of, g.col] = values
    wanted = wanted.transpose(0, 2, 1, 3).reshape(g.rows * height, g.cols * width)
    dense = emulated.dense_weight(values.ravel(), g.crow, g.col, g.cols * width, height, width)
    np.testing.assert_array_equal(dense, wanted)
    back = emulated.dense_weight_values(wanted, g.crow, g.col, height, width)
    np.testing.assert_array_equal(back, values.ravel())


def test_entries_outside_the_matrix_are_left_out(emulated):
    crow, col = np.array([0, 3], np.int32), np.array([-1, 1, 4], np.int32)
    dense = emulated.dense_weight(np.array([1, 2, 3], np.float32), crow, col, 4, 1, 1)
    np.testing.assert_array_equal(dense, [[0, 2, 0, 0]])
    back = emulated.dense_weight_values(np.array([[5, 6, 7, 8]], np.float32), crow, col, 1, 1)
    np.testing.assert_array_equal(back, [0, 6, 0])
