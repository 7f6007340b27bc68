import importlib
import math

import pytest
import torch
from ops.harness import Case, Op, cases, check_contract, check_op

from sparsegnn.ops import maxk

reference = importlib.import_module("sparsegnn.ops.maxk").reference
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def oracle(x, k, group):
    """Row by row, group by group, by sorting Python numbers: NaN, then the largest, of equals the lower column."""
    n, width = x.shape
    size = group or width

    def rank(row, c):
        v = float(row[c])
        return (0, 0, c) if math.isnan(v) else (1, -v, c)

    index = [
        sorted(
            c
            for first in range(0, width, size)
            for c in sorted(range(first, first + size), key=lambda c: rank(row, c))[: k * size // width]
        )
        for row in x.detach()
    ]
    index = torch.tensor(index, dtype=torch.long).view(n, k)
    return x.gather(1, index), index


def choice(case: Case) -> dict:
    width = case.width
    if case.variant == "grouped":
        group = next(g for g in (8, 4, 3, 5, 7, 11, width) if width % g == 0)
        return dict(k=width // group * max(1, group // 3), group=group)
    return dict(k={"one": 1, "third": max(1, width // 3), "all": width}[case.variant], group=0)


MAXK = Op(
    torch.ops.sparsegnn.maxk,
    oracle,
    lambda case: dict(x=case.tensor(case.csr()[5][1], case.width), **choice(case)),
    grad=("x",),
    raw=torch.ops.sparsegnn.maxk.default,
    exact_outputs=(1,),
)
GRAPHS = ("random", "empty", "one_node", "wide")  # only their number of nodes counts


@pytest.mark.parametrize(
    "case", cases(("one", "third", "all", "grouped"), graphs=GRAPHS, widths=(1, 3, 8, 17, 48, 64, 67, 256, 300))
)
def test_values(case):
    check_op(MAXK, case)


@pytest.mark.parametrize("variant", ["third", "grouped"])
def test_contract(variant):
    check_contract(MAXK, Case(width=6 if variant == "third" else 5, variant=variant))


def awkward(kind: str, width: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(width)
    x = torch.randn(33, width, generator=g, dtype=torch.float64)
    hit = torch.rand(33, width, generator=g) < 0.3
    if kind == "zeros":
        return x.relu() * hit
    if kind == "ties":
        return (2 * x).round()
    if kind == "nan":
        return x.masked_fill(hit, torch.nan)
    if kind == "infinite":
        return x.masked_fill(hit, torch.inf).masked_fill(torch.rand(33, width, generator=g) < 0.3, -torch.inf)
    if kind == "signed_zeros":
        return torch.where(hit, -0.0, 0.0)
    if kind == "tiny":
        return 1e-42 * x
    return 1e30 * x.pow(5)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["zeros", "ties", "nan", "infinite", "signed_zeros", "tiny", "wide"])
def test_values_that_are_hard_to_rank(kind, dtype):
    for width, k, group in ((40, 7, 0), (256, 32, 8), (256, 32, 0), (96, 18, 16), (90, 12, 15), (1000, 31, 0)):
        x = awkward(kind, width).to(dtype)
        values, index = torch.ops.sparsegnn.maxk(x, k, group)
        wanted_values, wanted = reference(x, k, group)
        assert torch.equal(index, wanted), (width, k, group)
        torch.testing.assert_close(values, wanted_values, rtol=0, atol=0, equal_nan=True)


def test_as_topk():
    x = torch.randn(50, 256)
    values, index = maxk(x, 32)
    assert index.dtype == torch.uint8
    assert torch.equal(values.sort(1).values, x.topk(32).values.sort(1).values)
    assert maxk(torch.randn(2, 257), 3)[1].dtype == torch.int16


@pytest.mark.parametrize("width", [1, 17, 256, 320, 1000])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_expand_and_gather(width, dtype):
    x = torch.randn(40, width).to(dtype)
    values, index = maxk(x, (width + 3) // 4)
    dense = torch.ops.sparsegnn.maxk_expand(values, index, width)
    assert torch.equal(dense, torch.zeros_like(x).scatter(1, index.long(), values))
    assert torch.equal(torch.ops.sparsegnn.maxk_gather(x, index), values)


def test_values_of_a_large_expansion():  # written past the caches
    x = torch.randn(20_000, 256)
    values, index = maxk(x, 32)
    dense = torch.ops.sparsegnn.maxk_expand(values, index, 256)
    assert torch.equal(dense, torch.zeros_like(x).scatter(1, index.long(), values))


def test_gradients_of_expand_and_gather():
    x = torch.randn(6, 10, dtype=torch.float64)
    values, index = maxk(x, 4)
    ops = torch.ops.sparsegnn
    assert torch.autograd.gradcheck(lambda v: ops.maxk_expand(v, index, 10), (values.requires_grad_(),))
    assert torch.autograd.gradcheck(lambda v: ops.maxk_gather(v, index), (x.clone().requires_grad_(),))
    torch.library.opcheck(ops.maxk_expand.default, (values.detach().requires_grad_(), index, 10))
    torch.library.opcheck(ops.maxk_gather.default, (x.clone().requires_grad_(), index))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda x: maxk(x, 0), ValueError, r"maxk: k must be in \[1, 12\], the number of columns, got 0"),
        (lambda x: maxk(x, 13), ValueError, r"maxk: k must be in \[1, 12\], the number of columns, got 13"),
        (lambda x: maxk(x, 2.0), TypeError, "maxk: k must be an int, got float"),
        (lambda x: maxk(x, 4, 5), ValueError, "maxk: group must divide the 12 columns .* k=4, got 5"),
        (lambda x: maxk(x, 4, 4), ValueError, "maxk: group must divide .* k=4, got 4"),
        (lambda x: maxk(x.long(), 4), TypeError, "maxk: x must be floating point, got torch.int64"),
        (lambda x: maxk(x[0], 4), ValueError, r"maxk: x must have shape \[N, F\], got \[12\]"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.randn(3, 12))
