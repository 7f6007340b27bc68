"""The CUDA block_linear kernels under the emulator, against dense products in fp64."""

import numpy as np
import pytest

BLOCKS = [(4, 1), (8, 1), (16, 1), (16, 16), (32, 32)]
SHAPES = [  # batch, blocks across, blocks down
    (0, 3, 2),
    (1, 1, 1),
    (5, 3, 0),
    (5, 0, 3),
    (130, 5, 3),
]


class Weight:
    """A random pattern over blocks, its transpose, and values."""

    def __init__(self, rows, cols, height, width, sparsity=0.5, seed=0):
        self.rng = np.random.default_rng(seed)
        mask = self.rng.random((rows, cols)) >= sparsity
        if rows > 1:
            mask[1] = False
        self.height, self.width, self.shape = height, width, (rows * height, cols * width)
        self.rows, col = np.nonzero(mask)
        self.crow = np.concatenate([[0], np.cumsum(mask.sum(1))]).astype(np.int32)
        self.col = col.astype(np.int32)
        self.perm = np.argsort(col, kind="stable").astype(np.int32)
        self.row = self.rows[self.perm].astype(np.int32)
        self.ccol = np.concatenate([[0], np.cumsum(mask.sum(0))]).astype(np.int32)

    def normal(self, *shape):
        return self.rng.standard_normal(shape)

    def index(self):
        """Row and column of every value."""
        i = self.rows[:, None, None] * self.height + np.arange(self.height)[None, :, None]
        j = self.col[:, None, None].astype(int) * self.width + np.arange(self.width)[None, None]
        return tuple(np.broadcast_arrays(i, j))

    def dense(self, values):
        w = np.zeros(self.shape)
        i, j = self.index()
        w[i, j] = values.reshape(i.shape)
        return w


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_both_gradients(emulated, dtype, shape, block):
    batch, cols, rows = shape
    w = Weight(rows, cols, *block)
    x, dy = dtype.pack(w.normal(batch, w.shape[1])), dtype.pack(w.normal(batch, w.shape[0]))
    values = dtype.pack(w.normal(len(w.col) * block[0] * block[1]))
    bias = w.normal(w.shape[0]).astype(dtype.accumulator)
    dense, wide, grad = w.dense(dtype.unpack(values)), dtype.unpack(x), dtype.unpack(dy)
    y = emulated.block_linear(x, values, bias, w.crow, w.col, None, *block, False)
    dtype.close(y, wide @ dense.T + bias)
    dx = emulated.block_linear(dy, values, None, w.ccol, w.row, w.perm, block[1], block[0], True)
    dtype.close(dx, grad @ dense)
    i, j = w.index()
    for span in (0, 32):
        partial = emulated.block_linear_dvalues(dy, x, w.crow, w.col, *block, span)
        assert partial.shape[0] == -(-batch // (span or 1024))
        got, want = partial.astype(np.float64).sum(0), (grad.T @ wide)[i, j].flatten()
        assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)


def test_many_columns(emulated, dtype):
    w = Weight(2, 100, 8, 1, sparsity=0.2)
    x, values = dtype.pack(w.normal(3, 100)), dtype.pack(w.normal(len(w.col) * 8))
    y = emulated.block_linear(x, values, None, w.crow, w.col, None, 8, 1, False)
    dtype.close(y, dtype.unpack(x) @ w.dense(dtype.unpack(values)).T)
