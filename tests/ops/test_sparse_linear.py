import importlib
import types

import pytest
import torch
from ops.harness import DTYPES, TOLERANCE, Case, Op, cases, check_contract, check_op, csr_of, relative_error
from torch.utils.flop_counter import FlopCounterMode

from sparsegnn import policy
from sparsegnn.nn import SparseLinear
from sparsegnn.ops import _linear_gradients, sparse_linear

PATTERN = ("crow", "col", "ccol", "row", "perm")


def dense(values, crow, col, inputs):
    """The weight as a matrix, entry by entry; duplicates add up."""
    rows = torch.arange(crow.numel() - 1).repeat_interleave(crow.diff().long())
    return values.new_zeros(crow.numel() - 1, inputs).index_put((rows, col.long()), values, accumulate=True)


def oracle(x, values, bias, crow, col, ccol, row, perm, act="none", dropout=0.0, seed=None):
    y = torch.nn.functional.linear(x, dense(values, crow, col, x.size(1)), bias)
    y = y.relu() if act == "relu" else y
    return y * dropout_factor(x.size(0), crow, dropout, seed) if dropout else y


def dropout_factor(samples, crow, dropout, seed):
    """What the op multiplies by: seen where all sums are 1."""
    m = crow.numel() - 1
    none = dict(crow=torch.zeros_like(crow), col=crow[:0], ccol=torch.zeros(2, dtype=torch.int32), row=crow[:0])
    ones = torch.ones(m, dtype=torch.float64)
    return sparse_linear(ones.new_zeros(samples, 1), ones[:0], ones, **none, perm=crow[:0], dropout=dropout, seed=seed)


VARIANTS = {
    "bias": {},
    "no bias": {},
    "relu": dict(act="relu"),
    "dropout": dict(dropout=0.4, seed=torch.tensor([17])),
    "relu dropout": dict(act="relu", dropout=0.6, seed=torch.tensor([-3])),
}


def inputs(case: Case) -> dict:
    """The case's width is the batch: samples 1..67 meet every tile remainder."""
    *pattern, (m, k) = case.csr()
    values = case.tensor(pattern[1].numel())
    bias = None if case.variant == "no bias" else case.tensor(m)
    given = dict(x=case.tensor(case.width, k), values=values, bias=bias, **dict(zip(PATTERN, pattern, strict=True)))
    return given | VARIANTS[case.variant]


OP = Op(
    sparse_linear,
    oracle,
    inputs,
    grad=("x", "values", "bias"),
    autocast=("x", "values", "bias"),
    raw=torch.ops.sparsegnn.sparse_linear.default,
)


@pytest.mark.parametrize("case", cases(variants=tuple(VARIANTS)))
def test_values(case):
    check_op(OP, case)


@pytest.mark.parametrize("variant", ["bias", "relu dropout"])
def test_contract(variant):
    check_contract(OP, Case(width=5, variant=variant))


def weight(m, k, sparsity, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    rows, cols = (torch.rand(m, k, generator=g) >= sparsity).nonzero().T
    crow, col, ccol, row, perm = csr_of(rows, cols, m, k)
    return torch.randn(col.numel(), generator=g, dtype=torch.float64).to(dtype), crow, col, ccol, row, perm


# batch, inputs, outputs, sparsity: every plan, with remainders on all sides; several blocks and panels
SHAPES = (
    *((1, 512, 300, 0.9), (5, 1433, 16, 0.9), (40, 17, 1, 0.5), (300, 1, 33, 0.5), (130, 515, 131, 0.5)),
    *((197, 700, 650, 0.9), (1000, 300, 257, 0.98), (64, 2001, 1500, 0.99), (2000, 130, 140, 0.0), (70, 2500, 3, 0.3)),
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, dtype):
    check_shape(shape, dtype)
    check_shape(shape, dtype, "relu dropout")


def check_shape(shape, dtype, variant="bias"):
    n, k, m, sparsity = shape
    epilogue = VARIANTS[variant]
    values, *pattern = weight(m, k, sparsity, dtype)
    g = torch.Generator().manual_seed(1)
    x, bias, dy = (torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in ((n, k), (m,), (n, m)))
    wide = [t.double().clone().requires_grad_() for t in (x, values, bias)]
    wanted = oracle(*wide, *pattern, **epilogue)
    want = torch.autograd.grad(wanted, wide, dy.double())
    for need in ((True, True, True), (True, False, False), (False, True, False), (False, False, True)):
        leaves = [t.clone().requires_grad_(f) for t, f in zip((x, values, bias), need, strict=True)]
        y = sparse_linear(*leaves, *pattern, **epilogue)
        assert relative_error(y, wanted) <= TOLERANCE[dtype]
        asked = [i for i, f in enumerate(need) if f]
        for i, got in zip(asked, torch.autograd.grad(y, [leaves[i] for i in asked], dy), strict=True):
            assert relative_error(got, want[i]) <= 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("shape", [(3000, 300, 200, 0.9), (700, 64, 500, 0.5)], ids=str)
def test_threads_do_not_change_bits(shape):
    n, k, m, sparsity = shape
    values, *pattern = weight(m, k, sparsity, torch.float32)
    x, dy = torch.randn(n, k), torch.randn(n, m)
    bias = torch.randn(m)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y = torch.ops.sparsegnn.sparse_linear(x, values, bias, *pattern)
            grads = torch.ops.sparsegnn.sparse_linear_backward(dy, x, values, *pattern, True, True, True)
            results.append((y, *grads))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_no_samples_no_outputs_no_entries():
    values, *pattern = weight(7, 5, 0.5, torch.float32)
    x = torch.randn(0, 5, requires_grad=True)
    y = sparse_linear(x, values, None, *pattern)
    assert y.shape == (0, 7)
    dx, dvalues, dbias = torch.ops.sparsegnn.sparse_linear_backward(y, x.detach(), values, *pattern, True, True, True)
    assert dx.shape == (0, 5) and not dvalues.any() and not dbias.any() and dbias.shape == (7,)
    for m, k in ((0, 5), (7, 0), (7, 5)):
        values, *pattern = weight(m, k, 1.0, torch.float32)
        x, bias = torch.randn(40, k, requires_grad=True), torch.randn(m, requires_grad=True)
        y = sparse_linear(x, values, bias, *pattern)
        assert torch.equal(y, bias.expand(40, m))
        dx, dbias = torch.autograd.grad(y.sum(), (x, bias))
        assert torch.equal(dx, torch.zeros(40, k)) and torch.equal(dbias, torch.full((m,), 40.0))


def test_leading_dimensions():
    values, *pattern = weight(7, 5, 0.5, torch.float32)
    x = torch.randn(2, 3, 5)
    got = sparse_linear(x, values, None, *pattern)
    assert torch.equal(got, sparse_linear(x.view(6, 5), values, None, *pattern).view(2, 3, 7))
    assert sparse_linear(x[0, 0], values, None, *pattern).shape == (7,)


def test_nonfinite_inputs_pass_through():
    values, *pattern = weight(40, 30, 0.5, torch.float32)
    x = torch.randn(50, 30)
    x[3, 4], x[7, 8], x[9, 10] = float("nan"), float("inf"), 1e-42
    got = sparse_linear(x, values, None, *pattern)
    hit = torch.nn.functional.linear(x.nan_to_num(0.0, 0.0), dense(values, *pattern[:2], 30))
    touched = torch.zeros(50, 40, dtype=torch.bool)
    used = dense(torch.ones_like(values), *pattern[:2], 30) > 0
    touched[3], touched[7] = used[:, 4], used[:, 8]
    assert not got[touched].isfinite().any()  # an absent weight does not see the value
    torch.testing.assert_close(got[~touched], hit[~touched])


def test_dropout_is_fair_and_follows_the_seed():
    values, *pattern = weight(50, 30, 0.5, torch.float32)
    x, ones = torch.randn(2000, 30), torch.ones(50)
    factor = sparse_linear(x * 0, values, ones, *pattern, dropout=0.3, seed=torch.tensor([5]))
    assert set(factor.unique().tolist()) == {0.0, ones[0].div(0.7).item()}
    assert abs((factor == 0).float().mean() - 0.3) < 0.01  # 6 standard deviations
    assert ((factor == 0).float().mean(0) - 0.3).abs().max() < 0.06
    assert ((factor == 0).float().mean(1) - 0.3).abs().max() < 0.4
    y = sparse_linear(x, values, ones, *pattern, dropout=0.3, seed=torch.tensor([5]))
    assert torch.equal(y, sparse_linear(x, values, ones, *pattern) * factor)
    few = sparse_linear(x[:3], values, ones, *pattern, dropout=0.3, seed=torch.tensor([5]))
    torch.testing.assert_close(few, y[:3])
    assert not torch.equal(y, sparse_linear(x, values, ones, *pattern, dropout=0.3, seed=torch.tensor([6])))
    assert not sparse_linear(x, values, ones, *pattern, dropout=1.0, seed=torch.tensor([5])).any()


@pytest.mark.parametrize("samples", [3, 40])
def test_relu_treats_nan_as_torch_does(samples):
    values, *pattern = weight(7, 5, 0.0, torch.float32)
    x, bias, dy = torch.randn(samples, 5), torch.randn(7), torch.randn(samples, 7)
    x[1, 2], x[2, 0] = float("nan"), float("inf")
    results = []
    for fused in (True, False):
        leaves = [t.clone().requires_grad_() for t in (x, values, bias)]
        y = sparse_linear(*leaves, *pattern, act="relu") if fused else sparse_linear(*leaves, *pattern).relu()
        results.append([y, *torch.autograd.grad(y, leaves, dy)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)
    assert results[0][0][1].isnan().all()


def test_errors():
    values, crow, col, ccol, row, perm = weight(7, 5, 0.5, torch.float32)
    x, pattern = torch.randn(3, 5), (crow, col, ccol, row, perm)
    for bad, error, text in (
        (dict(act="gelu"), ValueError, "sparse_linear: act must be 'none' or 'relu', got 'gelu'"),
        (dict(dropout=1.5), ValueError, r"sparse_linear: dropout must be in \[0, 1\], got 1.5"),
        (dict(dropout=0.5), TypeError, r"sparse_linear: seed must be a Tensor of shape \[1\], got NoneType"),
        (dict(dropout=0.5, seed=torch.zeros(1)), TypeError, "sparse_linear: seed must be int64 on cpu"),
    ):
        with pytest.raises(error, match=text):
            sparse_linear(x, values, None, *pattern, **bad)
    with pytest.raises(ValueError, match=r"sparse_linear: x must have shape \[..., 5\], got \[3, 4\]"):
        sparse_linear(x[:, :4], values, None, *pattern)
    with pytest.raises(TypeError, match="sparse_linear: values must have the dtype of x"):
        sparse_linear(x, values.double(), None, *pattern)
    with pytest.raises(ValueError, match=r"sparse_linear: bias must have shape \[7\], got \[5\]"):
        sparse_linear(x, values, torch.zeros(5), *pattern)
    with pytest.raises(ValueError, match="sparse_linear: values must have shape"):
        sparse_linear(x, values[1:], None, *pattern)
    op = torch.ops.sparsegnn.sparse_linear
    past = (crow, col + (5 - col.max()), ccol, row, perm)  # by one
    for bad in (
        past,
        (crow, col + 3, ccol, row, perm),
        (crow, -col, ccol, row, perm),
        (crow + 1, col, ccol, row, perm),
    ):
        with pytest.raises(RuntimeError, match="sparse_linear: (crow|col) must ascend"):
            op(torch.randn(40, 5), values, None, *bad)
        with pytest.raises(RuntimeError, match="sparse_linear: (crow|col) must ascend"):
            op(x, values, None, *bad)
    with pytest.raises(RuntimeError, match="must be the transpose of crow and col"):
        torch.ops.sparsegnn.sparse_linear_backward(
            torch.randn(3, 7), x, values, crow, col, ccol, row, perm + 9, True, True, True
        )


def test_dense_probe():
    x, dy = torch.randn(9, 5, dtype=torch.float64), torch.randn(9, 7, dtype=torch.float64)
    probe = torch.zeros(7, 5, dtype=torch.float64, requires_grad=True)
    y = torch.ops.sparsegnn.dense_probe(x, probe)
    assert y.shape == (9, 7) and not y.any()
    torch.testing.assert_close(torch.autograd.grad(y, probe, dy)[0], dy.T @ x)
    torch.library.opcheck(torch.ops.sparsegnn.dense_probe.default, (x, probe))


@pytest.fixture
def by_product(monkeypatch):
    """dvalues gathered from the dense product, as on a GPU with tensor cores; what it was decided for."""
    seen = []
    monkeypatch.setattr(_linear_gradients, "TENSOR_CORES", "cpu")
    monkeypatch.setattr(policy, "gathers_gradient", lambda *args: seen.append(args) or True)
    return seen


@pytest.mark.parametrize("case", cases(tuple(VARIANTS), widths=(1, 33)), ids=str)
def test_values_from_the_dense_product(by_product, case):
    check_op(OP, case)
    assert by_product or case.variant == "dropout" or not case.csr()[1].numel()


def test_dense_product_under_gradcheck_and_compile(by_product):
    """Equal to rounding only when compiled: the compiler may give torch's product another layout of dy."""
    inputs = OP.inputs(Case(width=5, dtype=torch.float64, variant="relu dropout"))
    inputs |= {n: inputs[n].detach().requires_grad_() for n in OP.grad if inputs.get(n) is not None}
    wanted = [n for n in OP.grad if inputs.get(n) is not None]
    assert torch.autograd.gradcheck(lambda *a: sparse_linear(**inputs | dict(zip(wanted, a, strict=True))),
                                    [inputs[n] for n in wanted])  # fmt: skip
    compiled = torch.compile(lambda kw: sparse_linear(**kw), fullgraph=True, dynamic=True)
    grads = [torch.autograd.grad(f().square().sum(), [inputs[n] for n in wanted])
             for f in (lambda: compiled(inputs), lambda: sparse_linear(**inputs))]  # fmt: skip
    torch.testing.assert_close(*grads)
    assert by_product


class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
    """Names of the ops that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dense", [True, False])
def test_probed_linear(monkeypatch, dense):
    """The gradient of the dense weight; with it that of the values where both come from one product."""
    monkeypatch.setattr(_linear_gradients, "TENSOR_CORES", "cpu")
    monkeypatch.setattr(policy, "gathers_gradient", lambda *_: dense)
    values, *pattern = weight(7, 5, 0.5, torch.float64)
    x, dy, bias = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((9, 5), (9, 7), (7,)))
    probe, values = torch.zeros(7, 5, dtype=torch.float64, requires_grad=True), values.requires_grad_()
    op = torch.ops.sparsegnn.probed_linear
    y = op(x, values, bias, *pattern, probe)
    want = sparse_linear(x, values, bias, *pattern)
    assert torch.equal(y, want)
    with Recorder() as recorder:
        *grads, full = torch.autograd.grad(y, (x, values, bias, probe), dy)
    assert sum(name in ("aten::mm", "aten::matmul") for name in recorder.names) == 1
    assert recorder.names.count("sparsegnn::sparse_linear_backward") == 1
    torch.testing.assert_close(full, dy.T @ x)
    for got, wanted in zip(grads, torch.autograd.grad(want, (x, values, bias), dy), strict=True):
        torch.testing.assert_close(got, wanted)
    torch.library.opcheck(op.default, (x, values, bias, *pattern, probe))
    with torch.autocast("cpu", torch.bfloat16):
        low = op(x.float(), values.float(), None, *pattern, probe)
    assert low.dtype == torch.bfloat16
    assert torch.autograd.grad(low.sum(), probe)[0].dtype == torch.float64


@pytest.mark.parametrize("epilogue", [{}, dict(act="relu"), dict(act="relu", dropout=0.5), dict(dropout=0.5)], ids=str)
def test_gpu_backward_without_a_word_to_the_host(epilogue):
    """On fake CUDA tensors anything that needs a number from the device raises."""
    module, ctx = importlib.import_module("sparsegnn.ops.sparse_linear"), types.SimpleNamespace()
    ctx.save_for_backward = lambda *tensors: setattr(ctx, "saved_tensors", tensors)
    ctx.needs_input_grad = (True, True, False)
    values, *pattern = weight(7, 5, 0.5, torch.bfloat16)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=False), torch.no_grad():  # autograd asks for a stream

        def fake(*shape, dtype=torch.bfloat16):
            return torch.empty(shape, dtype=dtype, device="cuda")

        positions = [fake(*p.shape, dtype=torch.int32) for p in pattern]
        x, held, dy = fake(9, 5), fake(*values.shape), fake(9, 7)
        seed = fake(1, dtype=torch.int64) if "dropout" in epilogue else None
        inputs = (x, held, None, *positions, epilogue.get("act", "none"), epilogue.get("dropout", 0.0), seed)
        module.setup_context(ctx, inputs, fake(9, 7))
        with Recorder() as recorder:
            dx, dvalues, *_ = module.backward(ctx, dy)
    assert dx.shape == x.shape and dvalues.shape == held.shape and dvalues.dtype == torch.bfloat16
    products = recorder.names.count("aten::mm") + recorder.names.count("aten::matmul")
    assert products == (epilogue != dict(dropout=0.5))  # dropout alone leaves nothing to mask dy with


def test_backward_goes_as_its_forward_decided(by_product, monkeypatch):
    """A kernel is forced for the thread of the forward pass; on a GPU the backward pass runs in another."""
    values, *pattern = weight(7, 5, 0.5, torch.float32)
    x, values = torch.randn(9, 5), values.requires_grad_()
    y = sparse_linear(x, values, None, *pattern)
    monkeypatch.setattr(policy, "gathers_gradient", lambda *_: False)
    with Recorder() as recorder:
        torch.autograd.grad(y.sum(), values)
    assert "sparsegnn::sparse_linear_backward" not in recorder.names


def test_where_the_gradient_of_values_is_gathered_from_the_dense_product():
    def gathers(precision, width, sparsity, device="cuda"):
        return policy.gathers_gradient(round((1 - sparsity) * width * width), (width, width), precision, device)

    for low in (torch.bfloat16, torch.float16):
        assert all(gathers(low, 256, s) for s in (0.5, 0.9, 0.99)) and gathers(low, 2048, 0.95)
        assert not gathers(low, 2048, 0.99) and not gathers(low, 256, 0.5, "cpu")
    assert all(gathers(policy.TF32, 256, s) for s in (0.5, 0.9, 0.99))
    assert all(gathers(torch.float32, w, s) != (s > 0.82) for w in (256, 1024) for s in (0.1, 0.8, 0.83, 0.9, 0.99))
    assert all(gathers(torch.float64, w, s) != (s > 0.93) for w in (256, 1024) for s in (0.1, 0.9, 0.94, 0.99))
    assert not gathers(torch.float32, 256, 0.5, "cpu")
    with policy.use_kernel("sparse"):
        assert not gathers(torch.bfloat16, 256, 0.9)


@pytest.mark.parametrize("samples", [0, 3, 70])
@pytest.mark.parametrize("act, dropout", [("none", 0.0), ("relu", 0.0), ("relu", 0.5)])
def test_out(samples, act, dropout):
    layer = SparseLinear(33, 20, sparsity=0.6)
    pattern = (layer.crow, layer.col, layer.ccol, layer.row, layer.perm)
    x, seed = torch.randn(2, samples, 33), torch.tensor([5])
    out = torch.full((2, samples, 20), 7.0)
    with torch.no_grad():
        args = (layer.values, layer.bias, *pattern, act, dropout, seed)
        assert sparse_linear(x, *args, out=out) is out
        assert torch.equal(out, sparse_linear(x, *args))
        raw = (torch.empty(2 * samples, 20), x.view(-1, 33), *args[:5], *args[7:])
        torch.library.opcheck(torch.ops.sparsegnn.sparse_linear_out.default, raw)


@pytest.mark.parametrize("begin", [0, 3])  # in elements: at a cache line, and beside one
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_outputs_are_those_of_parts(dtype, begin):
    """From 12 MB on they are stored past the caches, which asks for whole cache lines."""
    n, k, m = 40003, 64, 96
    values, *pattern = weight(m, k, 0.8, dtype)
    x, dy, buffer = torch.randn(n, k, dtype=dtype), torch.randn(n, m, dtype=dtype), torch.empty(n * m + 3, dtype=dtype)
    out = buffer[begin : begin + n * m].view(n, m).fill_(torch.nan)
    sparse_linear(x, values, None, *pattern, act="relu", out=out)
    backward = torch.ops.sparsegnn.sparse_linear_backward
    dx, *_ = backward(dy, x, values, *pattern, True, True, False, out)
    for part in torch.arange(n).split(7000):
        y = sparse_linear(x[part], values, None, *pattern, act="relu")
        assert torch.equal(out[part], y)
        assert torch.equal(dx[part], backward(dy[part], x[part], values, *pattern, True, True, False, y)[0])


@pytest.mark.parametrize("bad", ["shape", "dtype", "overlap", "needs grad"])
def test_bad_out(bad):
    layer = SparseLinear(8, 8, sparsity=0.5).requires_grad_(bad == "needs grad")
    both = torch.randn(8, 8)
    x, out = both[:4], both[3:7] if bad == "overlap" else torch.empty(4, 9 if bad == "shape" else 8)
    out = out.double() if bad == "dtype" else out
    with pytest.raises((TypeError, ValueError), match="sparse_linear: out must"):
        sparse_linear(x, layer.values, None, layer.crow, layer.col, layer.ccol, layer.row, layer.perm, out=out)


@pytest.mark.parametrize("need_x", [False, True])
def test_flops_of_a_step(need_x):
    """A multiplication and an addition for each sample and weight: forward, dvalues, and dx where x needs it."""
    values, *pattern = weight(7, 5, 0.5, torch.float32)
    x = torch.randn(3, 5, requires_grad=need_x)
    with FlopCounterMode(display=False) as counter:
        sparse_linear(x, values.requires_grad_(), None, *pattern).sum().backward()
    assert counter.get_total_flops() == (2 + need_x) * 2 * 3 * values.numel()


def test_autocast_leaves_float64_alone():
    values, *pattern = weight(7, 5, 0.5, torch.float64)
    x = torch.randn(3, 5, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        y = sparse_linear(x, values, None, *pattern)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, sparse_linear(x, values, None, *pattern), rtol=0, atol=0)
