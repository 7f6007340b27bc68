"""Attention over edges, against torch's softmax."""

import dataclasses

import numpy as np
import pytest
import torch
from ops.harness import DTYPES, GRAPHS, Case, Op, cases, check_contract, check_op

from sparsegnn import CSRGraph
from sparsegnn.ops import gat
from sparsegnn.ops.gat import reference

LOW = 2**32 - 1
SLOPE, RATE, SEED = 0.2, 0.4, -123456789012345


def mix(x: int) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D & LOW
    x ^= x >> 15
    x = x * 0x846CA68B & LOW
    return x ^ x >> 16


def dropout_factor(seed: int, edges: int, heads: int, p: float) -> np.ndarray:
    """csrc/common/random.h in Python integers."""
    z = (seed + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    z ^= z >> 31
    stream = [(h * 0x9E3779B9 & LOW) ^ (z >> 32) for h in range(heads)]
    bits = [[mix(mix(e ^ z & LOW) + s & LOW) for s in stream] for e in range(edges)]
    return (np.array(bits, dtype=np.int64).reshape(edges, heads) >= min(int(p * 2**32), LOW)) / (1 - p)


def oracle(x, a_src, a_dst, a_edge, crow, col, ccol, row, perm, dropout, bias=None):
    """Rows of equal length at a time, with torch's softmax; differentiable."""
    if a_src.dim() == 3:
        a_src, a_dst = (x * a_src).sum(-1), (x * a_dst).sum(-1)
    factor = torch.ones(col.numel(), x.size(1), dtype=x.dtype)
    if dropout:
        factor = torch.from_numpy(dropout_factor(SEED, col.numel(), x.size(1), dropout)).to(x.dtype)
    degrees, y = crow.diff(), x.new_zeros(crow.numel() - 1, *x.shape[1:])
    for d in degrees[degrees > 0].unique().tolist():
        rows = (degrees == d).nonzero().view(-1)
        edges = crow[rows, None].long() + torch.arange(d)  # [rows, d]
        source = col[edges].long()
        score = a_src[source] + a_dst[rows, None] + (0 if a_edge is None else a_edge[edges])
        alpha = torch.where(score > 0, score, SLOPE * score).softmax(1) * factor[edges]
        y = y.index_copy(0, rows, torch.einsum("reh,rehc->rhc", alpha, x[source]))
    return y if bias is None else y + bias.view(y.shape[1:])


def inputs(case: Case) -> dict:
    """``variant``: heads, then what is on; the case's width is that of all heads together, at least."""
    crow, col, ccol, row, perm, (m, n) = case.csr()
    heads, *extras = (case.variant or "2").split("+")
    h = int(heads)
    d = -(-case.width // h)
    folded = "fold" in extras and m == n
    return dict(
        x=case.tensor(n, h, d),
        a_src=case.tensor(1, h, d) / (d + 1) ** 0.5 if folded else case.tensor(n, h),
        a_dst=case.tensor(1, h, d) / (d + 2) ** 0.5 if folded else case.tensor(m, h),
        a_edge=case.tensor(col.numel(), h) if "edge" in extras else None,
        crow=crow,
        col=col,
        ccol=ccol,
        row=row,
        perm=perm,
        dropout=RATE if "dropout" in extras else 0.0,
        bias=case.tensor(h * d) if "bias" in extras else None,
    )


def call(x, a_src, a_dst, a_edge, crow, col, ccol, row, perm, dropout, bias=None):
    seed = torch.tensor([SEED], device=x.device) if dropout else None
    op = torch.ops.sparsegnn.gat
    return op(x, a_src, a_dst, a_edge, crow, col, ccol, row, perm, SLOPE, dropout, seed, True, bias)[0]


def raw_args(case: Case) -> tuple:
    *args, dropout, bias = inputs(case).values()
    *floats, bias = [a.detach().requires_grad_() if a is not None else None for a in (*args[:4], bias)]
    seed = torch.tensor([SEED]) if dropout else None
    return (*floats, *args[4:], SLOPE, dropout, seed, True, bias)


GAT = Op(
    call,
    oracle,
    inputs,
    grad=("x", "a_src", "a_dst", "a_edge", "bias"),
    autocast=("x",),
    raw=torch.ops.sparsegnn.gat.default,
    raw_args=raw_args,
    # a score's gradient is a difference of nearly equal products, one of them of the rounded output
    grad_tolerance={torch.float32: 4e-5, torch.bfloat16: 4e-2, torch.float16: 8e-3},
)
SOME_EDGES = tuple(g for g in GRAPHS if g not in ("empty", "zero_edges"))
SCORES = ("1", "8", "3+edge", "8+dropout", "2+edge+dropout", "17")
VARIANTS = (*SCORES, "3+edge+bias", "8+fold+bias", "17+fold")


@pytest.mark.parametrize("case", cases(VARIANTS))
def test_values(case):
    # rows of one edge have no gradient of their scores: on graphs of such rows the next test is the sharper one
    lone = case.graph in ("isolated", "hub_source", "tall")
    check_op(dataclasses.replace(GAT, grad=("x", "bias")) if lone else GAT, case)


@pytest.mark.parametrize("case", cases(SCORES, SOME_EDGES, (1, 8, 17, 40), layouts=("contiguous",)))
def test_score_gradients(case):
    """They are sums of terms that cancel, to zero in rows of one edge: held against the size of the terms."""
    args = inputs(case)
    crow, col, dropout = args["crow"], args["col"].long(), args["dropout"]
    rows = torch.repeat_interleave(torch.arange(crow.numel() - 1), crow.diff())
    leaves = {k: v.detach().requires_grad_() for k, v in args.items() if k in GAT.grad and v is not None}
    wide = {k: v.detach().double().requires_grad_() for k, v in leaves.items()}
    y, wanted = call(**args | leaves), oracle(**args | wide)
    dy = torch.randn(y.shape, dtype=torch.float64).to(y.dtype)
    names = list(leaves)[1:]
    got = torch.autograd.grad(y, [leaves[k] for k in names], dy)
    want = torch.autograd.grad(wanted, [wide[k] for k in names], dy.double(), allow_unused=True)
    # 16 bits: the output, and this gradient, are each rounded once to half an ulp, and both count against `size`
    eps = {torch.float32: 5e-6, torch.float64: 2e-14}.get(case.dtype, 1.5 * torch.finfo(case.dtype).eps)
    norm = wide["x"].detach().norm(dim=2)[col] / (1 - dropout)
    top = torch.zeros(dy.shape[:2], dtype=torch.float64).index_reduce(0, rows, norm, "amax")
    size = (dy.double().norm(dim=2) * top)[rows]
    index = dict(a_src=col, a_dst=rows, a_edge=torch.arange(col.numel()))
    for name, g, w in zip(names, got, want, strict=True):
        bound = torch.zeros(g.shape, dtype=torch.float64).index_add(0, index[name], size)
        error = (g.double() - (0 if w is None else w)).abs()
        assert (error <= eps * bound).all(), f"{name}: {(error / bound).nan_to_num().max():.1e}"


@pytest.mark.parametrize("variant", ["2+edge+dropout", "2+fold+bias"])
def test_contract(variant):
    check_contract(GAT, Case(width=6, variant=variant))


@pytest.mark.parametrize("heads, width", [(1, 513), (2, 600), (40, 3), (9, 64), (3, 0), (0, 4)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tiles_of_heads_and_columns(heads, width, dtype):
    """More heads than lanes, heads wider than a tile, nothing at all."""
    case = Case("random", 1, dtype)
    crow, col, ccol, row, perm, (m, n) = case.csr()
    args = {
        "x": case.tensor(n, heads, width),
        "a_src": case.tensor(n, heads),
        "a_dst": case.tensor(m, heads),
        "a_edge": case.tensor(col.numel(), heads),
    }
    op = Op(call, oracle, lambda _: args | inputs(case) | args, grad=tuple(args), grad_tolerance=GAT.grad_tolerance)
    check_op(op, case)


def random_args(dtype=torch.float64, heads=3, width=4, **options):
    case = Case("random", heads * width, dtype, variant=f"{heads}+edge")
    *args, _, _ = inputs(case).values()
    return args, case


@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_and_saved_state(dtype):
    args, _ = random_args(dtype)
    rest = (SLOPE, RATE, torch.tensor([SEED]))
    got = torch.ops.sparsegnn.gat(*args, *rest, True)
    wanted = reference(*args, *rest, True)
    for g, w in zip(got, wanted, strict=True):
        assert g.dtype == w.dtype
        torch.testing.assert_close(
            g, w, atol=1e-5 if dtype == torch.float32 else None, rtol=None if dtype != torch.float32 else 1e-5
        )
    y, lse, tilt, _ = torch.ops.sparsegnn.gat(*args, *rest, False)
    assert torch.equal(y, got[0]) and lse.numel() == tilt.numel() == 0


@pytest.mark.parametrize("dropout", [0.0, RATE])
def test_gradcheck(dropout):
    args, _ = random_args()
    leaves = [a.clone().requires_grad_() for a in args[:4]]
    seed = torch.tensor([SEED]) if dropout else None

    def function(*values):
        return torch.ops.sparsegnn.gat(*values, *args[4:], SLOPE, dropout, seed, True)[0]

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("heads, width", [(2, 4), (8, 8), (3, 5), (1, 520), (20, 3)])
@pytest.mark.parametrize("dropout", [0.0, RATE])
def test_scores_of_features_and_bias(heads, width, dropout):
    """Attention vectors [1, H, D] in place of scores, and a bias: as products outside the op, in every gradient."""
    args, case = random_args(torch.float64, heads, width)
    x, _, _, a_edge, *pattern = args
    vectors = [case.tensor(1, heads, width) / width for _ in range(2)]
    leaves = [t.clone().requires_grad_() for t in (x, *vectors, a_edge, torch.randn(heads * width).double())]
    rest = (SLOPE, dropout, torch.tensor([SEED]) if dropout else None, True)
    inside = torch.ops.sparsegnn.gat(*leaves[:4], *pattern, *rest, leaves[4])[0]
    scores = [(leaves[0] * v).sum(-1) for v in leaves[1:3]]
    outside = torch.ops.sparsegnn.gat(leaves[0], *scores, leaves[3], *pattern, *rest)[0] + leaves[4].view(heads, width)
    flow = torch.randn_like(inside)
    for g, w in zip(torch.autograd.grad(inside, leaves, flow), torch.autograd.grad(outside, leaves, flow), strict=True):
        torch.testing.assert_close(g, w, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(inside, outside)


@pytest.mark.parametrize("slope", [0.0, 1.0, -0.5, 3.0])
def test_any_slope(slope):
    args, _ = random_args()
    got = torch.ops.sparsegnn.gat(*args, slope, 0.0, None, True)
    for g, w in zip(got, reference(*args, slope, 0.0, None, True), strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("turned", [False, True])
def test_rows_around_a_chunk_of_edges(turned):
    """Scores are gathered 64 edges at a time, once for rows that fit; in the gradients, rows of the transpose."""
    degrees = torch.tensor([0, 1, 63, 64, 65, 100, 127, 128, 129, 200])
    edges = torch.stack([torch.arange(degrees.sum()) % 211, torch.repeat_interleave(torch.arange(10), degrees)])
    graph = CSRGraph.from_edge_index(edges.flip(0) if turned else edges, (211, 10) if turned else (10, 211))
    g = torch.Generator().manual_seed(9)
    shapes = (graph.num_cols, 3, 2), (graph.num_cols, 3), (graph.num_rows, 3), (graph.num_edges, 3)
    leaves = [torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_() for shape in shapes]
    pattern = graph.crow, graph.col, *graph.transpose()
    got = torch.ops.sparsegnn.gat(*leaves, *pattern, SLOPE, RATE, torch.tensor([SEED]), True)[0]
    want = oracle(*leaves, *pattern, RATE)
    torch.testing.assert_close(got, want)
    flow = torch.randn(got.shape, generator=g, dtype=torch.float64)
    for one, other in zip(torch.autograd.grad(got, leaves, flow), torch.autograd.grad(want, leaves, flow), strict=True):
        torch.testing.assert_close(one, other)


def star(scores, dtype=torch.float32, width=3):
    """One row with an edge per score."""
    n = len(scores)
    crow, col = torch.tensor([0, n], dtype=torch.int32), torch.arange(n, dtype=torch.int32)
    x = torch.randn(n, 1, width, dtype=dtype)
    return x, torch.tensor(scores, dtype=dtype)[:, None], torch.zeros(1, 1, dtype=dtype), crow, col


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "scores",
    [
        [0.0, -torch.inf, 1.0],
        [-torch.inf, -torch.inf],
        [torch.inf, 0.0],
        [torch.nan, 0.0, 1.0],
        [1e30, -1e30, 1e30],
        [-1e30, -2e30],
        [300.0, 0.0, -300.0, 299.0],
        [0.0] * 200 + [torch.nan],
    ],
)
def test_extreme_scores_are_those_of_softmax(scores, dtype):
    x, a_src, a_dst, crow, col = star(scores, dtype)
    y = torch.ops.sparsegnn.gat(x, a_src, a_dst, None, crow, col, None, None, None, SLOPE, 0.0, None, True)[0]
    alpha = torch.where(a_src > 0, a_src, SLOPE * a_src).softmax(0)
    torch.testing.assert_close(y, (alpha[:, :, None] * x).sum(0)[None], equal_nan=True)


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 2.0), (torch.float64, 2.0)])
def test_exponential_is_within_two_ulp(dtype, bound):
    """alpha / (1 - alpha) of a row of two edges is exp of the difference of their scores; here through lse and y."""
    gap = torch.linspace(0, 80 if dtype == torch.float32 else 600, 4001, dtype=torch.float64)
    n = gap.numel()
    crow = torch.arange(0, 2 * n + 1, 2, dtype=torch.int32)
    col = torch.stack([torch.full((n,), n), torch.arange(n)], 1).int().flatten()
    gap = gap.to(dtype)
    a_src, x = (
        torch.cat([-gap, gap.new_zeros(1)])[:, None],
        torch.cat([gap.new_ones(n), gap.new_zeros(1)])[:, None, None],
    )
    y = torch.ops.sparsegnn.gat(x, a_src, a_src[:-1] * 0, None, crow, col, None, None, None, 1.0, 0.0, None, False)[0]
    e = np.exp(-gap.numpy().astype(np.longdouble))
    wanted = e / (1 + e)
    error = np.abs(y[:, 0, 0].numpy() - wanted) / np.spacing(wanted.astype(gap.numpy().dtype))
    assert error.max() <= bound + 1.5, error.max()  # and the roundings of the sum, the quotient and the product


def test_dropout_statistics():
    """Kept with probability 1 - p, independently over edges, heads and seeds; the expectation is no dropout."""
    n, heads = 2000, 8
    crow, col = torch.tensor([0, n], dtype=torch.int32), torch.arange(n, dtype=torch.int32)
    a, x = torch.zeros(n, heads, dtype=torch.float64), torch.eye(n, dtype=torch.float64)[:, None].expand(-1, heads, -1)
    kept = []
    for seed in (0, 1, 2**40, -1):
        y = gat(CSRGraph(crow, col, None, n), x, a, a[:1], dropout=RATE, seed=torch.tensor([seed]))[0].T  # [edge, head]
        assert torch.allclose(y[y != 0], torch.tensor(1 / (1 - RATE) / n, dtype=torch.float64))
        kept.append((y != 0).double())
    kept = torch.cat(kept, 1)  # 32 columns
    assert (kept.mean(0) - (1 - RATE)).abs().max() < 4.5 * (RATE * (1 - RATE) / n) ** 0.5
    correlation = torch.corrcoef(torch.cat([kept, kept.roll(1, 0)], 1).T) - torch.eye(64)
    assert correlation.abs().max() < 5.5 / n**0.5
    everything = gat(CSRGraph(crow, col, None, n), x, a, a[:1], dropout=1.0, seed=torch.tensor([0]))
    assert not everything.any()


def test_public_function_and_its_checks():
    graph = CSRGraph.from_edge_index(torch.tensor([[0, 1, 2, 0], [1, 2, 2, 0]]), 3)
    x, a, edge = torch.randn(3, 2, 4), torch.randn(3, 2), torch.randn(4, 2)
    y = gat(graph, x, a, a, edge)
    args = (x, a, a, edge, graph.crow, graph.col, *graph.transpose(), 0.2, 0.0, None)
    torch.testing.assert_close(y, reference(*args, False)[0])
    for change, error, message in (
        (dict(x=x[:2]), ValueError, r"gat: x must have shape \[3, H, D\], got \[2, 2, 4\]"),
        (dict(x=None), TypeError, "gat: x must be a Tensor"),
        (dict(a_src=a[:, :1]), ValueError, r"gat: a_src must have shape \[3, 2\], got \[3, 1\]"),
        (dict(a_dst=a.double()), TypeError, "gat: a_dst must have the dtype of x"),
        (dict(a_edge=a), ValueError, r"gat: a_edge must have shape \[4, 2\], got \[3, 2\]"),
        (dict(a_src=x[:1]), ValueError, r"gat: a_dst must have shape \[1, 2, 4\], got \[3, 2\]"),
        (dict(bias=a), ValueError, r"gat: bias must have shape \[8\], got \[3, 2\]"),
        (dict(dropout=-0.1), ValueError, r"gat: dropout must be in \[0, 1\], got -0.1"),
        (dict(dropout=0.5), TypeError, "gat: seed must be a Tensor"),
        (dict(dropout=0.5, seed=torch.zeros(1)), TypeError, "gat: seed must be int64"),
    ):
        given = dict(x=x, a_src=a, a_dst=a, a_edge=edge) | change
        with pytest.raises(error, match=message):
            gat(graph, **given)


def test_backward_without_saved_state_is_refused():
    args, _ = random_args(torch.float32)
    args[0] = args[0].requires_grad_()
    y = torch.ops.sparsegnn.gat(*args, SLOPE, 0.0, None, False)[0]
    with pytest.raises(RuntimeError, match="save=True"):
        y.sum().backward()


def test_gradients_of_scores_and_bias_alone():
    """Features without a gradient, as those of a first layer are where the scores are made elsewhere."""
    graph = CSRGraph.from_edge_index(torch.randint(0, 9, (2, 40)), 9)
    x, bias = torch.randn(9, 2, 3).double(), torch.randn(6).double()
    a_src, a_dst = (torch.randn(9, 2).double() for _ in range(2))
    leaves = [t.requires_grad_() for t in (a_src, a_dst, bias)]
    pattern = (graph.crow, graph.col, *graph.transpose())
    wanted = reference(x, a_src, a_dst, None, *pattern, 0.2, 0.0, None, False, bias)[0]
    for k, leaf in enumerate(leaves):  # one at a time
        given = [t if t is leaf else t.detach() for t in leaves]
        got = gat(graph, x, *given[:2], bias=given[2])
        flow = torch.randn_like(wanted)
        (mine,) = torch.autograd.grad(got, leaf, flow.view_as(got))
        (right,) = torch.autograd.grad(wanted, leaf, flow, retain_graph=True)
        torch.testing.assert_close(mine, right, msg=str(k))
