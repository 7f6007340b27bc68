"""The fused graph convolution kernels of CUDA under the emulator, against scipy and dense products in fp64."""

import itertools
import os

import numpy as np
import pytest
import scipy.sparse

from .conftest import counts_loads
from .test_sparse_linear import Weight


class Layer:
    """A square graph with values, scales and a diagonal where asked for, a weight, and what fp64 says of them."""

    def __init__(self, dtype, g, inputs, outputs, extras="val scales diag", sparsity=0.8, full_row=True):
        self.dtype, self.g, self.n = dtype, g, g.rows
        one = inputs and outputs and full_row
        self.w = Weight(outputs, inputs, sparsity, full_row=0 if one else None)
        acc, rng = dtype.accumulator, g.rng
        self.x, self.dy = dtype.pack(g.normal(g.cols, inputs)), dtype.pack(g.normal(g.rows, outputs))
        self.values, self.bias = dtype.pack(self.w.normal(self.w.nnz)), self.w.normal(outputs).astype(acc)
        self.val = dtype.pack(rng.random(g.edges) + 0.1) if "val" in extras else None
        self.row_scale = (rng.random(g.rows) + 0.2).astype(acc) if "scales" in extras else None
        self.col_scale = (rng.random(g.cols) + 0.2).astype(acc) if "scales" in extras else None
        self.diag = (rng.random(g.rows) + 0.2).astype(acc) if "diag" in extras and g.rows == g.cols else None
        self.graph = (g.crow, g.col, self.val, self.row_scale, self.col_scale, self.diag)
        val_t = None if self.val is None else self.val[g.perm]
        self.graph_t = (g.ccol, g.row, val_t, self.col_scale, self.row_scale, self.diag)

    def matrix(self):
        g = self.g
        val = np.ones(g.edges) if self.val is None else self.dtype.unpack(self.val)
        a = scipy.sparse.csr_matrix((val, g.col, g.crow), shape=(g.rows, g.cols))
        a = a if self.diag is None else a + scipy.sparse.diags(self.diag.astype(np.float64))
        row_scale = np.ones(g.rows) if self.row_scale is None else self.row_scale
        col_scale = np.ones(g.cols) if self.col_scale is None else self.col_scale
        return scipy.sparse.diags(row_scale) @ a @ scipy.sparse.diags(col_scale)

    def expected(self):
        """y, dx, dvalues."""
        a, w = self.matrix(), self.w.dense(self.dtype.unpack(self.values))
        x, dy = self.dtype.unpack(self.x), self.dtype.unpack(self.dy)
        g = a.T @ dy
        return a @ x @ w.T + self.bias, g @ w, (g.T @ x)[self.w.rows, self.w.col]

    def forward(self, emulated, **given):
        w = self.w
        return emulated.spmm_linear(self.x, self.graph, self.values, self.bias, w.crow, w.col, **given)

    def backward(self, emulated, **given):
        w = self.w
        return emulated.spmm_linear_backward(self.dy, self.x, self.graph_t, self.values, w.ccol, w.row, w.perm, **given)

    def check(self, emulated, forward={}, backward={}):  # noqa: B006
        y, dx, dvalues = self.expected()
        self.dtype.close(self.forward(emulated, **forward), y)
        got = self.backward(emulated, **backward)
        self.dtype.close(got[0], dx)
        self.dtype.close(got[1], dvalues)


@pytest.mark.parametrize("extras", ["", "val", "scales diag"])
def test_graphs(emulated, graph, dtype, extras):
    """Nothing at all, no edges, one node, isolated nodes, more sources than targets, a hub of 10,000 edges."""
    Layer(dtype, graph, 12, 19, extras).check(emulated)


@pytest.mark.parametrize("extras", ["val", "scales", "diag", "val scales diag"])
def test_square_graphs(emulated, csr, dtype, extras):
    Layer(dtype, csr(np.random.default_rng(1).poisson(4, 70), 70), 16, 24, extras).check(emulated)


SIZES = [(1, 1), (3, 0), (0, 3), (4, 3), (13, 67), (33, 8), (64, 72), (130, 40)]  # inputs, outputs


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_widths(emulated, csr, dtype, sizes):
    Layer(dtype, csr([3, 0, 300, 1, 40, 0, 2] * 5, 35), *sizes).check(emulated)


@pytest.mark.parametrize("per_lane, panel, span", [(1, 40, 2), (2, 16, 1), (4, 8, 1), (1, 8, 3), (2, 40, 2)])
def test_plans(emulated, csr, dtype, per_lane, panel, span):
    """Each width of a lane; x in one panel and in several; several tiles in a span, the last of them not full."""
    per_lane = min(per_lane, dtype.widest)
    layer = Layer(dtype, csr(np.random.default_rng(2).poisson(3, 150), 150), 40, 24)
    layer.check(emulated, dict(per_lane=per_lane), dict(plan=(per_lane, panel, span)))


@pytest.mark.parametrize("window", [2, 4, 16, 64, 1024])
@pytest.mark.parametrize("width", [5, 8])
def test_long_rows(emulated, csr, dtype, width, window):
    """Rows longer than a window come from sums made before; wherever they begin and end in windows."""
    layer = Layer(dtype, csr([3, 0, 300, 64, 65, 0, 2, 63, 128, 129, 1, 700] * 3, 36), width, 8)
    layer.check(emulated, dict(window=window), dict(window=window))


@pytest.mark.parametrize("seed", range(8))
def test_shares_cut_anywhere(emulated, csr, seed):
    """Rows that begin, end or stretch over the shares of the block's groups, in every combination; exact sums."""
    rng = np.random.default_rng(seed)
    degrees = rng.choice([0, 1, 2, 7, 40, 100, 500, 1000], rng.integers(1, 40))
    g, width = csr(degrees, 20, seed), int(rng.choice([4, 8, 64, 128, 260]))
    x = rng.integers(-3, 4, (20, width)).astype(np.float32)
    eye = np.arange(width + 1, dtype=np.int32), np.arange(width, dtype=np.int32)
    graph = (g.crow, g.col, None, None, None, None)
    y = emulated.spmm_linear(x, graph, np.ones(width, np.float32), None, *eye)
    a = scipy.sparse.csr_matrix((np.ones(g.edges), g.col, g.crow), shape=(g.rows, 20))
    np.testing.assert_array_equal(y, a @ x)


@pytest.mark.parametrize("relu, dropout", [(True, 0.0), (False, 0.4), (True, 0.4)])
def test_epilogue(emulated, csr, dtype, relu, dropout):
    """The same epilogue as sparse_linear's: the same seed drops the same outputs."""
    layer = Layer(dtype, csr(np.random.default_rng(3).poisson(3, 50), 50), 24, 19)
    y = layer.expected()[0]
    got = layer.forward(emulated, relu=relu, dropout=dropout, seed=-7)
    w, zero = layer.w, layer.dtype.pack(np.zeros((50, 24)))
    ones = np.ones(19, dtype.accumulator)
    factor = emulated.sparse_linear(zero, layer.values, ones, w.crow, w.col, dropout=dropout, seed=-7)
    dtype.close(got, (np.maximum(y, 0) if relu else y) * dtype.unpack(factor))
    got = dtype.unpack(got)
    assert (got == 0).any() and (got != 0).any()


def test_one_gradient_alone(emulated, csr):
    from .conftest import Dtype

    layer = Layer(Dtype("float32"), csr(np.random.default_rng(4).poisson(3, 80), 80), 24, 16)
    dx, dvalues = layer.backward(emulated)
    alone, nothing = layer.backward(emulated, need_dvalues=False)
    np.testing.assert_array_equal(alone, dx)
    assert nothing.size == 0
    nothing, alone = layer.backward(emulated, need_dx=False)
    np.testing.assert_array_equal(alone, dvalues)
    assert nothing.size == 0


def test_misaligned_rows_take_the_scalar_path(emulated, csr, dtype):
    layer = Layer(dtype, csr([3, 0, 300, 1, 40, 0, 2] * 5, 35), 24, 16)
    emulated.set_misalignment(1)
    y, (dx, dvalues) = layer.forward(emulated, window=256), layer.backward(emulated, window=256)
    emulated.set_misalignment(0)
    for got, wanted in zip((y, dx, dvalues), layer.expected(), strict=True):
        dtype.close(got, wanted)


def test_not_finite_features_stay_where_they_are(emulated, csr):
    """NaN reaches the neighbours' outputs that use its column, no others; rows past the last are zeros, not garbage."""
    from .conftest import Dtype

    layer = Layer(Dtype("float32"), csr([2, 0, 3, 1, 4], 5), 12, 9, "", 0.6, full_row=False)
    layer.x[3, 2] = np.nan
    touched = layer.matrix()[:, 3].toarray()[:, 0] != 0
    uses = layer.w.dense(np.ones(layer.w.nnz))[:, 2] != 0
    np.testing.assert_array_equal(np.isnan(layer.forward(emulated)), touched[:, None] & uses)
    np.testing.assert_array_equal(np.isnan(layer.backward(emulated)[1]), layer.w.col == 2)


@counts_loads
def test_hub_is_shared_by_all_warps_of_its_block(emulated, csr):
    """No warp gathers much more than an eighth of the block's rows, though one row has nearly all of the edges."""
    from .conftest import Dtype

    degrees = np.full(32, 2)
    degrees[11] = 1000
    layer = Layer(Dtype("float32"), csr(degrees, 32), 128, 8, "", sparsity=0.99, full_row=False)
    emulated.take_warp_loads()
    layer.forward(emulated, per_lane=1)
    loads = emulated.take_warp_loads()[-8:]  # of the last launch's only block
    total = layer.g.edges * 128 // 4
    assert loads.max() <= 1.3 * total / 8 and loads.min() >= 0.8 * total / 8


@pytest.mark.parametrize("width", [8, 96])
def test_same_bits_in_every_order(emulated_module, csr, width):
    from .conftest import Dtype

    layer = Layer(Dtype("float32"), csr([3, 0, 1500, 1, 40, 700] * 12, 72), width, 33)
    results = []
    for order in ("forward", "reversed", "shuffled"):
        emulated_module.set_schedule(order, 7)
        results.append([layer.forward(emulated_module), *layer.backward(emulated_module)])
    assert all(len({r[i].tobytes() for r in results}) == 1 for i in range(3))


@pytest.mark.skipif("SPARSEGNN_EMULATED" in os.environ, reason="Python itself is sanitized in that run, torch is not")
@pytest.mark.parametrize("size", [2, 4, 8])
def test_plans_fit_and_agree_with_the_policy(emulated_module, size):
    """Plans fit shared memory; the policy says what fits."""
    import torch

    from sparsegnn.ops._fused import fits

    dtype = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[size]
    widths = (0, 1, 64, 100, 256, 326, 327, 512, 602, 616, 617, 1024, 1123, 1124, 1433)
    for inputs, outputs in itertools.product(widths, repeat=2):
        for nodes in (1, 2_708, 169_343, 3_000_000_000):
            (n, shared), (bn, bshared, panel, span) = emulated_module.spmm_linear_plans(nodes, inputs, outputs, size)
            assert fits(inputs, dtype) == (n > 0) and fits(outputs, dtype, inputs) == (bn > 0)
            assert n == 0 or (n <= 8 // size and shared <= 96 * 1024)
            assert bn == 0 or (bn <= 8 // size and bshared <= 96 * 1024)
            assert bn == 0 or (panel == inputs or panel % 8 == 0) and span >= 1
            assert n > 0 or inputs > 256 and bn > 0 or max(inputs, outputs) > 256
