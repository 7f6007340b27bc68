import numpy as np
import pytest
import torch
from ops.harness import Case, Op, cases, check_contract, check_op

import sparsegnn
from sparsegnn.ops import maxk, maxk_spmm


def oracle(values, index, width, crow, col, val, row_scale, col_scale, diag, ccol, row, perm, reduce, group):
    """Dense matrices."""
    m, n, val = crow.numel() - 1, values.size(0), torch.ones(col.numel(), dtype=values.dtype) if val is None else val
    x = values.new_zeros(n, width).scatter(1, index.long(), values)
    target = torch.from_numpy(np.repeat(np.arange(m), np.diff(crow.numpy())))
    a = x.new_zeros(m, n).index_put((target, col.long()), val, accumulate=True)
    a = a if col_scale is None else a * col_scale
    a = a if diag is None else a + torch.diag(diag * (1 if col_scale is None else col_scale))
    y = a @ x if reduce == "sum" else a @ x / crow.diff().clamp(min=1)[:, None]
    return y if row_scale is None else y * row_scale[:, None]


def inputs(case: Case) -> dict:
    crow, col, ccol, row, perm, (m, n) = case.csr()
    reduce, _, extras = (case.variant or "sum").partition("+")
    k = {1: 1, 8: 8, 17: 17, 64: 9, 300: 40}.get(case.width, max(1, case.width // 5))
    group = next((g for g in (8, 4) if "group" in extras and case.width % g == 0), 0)
    parts = case.width // group if group else 1
    k = parts * max(1, k // parts) if group else k
    order = torch.rand(n, parts, case.width // parts, generator=case.generator()).argsort(2)[..., : k // parts]
    order = (order + torch.arange(0, case.width, case.width // parts)[:parts, None]).sort(2).values.view(n, k)
    scale = dict(dtype=torch.float64 if case.dtype == torch.float64 else torch.float32, low=0.2)
    return dict(
        values=case.tensor(n, k),
        index=order.to(torch.uint8 if case.width <= 256 else torch.int16),
        width=case.width,
        crow=crow,
        col=col,
        val=case.tensor(col.numel()) if "val" in extras else None,
        row_scale=case.tensor(m, **scale) if "scales" in extras else None,
        col_scale=case.tensor(n, **scale) if "scales" in extras else None,
        diag=case.tensor(m, **scale) if "diag" in extras and m == n else None,
        ccol=ccol,
        row=row,
        perm=perm,
        reduce=reduce,
        group=group,
    )


MAXK_SPMM = Op(
    torch.ops.sparsegnn.maxk_spmm,
    oracle,
    inputs,
    grad=("values", "val"),
    autocast=("values", "val"),
    raw=torch.ops.sparsegnn.maxk_spmm.default,
)
VARIANTS = ("sum", "sum+val", "sum+scales+diag", "sum+val+scales+diag", "mean", "mean+val", "mean+val+scales+diag",
            "sum+group", "mean+val+scales+diag+group")  # fmt: skip


@pytest.mark.parametrize("case", cases(VARIANTS, widths=(1, 5, 8, 17, 31, 64, 67, 256, 300)))
def test_values(case):
    check_op(MAXK_SPMM, case)


@pytest.mark.parametrize("variant", ["sum+val+scales+diag", "mean+val"])
def test_contract(variant):
    check_contract(MAXK_SPMM, Case(width=10, variant=variant))


def test_no_gradient_of_scales():
    args = inputs(Case(variant="sum+scales"))
    args["values"].requires_grad_(), args["row_scale"].requires_grad_()
    with pytest.raises(NotImplementedError, match="row_scale, col_scale and diag are constants"):
        torch.ops.sparsegnn.maxk_spmm(*args.values()).sum().backward()


def test_public_function_takes_the_groups_of_maxk():
    g = torch.Generator().manual_seed(0)
    graph = sparsegnn.CSRGraph.from_edge_index(torch.randint(50, (2, 400), generator=g), 50)
    values, index = maxk(torch.randn(50, 64, generator=g), 16, 8)
    plain = maxk_spmm(graph, values, index, 64)
    torch.testing.assert_close(maxk_spmm(graph, values, index, 64, group=8), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_values_of_a_large_output(reduce):  # written past the caches
    g = torch.Generator().manual_seed(0)
    graph = sparsegnn.CSRGraph.from_edge_index(torch.randint(20_000, (2, 60_000), generator=g), 20_000)
    x = torch.randn(20_000, 256, generator=g)
    values, index = maxk(x, 32)
    dense = torch.ops.sparsegnn.maxk_expand(values, index, 256)
    wanted = sparsegnn.ops.spmm(graph, dense.double(), reduce)
    torch.testing.assert_close(maxk_spmm(graph, values, index, 256, reduce).double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "change, error, message",
    [
        (dict(values=torch.randn(3, 2)), ValueError, r"maxk_spmm: values must have shape \[4, k\], got \[3, 2\]"),
        (dict(index=torch.zeros(4, 3).byte()), ValueError, r"maxk_spmm: index must have shape \[4, 2\], got \[4, 3\]"),
        (
            dict(index=torch.zeros(4, 2).int()),
            TypeError,
            "maxk_spmm: index must be torch.uint8 for width=9, got .*int32",
        ),
        (dict(index=torch.full((4, 2), 9).byte()), ValueError, r"maxk_spmm: index must be in \[0, 9\), got 9 to 9"),
        (
            dict(group=4),
            ValueError,
            "maxk_spmm: group must divide the 9 columns into parts of equally many of k=2, got 4",
        ),
        (
            dict(group=8, width=16),
            ValueError,
            "maxk_spmm: index must have 1 entries in every group of 8 columns",
        ),
        (dict(reduce="max"), ValueError, "maxk_spmm: reduce must be sum or mean, got 'max'"),
        (dict(edge_weight=torch.randn(3)), ValueError, r"maxk_spmm: edge_weight must have shape \[2\], got \[3\]"),
    ],
)
def test_bad_arguments(change, error, message):
    graph = sparsegnn.CSRGraph.from_edge_index(torch.tensor([[0, 1], [2, 3]]), 4)
    good = dict(values=torch.randn(4, 2), index=torch.tensor([[0, 1]] * 4).byte(), width=9)
    assert maxk_spmm(graph, **good).shape == (4, 9)
    with pytest.raises(error, match=message):
        maxk_spmm(graph, **(good | change))
