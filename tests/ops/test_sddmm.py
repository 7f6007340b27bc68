import pytest
import torch
from ops.harness import Case, Op, cases, check_contract, check_op

import sparsegnn  # noqa: F401


def oracle(a, b, crow, col, ccol, row, perm):
    """Edge values picked from the dense product."""
    rows = torch.tensor([r for r in range(crow.numel() - 1) for _ in range(int(crow[r]), int(crow[r + 1]))]).long()
    return (a @ b.T)[rows, col.long()]


def inputs(case: Case) -> dict:
    crow, col, ccol, row, perm, (m, n) = case.csr()
    a, b = case.tensor(m, case.width), case.tensor(n, case.width)
    return dict(a=a, b=b, crow=crow, col=col, ccol=ccol, row=row, perm=perm)


def call(a, b, crow, col, ccol, row, perm):
    return torch.ops.sparsegnn.sddmm(a, b, crow, col, ccol, row, perm)


SDDMM = Op(call, oracle, inputs, grad=("a", "b"), autocast=("a", "b"), raw=torch.ops.sparsegnn.sddmm.default)


@pytest.mark.parametrize("case", cases())
def test_values(case):
    check_op(SDDMM, case)


def test_contract():
    check_contract(SDDMM, Case(width=5))
