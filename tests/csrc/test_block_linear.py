"""The CUDA block_linear kernels under the emulator, against dense products in fp64."""

import numpy as np
import pytest

from .conftest import Dtype

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


def relative(got, want):
    assert got.shape == want.shape
    assert np.isfinite(got).all(), "unwritten or not finite"
    return np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-300)


def tolerance(dtype, tf32):
    """Of results in fp32 or fp64, and of those that are rounded to the dtype."""
    return 2e-3 if tf32 else max(1e-5, dtype.tolerance)


def check(emulated, dtype, w, batch, tf32=False, plan=None, chunk=None, values_plan=None):
    """y, dx and the partial sums of dvalues, against dense products in fp64."""
    block = w.height, w.width
    x, dy = dtype.pack(w.normal(batch, w.shape[1])), dtype.pack(w.normal(batch, w.shape[0]))
    values = dtype.pack(w.normal(len(w.col) * block[0] * block[1]))
    bias = w.normal(w.shape[0]).astype(dtype.accumulator)
    dense, wide, grad = w.dense(dtype.unpack(values)), dtype.unpack(x), dtype.unpack(dy)
    y = emulated.block_linear(x, values, bias, w.crow, w.col, None, *block, tf32=tf32, plan=plan)
    assert relative(dtype.unpack(y), wide @ dense.T + bias) <= tolerance(dtype, tf32)
    if block[1] == 1:
        dx = emulated.block_linear_scatter(dy, values, w.crow, w.col, block[0], w.shape[1], tf32, chunk)
    else:
        dx = emulated.block_linear(dy, values, None, w.ccol, w.row, w.perm, *block, tf32, plan)
    assert relative(dtype.unpack(dx), grad @ dense) <= tolerance(dtype, tf32)
    i, j = w.index()
    partial = emulated.block_linear_values(dy, x, w.crow, w.col, *block, tf32, values_plan)
    want = (grad.T @ wide)[i, j].flatten()
    assert relative(partial.astype(np.float64).sum(0), want) <= (2e-3 if tf32 else 1e-5)
    return y, dx, partial


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_both_gradients(emulated, dtype, shape, block):
    batch, cols, rows = shape
    check(emulated, dtype, Weight(rows, cols, *block), batch)


@pytest.mark.parametrize("block", BLOCKS[1:], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tf32(emulated, shape, block):
    """Where it is allowed: within 2e-3, and really rounded; groups of 4 do not know it."""
    batch, cols, rows = shape
    w = Weight(rows, cols, *block)
    results = check(emulated, Dtype("float32"), w, batch, tf32=True)
    exact = check(emulated, Dtype("float32"), Weight(rows, cols, *block), batch)
    if batch > 1 and len(w.col):
        assert all((a != b).any() for a, b in zip(results, exact, strict=True))
    alone, again = (check(emulated, Dtype("float32"), Weight(2, 3, 4, 1), 9, tf32=t) for t in (False, True))
    assert all((a == b).all() for a, b in zip(alone, again, strict=True))


# forward: chunk, panel in block rows; scatter: chunk; dvalues: chunk, rows, span
PLANS = [
    ((64, 1), 40, (64, 1, 64)),
    ((32, 9), 17, (32, 2, 128)),
    ((96, 100), 100, (96, 64, 192)),
]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_chunks_panels_spans_and_passes(emulated, dtype, block, plan):
    """Every cut of a weight that the policies might choose, on one small enough to try them all."""
    (width, rows), chunk, values_plan = plan
    for tf32 in (False, True) if dtype.name == "float32" and block[0] >= 8 else (False,):
        w = Weight(11 if block[1] == 1 else 6, 130 if block[1] == 1 else 160 // block[1], *block, sparsity=0.3)
        check(emulated, dtype, w, 135, tf32, (width, rows * block[0]), chunk, values_plan)


def test_more_units_than_registers(emulated, dtype):
    """A block row of more columns than the warps of a block keep sums for: the span is walked again."""
    w = Weight(1, 2200, 8, 1, sparsity=0)
    check(emulated, dtype, w, 5, values_plan=(1500, 1, 64))


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_misaligned(emulated, dtype, block):
    emulated.set_misalignment(1)
    try:
        check(emulated, dtype, Weight(3, 5, *block), 37)
        if dtype.name == "float32":
            check(emulated, dtype, Weight(3, 5, *block), 37, tf32=True)
    finally:
        emulated.set_misalignment(0)


@pytest.mark.parametrize("height", [4, 8, 16])
def test_columns_named_twice_add_up(emulated, dtype, height):
    w = Weight(3, 4, height, 1, sparsity=0)
    col, rows, crow = np.repeat(w.col, 6), np.repeat(w.rows, 6), w.crow * 6
    values, dy = dtype.pack(w.normal(len(col) * height)), dtype.pack(w.normal(19, w.shape[0]))
    dense = np.zeros(w.shape)
    for r, c, v in zip(rows, col, dtype.unpack(values).reshape(-1, height), strict=True):
        dense[r * height : (r + 1) * height, c] += v
    for tf32 in (False, True):
        dx = emulated.block_linear_scatter(dy, values, crow, col, height, 4, tf32)
        bound = tolerance(dtype, tf32 and dtype.name == "float32" and height > 4)
        assert relative(dtype.unpack(dx), dtype.unpack(dy) @ dense) <= bound


@pytest.mark.parametrize("block", [(8, 1), (16, 16)], ids=str)
def test_an_absent_entry_does_not_see_what_is_not_finite(emulated, dtype, block):
    """Fragments are filled up with zeros of the tile, never with another column of x."""
    w = Weight(2, 40, *block, sparsity=0.7)
    x = w.normal(20, w.shape[1])
    x[3, 7], x[5, 30] = np.nan, np.inf
    values = dtype.pack(w.normal(len(w.col) * block[0] * block[1]))
    dense = w.dense(dtype.unpack(values))
    for tf32 in (False, True):
        y = dtype.unpack(emulated.block_linear(dtype.pack(x), values, None, w.crow, w.col, None, *block, tf32=tf32))
        touched = np.zeros(y.shape, bool)
        touched[3], touched[5] = dense[:, 7] != 0, dense[:, 30] != 0
        assert not np.isfinite(y[touched]).any() and np.isfinite(y[~touched]).all()


def test_many_columns(emulated, dtype):
    w = Weight(2, 100, 8, 1, sparsity=0.2)
    x, values = dtype.pack(w.normal(3, 100)), dtype.pack(w.normal(len(w.col) * 8))
    y = emulated.block_linear(x, values, None, w.crow, w.col, None, 8, 1)
    dtype.close(y, dtype.unpack(x) @ w.dense(dtype.unpack(values)).T)


@pytest.mark.parametrize("inputs", [0, 32, 512, 1024, 4096, 100_000])
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_plans_fit_the_machine(emulated_module, inputs, block):
    """Whatever the shape: 99 KiB of shared memory, 11 bits for a column of a tile, tiles that cover the inputs."""
    inputs = inputs // block[1] * block[1]
    for size in (2, 4, 8):
        for tf32 in (False, True):
            for batch, outputs in ((1, 32), (1000, 1024), (1_000_000, 4096)):
                for density in (0.001, 0.1, 1.0):
                    blocks = int(inputs // block[1] * (outputs // block[0]) * density)
                    plans = emulated_module.block_linear_plans(batch, inputs, outputs, blocks, *block, size, tf32)
                    assert plans["mma"] == (block[0] >= 8 and (size == 2 or (size == 4 and tf32)))
                    assert max(plans["shared"]) <= 99 * 1024
                    chunk, chunks, panel = plans["y"]
                    assert chunk * chunks >= inputs and (chunks == 1 or chunk % 32 == 0) and panel % block[0] == 0
                    chunk, chunks, rows, panels, span, spans = plans["values"]
                    assert chunk * chunks >= inputs and chunk < 2047 and (chunks == 1 or chunk % 32 == 0)
                    assert rows <= 64 and rows * panels * block[0] >= outputs and span * spans >= batch
                    assert panels < 65536 and spans < 65536 and chunks < 65536 and span <= 65536 + 64
