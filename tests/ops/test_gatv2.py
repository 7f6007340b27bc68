"""Attention with dynamic scores, against torch's softmax."""

import dataclasses

import pytest
import torch
from ops.harness import DTYPES, GRAPHS, Case, Op, cases, check_contract, check_op
from ops.test_gat import RATE, SEED, SLOPE, dropout_factor
from torch.utils.flop_counter import FlopCounterMode

from sparsegnn import CSRGraph
from sparsegnn.ops import gatv2
from sparsegnn.ops.gatv2 import reference


def oracle(x_src, x_dst, att, edge, crow, col, ccol, row, perm, dropout):
    """Rows of equal length at a time, with torch's softmax; differentiable."""
    factor = torch.ones(col.numel(), att.size(0), dtype=att.dtype)
    if dropout:
        factor = torch.from_numpy(dropout_factor(SEED, col.numel(), att.size(0), dropout)).to(att.dtype)
    degrees, y = crow.diff(), x_dst * 0
    for d in degrees[degrees > 0].unique().tolist():
        rows = (degrees == d).nonzero().view(-1)
        edges = crow[rows, None].long() + torch.arange(d)  # [rows, d]
        source = col[edges].long()
        z = x_src[source] + x_dst[rows, None] + (0 if edge is None else edge[edges])
        score = torch.einsum("rehc,hc->reh", torch.where(z > 0, z, SLOPE * z), att)
        alpha = score.softmax(1) * factor[edges]
        y = y.index_copy(0, rows, torch.einsum("reh,rehc->rhc", alpha, x_src[source]))
    return y


def inputs(case: Case) -> dict:
    """``variant``: heads, then what is on; the case's width is that of all heads together, at least."""
    crow, col, ccol, row, perm, (m, n) = case.csr()
    heads, *extras = (case.variant or "2").split("+")
    h = int(heads)
    d = -(-case.width // h)
    return dict(
        x_src=case.tensor(n, h, d),
        x_dst=case.tensor(m, h, d),
        att=case.tensor(h, d),
        edge=case.tensor(col.numel(), h, d) if "edge" in extras else None,
        crow=crow,
        col=col,
        ccol=ccol,
        row=row,
        perm=perm,
        dropout=RATE if "dropout" in extras else 0.0,
    )


def call(x_src, x_dst, att, edge, crow, col, ccol, row, perm, dropout):
    seed = torch.tensor([SEED], device=x_src.device) if dropout else None
    op = torch.ops.sparsegnn.gatv2
    return op(x_src, x_dst, att, edge, crow, col, ccol, row, perm, SLOPE, dropout, seed, True)[0]


def raw_args(case: Case) -> tuple:
    *args, dropout = inputs(case).values()
    floats = [a.detach().requires_grad_() if a is not None else None for a in args[:4]]
    return (*floats, *args[4:], SLOPE, dropout, torch.tensor([SEED]) if dropout else None, True)


GATV2 = Op(
    call,
    oracle,
    inputs,
    grad=("x_src", "x_dst", "att", "edge"),
    autocast=("x_src", "x_dst", "edge"),
    raw=torch.ops.sparsegnn.gatv2.default,
    raw_args=raw_args,
    # a score's gradient is a difference of nearly equal products, one of them of the rounded output
    grad_tolerance={torch.float32: 1e-4, torch.bfloat16: 8e-2, torch.float16: 2e-2},
)
SOME_EDGES = tuple(g for g in GRAPHS if g not in ("empty", "zero_edges"))
VARIANTS = ("1", "8", "3+edge", "8+dropout", "2+edge+dropout", "17")


@pytest.mark.parametrize("case", cases(VARIANTS))
def test_values(case):
    # rows of one edge have no gradient of their scores: those are held against the size of their terms below
    check_op(dataclasses.replace(GATV2, grad=()), case)


@pytest.mark.parametrize("case", cases(VARIANTS, SOME_EDGES, (1, 8, 17, 40, 64), layouts=("contiguous",)))
def test_values_of_gradients(case):
    """Sums of terms that cancel, to zero in rows of one edge: held against the size of the terms."""
    args = inputs(case)
    crow, col, dropout = args["crow"], args["col"].long(), args["dropout"]
    rows = torch.repeat_interleave(torch.arange(crow.numel() - 1), crow.diff())
    leaves = {k: v.detach().requires_grad_() for k, v in args.items() if k in GATV2.grad and v is not None}
    wide = {k: v.detach().double().requires_grad_() for k, v in leaves.items()}
    y, wanted = call(**args | leaves), oracle(**args | wide)
    dy = torch.randn(y.shape, dtype=torch.float64).to(y.dtype)
    got = torch.autograd.grad(y, list(leaves.values()), dy)
    want = torch.autograd.grad(wanted, list(wide.values()), dy.double())
    eps = {torch.float32: 1e-5, torch.float64: 4e-14}.get(case.dtype, 3 * torch.finfo(case.dtype).eps)
    norm = wide["x_src"].detach().norm(dim=2)[col] / (1 - dropout)
    top = torch.zeros(dy.shape[:2], dtype=torch.float64).index_reduce(0, rows, norm, "amax")
    flow = (dy.double().norm(dim=2) * top)[rows]  # of a score's gradient
    z = (args["x_src"][col] + args["x_dst"][rows]).double().norm(dim=2) + 1
    size = flow[:, :, None] * args["att"].double().abs()
    zero = torch.zeros(dy.shape, dtype=torch.float64)
    bounds = dict(
        x_src=torch.zeros_like(wide["x_src"]).index_add(0, col, size + dy.double().abs()[rows] / (1 - dropout)),
        x_dst=zero.index_add(0, rows, size),
        att=(flow * z).sum(0)[:, None],
        edge=size,
    )
    for name, g, w in zip(leaves, got, want, strict=True):
        error, bound = (g.double() - w).abs(), bounds[name]
        assert g.dtype == leaves[name].dtype
        assert (error <= eps * bound).all(), f"{name}: {(error / bound).nan_to_num().max():.1e}"


@pytest.mark.parametrize("variant", ["2+edge+dropout"])
def test_contract(variant):
    check_contract(GATV2, Case(width=6, variant=variant))


@pytest.mark.parametrize("heads, width", [(1, 513), (2, 600), (40, 3), (9, 64), (16, 8), (4, 16), (3, 0), (0, 4)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tiles_of_heads_and_columns(heads, width, dtype):
    """More heads than lanes, heads wider than a tile, nothing at all."""
    case = Case("random", 1, dtype)
    crow, col, ccol, row, perm, (m, n) = case.csr()
    args = {
        "x_src": case.tensor(n, heads, width) * 0.3,
        "x_dst": case.tensor(m, heads, width) * 0.3,
        "att": case.tensor(heads, width) * 0.3,
        "edge": None,
    }
    op = Op(call, oracle, lambda _: args | inputs(case) | args, grad=tuple(args), grad_tolerance=GATV2.grad_tolerance)
    check_op(op, case)


def random_args(dtype=torch.float64, heads=3, width=4):
    case = Case("random", heads * width, dtype, variant=f"{heads}+edge")
    *args, _ = inputs(case).values()
    return args


@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_and_saved_state(dtype):
    args, rest = random_args(dtype), (SLOPE, RATE, torch.tensor([SEED]))
    got, wanted = torch.ops.sparsegnn.gatv2(*args, *rest, True), reference(*args, *rest, True)
    close = dict(atol=2e-5, rtol=2e-5) if dtype == torch.float32 else {}
    for g, w in zip(got, wanted, strict=True):
        assert g.dtype == w.dtype
        torch.testing.assert_close(g, w, **close)
    y, lse = torch.ops.sparsegnn.gatv2(*args, *rest, False)
    assert torch.equal(y, got[0]) and lse.numel() == 0


@pytest.mark.parametrize("dropout", [0.0, RATE])
def test_gradcheck(dropout):
    args = random_args()
    leaves = [a.clone().requires_grad_() for a in args[:4]]
    seed = torch.tensor([SEED]) if dropout else None

    def function(*values):
        return torch.ops.sparsegnn.gatv2(*values, *args[4:], SLOPE, dropout, seed, True)[0]

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("slope", [0.0, 1.0, -0.5, 3.0])
def test_any_slope(slope):
    args = random_args()
    got = torch.ops.sparsegnn.gatv2(*args, slope, 0.0, None, True)
    for g, w in zip(got, reference(*args, slope, 0.0, None, True), strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "scores",
    [
        [0.0, -torch.inf, 1.0],
        [-torch.inf] * 70 + [1.0],
        [-torch.inf] * 3000 + [1.0],
        [-torch.inf, -torch.inf],
        [torch.nan, 0.0, 1.0],
        [1e30, -1e30, 1e30],
        [float(k) for k in range(-300, 300)],
        [0.0] * 200 + [torch.nan],
    ],
)
def test_extreme_scores_are_those_of_softmax(scores, dtype):
    """Through an edge term, as a score of -inf needs a feature of -inf; rows of several chunks raise their maximum."""
    n = len(scores)
    crow, col = torch.tensor([0, n], dtype=torch.int32), torch.arange(n, dtype=torch.int32)
    x, edge = torch.randn(n, 1, 3, dtype=dtype), torch.zeros(n, 1, 3, dtype=dtype)
    edge[:, 0, 0] = torch.tensor(scores, dtype=dtype)
    att = torch.tensor([[1.0, 0.0, 0.0]], dtype=dtype)
    args = (x, x[:1] * 0, att, edge, crow, col, None, None, None, SLOPE, 0.0, None, True)
    z = x + edge
    alpha = torch.where(z > 0, z, SLOPE * z)[:, :, 0].softmax(0)
    torch.testing.assert_close(
        torch.ops.sparsegnn.gatv2(*args)[0], (alpha[:, :, None] * x).sum(0)[None], equal_nan=True
    )


def test_public_function_and_its_checks():
    graph = CSRGraph.from_edge_index(torch.tensor([[0, 1, 2, 0], [1, 2, 2, 0]]), 3)
    x, att, edge = torch.randn(3, 2, 4), torch.randn(2, 4), torch.randn(4, 2, 4)
    y = gatv2(graph, x, x, att, edge)
    args = (x, x, att, edge, graph.crow, graph.col, *graph.transpose(), 0.2, 0.0, None)
    torch.testing.assert_close(y, reference(*args, False)[0])
    for change, error, message in (
        (dict(x_src=x[:2]), ValueError, r"gatv2: x_src must have shape \[3, H, D\], got \[2, 2, 4\]"),
        (dict(x_src=None), TypeError, "gatv2: x_src must be a Tensor"),
        (dict(x_dst=x[:, :1]), ValueError, r"gatv2: x_dst must have shape \[3, 2, 4\], got \[3, 1, 4\]"),
        (dict(x_dst=x.double()), TypeError, "gatv2: x_dst must have the dtype of x_src"),
        (dict(att=att[:1]), ValueError, r"gatv2: att must have shape \[2, 4\], got \[1, 4\]"),
        (dict(edge=edge[:3]), ValueError, r"gatv2: edge must have shape \[4, 2, 4\], got \[3, 2, 4\]"),
        (dict(dropout=-0.1), ValueError, r"gatv2: dropout must be in \[0, 1\], got -0.1"),
        (dict(dropout=0.5), TypeError, "gatv2: seed must be a Tensor"),
        (dict(dropout=0.5, seed=torch.zeros(1)), TypeError, "gatv2: seed must be int64"),
    ):
        given = dict(x_src=x, x_dst=x, att=att, edge=edge) | change
        with pytest.raises(error, match=message):
            gatv2(graph, **given)


def test_backward_without_saved_state_is_refused():
    args = random_args(torch.float32)
    args[0] = args[0].requires_grad_()
    y = torch.ops.sparsegnn.gatv2(*args, SLOPE, 0.0, None, False)[0]
    with pytest.raises(RuntimeError, match="save=True"):
        y.sum().backward()


def test_flops():
    """Per edge, head and column: the sum of source and target, its product with att, and the weighted sum."""
    graph = CSRGraph.from_edge_index(torch.randint(0, 9, (2, 40)), 9)
    x, att = torch.randn(9, 2, 3), torch.randn(2, 3)
    with FlopCounterMode(display=False) as counter:
        gatv2(graph, x, x, att)
    assert counter.get_total_flops() == (1 + 2 + 2) * 40 * 2 * 3
