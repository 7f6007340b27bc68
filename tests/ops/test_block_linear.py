import sys

import pytest
import torch
import torch.utils._python_dispatch
from ops.harness import DTYPES, TOLERANCE, Case, Op, cases, check_contract, check_op, csr_of, relative_error
from torch.utils.flop_counter import FlopCounterMode

from sparsegnn.ops import block_linear
from sparsegnn.ops.block_linear import BLOCKS, may_round

PATTERN = ("crow", "col", "ccol", "row", "perm")


def dense(values, crow, col, columns, height, width):
    """The weight as a matrix, block by block; duplicates add up."""
    rows = torch.arange(crow.numel() - 1).repeat_interleave(crow.diff().long())
    weight = values.new_zeros((crow.numel() - 1) * height, columns)
    for b, (r, c) in enumerate(zip(rows.tolist(), col.tolist(), strict=True)):
        block = values[b * height * width : (b + 1) * height * width].view(height, width)
        at = torch.zeros_like(weight).index_put(
            (torch.arange(r * height, (r + 1) * height)[:, None], torch.arange(c * width, (c + 1) * width)[None]), block
        )
        weight = weight + at
    return weight


def oracle(x, values, bias, crow, col, ccol, row, perm, height, width):
    return torch.nn.functional.linear(x, fast_dense(values, crow, col, x.size(1), height, width), bias)


def fast_dense(values, crow, col, columns, height, width):
    """The same as :func:`dense`, by one index per element."""
    rows = torch.arange(crow.numel() - 1).repeat_interleave(crow.diff().long())
    i = (rows[:, None, None] * height + torch.arange(height)[None, :, None]).expand(-1, -1, width)
    j = (col.long()[:, None, None] * width + torch.arange(width)[None, None]).expand(-1, height, -1)
    zeros = values.new_zeros((crow.numel() - 1) * height, columns)
    return zeros.index_put((i.flatten(), j.flatten()), values, accumulate=True)


def inputs(case: Case) -> dict:
    """The case's width is the batch; its graph is the pattern over blocks, its variant the block and the bias."""
    height, width, with_bias = case.variant
    *pattern, (m, k) = case.csr()
    values = case.tensor(pattern[1].numel() * height * width)
    bias = case.tensor(m * height) if with_bias else None
    x = case.tensor(case.width, k * width)
    return dict(x=x, values=values, bias=bias, **dict(zip(PATTERN, pattern, strict=True)), height=height, width=width)


OP = Op(
    block_linear,
    oracle,
    inputs,
    grad=("x", "values", "bias"),
    autocast=("x", "values", "bias"),
    raw=torch.ops.sparsegnn.block_linear.default,
)
VARIANTS = [(*block, i % 2 == 0) for i, block in enumerate(BLOCKS)]
WIDTHS = (1, 7, 16, 33, 67, 130)
GRAPHS = ("random", "empty", "zero_edges", "one_node", "isolated", "duplicates", "self_loops", "wide", "tall")


@pytest.mark.parametrize("case", cases(variants=VARIANTS, graphs=GRAPHS, widths=WIDTHS))
def test_values(case):
    check_op(OP, case)


@pytest.mark.parametrize("block, graph", [((8, 1), "wide"), ((16, 16), "one_node")], ids=str)
def test_contract(block, graph):
    """gradcheck runs the op twice per weight: one square block is enough."""
    check_contract(OP, Case(graph=graph, width=5, variant=(*block, True)))


def test_the_two_oracles_agree():
    values, *pattern = weight(64, 48, 16, 16, 0.5, torch.float64)
    want = dense(values, *pattern[:2], 48, 16, 16)
    assert torch.equal(fast_dense(values, *pattern[:2], 48, 16, 16), want)


def weight(m, k, height, width, sparsity, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    rows, cols = (torch.rand(m // height, k // width, generator=g) >= sparsity).nonzero().T
    pattern = csr_of(rows, cols, m // height, k // width)
    values = torch.randn(pattern[1].numel() * height * width, generator=g, dtype=torch.float64).to(dtype)
    return values, *pattern


# batch, inputs, outputs, sparsity: every part of the plans, with remainders
GROUPED = ((1, 512, 304, 0.9), (5, 1433, 16, 0.9), (300, 1, 48, 0.3), (197, 700, 656, 0.9), (2000, 130, 144, 0.0))
SQUARE = ((1, 512, 320, 0.9), (5, 1440, 32, 0.9), (197, 704, 672, 0.9), (2000, 128, 160, 0.0), (1000, 320, 256, 0.98))
SHAPES = [(b, s) for b in BLOCKS for s in (GROUPED if b[1] == 1 else SQUARE)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block, shape", SHAPES, ids=str)
def test_shapes(block, shape, dtype):
    check_shape(block, shape, dtype)


def check_shape(block, shape, dtype):
    n, k, m, sparsity = shape
    values, *pattern = weight(m, k, *block, sparsity, dtype)
    g = torch.Generator().manual_seed(1)
    x, bias, dy = (torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in ((n, k), (m,), (n, m)))
    wide = [t.double().clone().requires_grad_() for t in (x, values, bias)]
    wanted = oracle(*wide, *pattern, *block)
    want = torch.autograd.grad(wanted, wide, dy.double())
    for need in ((True, True, True), (True, False, False), (False, True, False), (False, False, True)):
        leaves = [t.clone().requires_grad_(f) for t, f in zip((x, values, bias), need, strict=True)]
        y = block_linear(*leaves, *pattern, *block)
        assert relative_error(y, wanted) <= TOLERANCE[dtype]
        asked = [i for i, f in enumerate(need) if f]
        for i, got in zip(asked, torch.autograd.grad(y, [leaves[i] for i in asked], dy), strict=True):
            assert relative_error(got, want[i]) <= 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_threads_do_not_change_bits(block):
    values, *pattern = weight(192, 320, *block, 0.8, torch.float32)
    x, dy, bias = torch.randn(3000, 320), torch.randn(3000, 192), torch.randn(192)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y = torch.ops.sparsegnn.block_linear(x, values, bias, *pattern, *block)
            grads = torch.ops.sparsegnn.block_linear_backward(dy, x, values, *pattern, *block, True, True, True)
            results.append((y, *grads))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_no_samples_no_outputs_no_inputs_no_blocks(block):
    height, width = block
    for n, m, k in ((0, 64, 64), (40, 0, 64), (40, 64, 0), (40, 64, 64)):
        values, *pattern = weight(m, k, *block, 1.0, torch.float32)
        x, bias = torch.randn(n, k, requires_grad=True), torch.randn(m, requires_grad=True)
        y = block_linear(x, values, bias, *pattern, *block)
        assert torch.equal(y, bias.expand(n, m))
        dx, dbias = torch.autograd.grad(y.sum(), (x, bias))
        assert torch.equal(dx, torch.zeros(n, k)) and torch.equal(dbias, torch.full((m,), float(n)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_outputs_go_past_the_caches(dtype):
    """12 MiB and more of a product; 1433 inputs are no multiple of a cache line, 1424 are one in float32 alone."""
    back, samples = torch.ops.sparsegnn.block_linear_backward, 12_000 // dtype.itemsize
    shapes = [((8, 1), 1433), ((16, 16), 1424), ((8, 1), 1424), ((16, 16), 1440), ((8, 1), 1440), ((16, 1), 1440)]
    for block, inputs, outputs in [(block, k, 128) for block, k in shapes] + [(b, 96, 1024) for b in dict(shapes)]:
        values, *pattern = weight(outputs, inputs, *block, 0.9, dtype)
        g = torch.Generator().manual_seed(1)
        x, dy = (torch.randn(samples, n, generator=g).to(dtype) for n in (inputs, outputs))
        dense_weight = fast_dense(values, *pattern[:2], inputs, *block).float()
        dx, _, _ = back(dy, x, values, *pattern, *block, True, True, False)
        assert relative_error(dx, dy.float() @ dense_weight) <= TOLERANCE[dtype]
        y = block_linear(x, values, None, *pattern, *block)
        assert relative_error(y, x.float() @ dense_weight.T) <= TOLERANCE[dtype]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_tf32_values(block):
    """Allowed, results are within 2e-3 in all three products; kernels that do not know TF32 ignore it."""
    op, back = torch.ops.sparsegnn.block_linear, torch.ops.sparsegnn.block_linear_backward
    for dtype, tf32, bound in ((torch.float32, False, 1e-5), (torch.float32, True, 2e-3), (torch.float64, True, 1e-12)):
        values, *pattern = weight(96, 320, *block, 0.8, dtype)
        g = torch.Generator().manual_seed(1)
        x, dy = (torch.randn(70, n, generator=g, dtype=torch.float64).to(dtype) for n in (320, 96))
        wide = [t.double().requires_grad_() for t in (x, values)]
        want = oracle(*wide, None, *pattern, *block)
        assert relative_error(op(x, values, None, *pattern, *block, tf32), want) <= bound
        got = back(dy, x, values, *pattern, *block, True, True, False, tf32)
        for a, b in zip(got, torch.autograd.grad(want, wide, dy.double()), strict=False):
            assert relative_error(a, b) <= bound


class OnCuda:
    """What :func:`may_round` asks of a tensor."""

    is_cuda = True


@pytest.fixture
def precision():
    """torch.backends.cuda.matmul, its settings as they were afterwards."""
    before = torch.backends.cuda.matmul.fp32_precision
    yield torch.backends.cuda.matmul
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.fp32_precision = before


def test_tf32_follows_torch(precision):
    """Both of torch's names for the setting; compiled code is traced again when it changes."""
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="eager")
    def compiled(x):
        return x + 1 if may_round(OnCuda) else x

    for allowed in (False, True, False):
        precision.allow_tf32 = allowed
        assert may_round(OnCuda) is allowed and compiled(torch.zeros(1)).item() == allowed
        assert not may_round(torch.zeros(1))
    for name, allowed in (("tf32", True), ("ieee", False)):
        precision.fp32_precision = name
        assert may_round(OnCuda) is allowed and compiled(torch.zeros(1)).item() == allowed


def test_tf32_reaches_forward_and_backward(monkeypatch):
    """From the public function and through autograd, as the last argument of both ops."""
    values, *pattern = weight(32, 48, 16, 16, 0.5, torch.float32)
    x = torch.randn(5, 48, requires_grad=True)
    for allowed in (False, True):
        monkeypatch.setattr(sys.modules["sparsegnn.ops.block_linear"], "may_round", lambda _, now=allowed: now)
        seen = Arguments()
        with seen:
            block_linear(x, values, None, *pattern, 16, 16).sum().backward()
        got = {name: args[-1] if len(args) in (11, 14) else False for name, args in seen.calls.items()}
        assert got == {"block_linear": allowed, "block_linear_backward": allowed}


class Arguments(torch.utils._python_dispatch.TorchDispatchMode):
    """Keeps the arguments of our ops that run."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "sparsegnn":
            self.calls[func._opname] = args
        return func(*args, **(kwargs or {}))


def test_leading_dimensions():
    values, *pattern = weight(16, 5, 8, 1, 0.5, torch.float32)
    x = torch.randn(2, 3, 5)
    got = block_linear(x, values, None, *pattern, 8, 1)
    assert torch.equal(got, block_linear(x.view(6, 5), values, None, *pattern, 8, 1).view(2, 3, 16))
    assert block_linear(x[0, 0], values, None, *pattern, 8, 1).shape == (16,)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_nonfinite_inputs_pass_through(block):
    values, *pattern = weight(64, 96, *block, 0.5, torch.float32)
    x = torch.randn(50, 96)
    x[3, 4], x[7, 8], x[9, 10] = float("nan"), float("inf"), 1e-42
    got = block_linear(x, values, None, *pattern, *block)
    matrix = fast_dense(values, *pattern[:2], 96, *block)
    touched = torch.zeros(50, 64, dtype=torch.bool)
    touched[3], touched[7] = matrix[:, 4] != 0, matrix[:, 8] != 0
    assert not got[touched].isfinite().any()  # an absent block does not see the value
    torch.testing.assert_close(got[~touched], torch.nn.functional.linear(x.nan_to_num(0.0, 0.0), matrix)[~touched])


def test_errors():
    values, crow, col, ccol, row, perm = weight(16, 5, 8, 1, 0.5, torch.float32)
    x, pattern = torch.randn(3, 5), (crow, col, ccol, row, perm)
    with pytest.raises(ValueError, match=r"block_linear: x must have shape \[..., 5\], got \[3, 4\]"):
        block_linear(x[:, :4], values, None, *pattern, 8, 1)
    with pytest.raises(TypeError, match="block_linear: values must have the dtype of x"):
        block_linear(x, values.double(), None, *pattern, 8, 1)
    with pytest.raises(ValueError, match=r"block_linear: bias must have shape \[16\], got \[5\]"):
        block_linear(x, values, torch.zeros(5), *pattern, 8, 1)
    with pytest.raises(ValueError, match="block_linear: values must have shape"):
        block_linear(x, values[1:], None, *pattern, 8, 1)
    with pytest.raises(ValueError, match="block_linear: height and width must be one of 4x1, .*, got 3x1"):
        block_linear(x, values, None, *pattern, 3, 1)
    op, back = torch.ops.sparsegnn.block_linear, torch.ops.sparsegnn.block_linear_backward
    with pytest.raises(RuntimeError, match="block_linear: blocks must be 4x1"):
        op(x, values, None, *pattern, 2, 4)
    with pytest.raises(RuntimeError, match="block_linear: col must be in"):
        op(x, values, None, crow, col + 3, ccol, row, perm, 8, 1)
    with pytest.raises(RuntimeError, match="block_linear: col must be in"):
        op(x, values, None, crow, -col, ccol, row, perm, 8, 1)
    with pytest.raises(RuntimeError, match="block_linear: crow must ascend"):
        op(x, values, None, crow + 1, col, ccol, row, perm, 8, 1)
    dy = torch.randn(3, 16)
    with pytest.raises(RuntimeError, match="block_linear: perm must be in"):
        back(dy, x, values, crow, col, ccol, row, perm + 9, 8, 1, True, True, True)
    values, crow, col, *transpose = weight(16, 2000, 8, 1, 0.5, torch.float32)
    with pytest.raises(RuntimeError, match="block_linear: col must ascend within rows"):
        back(dy, torch.randn(3, 2000), values, crow, col.flip(0), *transpose, 8, 1, True, True, True)


@pytest.mark.parametrize("need_x, products", [(False, 2), (True, 3)])
def test_flops_of_a_step(need_x, products):
    """A multiplication and an addition for each sample and weight: forward, dvalues, and dx where x needs it."""
    values, *pattern = weight(8, 12, 4, 1, 0.5, torch.float32)
    x, bias = torch.randn(3, 12, requires_grad=need_x), torch.zeros(8, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        block_linear(x, values.requires_grad_(), bias, *pattern, 4, 1).sum().backward()
    assert counter.get_total_flops() == products * 2 * 3 * values.numel()
