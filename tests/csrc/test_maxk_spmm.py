"""The CUDA maxk_spmm kernels under the emulator, against dense products in fp64."""

import numpy as np
import pytest

from .conftest import Dtype, counts_loads


def compressed(g, dtype, width, k, group=0):
    values, parts = dtype.pack(g.normal(g.cols, k)), width // group if group else 1
    order = g.rng.random((g.cols, parts, width // parts)).argsort(2)[..., : k // parts]
    index = np.sort(order + (np.arange(parts) * (width // parts))[:, None], 2).reshape(g.cols, k)
    index = index.astype(np.uint8 if width <= 256 else np.int16)
    dense = np.zeros((g.cols, width))
    np.put_along_axis(dense, index.astype(np.int64), dtype.unpack(values), 1)
    return values, index, dense


def check(emulated, g, dtype, width, k, weighted=False, scales=(None, None, None), mean=False, group=0):
    values, index, x = compressed(g, dtype, width, k, group)
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
    dtype.close(emulated.maxk_spmm(*given, group=group), a @ x)
    dvalues, dval = emulated.maxk_spmm(*given, dy, (g.ccol, g.row, g.perm))
    flow = dtype.unpack(dy)
    dtype.close(dvalues, np.take_along_axis(a.T @ flow, index.astype(np.int64), 1))
    scale = row_scale[g.row_of] * col_scale[g.col]
    dtype.close(dval, scale * (flow[g.row_of] * x[g.col]).sum(1))


@pytest.mark.parametrize("mean", [False, True])
def test_graphs(emulated, graph, dtype, mean):
    for weighted in (False, True):
        check(emulated, graph, dtype, 20, 6, weighted, mean=mean)


WIDTHS = [(1, 1), (7, 3), (40, 33), (64, 64), (256, 32), (256, 64), (300, 40), (1024, 128), (1024, 16), (2100, 5)]


@pytest.mark.parametrize("width, k", WIDTHS)
def test_widths(emulated, csr, dtype, width, k):
    check(emulated, csr([3, 0, 70, 1, 40, 0, 2], 9, seed=width), dtype, width, k, True)
    check(emulated, csr([3, 0, 2, 5], 9, seed=width), dtype, width, k)  # short rows: fewer edges at once


#: (width, k, group): one and several columns of a group, lanes with one group and with several, more groups than lanes
GROUPED = [(256, 32, 8), (256, 64, 8), (256, 128, 4), (256, 16, 16), (64, 8, 8), (1024, 128, 8), (1024, 256, 16)]
GROUPED += [(1024, 512, 4), (24, 6, 4), (40, 15, 8), (30, 12, 5), (300, 75, 4), (256, 2, 128), (512, 24, 64), (8, 8, 1)]


@pytest.mark.parametrize("shape", GROUPED, ids=str)
def test_grouped_rows(emulated, csr, dtype, shape):
    width, k, group = shape
    scales = tuple(np.linspace(0.3, 1.2, 7).astype(dtype.accumulator) for _ in range(3))
    for degrees in ([3, 0, 700, 1, 40, 0, 2], [3, 0, 7, 1, 4, 0, 2]):
        check(emulated, csr(degrees, 7, seed=width), dtype, width, k, True, scales, group=group)


#: (width, k, group): entries of an edge by vectors of every length, rows of y by four columns or one at a time
LAYOUTS = [(30, 6, 0), (30, 8, 0), (30, 6, 5), (301, 5, 0), (301, 22, 0), (301, 40, 0), (308, 44, 7), (308, 88, 7)]
LAYOUTS += [(308, 176, 7), (400, 200, 4)]


@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
def test_layouts(emulated, csr, dtype, shape):
    width, k, group = shape
    for degrees in ([3, 0, 700, 1, 40, 0, 2], [3, 0, 7, 1, 4, 0, 2]):
        check(emulated, csr(degrees, 7, seed=width), dtype, width, k, mean=True, group=group)


def test_rows_that_are_not_grouped_stay_within_their_sums(emulated, csr):
    """A wrong promise gives wrong numbers, never an access out of bounds (ASan runs this too)."""
    g = csr([3, 0, 300, 1], 9)
    values, index = np.ones((9, 32), np.float32), np.full((9, 32), 255, np.uint8)
    assert np.isfinite(emulated.maxk_spmm(values, index, 256, g.crow, g.col, group=8)).all()


@pytest.mark.parametrize("given", range(8))
def test_scales_and_diagonal(emulated, csr, dtype, given):
    g = csr([3, 0, 700, 1, 40, 0, 2], 7)
    scales = tuple(g.rng.random(7).astype(dtype.accumulator) + 0.1 if given >> i & 1 else None for i in range(3))
    check(emulated, g, dtype, 12, 5, True, scales, given % 3 == 0)


@counts_loads
@pytest.mark.parametrize("group", [0, 8])
def test_hub_is_shared_by_many_warps(emulated, csr, group):
    """No warp reads more than two windows of edges, however long the longest row; vectors of four where k allows."""
    degrees = np.full(100, 40)
    degrees[60] = 10_000
    g = csr(degrees, 100)
    values, index, _ = compressed(g, Dtype("float32"), 256, 32, 8)
    emulated.maxk_spmm(values, index, 256, g.crow, g.col, group=group)
    loads = emulated.take_warp_loads()
    total = g.edges * 32 // 4 * 2  # four values, four columns
    assert total <= loads.sum() <= 1.2 * total  # and the pieces of the hub
    assert loads.max() <= 256 * 32 // 4 * 2
    assert (loads > loads.max() / 2).sum() >= 10_000 // 256


@pytest.mark.parametrize("seed", range(12))
def test_rows_cut_anywhere(emulated, csr, seed):
    """Rows that begin, end or touch at the borders of windows of 256 edges, in every combination."""
    rng = np.random.default_rng(seed)
    degrees = rng.choice([0, 1, 100, 255, 256, 257, 511, 512, 513, 768, 1000], rng.integers(3, 12))
    group = int(rng.choice([0, 4]))
    check(emulated, csr(degrees, 20, seed), Dtype("float32"), 16, 8, bool(seed % 2), group=group)


@pytest.mark.parametrize("group", [0, 8])
def test_misaligned_rows(emulated, csr, dtype, group):
    emulated.set_misalignment(1)
    check(emulated, csr([3, 0, 300, 1, 5], 9), dtype, 32, 8, True, group=group)
    emulated.set_misalignment(0)


@pytest.mark.parametrize("k, group", [(9, 0), (8, 0), (10, 8)])
def test_same_bits_in_every_order(emulated_module, csr, dtype, k, group):
    g = csr([3, 0, 5000, 1, 40, 700], 90)
    values, index, _ = compressed(g, dtype, 40, k, group)
    dy, results = dtype.pack(g.normal(g.rows, 40)), []
    for order in ("forward", "reversed", "shuffled"):
        emulated_module.set_schedule(order, 7)
        y = emulated_module.maxk_spmm(values, index, 40, g.crow, g.col, group=group)
        dvalues, dval = emulated_module.maxk_spmm(
            values, index, 40, g.crow, g.col, dy=dy, transpose=(g.ccol, g.row, g.perm)
        )
        results.append(y.tobytes() + dvalues.tobytes() + dval.tobytes())
    assert len(set(results)) == 1


@counts_loads
def test_backward_reads_rows_where_the_l2_holds_slices_of_them(emulated, csr):
    """And gathers entries where it holds all, or where entries are few; the bits are the same."""
    g = csr([60] * 40, 40)
    dy, every = g.normal(40, 64).astype(np.float32), np.tile(np.arange(64, dtype=np.uint8), (40, 1))
    for k, by_rows in ((8, True), (4, False)):
        index = np.sort(g.rng.permuted(every, axis=1)[:, :k], 1)
        values, results, loads = g.normal(40, k).astype(np.float32), [], []
        for l2 in (40 * 128 * 5 // 3 + 2, 60 << 20):
            emulated.set_l2_bytes(l2)
            emulated.take_warp_loads()
            transpose = g.ccol, g.row, g.perm
            results.append(emulated.maxk_spmm(values, index, 64, g.crow, g.col, dy=dy, transpose=transpose)[0])
            loads.append(emulated.take_warp_loads().sum())
        np.testing.assert_array_equal(*results)
        assert (loads[0] >= g.edges * 16) == by_rows and loads[1] == 0
