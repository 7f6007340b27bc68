import numpy as np
import pytest
import torch
from ops.harness import Case, Op, cases, check_contract, check_op

import sparsegnn  # noqa: F401


def oracle(x, crow, col, val, row_scale, col_scale, diag, ccol, row, perm, reduce):
    """Sums and means with a dense matrix; extrema row by row, with numpy's first-occurrence argmax."""
    m, n, val = crow.numel() - 1, x.size(0), torch.ones(col.numel(), dtype=x.dtype) if val is None else val
    target = torch.from_numpy(np.repeat(np.arange(m), np.diff(crow.numpy())))
    if reduce in ("max", "min"):
        rows, args = [x.new_zeros(0, x.size(1))], [np.zeros((0, x.size(1)))]
        for r in range(m):
            edges = slice(int(crow[r]), int(crow[r + 1]))
            message = x[col[edges].long()] * val[edges][:, None]
            first = getattr(np, "arg" + reduce)(message.detach().numpy(), 0) if len(message) else None
            rows.append(x.new_zeros(1, x.size(1)) if first is None else message.gather(0, torch.tensor(first)[None]))
            args.append(np.full((1, x.size(1)), -1) if first is None else first[None] + edges.start)
        return torch.cat(rows), torch.from_numpy(np.concatenate(args))
    a = x.new_zeros(m, n).index_put((target, col.long()), val, accumulate=True)
    a = a if col_scale is None else a * col_scale
    a = a if diag is None else a + torch.diag(diag * (1 if col_scale is None else col_scale))
    y = a @ x if reduce == "sum" else a @ x / crow.diff().clamp(min=1)[:, None]
    return y if row_scale is None else y * row_scale[:, None], torch.zeros(0, 0)


def inputs(case: Case) -> dict:
    crow, col, ccol, row, perm, (m, n) = case.csr()
    reduce, _, extras = (case.variant or "sum").partition("+")
    scale = dict(dtype=torch.float64 if case.dtype == torch.float64 else torch.float32, low=0.2)
    return dict(
        x=case.tensor(n, case.width),
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
    )


def call(x, crow, col, val, row_scale, col_scale, diag, ccol, row, perm, reduce):
    op = torch.ops.sparsegnn.spmm
    return op(x, crow, col, val, row_scale, col_scale, diag, ccol, row, perm, reduce)


SPMM = Op(
    call,
    oracle,
    inputs,
    grad=("x", "val"),
    autocast=("x", "val"),
    raw=torch.ops.sparsegnn.spmm.default,
    exact_outputs=(1,),
)
VARIANTS = ("sum", "sum+val", "sum+scales+diag", "sum+val+scales+diag", "mean", "mean+val", "max", "max+val", "min+val")


@pytest.mark.parametrize("case", cases(VARIANTS))
def test_values(case):
    if "expanded" in case.layout and ("max" in case.variant or "min" in case.variant):
        pytest.skip("all columns equal: the fp64 oracle may break 16-bit ties differently")
    check_op(SPMM, case)


@pytest.mark.parametrize("variant", ["sum+val+scales+diag", "mean+val", "max+val"])
def test_contract(variant):
    check_contract(SPMM, Case(width=5, variant=variant))
