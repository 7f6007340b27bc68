import importlib
import math

import numpy as np
import pytest
import torch
from ops.harness import Case, Op, cases, check_contract, check_op, relative_error

from sparsegnn.ops import act_dropout

SPARSE = torch.ops.sparsegnn
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
reference = importlib.import_module("sparsegnn.ops.act_dropout").reference
backward_reference = importlib.import_module("sparsegnn.ops.act_dropout_backward").reference


def mix(x):
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * factor % 2**32
    return x ^ (x >> 16)


def keeps(seed: int, rows: int, columns: int, p: float) -> torch.Tensor:
    """Of csrc/common/random.h, in numbers of Python that have no size."""
    z = (seed + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    z ^= z >> 31
    stream = [(c * 0x9E3779B9) % 2**32 ^ (z >> 32) for c in range(columns)]
    bits = [[mix((mix(r ^ z % 2**32) + s) % 2**32) for s in stream] for r in range(rows)]
    return torch.tensor(
        np.array(bits, dtype=np.float64).reshape(rows, columns) >= min(math.floor(p * 2**32), 2**32 - 1)
    )


def oracle(x, bias, act="none", dropout=0.0, seed=None):
    z = x if bias is None else x + bias
    if act == "relu":
        z = z.clamp(min=0)
    if act == "elu":
        z = torch.where(z > 0, z, torch.expm1(z.clamp(max=0)))
    if dropout == 0:
        return z
    kept = keeps(seed.item(), *x.shape, dropout)
    return torch.where(kept, z, 0) / ((1 - dropout) or 1)


VARIANTS = {
    "copy": {},
    "bias": dict(bias=True),
    "relu": dict(act="relu"),
    "bias relu dropout": dict(bias=True, act="relu", dropout=0.6, seed=-3),
    "elu": dict(act="elu"),
    "bias elu dropout": dict(bias=True, act="elu", dropout=0.3, seed=2**62 + 1),
    "dropout": dict(dropout=0.4, seed=17),
    "bias dropout": dict(bias=True, dropout=0.5, seed=0),
    "all dropped": dict(bias=True, act="elu", dropout=1.0, seed=5),
}


def inputs(case: Case) -> dict:
    variant = dict(bias=None, act="none", dropout=0.0, seed=None) | VARIANTS[case.variant]
    x = case.tensor(case.csr()[5][1], case.width)
    bias = case.tensor(case.width) if variant["bias"] else None
    seed = None if variant["seed"] is None else torch.tensor([variant["seed"]], device=x.device)
    return dict(x=x, bias=bias, act=variant["act"], dropout=variant["dropout"], seed=seed)


OP = Op(SPARSE.act_dropout, oracle, inputs, grad=("x", "bias"), raw=SPARSE.act_dropout.default)
GRAPHS = ("random", "empty", "one_node", "wide", "tall")  # only their number of columns counts


@pytest.mark.parametrize("case", cases(tuple(VARIANTS), graphs=GRAPHS, widths=(1, 3, 8, 17, 48, 64, 67, 130)))
def test_values(case):
    check_op(OP, case)


@pytest.mark.parametrize("variant", ["bias relu dropout", "bias elu dropout", "dropout"])
def test_contract(variant):
    check_contract(OP, Case(width=5, variant=variant))


def test_autocast_casts_nothing():
    """As elementwise operators of torch."""
    x, bias = torch.randn(5, 4), torch.randn(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = act_dropout(x, bias, "relu")
        assert act_dropout(x.bfloat16(), bias.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(y, torch.relu(x + bias))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("act", ["none", "relu", "elu"])
def test_values_of_a_large_matrix(dtype, act):
    """Written past the caches, in many chunks; the gradient of the bias is their sum."""
    rows, width = (9000, 512) if dtype != torch.float64 else (9000, 256)
    g, seed = torch.Generator().manual_seed(2), torch.tensor([11])
    x, dy = torch.randn(2, rows, width, generator=g, dtype=torch.float64).to(dtype)
    bias = torch.randn(width, generator=g).to(dtype)
    y = SPARSE.act_dropout(x, bias, act, 0.5, seed)
    torch.testing.assert_close(y, reference(x, bias, act, 0.5, seed))
    saved = None if act == "none" else y
    dx, dbias = SPARSE.act_dropout_backward(dy, saved, act, 0.5, seed, True, True)
    want = backward_reference(dy.double(), None if saved is None else y.double(), act, 0.5, seed, True, True)
    assert relative_error(dx, want[0]) < 3e-3 if dtype.itemsize == 2 else 1e-6
    assert relative_error(dbias, want[1]) < 4e-3 if dtype.itemsize == 2 else 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_elu_is_exact_near_zero_and_far_below(dtype):
    magnitude = torch.logspace(-30 if dtype == torch.float32 else -300, 2.5, 4000, dtype=torch.float64)
    x = torch.cat([-magnitude, torch.linspace(-2, 0, 4001, dtype=torch.float64)]).to(dtype)[None]
    y, want = act_dropout(x, None, "elu").double(), torch.expm1(x.double())
    assert ((y - want).abs() <= 3 * torch.finfo(dtype).eps * want.abs()).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("act", ["none", "relu", "elu"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_numbers_that_are_none(act, dropout, dtype):
    """As torch's activations and their gradients; what is dropped is 0, whatever it was."""
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-7, -1e-7, 60000.0, -60000.0])
    x = special.repeat(32, 3).to(dtype).requires_grad_()  # whole vectors: torch treats a NaN in the rest otherwise
    seed = torch.tensor([1])
    y = act_dropout(x, None, act, dropout, seed)
    dx = torch.autograd.grad(y, x, torch.ones_like(y))[0]
    plain = {"none": lambda t: t * 1, "relu": torch.relu, "elu": torch.nn.functional.elu}[act](x)
    want = torch.autograd.grad(plain, x, torch.ones_like(y))[0]
    kept = keeps(1, *x.shape, dropout) if dropout else torch.ones_like(x, dtype=torch.bool)
    scale = 1 / (1 - dropout)
    torch.testing.assert_close(y, torch.where(kept, plain * scale, 0).detach(), equal_nan=True)
    dx_want = torch.where(kept, want * scale, 0)
    if act == "relu":  # a dropped NaN is a 0
        dx_want = dx_want.nan_to_num(nan=0.0)
    torch.testing.assert_close(dx, dx_want, equal_nan=True)


@pytest.mark.parametrize("layout", ["rows of a wider one", "expanded rows", "transposed", "one column"])
def test_strides_of_x_and_dy(layout):
    wide = torch.randn(20, 40)
    x = {"rows of a wider one": wide[:, 3:20], "expanded rows": wide[:1].expand(20, 40), "transposed": wide.T,
         "one column": wide[:, 5:6]}[layout]  # fmt: skip
    bias, seed = torch.randn(x.size(1)), torch.tensor([4])
    leaf = x.detach().requires_grad_()
    y = act_dropout(leaf, bias, "relu", 0.3, seed)
    assert torch.equal(y, reference(x, bias, "relu", 0.3, seed)) and y.is_contiguous()
    (dx,) = torch.autograd.grad(y, leaf, x)
    assert torch.equal(dx, torch.where(y > 0, x, 0) * (1 / 0.7))


def test_any_leading_dimensions():
    x, seed = torch.randn(2, 3, 5, requires_grad=True), torch.tensor([9])
    y = act_dropout(x, None, "relu", 0.5, seed)
    assert torch.equal(y, act_dropout(x.view(6, 5), None, "relu", 0.5, seed).view(2, 3, 5))
    assert torch.equal(act_dropout(x[0, 0]), x[0, 0]) and act_dropout(x[:0]).shape == (0, 3, 5)


def test_what_backward_keeps():
    """Without an activation nothing but the seed, so that the result may be written to; x never."""
    packed = []
    x, bias = torch.randn(30, 8, requires_grad=True), torch.zeros(8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        y = act_dropout(x, bias, "none", 0.5, torch.tensor([3]))
        assert sum(t.numel() for t in packed) == 1
        packed.clear()
        z = act_dropout(x, bias, "relu", 0.5, torch.tensor([3]))
        assert sum(t.numel() for t in packed) == z.numel() + 1
    y.mul_(2).sum().backward()
    assert torch.equal(x.grad, (y.detach() != 0) * 4.0) and torch.equal(bias.grad, x.grad.sum(0))
    z = act_dropout(x, bias, "relu", 0.5, torch.tensor([3])).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_dropout_is_fair_and_follows_the_seed():
    ones = torch.ones(2000, 100)
    y = act_dropout(ones, None, "none", 0.3, torch.tensor([5]))
    assert abs((y != 0).float().mean().item() - 0.7) < 0.005
    assert torch.equal(y, act_dropout(ones, None, "elu", 0.3, torch.tensor([5])))
    assert torch.equal(y[:3], act_dropout(ones[:3], None, "relu", 0.3, torch.tensor([5])))
    assert not torch.equal(y, act_dropout(ones, None, "none", 0.3, torch.tensor([6])))
    assert not act_dropout(ones, None, "none", 1.0, torch.tensor([5])).any()


@pytest.mark.parametrize("act", ["none", "relu", "elu"])
@pytest.mark.parametrize("dropout", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True), (False, False)])
def test_backward_against_its_reference(act, dropout, needs):
    x, dy, seed = torch.randn(70, 37), torch.randn(70, 37), torch.tensor([-8])
    y = None if act == "none" else SPARSE.act_dropout(x, None, act, dropout, seed)
    got = SPARSE.act_dropout_backward(dy, y, act, dropout, seed, *needs)
    torch.testing.assert_close(got, backward_reference(dy, y, act, dropout, seed, *needs))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda x: act_dropout(x, act="gelu"), ValueError, "act_dropout: act must be 'none', 'relu' or 'elu', got 'g"),
        (lambda x: act_dropout(x, dropout=1.5), ValueError, r"act_dropout: dropout must be in \[0, 1\], got 1.5"),
        (lambda x: act_dropout(x, dropout=0.5), TypeError, r"act_dropout: seed must be a Tensor of shape \[1\], g"),
        (lambda x: act_dropout(x, torch.zeros(3)), ValueError, r"act_dropout: bias must have shape \[4\], got \[3\]"),
        (lambda x: act_dropout(x, torch.zeros(4).double()), TypeError, "bias must have the dtype of x"),
        (lambda x: act_dropout(x.long()), TypeError, "act_dropout: x must be floating point, got torch.int64"),
        (lambda x: SPARSE.act_dropout(x[0], None), RuntimeError, r"act_dropout: x must have shape \[N, F\]"),
        (lambda x: SPARSE.act_dropout(x, None, "tanh"), RuntimeError, "act_dropout: act must be none, relu or elu"),
        (lambda x: SPARSE.act_dropout(x, None, "none", 0.5), RuntimeError, "act_dropout: dropout needs a seed"),
        (lambda x: SPARSE.act_dropout_backward(x, None, "relu", 0.0, None, True, True), RuntimeError, "y must be giv"),
        (lambda x: SPARSE.act_dropout_backward(x, x[:2], "elu", 0.0, None, True, True), RuntimeError, "shape of dy"),
    ],
)  # fmt: skip
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.randn(3, 4))
