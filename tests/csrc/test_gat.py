"""The CUDA gat kernels under the emulator, against attention written out over the edges in fp64."""

import numpy as np
import pytest

from .conftest import Dtype

MASK = np.uint64(0xFFFFFFFF)


def mix(x):
    x = x ^ (x >> np.uint64(16))
    x = (x * np.uint64(0x7FEB352D)) & MASK
    x = x ^ (x >> np.uint64(15))
    x = (x * np.uint64(0x846CA68B)) & MASK
    return x ^ (x >> np.uint64(16))


def dropout_factor(seed, edges, heads, p):
    """csrc/common/random.h once more."""
    z = (int(seed) + 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    z ^= z >> 31
    edge = mix(np.arange(edges, dtype=np.uint64) ^ (np.uint64(z) & MASK))
    head = ((np.arange(heads, dtype=np.uint64) * np.uint64(0x9E3779B9)) & MASK) ^ np.uint64(z >> 32)
    bits = mix((edge[:, None] + head[None]) & MASK)
    return (bits >= np.uint64(min(int(p * 2**32), 2**32 - 1))) / (1 - p)


class Attention:
    """Forward and every gradient of one case, edge by edge."""

    def __init__(self, g, x, a_src, a_dst, a_edge, dy, slope, factor):
        rows, source = g.row_of, g.col
        score = a_src[source] + a_dst[rows] + (0 if a_edge is None else a_edge)
        logit = np.where(score > 0, score, slope * score)
        top = np.full(a_dst.shape, -np.inf)
        np.maximum.at(top, rows, logit)
        alpha = np.exp(logit - top[rows])
        total = self.add(rows, alpha, a_dst.shape)
        alpha = alpha / total[rows]
        kept, tangent = alpha * factor, np.where(score > 0, 1.0, slope)
        with np.errstate(divide="ignore", invalid="ignore"):
            self.lse = np.where(total > 0, top + np.log(total), -np.inf)
        shape = (g.rows, *x.shape[1:])
        self.y = self.add(rows, kept[:, :, None] * x[source], shape)
        self.tilt = self.add(rows, (kept * tangent)[:, :, None] * x[source], shape)
        self.tilt -= self.add(rows, alpha * tangent, a_dst.shape)[:, :, None] * self.y
        flow = factor * (dy[rows] * x[source]).sum(-1) - (dy * self.y).sum(-1)[rows]
        self.da_edge = alpha * tangent * flow
        self.dx = self.add(source, kept[:, :, None] * dy[rows], x.shape)
        self.da_src = self.add(source, self.da_edge, a_src.shape)
        self.da_dst = self.add(rows, self.da_edge, a_dst.shape)

    @staticmethod
    def add(index, values, shape):
        out = np.zeros(shape)
        np.add.at(out, index, values)
        return out


def close_to(actual, expected, terms, tolerance):
    """Sums that cancel: the error is held against the size of what was added, not of what is left."""
    assert np.isfinite(actual).all()
    assert np.abs(actual - expected).max(initial=0) <= tolerance * max(np.abs(terms).max(initial=0), 1e-30)


def run(emulated, dtype, g, heads, width, *, edge=False, dropout=0.0, slope=0.2, spread=1.0):
    acc = dtype.accumulator
    x, dy = dtype.pack(g.normal(g.cols, heads, width)), dtype.pack(g.normal(g.rows, heads, width))
    a_src, a_dst = (spread * g.normal(n, heads).astype(acc) for n in (g.cols, g.rows))
    a_edge = g.normal(g.edges, heads).astype(acc) if edge else None
    seed = np.array([g.rng.integers(-(2**62), 2**62)]) if dropout else None
    factor = dropout_factor(seed[0], g.edges, heads, dropout) if dropout else np.ones((g.edges, heads))
    expected = Attention(
        g,
        dtype.unpack(x),
        a_src.astype(np.float64),
        a_dst.astype(np.float64),
        None if a_edge is None else a_edge.astype(np.float64),
        dtype.unpack(dy),
        slope,
        factor,
    )
    y, lse, tilt = emulated.gat(x, a_src, a_dst, a_edge, g.crow, g.col, slope, dropout, seed)
    alone = emulated.gat(x, a_src, a_dst, a_edge, g.crow, g.col, slope, dropout, seed, save=False)
    dtype.close(y, expected.y)
    dtype.close(alone[0], expected.y)
    assert alone[1].size == 0 and alone[2].size == 0
    finite = np.isfinite(expected.lse)
    assert (lse[~finite] == -np.inf).all()
    np.testing.assert_allclose(lse[finite], expected.lse[finite], rtol=1e-5, atol=1e-5)
    close_to(dtype.unpack(tilt), expected.tilt, expected.y, dtype.tolerance)

    dx, *scores, _, _, _ = emulated.gat_backward(
        dy, x, a_src, a_dst, a_edge, y, lse, tilt, g.ccol, g.row, g.perm, slope, dropout, seed, edge
    )
    dtype.close(dx, expected.dx)
    size = np.abs(dtype.unpack(dy)).sum(-1)  # what de is made of
    for actual, name in zip(scores, ("da_src", "da_dst", "da_edge"), strict=True):
        if name != "da_edge" or edge:
            close_to(actual, getattr(expected, name), size, 2 * dtype.tolerance)
    return y


def test_graphs(emulated, graph, dtype):
    run(emulated, dtype, graph, 2, 4 if graph.edges > 1000 else 8)


@pytest.mark.parametrize("heads, width", [(1, 1), (1, 3), (3, 5), (8, 8), (2, 24), (1, 70), (5, 16)])
def test_odd_heads_and_widths(emulated, csr, dtype, heads, width):
    for edge in (False, True):
        run(emulated, dtype, csr([3, 0, 21, 1, 5, 0, 2], 9, seed=width), heads, width, edge=edge)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_edge_scores_and_dropout(emulated, csr, dtype, dropout):
    """The hub of 600 edges is cut into windows; the masks are those of csrc/common/random.h."""
    run(emulated, dtype, csr([3, 0, 600, 1, 19], 30), 2, 8, edge=True, dropout=dropout)


@pytest.mark.parametrize("slope", [0.0, 1.0, -0.5])
def test_slopes(emulated, csr, slope):
    run(emulated, Dtype("float32"), csr([3, 0, 21, 1], 9), 2, 4, slope=slope)


@pytest.mark.parametrize("heads, width", [(1, 3), (8, 8), (2, 40)])
def test_scores_of_features_and_bias(emulated, csr, dtype, heads, width):
    """The scores as products with x, the bias, and the gradients of both."""
    g = csr([3, 0, 400, 1, 5, 0, 2, 9], 8)
    x, dy = dtype.pack(g.normal(8, heads, width)), dtype.pack(g.normal(8, heads, width))
    att_src, att_dst, bias = (g.normal(heads, width).astype(dtype.accumulator) for _ in range(3))
    wide, flow, *folded = dtype.unpack(x), dtype.unpack(dy), *(a.astype(np.float64) for a in (att_src, att_dst))
    scores = emulated.gat_scores(x, att_src, att_dst)
    for got, a in zip(scores, folded, strict=True):
        np.testing.assert_allclose(got, (wide * a).sum(-1), rtol=1e-4, atol=1e-5 * width)
    expected = Attention(g, wide, *((wide * a).sum(-1) for a in folded), None, flow, 0.2, np.ones((g.edges, heads)))
    y, lse, tilt = emulated.gat(x, *scores, None, g.crow, g.col, bias=bias)
    dtype.close(y, expected.y + bias)
    dx, da_src, da_dst, _, *rest = emulated.gat_backward(
        dy, x, *scores, None, y, lse, tilt, g.ccol, g.row, g.perm, att_src=att_src, att_dst=att_dst, bias=bias
    )
    size = np.abs(flow).sum(-1).max() * np.ones(1)
    wanted = expected.dx + expected.da_src[:, :, None] * folded[0] + expected.da_dst[:, :, None] * folded[1]
    close_to(dtype.unpack(dx), wanted, 4 * size, 2 * dtype.tolerance)
    sums = ((da[:, :, None] * wide).sum(0) for da in (expected.da_src, expected.da_dst))
    for got, want in zip(rest, (*sums, flow.sum(0)), strict=True):
        close_to(got, want, 20 * size, 2 * dtype.tolerance)


def test_large_scores(emulated, csr):
    """Scores of hundreds overflow exp unless the maximum is taken away first."""
    wide, spread = Dtype("float32"), 60.0
    run(emulated, wide, csr([3, 0, 600, 1, 9], 9), 2, 4, spread=spread)


@pytest.mark.parametrize("masked", [[2], [0], [0, 1, 2]], ids=str)
def test_masked_edges(emulated, csr, masked):
    """A score of -inf takes its edge out, the first ones of a row too."""
    g = csr([6, 600, 5], 8)
    x, a_dst = g.normal(8, 1, 4).astype(np.float32), np.zeros((3, 1), np.float32)
    a_edge = np.zeros((g.edges, 1), np.float32)
    a_edge[np.isin(g.col, masked)] = -np.inf
    y = emulated.gat(x, np.zeros((8, 1), np.float32), a_dst, a_edge, g.crow, g.col)[0]
    weight = (~np.isin(g.col, masked)).astype(np.float64)
    expected = Attention.add(g.row_of, weight[:, None] * x[g.col, 0].astype(np.float64), (3, 4))
    expected /= np.maximum(Attention.add(g.row_of, weight, 3), 1)[:, None]
    np.testing.assert_allclose(y[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_a_row_that_begins_with_parts_of_masked_edges(emulated, csr):
    """Warps share a long row: the first parts that are merged have no finite score."""
    g = csr([4000, 2], 8)
    x, a_edge = g.normal(8, 1, 4).astype(np.float32), np.full((g.edges, 1), -np.inf, np.float32)
    a_edge[3990:] = 0
    zeros = np.zeros((8, 1), np.float32)
    y = emulated.gat(x, zeros, zeros[:2], a_edge, g.crow, g.col)[0]
    expected = [x[g.col[3990:4000], 0].astype(np.float64).mean(0), x[g.col[4000:], 0].astype(np.float64).mean(0)]
    np.testing.assert_allclose(y[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_misaligned_rows_take_the_scalar_path(emulated, csr, dtype):
    emulated.set_misalignment(1)
    run(emulated, dtype, csr([3, 0, 300, 1, 5], 9), 2, 8)
    emulated.set_misalignment(0)


def test_nan_stays_in_its_row(emulated, csr):
    g = csr([4, 0, 300], 6)
    a_src = np.zeros((6, 2), np.float32)
    a_src[3, 1] = np.nan
    y = emulated.gat(np.ones((6, 2, 4), np.float32), a_src, np.zeros((3, 2), np.float32), None, g.crow, g.col)[0]
    touched = np.array([3 in g.col[g.crow[r] : g.crow[r + 1]] for r in range(3)])
    np.testing.assert_array_equal(np.isnan(y[:, 1, 0]), touched)
    assert not np.isnan(y[:, 0]).any()


def test_same_bits_in_every_order(emulated_module, csr):
    results = []
    for order in ("forward", "reversed", "shuffled"):
        emulated_module.set_schedule(order, 7)
        g = csr([3, 0, 700, 1, 40], 30)
        x, a_src = (g.normal(*s).astype(np.float32) for s in ((30, 2, 8), (30, 2)))
        a_dst, dy = (g.normal(*s).astype(np.float32) for s in ((5, 2), (5, 2, 8)))
        saved = emulated_module.gat(x, a_src, a_dst, None, g.crow, g.col)
        grads = emulated_module.gat_backward(dy, x, a_src, a_dst, None, *saved, g.ccol, g.row, g.perm)
        results.append(b"".join(t.tobytes() for t in (*saved, *grads)))
    assert len(set(results)) == 1


@pytest.mark.parametrize("heads, width", [(2, 64), (4, 128)])
def test_slices_and_whole_rows(emulated, csr, dtype, heads, width):
    """Whatever the L2 holds: slices of a head, or rows over several warps, whose heads each warp scores for itself."""
    for nodes, l2 in ((40, 40 * 128 * 5 // 3 + 2), (40, 0), (9, 60 << 20)):
        emulated.set_l2_bytes(l2)
        run(emulated, dtype, csr([3, 0, 70, 1, 2, 40, 0, 33] * (nodes // 8), nodes, seed=width), heads, width)
