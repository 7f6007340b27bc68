import pytest
import torch
from ops.harness import DTYPES, TOLERANCE, Case, Op, cases, check_contract, check_op, csr_of, relative_error
from torch.utils.flop_counter import FlopCounterMode

from sparsegnn.nn import SparseLinear
from sparsegnn.ops import features_linear
from sparsegnn.ops.features_linear import BLOCKS

X = ("x_crow", "x_col", "x_val", "x_ccol", "x_row", "x_val_t")
WEIGHT = ("ccol", "row", "perm")


def matrix(rows, columns, values, shape):
    """Duplicates add up."""
    return values.new_zeros(shape).index_put((rows.long(), columns.long()), values, accumulate=True)


def expand(offsets):
    return torch.arange(offsets.numel() - 1).repeat_interleave(offsets.diff().long())


def weight(values, ccol, row, perm, height, width, outputs):
    """By one index per element."""
    slots = torch.empty_like(perm, dtype=torch.long)
    slots[perm.long()] = torch.arange(perm.numel())  # where each block is in column order
    top, left = row.long()[slots] * height, expand(ccol)[slots] * width
    i = (top[:, None, None] + torch.arange(height)[None, :, None]).expand(-1, -1, width)
    j = (left[:, None, None] + torch.arange(width)[None, None]).expand(-1, height, -1)
    return matrix(i.flatten(), j.flatten(), values, (outputs, (ccol.numel() - 1) * width))


def oracle(values, bias, x_crow, x_col, x_val, x_ccol, x_row, x_val_t, ccol, row, perm, height, width, outputs):
    inputs = (ccol.numel() - 1) * width
    x = matrix(expand(x_crow), x_col, x_val, (x_crow.numel() - 1, inputs))
    return torch.nn.functional.linear(x, weight(values, ccol, row, perm, height, width, outputs), bias)


def features(samples, inputs, kept, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    rows, columns = (torch.rand(samples, inputs, generator=g) < kept).nonzero().T
    crow, col, *transpose, perm = csr_of(rows, columns, samples, inputs)
    val = torch.randn(col.numel(), generator=g, dtype=torch.float64).to(dtype)
    return crow, col, val, *transpose, val[perm.long()]


def inputs(case: Case) -> dict:
    """The graph is the pattern over blocks, the width the number of samples, the variant block and bias."""
    height, width, with_bias = case.variant
    _, col, *transpose, (m, k) = case.csr()
    values = case.tensor(col.numel() * height * width)
    x = features(case.width, k * width, 0.3, case.dtype)
    bias = case.tensor(m * height) if with_bias else None
    named = dict(zip(X + WEIGHT, (*x, *transpose), strict=True))
    return dict(values=values, bias=bias, **named, height=height, width=width, outputs=m * height)


OP = Op(
    features_linear,
    oracle,
    inputs,
    grad=("values", "bias"),
    autocast=("values", "bias", "x_val", "x_val_t"),
    raw=torch.ops.sparsegnn.features_linear.default,
)
VARIANTS = [(*block, i % 2 == 0) for i, block in enumerate(BLOCKS)]
#: without repeated positions, which no pattern has
GRAPHS = ("random", "empty", "zero_edges", "one_node", "isolated", "self_loops", "wide", "tall")


@pytest.mark.parametrize("case", cases(variants=VARIANTS, graphs=GRAPHS, widths=(0, 1, 7, 33, 130),
                                       layouts=("contiguous",)))  # fmt: skip
def test_values(case):
    check_op(OP, case)


@pytest.mark.parametrize("block, graph", [((1, 1), "random"), ((8, 1), "wide"), ((16, 16), "one_node")], ids=str)
def test_contract(block, graph):
    check_contract(OP, Case(graph=graph, width=5, variant=(*block, True)))


# samples, inputs, outputs, share of nonzeros, sparsity: several chunks, columns of many and of no entries
SHAPES = ((3000, 320, 192, 0.05, 0.9), (40, 640, 1056, 0.5, 0.0), (700, 64, 96, 0.9, 0.98))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, block, dtype):
    n, k, m, kept, sparsity = shape
    (height, width), g = block, torch.Generator().manual_seed(3)
    m = m // height * height
    rows, columns = (torch.rand(m // height, k // width, generator=g) >= sparsity).nonzero().T
    _, col, *pattern = csr_of(rows, columns, m // height, k // width)
    values, bias, dy = (torch.randn(s, generator=g, dtype=torch.float64).to(dtype)
                        for s in ((col.numel() * height * width,), (m,), (n, m)))  # fmt: skip
    x = features(n, k, kept, dtype)
    wide = [t.double().requires_grad_() for t in (values, bias)]
    wanted = oracle(*wide, *x[:2], x[2].double(), *x[3:], *pattern, *block, m)
    leaves = [t.requires_grad_() for t in (values, bias)]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y = features_linear(*leaves, *x, *pattern, *block, m)
            results.append((y.detach(), *torch.autograd.grad(y, leaves, dy)))
    finally:
        torch.set_num_threads(threads)
    for got, want in zip(results[0], (wanted, *torch.autograd.grad(wanted, wide, dy.double())), strict=True):
        assert relative_error(got, want) <= 2 * TOLERANCE[dtype]
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_flops_are_the_products_that_were_formed():
    """Two for each pair of nonzeros that meet, counted by hand; the dense kernel: for each nonzero and output."""
    x = torch.tensor([[1.0, 0, 2, 0], [0, 0, 3, 0], [0, 0, 0, 0]]).to_sparse_csr()
    mask = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0.0], [0, 0, 0, 1]])
    layer = SparseLinear.from_dense(torch.nn.Linear(4, 5), mask)
    met = sum(int(mask[:, k].sum()) * int((x.to_dense()[:, k] != 0).sum()) for k in range(4))
    assert met == 1 * 1 + 2 * 3
    from sparsegnn import use_kernel

    for kernel, want in (("sparse", 2 * 2 * met), ("dense", 2 * 2 * 3 * 5)):
        with use_kernel(kernel), FlopCounterMode(display=False) as counter:
            layer(x).sum().backward()
        assert counter.get_total_flops() == want


@pytest.mark.parametrize("change, words", [
    ({"height": 2}, "height and width must be one of 1x1, 4x1, .* got 2x1"),
    ({"outputs": 7, "height": 4}, "outputs must be a multiple of 4, got 7"),
    ({"x_val": torch.ones(2)}, "x_val must have shape"),
    ({"bias": torch.ones(3)}, "bias must have shape"),
    ({"values": torch.ones(1)}, "values must have shape"),
])  # fmt: skip
def test_refused(change, words):
    case = Case(width=4, variant=(1, 1, True))
    with pytest.raises(ValueError, match=f"features_linear: {words}"):
        features_linear(**(inputs(case) | change))


@pytest.mark.parametrize("name, wrong", [("x_col", -1), ("x_col", 10**6), ("row", 10**6), ("row", -1), ("perm", 10**6),
                                         ("ccol", 10**6), ("x_crow", 10**6)])  # fmt: skip
def test_indices_out_of_range_are_refused(name, wrong):
    given = inputs(Case(width=4, variant=(1, 1, True)))
    given[name][1] = wrong
    with pytest.raises(RuntimeError, match="features_linear: .* must ascend from 0 to .* in \\[0"):
        features_linear(**given)
