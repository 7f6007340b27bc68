"""The CUDA gatv2 kernels under the emulator, against attention written out over the edges in fp64."""

import numpy as np
import pytest

from .conftest import Dtype, counts_loads
from .test_gat import close_to, dropout_factor


def add(index, values, shape):
    out = np.zeros(shape)
    np.add.at(out, index, values)
    return out


class Attention:
    """Forward and every gradient of one case, edge by edge."""

    def __init__(self, g, x_src, x_dst, att, edge, dy, slope, factor):
        rows, source = g.row_of, g.col
        z = x_src[source] + x_dst[rows] + (0 if edge is None else edge)
        tangent = np.where(z > 0, 1.0, slope)
        score = (att * tangent * z).sum(-1)
        top = np.full(x_dst.shape[:2], -np.inf)
        np.maximum.at(top, rows, score)
        alpha = np.exp(score - top[rows])
        total = add(rows, alpha, top.shape)
        alpha = alpha / total[rows]
        with np.errstate(divide="ignore", invalid="ignore"):
            self.lse = np.where(total > 0, top + np.log(total), -np.inf)
        kept = (alpha * factor)[:, :, None]
        self.y = add(rows, kept * x_src[source], x_dst.shape)
        de = factor * (dy[rows] * x_src[source]).sum(-1) - (dy * self.y).sum(-1)[rows]
        de = (alpha * de)[:, :, None]
        self.dedge = de * att * tangent
        self.dx_dst = add(rows, self.dedge, x_dst.shape)
        self.dx_src = add(source, kept * dy[rows] + self.dedge, x_src.shape)
        self.datt = (de * tangent * z).sum(0)


def run(emulated, dtype, g, heads, width, *, edge=False, dropout=0.0, slope=0.2, spread=1.0):
    shape = (heads, width)
    x_src, x_dst, dy = (dtype.pack(g.normal(n, *shape)) for n in (g.cols, g.rows, g.rows))
    e = dtype.pack(g.normal(g.edges, *shape)) if edge else None
    att = (spread * g.normal(*shape)).astype(dtype.accumulator)
    seed = np.array([g.rng.integers(-(2**62), 2**62)]) if dropout else None
    factor = dropout_factor(seed[0], g.edges, heads, dropout) if dropout else np.ones((g.edges, heads))
    wide = [dtype.unpack(t) for t in (x_src, x_dst)]
    expected = Attention(
        g, *wide, att.astype(np.float64), None if e is None else dtype.unpack(e), dtype.unpack(dy), slope, factor
    )
    y, lse = emulated.gatv2(x_src, x_dst, att, e, g.crow, g.col, slope, dropout, seed)
    alone = emulated.gatv2(x_src, x_dst, att, e, g.crow, g.col, slope, dropout, seed, save=False)
    dtype.close(y, expected.y)
    np.testing.assert_array_equal(alone[0], y)
    assert alone[1].size == 0
    finite = np.isfinite(expected.lse)
    assert (lse[~finite] == -np.inf).all()
    np.testing.assert_allclose(lse[finite], expected.lse[finite], rtol=1e-5, atol=1e-5 * spread)
    grads = emulated.gatv2_backward(
        dy, x_src, x_dst, att, e, y, lse, g.crow, g.col, g.ccol, g.row, g.perm, slope, dropout, seed, edge
    )
    size = max(np.abs(dtype.unpack(dy)).sum(-1).max(initial=0) * max(np.abs(att).max(initial=0), 1), 1e-30)
    for actual, name in zip(grads, ("dx_src", "dx_dst", "datt", "dedge"), strict=True):
        if name != "dedge" or edge:
            wanted = getattr(expected, name)
            got = actual.astype(np.float64) if name == "datt" else dtype.unpack(actual)
            terms = np.array([size, np.abs(wanted).max(initial=0)])
            close_to(got, wanted, terms * (g.edges**0.5 if name == "datt" else 2), 2 * dtype.tolerance)
    return y


def test_graphs(emulated, graph, dtype):
    run(emulated, dtype, graph, 2, 4 if graph.edges > 1000 else 8)


@pytest.mark.parametrize("heads, width", [(1, 1), (3, 5), (8, 8), (2, 40), (1, 61), (1, 140), (4, 64)])
def test_odd_heads_and_widths(emulated, csr, dtype, heads, width):
    run(emulated, dtype, csr([3, 0, 21, 1, 5, 0, 2], 9, seed=width), heads, width)


@pytest.mark.parametrize("width, longest", [(192, 9), (256, 9), (264, 300), (520, 9), (1030, 9)])
def test_wide_heads(emulated, csr, dtype, width, longest):
    """Two vectors for every lane, and heads cut into slices."""
    run(emulated, dtype, csr([3, 0, longest, 1], 5, seed=width), 2, width, edge=True)


def test_misaligned_rows_take_the_scalar_path(emulated, csr, dtype):
    emulated.set_misalignment(1)
    run(emulated, dtype, csr([3, 0, 300, 1, 5], 9), 2, 8, edge=True)
    emulated.set_misalignment(0)


@counts_loads
@pytest.mark.parametrize("heads, width", [(2, 8), (1, 48)])
def test_hub_is_shared_by_many_warps(emulated, csr, heads, width):
    """No warp reads more of the hub than a window's edges for each of its groups."""
    degrees = np.full(50, 4)
    degrees[20] = 5_000
    run(emulated, Dtype("float32"), csr(degrees, 50), heads, width, dropout=0.3)
    emulated.take_warp_loads()
    g = csr(degrees, 50)
    x_src, x_dst = (g.normal(n, heads, width).astype(np.float32) for n in (50, 50))
    emulated.gatv2(x_src, x_dst, g.normal(heads, width).astype(np.float32), None, g.crow, g.col)
    loads = emulated.take_warp_loads()
    vectors = heads * width // 4
    assert g.edges * vectors <= loads.sum() <= 1.2 * (g.edges + 50) * vectors  # each row of x_src once
    assert loads.max() <= 2 * (256 + 2) * 32


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_edge_terms_and_dropout(emulated, csr, dtype, dropout):
    """The masks are those of csrc/common/random.h."""
    run(emulated, dtype, csr([3, 0, 600, 1, 19], 30), 2, 8, edge=True, dropout=dropout)


@pytest.mark.parametrize("slope", [0.0, 1.0, -0.5])
def test_slopes(emulated, csr, slope):
    run(emulated, Dtype("float32"), csr([3, 0, 21, 1], 9), 2, 4, slope=slope)


def test_large_scores(emulated, csr):
    """Scores of hundreds overflow exp unless the maximum is taken away first."""
    wide, spread = Dtype("float32"), 60.0
    run(emulated, wide, csr([3, 0, 60, 1, 9], 9), 2, 4, spread=spread)


def test_same_bits_in_every_order(emulated_module, csr):
    results = []
    for order in ("forward", "reversed", "shuffled"):
        emulated_module.set_schedule(order, 7)
        g = csr([3, 0, 700, 1, 40], 30)
        x_src, x_dst, dy = (g.normal(n, 2, 8).astype(np.float32) for n in (30, 5, 5))
        att = g.normal(2, 8).astype(np.float32)
        saved = emulated_module.gatv2(x_src, x_dst, att, None, g.crow, g.col)
        pattern = (g.crow, g.col, g.ccol, g.row, g.perm)
        grads = emulated_module.gatv2_backward(dy, x_src, x_dst, att, None, *saved, *pattern)
        results.append(b"".join(t.tobytes() for t in (*saved, *grads)))
    assert len(set(results)) == 1


@pytest.mark.parametrize("heads, width", [(300, 2), (2, 258)])
def test_more_rows_of_blocks_than_a_grid_has(emulated, csr, dtype, heads, width):
    emulated.set_grid_rows(2)
    run(emulated, dtype, csr([3, 0, 300, 1], 5), heads, width)
