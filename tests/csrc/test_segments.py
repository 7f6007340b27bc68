"""How rows are cut and ordered for the CUDA kernels: with a list of spans or without, the same bits."""

import numpy as np
import pytest
import torch

from sparsegnn import graph_spans

EDGES = [1, 255, 256, 257, 1 << 22, (1 << 22) + 1, 1 << 23, (1 << 23) + 1, 1 << 24, 1 << 30]


def graph_of(csr, seed: int):
    """Rows around the borders of one, two and three windows of 256 edges; columns as uneven."""
    rng = np.random.default_rng(seed)
    degrees = rng.choice([0, 1, 2, 3, 5, 100, 255, 256, 257, 511, 512, 513, 768, 769, 2000], rng.integers(4, 14))
    g = csr(degrees, 9, seed)
    return g


@pytest.mark.parametrize("edges", EDGES)
def test_python_cuts_as_the_kernels_do(emulated_module, edges):
    assert graph_spans.window(edges) == emulated_module.segment_window(edges)


@pytest.mark.parametrize("seed", range(6))
def test_spans_hold_every_edge_once(csr, seed):
    g = graph_of(csr, seed)
    spans = g.spans["spans"]
    size, covered, lengths = graph_spans.window(g.edges), np.zeros(g.edges, int), []
    for row in range(g.rows):
        pieces = max(1, -(-int(g.degrees[row]) // size))
        assert sorted(spans[spans[:, 0] == row, 1]) == list(range(pieces))
        cut = np.array_split(np.arange(g.crow[row], g.crow[row + 1]), pieces)
        for piece in cut:
            covered[piece] += 1
        lengths.append(len(cut[0]))
    assert (covered == 1).all() and spans.dtype == np.int32 and spans.shape[1] == 2
    of = np.array(lengths)[spans[:, 0]]
    assert (np.diff(of) <= 0).all(), "longest first"
    for row in range(g.rows):  # a row's pieces are neighbours, in order
        at = np.flatnonzero(spans[:, 0] == row)
        assert (np.diff(at) == 1).all() and (spans[at, 1] == np.arange(len(at))).all()


def test_no_span_of_no_row():
    assert graph_spans.row_spans(torch.zeros(1, dtype=torch.int32), 0).shape == (0, 2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("width", [5, 40])
def test_spmm(emulated, csr, dtype, seed, width):
    g = graph_of(csr, seed)
    x, val, dy = (dtype.pack(g.normal(*shape)) for shape in ((g.cols, width), (g.edges,), (g.rows, width)))
    for reduce in ("sum", "mean", "max"):
        plain = emulated.spmm(x, g.crow, g.col, val, reduce=reduce)
        listed = emulated.spmm(x, g.crow, g.col, val, reduce=reduce, spans=g.spans["spans"])
        for a, b in zip(plain, listed, strict=True):
            np.testing.assert_array_equal(a, b)
    backward = emulated.spmm_arg_backward(dy, plain[1], val, g.ccol, g.row, g.perm)
    listed = emulated.spmm_arg_backward(dy, plain[1], val, g.ccol, g.row, g.perm, g.spans["cspans"])
    np.testing.assert_array_equal(backward, listed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("heads, width", [(2, 3), (2, 8)])
def test_gat(emulated, csr, dtype, seed, heads, width):
    g, acc = graph_of(csr, seed), dtype.accumulator
    x, dy = dtype.pack(g.normal(g.cols, heads, width)), dtype.pack(g.normal(g.rows, heads, width))
    a_src, a_dst, a_edge = (g.normal(n, heads).astype(acc) for n in (g.cols, g.rows, g.edges))
    seeds = np.array([7])
    results = []
    for spans, cspans in ((None, None), g.spans.values()):
        y, lse, tilt = emulated.gat(x, a_src, a_dst, a_edge, g.crow, g.col, 0.2, 0.3, seeds, spans=spans)
        back = emulated.gat_backward(
            dy, x, a_src, a_dst, a_edge, y, lse, tilt, g.ccol, g.row, g.perm, 0.2, 0.3, seeds, True, cspans=cspans
        )
        results.append((y, lse, tilt, *back))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("heads, width", [(2, 3), (2, 8)])
def test_gatv2(emulated, csr, dtype, seed, heads, width):
    """datt is a sum over strips of spans: of another order, to the same number."""
    g = graph_of(csr, seed)
    x_src, x_dst, dy = (dtype.pack(g.normal(n, heads, width)) for n in (g.cols, g.rows, g.rows))
    att, results = g.normal(heads, width).astype(dtype.accumulator), []
    for spans, cspans in ((None, None), g.spans.values()):
        y, lse = emulated.gatv2(x_src, x_dst, att, None, g.crow, g.col, spans=spans)
        args = dy, x_src, x_dst, att, None, y, lse, g.crow, g.col, g.ccol, g.row, g.perm
        results.append((y, lse, *emulated.gatv2_backward(*args, spans=spans, cspans=cspans)))
    datt = [r[4] for r in results]
    np.testing.assert_allclose(*datt, rtol=1e-3, atol=1e-3 * np.abs(datt[0]).max())
    for a, b in zip(*(r[:4] for r in results), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k, width", [(2, 40), (8, 16)])
def test_maxk_backward(emulated, csr, dtype, seed, k, width):
    """Gathered entries, and whole rows."""
    g = graph_of(csr, seed)
    every = np.tile(np.arange(width, dtype=np.uint8), (g.cols, 1))
    index = np.sort(g.rng.permuted(every, axis=1)[:, :k], 1)
    values, dy = dtype.pack(g.normal(g.cols, k)), dtype.pack(g.normal(g.rows, width))
    given = values, index, width, g.crow, g.col, dtype.pack(g.normal(g.edges))
    transpose = g.ccol, g.row, g.perm
    plain = emulated.maxk_spmm(*given, dy=dy, transpose=transpose)
    listed = emulated.maxk_spmm(*given, dy=dy, transpose=transpose, cspans=g.spans["cspans"])
    for a, b in zip(plain, listed, strict=True):
        np.testing.assert_array_equal(a, b)
