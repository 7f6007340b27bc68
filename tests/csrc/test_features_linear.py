"""The CUDA features_linear kernels under the emulator, against dense matrices in numpy."""

import numpy as np
import pytest

BLOCKS = ((1, 1), (8, 1), (16, 16))
#: nonzeros of each sample, blocks of each column of W, rows of blocks: none, a few, more than a warp has lanes
CASES = {
    "random": ([3, 0, 7, 1, 12], [2, 0, 5, 1, 9, 3, 0, 4, 2, 1, 0, 3], 12),
    "long columns": ([5, 12, 0, 2], [40, 70, 1, 33, 0, 64, 2, 3, 50, 0, 7, 12], 80),
    "no weights": ([4, 1], [0] * 12, 3),
    "no features": ([0, 0, 0], [2] * 12, 4),
    "no samples": ([], [2] * 12, 4),
}


def compressed(rng, counts, limit):
    """(offsets, index) with so many different numbers below ``limit`` in each row, ascending."""
    index = [np.sort(rng.permutation(limit)[:n]) for n in counts]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return offsets, np.concatenate([*index, np.zeros(0)]).astype(np.int32)


class Problem:
    def __init__(self, dtype, case, block, seed=0):
        rng, (height, width), (nonzeros, entries, rows) = np.random.default_rng(seed), block, CASES[case]
        columns, self.outputs = len(entries), rows * height
        inputs = columns * width
        self.crow, self.col = compressed(rng, nonzeros, inputs)
        self.ccol, self.row = compressed(rng, entries, rows)
        self.perm = rng.permutation(len(self.row)).astype(np.int32)
        self.val = dtype.pack(rng.standard_normal(len(self.col)))
        self.values = dtype.pack(rng.standard_normal(len(self.row) * height * width))
        self.bias = dtype.pack(rng.standard_normal(self.outputs))
        self.dy = dtype.pack(rng.standard_normal((len(nonzeros), self.outputs)))
        self.x = np.zeros((len(nonzeros), inputs))
        at = np.repeat(np.arange(len(nonzeros)), nonzeros)
        self.x[at, self.col] = dtype.unpack(self.val)
        blocks = dtype.unpack(self.values).reshape(-1, height, width)
        self.column = np.repeat(np.arange(columns), entries)
        weight = np.zeros((rows, columns, height, width))
        weight[self.row, self.column] = blocks[self.perm]
        self.weight = weight.transpose(0, 2, 1, 3).reshape(self.outputs, inputs)
        order = np.argsort(self.col, kind="stable")
        self.xrow, self.val_t = at[order].astype(np.int32), self.val[order]
        self.xccol = np.concatenate([[0], np.cumsum(np.bincount(self.col, minlength=inputs))]).astype(np.int32)
        self.pattern, self.block = (self.ccol, self.row, self.perm), block


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_values(emulated, dtype, case, block):
    p = Problem(dtype, case, block)
    for bias in (p.bias, None):
        y = emulated.features_linear(p.values, bias, p.crow, p.col, p.val, *p.pattern, *block, p.outputs)
        dtype.close(y, p.x @ p.weight.T + (0 if bias is None else dtype.unpack(bias)))


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_gradients(emulated, dtype, case, block):
    p, (height, width) = Problem(dtype, case, block), block
    got = emulated.features_values(p.dy, p.xccol, p.xrow, p.val_t, *p.pattern, *block)
    dense = (dtype.unpack(p.dy).T @ p.x).reshape(p.outputs // height, height, -1, width).transpose(0, 2, 1, 3)
    want = np.zeros((len(p.row), height, width))
    want[p.perm] = dense[p.row, p.column]
    dtype.close(got, want.ravel())


def test_outputs_in_several_tiles(emulated, dtype):
    CASES["wide"] = ([3, 1], [5] * 12, 5000)
    try:
        p = Problem(dtype, "wide", (1, 1))
    finally:
        del CASES["wide"]
    y = emulated.features_linear(p.values, p.bias, p.crow, p.col, p.val, *p.pattern, 1, 1, p.outputs)
    dtype.close(y, p.x @ p.weight.T + dtype.unpack(p.bias))
