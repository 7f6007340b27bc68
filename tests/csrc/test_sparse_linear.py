"""The CUDA sparse_linear kernels under the emulator, against dense products in fp64."""

import numpy as np
import pytest


class Weight:
    """A random pattern [M, K] without duplicates, its transpose, and values."""

    def __init__(self, outputs, inputs, sparsity=0.8, seed=0, full_row=None):
        self.rng = np.random.default_rng(seed)
        mask = self.rng.random((outputs, inputs)) >= sparsity
        if full_row is not None:
            mask[full_row] = True
            mask[:, full_row] = True
        self.outputs, self.inputs, self.nnz = outputs, inputs, int(mask.sum())
        self.rows, col = np.nonzero(mask)
        self.crow = np.concatenate([[0], np.cumsum(mask.sum(1))]).astype(np.int32)
        self.col = col.astype(np.int32)
        self.perm = np.argsort(col, kind="stable").astype(np.int32)
        self.row = self.rows[self.perm].astype(np.int32)
        self.ccol = np.concatenate([[0], np.cumsum(mask.sum(0))]).astype(np.int32)

    def normal(self, *shape):
        return self.rng.standard_normal(shape)

    def dense(self, values):
        w = np.zeros((self.outputs, self.inputs))
        w[self.rows, self.col] = values
        return w


SHAPES = [  # batch, inputs, outputs
    (0, 4, 3),
    (1, 1, 1),
    (5, 3, 0),
    (5, 0, 3),
    (33, 8, 16),
    (70, 13, 67),
    (40, 64, 72),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_both_gradients(emulated, dtype, shape):
    batch, inputs, outputs = shape
    w = Weight(outputs, inputs, full_row=0 if inputs and outputs else None)
    x, dy = dtype.pack(w.normal(batch, inputs)), dtype.pack(w.normal(batch, outputs))
    values, bias = dtype.pack(w.normal(w.nnz)), w.normal(outputs).astype(dtype.accumulator)
    dense, wide, grad = w.dense(dtype.unpack(values)), dtype.unpack(x), dtype.unpack(dy)
    dtype.close(emulated.sparse_linear(x, values, bias, w.crow, w.col), wide @ dense.T + bias)
    dtype.close(emulated.sparse_linear(dy, values, None, w.ccol, w.row, w.perm), grad @ dense)
    dtype.close(emulated.sparse_linear_dvalues(dy, x, w.crow, w.col), (grad.T @ wide)[w.rows, w.col])
    dtype.close(emulated.sparse_linear_dbias(dy), grad.sum(0))


@pytest.mark.parametrize(
    "plan",
    [(1, 40, 64, 0), (2, 40, 64, 0), (4, 40, 128, 0), (1, 16, 64, 0), (2, 8, 128, 0), (4, 32, 64, 0)]
    + [(1, 40, 128, 2), (2, 40, 128, 1), (4, 16, 128, 2), (2, 8, 64, 1)],
    ids=str,
)
def test_forward_plans(emulated, dtype, plan):
    """Each width of a lane; inputs in one chunk or several; outputs in one panel or several; W in shared memory."""
    plan = (min(plan[0], dtype.widest), *plan[1:])
    w = Weight(100, 40, full_row=7)
    x, values = dtype.pack(w.normal(140, 40)), dtype.pack(w.normal(w.nnz))
    y = emulated.sparse_linear(x, values, None, w.crow, w.col, None, plan)
    dtype.close(y, dtype.unpack(x) @ w.dense(dtype.unpack(values)).T)


@pytest.mark.parametrize("inputs", [65535, 65536, 65537])
def test_inputs_about_the_limit_of_16_bits(emulated, dtype, inputs):
    w = Weight(9, inputs, 0.9995, full_row=7)
    x, values = dtype.pack(w.normal(3, inputs)), dtype.pack(w.normal(w.nnz))
    y = emulated.sparse_linear(x, values, None, w.crow, w.col)
    dtype.close(y, dtype.unpack(x) @ w.dense(dtype.unpack(values)).T)


@pytest.mark.parametrize("chunk", [40, 16])
def test_packed_weight(emulated, dtype, chunk):
    """Rows padded to whole 128-bit loads, 4 or 8 bytes a nonzero, groups of outputs in the order of their nonzeros."""
    w = Weight(100, 40, full_row=7)
    values = dtype.pack(w.normal(w.nnz))
    column, value, length, entry, order = emulated.sparse_linear_pack(values, w.crow, w.col, 40, chunk)
    assert entry == {"float32": 8, "float64": 16}.get(dtype.name, 4)
    together = 4 if entry == 4 else 2
    column, value, wide, chunks = np.array(column), np.array(value), dtype.unpack(values), -(-40 // chunk)
    start = np.cumsum([0, *length])
    for r in range(100):
        for c in range(chunks):
            own = slice(w.crow[r], w.crow[r + 1])
            inside = w.col[own] // chunk == c
            s = r * chunks + c
            got = slice(start[s], start[s] + inside.sum())
            np.testing.assert_array_equal(column[got], w.col[own][inside])
            np.testing.assert_array_equal(value[got], wide[own][inside])
            assert (column[got.stop : start[s + 1]] == -1).all() and length[s] - inside.sum() < together
    counts = np.add.reduceat(np.diff(w.crow), np.arange(0, 100, 8))
    np.testing.assert_array_equal(order, np.argsort(-counts, kind="stable"))


def test_many_groups_keep_their_order(emulated_module):
    """Where there are too many groups of outputs to look at all of them for each, and every row is still computed."""
    w = Weight(8 * 1025, 4, 0.5)
    values, x = w.normal(w.nnz).astype(np.float32), w.normal(3, 4).astype(np.float32)
    order = emulated_module.sparse_linear_pack(values, w.crow, w.col, 4, 4)[4]
    assert order == list(range(1025))
    y = emulated_module.sparse_linear(x, values, None, w.crow, w.col)
    np.testing.assert_allclose(y, x @ w.dense(values).T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "plan", [(1, 40, 50, 2), (2, 40, 24, 1), (4, 40, 50, 1), (1, 16, 24, 3), (2, 8, 50, 1), (4, 24, 24, 2)], ids=str
)
def test_dvalues_plans(emulated, dtype, plan):
    plan = (min(plan[0], dtype.widest), *plan[1:])
    w = Weight(50, 40, 0.9, full_row=7)
    x, dy = dtype.pack(w.normal(140, 40)), dtype.pack(w.normal(140, 50))
    dvalues = emulated.sparse_linear_dvalues(dy, x, w.crow, w.col, plan)
    dtype.close(dvalues, (dtype.unpack(dy).T @ dtype.unpack(x))[w.rows, w.col])


@pytest.mark.parametrize("relu, dropout", [(True, 0.0), (False, 0.4), (True, 0.4)])
def test_epilogue_and_its_mask(emulated, dtype, relu, dropout):
    w = Weight(19, 24, full_row=3)
    x, values, dy = dtype.pack(w.normal(40, 24)), dtype.pack(w.normal(w.nnz)), dtype.pack(w.normal(40, 19))
    args = (values, None, w.crow, w.col)
    y = emulated.sparse_linear(x, *args, relu=relu, dropout=dropout, seed=-7)
    ones = np.ones(19, dtype.accumulator)
    zero = dtype.pack(np.zeros((40, 24)))
    factor = emulated.sparse_linear(zero, values, ones, w.crow, w.col, dropout=dropout, seed=-7)
    kept = dtype.unpack(factor) != 0
    assert kept.all() == (dropout == 0) and abs(kept.mean() - (1 - dropout)) < 0.07
    scale, plain = 1 / (1 - dropout), dtype.unpack(emulated.sparse_linear(x, *args))
    wanted = np.maximum(plain, 0) if relu else plain
    dtype.close(y, wanted * kept * scale)
    g = emulated.sparse_linear_mask(dy, y if relu else None, dropout, -7)
    dtype.close(g, dtype.unpack(dy) * kept * scale * ((plain > 0) | (not relu)))


def test_mask_lets_nan_pass(emulated):
    y = np.array([[np.nan, -1.0, 0.0, 1.0, np.inf]], np.float32)
    np.testing.assert_array_equal(emulated.sparse_linear_mask(np.ones_like(y), y), [[1, 0, 0, 1, 1]])


def test_misaligned_rows_take_the_scalar_path(emulated, dtype):
    w = Weight(16, 24)
    x, values, dy = dtype.pack(w.normal(40, 24)), dtype.pack(w.normal(w.nnz)), dtype.pack(w.normal(40, 16))
    emulated.set_misalignment(1)
    y = emulated.sparse_linear(x, values, None, w.crow, w.col)
    dvalues = emulated.sparse_linear_dvalues(dy, x, w.crow, w.col)
    emulated.set_misalignment(0)
    dtype.close(y, dtype.unpack(x) @ w.dense(dtype.unpack(values)).T)
    dtype.close(dvalues, (dtype.unpack(dy).T @ dtype.unpack(x))[w.rows, w.col])


def test_not_finite_inputs_stay_where_they_are(emulated):
    """An infinity reaches the outputs that use its input, no others; rows of odd length are padded with zeros."""
    w = Weight(9, 12, 0.6)
    x, values = np.ones((3, 12), np.float32), np.ones(w.nnz, np.float32)
    x[1, 0], x[2, 5] = np.inf, np.nan
    y = emulated.sparse_linear(x, values, None, w.crow, w.col)
    dense = w.dense(values) != 0
    np.testing.assert_array_equal(np.isinf(y), np.array([[False] * 9, dense[:, 0], [False] * 9]))
    np.testing.assert_array_equal(np.isnan(y), np.array([[False] * 9, [False] * 9, dense[:, 5]]))
    dvalues = emulated.sparse_linear_dvalues(np.ones((3, 9), np.float32), x, w.crow, w.col)
    np.testing.assert_array_equal(np.isnan(dvalues), w.col == 5)
    np.testing.assert_array_equal(np.isinf(dvalues), w.col == 0)


def test_same_bits_in_every_order(emulated_module):
    w = Weight(70, 33)  # 600 samples: several spans, beside each other in memory
    x, dy, values = (w.normal(*s).astype(np.float32) for s in ((600, 33), (600, 70), (w.nnz,)))
    results = []
    for order in ("forward", "reversed", "shuffled"):
        emulated_module.set_schedule(order, 7)
        y = emulated_module.sparse_linear(x, values, None, w.crow, w.col)
        dvalues = emulated_module.sparse_linear_dvalues(dy, x, w.crow, w.col)
        dbias = emulated_module.sparse_linear_dbias(dy)
        np.testing.assert_allclose(dbias, dy.sum(0, dtype=np.float64), rtol=1e-4, atol=1e-4)
        results.append(y.tobytes() + dvalues.tobytes() + dbias.tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize("element_size", [2, 4, 8])
def test_plans_cover_the_shape_and_fit(emulated_module, element_size):
    """Every plan fits shared memory (the launch would fail) and cuts inputs and outputs without a gap."""
    for batch in (1, 2_708, 169_343, 3_000_000_000):
        for inputs in (1, 64, 100, 256, 500, 602, 1433, 8192):
            for outputs in (1, 40, 64, 256, 1024, 8192):
                plans = emulated_module.sparse_linear_plans(batch, inputs, outputs, element_size)
                (n, chunk, panel), (bn, bchunk, bpanel, span), shared, staged = plans
                assert shared <= 96 * 1024 and not staged
                entries = inputs * outputs // 20
                *_, shared, staged = emulated_module.sparse_linear_plans(batch, inputs, outputs, element_size, entries)
                assert shared <= 96 * 1024 and (not staged or entries * element_size < 48 * 1024)
                assert staged == (element_size < 8) or batch < 1e9 or inputs * outputs > 256
                strides = [32 * k + 16 // element_size for k in (n, bn)]
                assert max(n, bn) <= 8 // element_size
                assert (chunk + 1) * strides[0] * element_size <= 96 * 1024
                assert (bchunk + bpanel) * strides[1] * element_size <= 96 * 1024
                assert (chunk == inputs or chunk % 8 == 0) and (bchunk == inputs or bchunk % 8 == 0)
                assert (panel == outputs or panel % 64 == 0) and (bpanel == outputs or bpanel % 8 == 0)
                assert 1 <= span
