"""The CUDA spmm kernels under the emulator, against scipy and numpy in fp64."""

import itertools

import numpy as np
import pytest
import scipy.sparse

from sparsegnn.ops import _fused

from .conftest import counts_loads

WIDTHS = [
    1,
    2,
    3,
    4,
    6,
    7,
    8,
    16,
    24,
    31,
    32,
    33,
    64,
    67,
    70,
    130,
    300,
]  # one, two or 16 bytes' worth of columns a lane


def expected_sum(g, x, val, row_scale=None, col_scale=None, diag=None, mean=False):
    ones = np.ones
    row_scale = ones(g.rows) if row_scale is None else row_scale
    col_scale = ones(g.cols) if col_scale is None else col_scale
    scaled = col_scale[:, None] * x
    y = scipy.sparse.csr_matrix((val, g.col, g.crow), shape=(g.rows, g.cols)) @ scaled
    if diag is not None:
        y = y + diag[:, None] * scaled
    if mean:
        y = y / np.maximum(g.degrees, 1)[:, None]
    return row_scale[:, None] * y


def expected_extremum(g, x, val, reduce):
    y, arg = np.zeros((g.rows, x.shape[1])), np.full((g.rows, x.shape[1]), -1, np.int32)
    for r in np.flatnonzero(g.degrees):
        edges = slice(g.crow[r], g.crow[r + 1])
        message = val[edges, None] * x[g.col[edges]]
        arg[r] = g.crow[r] + getattr(message, "arg" + reduce)(0)
        y[r] = getattr(message, reduce)(0)
    return y, arg


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_sum_and_mean(emulated, graph, dtype, reduce):
    for width, weighted in itertools.product((5, 64), (False, True)):
        x = dtype.pack(graph.normal(graph.cols, width))
        val = dtype.pack(graph.normal(graph.edges))
        y, arg = emulated.spmm(x, graph.crow, graph.col, val if weighted else None, reduce=reduce)
        weights = dtype.unpack(val) if weighted else np.ones(graph.edges)
        dtype.close(y, expected_sum(graph, dtype.unpack(x), weights, mean=reduce == "mean"))
        assert arg.size == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_odd_widths(emulated, csr, dtype, width):
    g = csr([3, 0, 700, 1, 40, 0, 2], 9, seed=width)
    x, val = dtype.pack(g.normal(g.cols, width)), dtype.pack(g.normal(g.edges))
    dtype.close(emulated.spmm(x, g.crow, g.col, val)[0], expected_sum(g, dtype.unpack(x), dtype.unpack(val)))


@pytest.mark.parametrize("width", [8, 9])
def test_misaligned_rows_take_the_scalar_path(emulated, csr, dtype, width):
    g = csr([3, 0, 700, 1, 40], 9)
    x = dtype.pack(g.normal(g.cols, width))
    emulated.set_misalignment(1)
    y = emulated.spmm(x, g.crow, g.col)[0]
    emulated.set_misalignment(0)
    dtype.close(y, expected_sum(g, dtype.unpack(x), np.ones(g.edges)))


@pytest.mark.parametrize("given", range(16))
def test_scales_and_diagonal(emulated, csr, dtype, given):
    """Any of the four: values and scales of columns have kernels of their own where rows are whole vectors."""
    g = csr([3, 0, 1500, 1, 40, 0, 2], 7)
    val = dtype.pack(g.normal(g.edges))
    scales = [g.rng.random(7).astype(dtype.accumulator) if given >> i & 1 else None for i in range(3)]
    weights = dtype.unpack(val) if given & 8 else np.ones(g.edges)
    for width in (12, 16):
        x = dtype.pack(g.normal(g.cols, width))
        y = emulated.spmm(x, g.crow, g.col, val if given & 8 else None, *scales)[0]
        dtype.close(y, expected_sum(g, dtype.unpack(x), weights, *scales))


@pytest.mark.parametrize("reduce", ["max", "min"])
def test_extrema(emulated, graph, dtype, reduce):
    for width in (5, 16):
        x = dtype.pack(graph.normal(graph.cols, width))
        val = dtype.pack(graph.rng.integers(-2, 3, graph.edges))  # exact products, many ties
        y, arg = emulated.spmm(x, graph.crow, graph.col, val, reduce=reduce)
        value, first = expected_extremum(graph, dtype.unpack(x), dtype.unpack(val), reduce)
        np.testing.assert_array_equal(dtype.unpack(y), value)
        np.testing.assert_array_equal(arg, first)


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
def test_nan_propagates(emulated, csr, reduce):
    g = csr([4, 0, 1000], 6)
    x = g.normal(g.cols, 4).astype(np.float32)
    x[3, 1] = np.nan
    y, arg = emulated.spmm(x, g.crow, g.col, reduce=reduce)
    touched = np.array([3 in g.col[g.crow[r] : g.crow[r + 1]] for r in range(g.rows)])
    np.testing.assert_array_equal(np.isnan(y[:, 1]), touched)
    assert not np.isnan(y[:, [0, 2, 3]]).any()
    if arg.size:
        assert (g.col[arg[touched, 1]] == 3).all()


def test_arg_backward(emulated, graph, dtype):
    for width, weighted in itertools.product((5, 16), (False, True)):
        x, dy = dtype.pack(graph.normal(graph.cols, width)), dtype.pack(graph.normal(graph.rows, width))
        val = dtype.pack(graph.normal(graph.edges)) if weighted else None
        arg = emulated.spmm(x, graph.crow, graph.col, val, reduce="max")[1]
        dx = emulated.spmm_arg_backward(dy, arg, val, graph.ccol, graph.row, graph.perm)
        expected = np.zeros((graph.cols, width))
        weights = dtype.unpack(val) if weighted else np.ones(graph.edges)
        r, j = np.nonzero(arg >= 0)
        e = arg[r, j]
        np.add.at(expected, (graph.col[e], j), weights[e] * dtype.unpack(dy)[r, j])
        dtype.close(dx, expected)


def test_same_bits_in_every_order(emulated_module, csr):
    g = csr([3, 0, 5000, 1, 40, 700], 90)
    x, val = (g.normal(*shape).astype(np.float32) for shape in ((g.cols, 40), (g.edges,)))
    results = []
    for order in ("forward", "reversed", "shuffled"):
        emulated_module.set_schedule(order, 7)
        results.append(emulated_module.spmm(x, g.crow, g.col, val)[0].tobytes())
    assert len(set(results)) == 1


@counts_loads
@pytest.mark.parametrize("width", [4, 128])
def test_hub_is_shared_by_many_warps(emulated, csr, width):
    """No warp gathers more than a window's rows for each of its groups, however long the longest row."""
    degrees = np.full(200, 4)
    degrees[60] = 10_000
    g = csr(degrees, 200)
    emulated.spmm(g.normal(g.cols, width).astype(np.float32), g.crow, g.col)
    loads = emulated.take_warp_loads()
    total = g.edges * width // 4  # one vector of four for each edge and four columns
    assert total <= loads.sum() <= 1.1 * total  # and the pieces of the hub
    assert loads.max() <= 2 * 256 * 32  # the window, for every lane of a warp
    assert (loads > loads.max() / 4).sum() >= 10_000 // 256 * width // 4 // 32  # the hub's work is spread over warps


@pytest.mark.parametrize("seed", range(12))
def test_rows_cut_anywhere(emulated, csr, seed):
    """Rows that begin, end or touch at the borders of windows of 256 edges, in every combination."""
    rng = np.random.default_rng(seed)
    degrees = rng.choice([0, 1, 100, 255, 256, 257, 511, 512, 513, 768, 1000], rng.integers(3, 12))
    g = csr(degrees, 20, seed)
    x = rng.integers(-3, 4, (g.cols, 4)).astype(np.float32)  # exact sums
    ones = np.ones(g.edges)
    np.testing.assert_array_equal(emulated.spmm(x, g.crow, g.col)[0], expected_sum(g, x, ones))
    y, arg = emulated.spmm(x, g.crow, g.col, reduce="max")
    value, first = expected_extremum(g, x, ones, "max")
    np.testing.assert_array_equal(y, value)
    np.testing.assert_array_equal(arg, first)


@pytest.mark.parametrize("width", [40, 130, 192, 264])
@pytest.mark.parametrize("misaligned", [0, 1])
def test_slices_and_whole_rows_give_the_same_bits(emulated, csr, dtype, width, misaligned):
    """Whatever the L2 holds: every slice of x, one after another, or rows over several warps; infinity passes."""
    g = csr([3, 0, 1500, 1, 2, 40, 0, 700, 5], 40, seed=width)
    x, val, dy = (dtype.pack(g.normal(*shape)) for shape in ((g.cols, width), (g.edges,), (g.rows, width)))
    ones = dtype.pack(np.ones(g.edges))
    emulated.set_misalignment(misaligned)
    size = 4 if dtype.name == "float32" else 8 if dtype.name == "float64" else 2
    results, lanes = [], []
    for l2 in (0, 40 * 128 * 5 // 3 + 2, 40 * 256 * 5 // 3 + 2, 60 << 20):
        emulated.set_l2_bytes(l2)
        y = emulated.spmm(x, g.crow, g.col, val)[0]
        lanes.append(emulated.segment_lanes(g.rows, width, g.edges, g.cols, size, 16 // size))
        extreme, arg = emulated.spmm(x, g.crow, g.col, ones, reduce="max")
        dx = emulated.spmm_arg_backward(dy, arg, None, g.ccol, g.row, g.perm)
        results.append([a.tobytes() for a in (y, extreme, arg, dx)])
    emulated.set_misalignment(0)
    dtype.close(y, expected_sum(g, dtype.unpack(x), dtype.unpack(val)))
    np.testing.assert_array_equal(arg, expected_extremum(g, dtype.unpack(x), np.ones(g.edges), "max")[1])
    assert all(r == results[0] for r in results)
    if width == 264:
        assert lanes[1] == 8 < lanes[3]  # slices of 128 bytes
    x[3, width - 1] = dtype.pack(np.array(np.inf))
    emulated.set_l2_bytes(40 * 128 * 5 // 3 + 2)
    y = dtype.unpack(emulated.spmm(x, g.crow, g.col)[0])
    touched = np.array([3 in g.col[g.crow[r] : g.crow[r + 1]] for r in range(g.rows)])
    np.testing.assert_array_equal(np.isinf(y[:, -1]), touched)
    assert np.isfinite(y[:, :-1]).all()


@pytest.mark.parametrize(
    "nodes, degree, width, size, lanes",
    [
        (169_343, 14, 256, 4, 8),  # 1 KiB a row: slices of 128 bytes, the only ones of which 36 MB hold all rows
        (100_000, 16, 256, 4, 16),  # 256 bytes
        (232_965, 492, 128, 2, 8),
        (169_343, 14, 64, 2, 8),  # 128 bytes a row fit as they are
        (2_708, 4, 1024, 4, 256),  # fits: whole rows, as far as a block goes
        (2_708, 4, 1536, 4, 128),
        (2_708, 4, 384, 4, 32),
        (2_449_029, 50, 256, 4, 64),  # no slice fits: whole rows
        (169_343, 2, 256, 4, 64),  # too few edges: what slices save is less than what they cost
        (169_343, 14, 16, 4, 4),
    ],
)
def test_slices_are_chosen_by_size(emulated, nodes, degree, width, size, lanes):
    arguments = (nodes, width, nodes * degree)
    assert emulated.segment_lanes(*arguments, nodes, size, 16 // size) == lanes
    assert emulated.segment_lanes(*arguments, 0, 0, 16 // size) == min(32, width * size // 16)
    emulated.set_l2_bytes(0)  # a device that does not say
    assert emulated.segment_lanes(*arguments, nodes, size, 16 // size) == emulated.segment_lanes(
        1, width, 1, 1 << 40, size, 16 // size
    )
    emulated.set_l2_bytes(30 << 20)  # half an H200's
    assert emulated.segment_lanes(100_000, 256, 1_600_000, 100_000, 4, 4) == 8


def test_the_fused_layers_model_reckons_with_the_same_slices(emulated):
    """_fused.py expects the slices that the kernel takes, and so the same bytes from memory."""
    rng = np.random.default_rng(0)
    for nodes, degree, width in zip(*rng.integers((1000, 1, 4), (400_000, 100, 150), (300, 3)).T, strict=True):
        nodes, edges, width = int(nodes), int(nodes * degree), 4 * int(width)
        lanes = emulated.segment_lanes(nodes, width, edges, nodes, 4, 4)
        chosen = _fused.slice_bytes(nodes, edges, width, 4)
        whole = emulated.segment_lanes(1, width, 1, 1, 4, 4)  # of a table that fits
        assert lanes == (chosen // 16 or whole)


@pytest.mark.parametrize("width", [8, 9])
def test_offsets_beyond_32_bits(emulated, width):
    y = emulated.spmm_far_row(width)
    np.testing.assert_array_equal(y.astype(np.uint32) << 16, np.arange(1, width + 1, dtype=np.float32)[None].view("u4"))


@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_rows_wider_than_one_grid(emulated_module, csr, reduce):
    """A grid has 65535 blocks in y at most, of 32 columns here: what is left takes a second launch."""
    width = 65535 * 32 + 41
    g = csr([2, 0], 3)
    x = g.normal(3, width).astype(np.float32)
    emulated_module.set_schedule("forward", 1)
    y, _ = emulated_module.spmm(x, g.crow, g.col, reduce=reduce)
    np.testing.assert_array_equal(y[0], x[g.col].sum(0) if reduce == "sum" else x[g.col].max(0))
    assert not y[1].any()


@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_slices_of_more_rows_of_blocks_than_a_grid_has(emulated, csr, reduce):
    """As above, with a grid of two rows of blocks: hubs and slices too."""
    g = csr([3, 0, 700, 1, 40], 30)
    x = g.normal(g.cols, 36 * 9).astype(np.float32)
    emulated.set_l2_bytes(30 * 128 * 5 // 3 + 2)
    expected = [a.tobytes() for a in emulated.spmm(x, g.crow, g.col, reduce=reduce)]
    emulated.set_grid_rows(2)
    assert [a.tobytes() for a in emulated.spmm(x, g.crow, g.col, reduce=reduce)] == expected
