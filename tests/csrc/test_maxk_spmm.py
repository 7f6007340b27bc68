"""The CUDA maxk_spmm kernels under the emulator, against dense products in fp64."""

import numpy as np
import pytest


def compressed(g, dtype, width, k):
    values = dtype.pack(g.normal(g.cols, k))
    index = np.sort(g.rng.random((g.cols, width)).argsort(1)[:, :k], 1).astype(np.uint8 if width <= 256 else np.int16)
    dense = np.zeros((g.cols, width))
    np.put_along_axis(dense, index.astype(np.int64), dtype.unpack(values), 1)
    return values, index, dense


def check(emulated, g, dtype, width, k, weighted=False, scales=(None, None, None), mean=False):
    values, index, x = compressed(g, dtype, width, k)
    val, dy = dtype.pack(g.normal(g.edges)), dtype.pack(g.normal(g.rows, width))
    given = (values, index, width, g.crow, g.col, val if weighted else None, *scales, mean)
    row_scale, col_scale, diag = (1.0 if s is None else s for s in scales)
    diag = np.zeros(g.rows) if scales[2] is None else diag
    row_scale = np.ones(g.rows) * row_scale / (np.maximum(g.degrees, 1) if mean else 1)
    col_scale = np.ones(g.cols) * col_scale
    weight = dtype.unpack(val) if weighted else np.ones(g.edges)
    a = np.zeros((g.rows, g.cols))
    np.add.at(a, (g.row_of, g.col), weight)
    if scales[2] is not None:
        a += np.diag(diag)
    a = row_scale[:, None] * a * col_scale
    dtype.close(emulated.maxk_spmm(*given), a @ x)
    dvalues, dval = emulated.maxk_spmm(*given, dy, (g.ccol, g.row, g.perm))
    flow = dtype.unpack(dy)
    dtype.close(dvalues, np.take_along_axis(a.T @ flow, index.astype(np.int64), 1))
    scale = row_scale[g.row_of] * col_scale[g.col]
    dtype.close(dval, scale * (flow[g.row_of] * x[g.col]).sum(1))


@pytest.mark.parametrize("mean", [False, True])
def test_graphs(emulated, graph, dtype, mean):
    for weighted in (False, True):
        check(emulated, graph, dtype, 20, 6, weighted, mean=mean)


@pytest.mark.parametrize("width, k", [(1, 1), (7, 3), (40, 33), (64, 64), (256, 32), (300, 40), (2100, 5)])
def test_widths(emulated, csr, dtype, width, k):
    check(emulated, csr([3, 0, 70, 1, 40, 0, 2], 9, seed=width), dtype, width, k, True)


@pytest.mark.parametrize("given", range(8))
def test_scales_and_diagonal(emulated, csr, dtype, given):
    g = csr([3, 0, 700, 1, 40, 0, 2], 7)
    scales = tuple(g.rng.random(7).astype(dtype.accumulator) + 0.1 if given >> i & 1 else None for i in range(3))
    check(emulated, g, dtype, 12, 5, True, scales, given % 3 == 0)


def test_long_rows_are_shared_by_a_block(emulated, csr, dtype):
    check(emulated, csr([500, 0, 300, 129, 1000, 8], 30), dtype, 24, 7, True)


def test_same_bits_in_every_order(emulated_module, csr, dtype):
    g = csr([3, 0, 5000, 1, 40, 700], 90)
    values, index, _ = compressed(g, dtype, 40, 9)
    dy, results = dtype.pack(g.normal(g.rows, 40)), []
    for order in ("forward", "reversed", "shuffled"):
        emulated_module.set_schedule(order, 7)
        y = emulated_module.maxk_spmm(values, index, 40, g.crow, g.col)
        dvalues, dval = emulated_module.maxk_spmm(
            values, index, 40, g.crow, g.col, dy=dy, transpose=(g.ccol, g.row, g.perm)
        )
        results.append(y.tobytes() + dvalues.tobytes() + dval.tobytes())
    assert len(set(results)) == 1
