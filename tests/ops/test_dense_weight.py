"""dense_weight and dense_weight_values against loops over blocks."""

import pytest
import torch
from ops.harness import DTYPES, Case, Op, cases, check_contract, check_op, devices

from sparsegnn import ops as public
from sparsegnn import pattern

ops = torch.ops.sparsegnn
BLOCKS = ((1, 1), (4, 1), (8, 1), (16, 16), (32, 32))
SHAPES = {"random": (7, 9), "one_node": (1, 1), "wide": (2, 90), "tall": (90, 2), "zero_edges": (5, 4), "empty": (0, 0)}


def places(crow, col):
    return [(r, int(col[e])) for r in range(crow.numel() - 1) for e in range(int(crow[r]), int(crow[r + 1]))]


def oracle(values, crow, col, cols, height, width):
    """Block after block into a matrix of zeros."""
    dense = values.new_zeros((crow.numel() - 1) * height, cols)
    for block, (r, c) in zip(values.view(-1, height, width), places(crow, col), strict=True):
        there = torch.zeros_like(dense)
        there[r * height : (r + 1) * height, c * width : (c + 1) * width] = 1
        dense = dense.masked_scatter(there.bool(), block)
    return dense


def inputs(case: Case) -> dict:
    height, width = case.variant or (1, 1)
    rows, across = SHAPES[case.graph] if case.graph != "random" else (7, case.width)
    mask = torch.rand(rows, across, generator=case.generator()) < (0 if case.graph == "zero_edges" else 0.5)
    row, col = mask.nonzero(as_tuple=True)
    crow = torch.cat([torch.zeros(1), torch.bincount(row, minlength=rows).cumsum(0)]).int().to(case.device)
    values, col = case.tensor(col.numel() * height * width), col.int().to(case.device)
    return dict(values=values, crow=crow, col=col, cols=across * width, height=height, width=width)


def call(values, crow, col, cols, height, width):
    return ops.dense_weight(values, crow, col, cols, height, width)


FILL = Op(call, oracle, inputs, grad=("values",), raw=ops.dense_weight.default)


@pytest.mark.parametrize("case", cases(BLOCKS, tuple(SHAPES), (1, 3, 16, 33)))
def test_values(case):
    check_op(FILL, case)


def given(case: Case) -> dict:
    fill = inputs(case)
    dense = case.tensor((fill["crow"].numel() - 1) * fill["height"], fill["cols"])
    return dict(dense=dense, **{n: fill[n] for n in ("crow", "col", "height", "width")})


def gather(dense, crow, col, height, width):
    return ops.dense_weight_values(dense, crow, col, height, width)


def gathered(dense, crow, col, height, width):
    blocks = [dense[r * height : (r + 1) * height, c * width : (c + 1) * width] for r, c in places(crow, col)]
    return torch.stack(blocks).flatten() if blocks else dense.new_zeros(0) + 0 * dense.sum()


GATHER = Op(gather, gathered, given, grad=("dense",), raw=ops.dense_weight_values.default)


@pytest.mark.parametrize("case", cases(BLOCKS, tuple(SHAPES), (1, 3, 16, 33)))
def test_gathered_values(case):
    check_op(GATHER, case)


@pytest.mark.parametrize("op", [FILL, GATHER], ids=["fill", "gather"])
def test_contract(op):
    check_contract(op, Case(width=5, variant=(1, 1)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", devices())
def test_large_matrices_go_there_and_back(device, dtype):
    """Several chunks; NaN, infinities and signed zeros are copied as they are."""
    crow, col = pattern.random_pattern(700, 1433, sparsity=0.6, device=device)
    values = torch.randn(col.numel(), dtype=dtype, device=device)
    values[:5] = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-30], dtype=dtype)
    dense = public.dense_weight(values, crow, col, 1433)
    assert int((dense != 0).sum()) == int((values != 0).sum())
    back = ops.dense_weight_values(dense, crow, col)
    torch.testing.assert_close(back, values, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(torch.signbit(back[:5]), torch.signbit(values[:5]))
    wanted = torch.zeros_like(dense)
    wanted[pattern.rows_of(crow, col), col.long()] = values
    torch.testing.assert_close(dense, wanted, rtol=0, atol=0, equal_nan=True)


def test_broken_patterns_are_refused():
    crow, col = pattern.random_pattern(6, 8, sparsity=0.5)
    values, dense = torch.ones(col.numel()), torch.ones(6, 8)
    for bad_crow, bad_col in (
        (crow, col + 6),
        (crow, col - 8),
        (crow.flip(0), col),
        (crow + 1, col),
        (torch.tensor([0, 99, *crow[2:]], dtype=torch.int32), col),
        (crow[:0], col),
    ):
        with pytest.raises(RuntimeError, match="dense_weight: crow must"):
            ops.dense_weight(values, bad_crow, bad_col, 8)
        with pytest.raises(RuntimeError, match="dense_weight_values: (crow|dense) must"):
            ops.dense_weight_values(dense, bad_crow, bad_col)
    with pytest.raises(RuntimeError, match="blocks must divide the matrix"):
        ops.dense_weight(values, crow, col, 8, 1, 3)
    with pytest.raises(RuntimeError, match="dense must have 6 rows, got 5"):
        ops.dense_weight_values(dense[:5], crow, col)


def test_public_function_names_what_is_wrong():
    crow, col = pattern.random_pattern(6, 8, sparsity=0.5)
    with pytest.raises(ValueError, match=r"dense_weight: values must have shape \[24\], got \[23\]"):
        public.dense_weight(torch.ones(23), crow, col, 8)
    with pytest.raises(TypeError, match="dense_weight: col must be a Tensor"):
        public.dense_weight(torch.ones(24), crow, None, 8)
