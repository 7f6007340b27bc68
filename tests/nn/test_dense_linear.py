"""The dense kernel of sparse layers: the values and gradients of nn.Linear, in everything that runs or records it."""

import pytest
import torch
from nn.twins import assert_equals_dense
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, vmap

from sparsegnn import use_kernel
from sparsegnn.nn import SparseLinear


def layer(sparsity=0.3, shape=(32, 32), **options) -> SparseLinear:
    made = SparseLinear(*shape, sparsity=sparsity, dtype=torch.float64, **options)
    made.choose_kernel_(2.0)
    return made


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["unstructured", "fan_in", "grouped:8", "block:16x16"])
def test_values_and_gradients(kind, bias):
    mine, x = layer(0.5, bias=bias, pattern=kind), torch.randn(3, 5, 32, dtype=torch.float64, requires_grad=True)
    assert_equals_dense(mine, mine.to_dense(), x)


@pytest.mark.parametrize("frozen", ["x", "values", "bias"])
def test_only_what_is_asked_for_gets_a_gradient(frozen):
    mine, x = layer(), torch.randn(4, 32, dtype=torch.float64, requires_grad=True)
    tensors = dict(x=x, values=mine.values, bias=mine.bias)
    tensors[frozen].requires_grad_(False)
    mine(x).square().sum().backward()
    for name, t in tensors.items():
        assert (t.grad is None) == (name == frozen)


def test_second_derivatives_and_forward_mode():
    mine, x = layer(0.4, (5, 3)), torch.randn(4, 5, dtype=torch.float64, requires_grad=True)

    def call(x, values, bias):
        return functional_call(mine, dict(values=values, bias=bias), (x,))

    tensors = tuple(t.detach().requires_grad_() for t in (x, mine.values, mine.bias))
    assert torch.autograd.gradcheck(call, tensors) and torch.autograd.gradgradcheck(call, tensors)
    with forward_ad.dual_level():
        tangent = torch.randn_like(x)
        y = forward_ad.unpack_dual(mine(forward_ad.make_dual(x.detach(), tangent)))
        torch.testing.assert_close(y.tangent, tangent @ mine.dense_weight().T)
        with use_kernel("sparse"), torch.no_grad():
            y = forward_ad.unpack_dual(mine(forward_ad.make_dual(x.detach(), tangent)))
        torch.testing.assert_close(y.tangent, tangent @ mine.dense_weight().T)


def test_gradients_of_single_samples():
    mine, x = layer(0.4, (12, 7)), torch.randn(5, 12, dtype=torch.float64)

    def loss(parameters, sample):
        return functional_call(mine, parameters, (sample[None],)).square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(dict(mine.named_parameters()), x)
    mine(x).square().sum().backward()
    torch.testing.assert_close(each["values"].sum(0), mine.values.grad)


def test_fx_compile_and_autocast():
    model, x = nn.Sequential(SparseLinear(13, 9), nn.ReLU(), SparseLinear(9, 2)), torch.randn(4, 13)
    with use_kernel("dense"):
        want = model(x)
        traced = torch.fx.symbolic_trace(model)
        torch.testing.assert_close(traced(x), want)
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), want)
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        assert y.dtype == torch.bfloat16
        y.sum().backward()
        assert model[0].values.grad.dtype == torch.float32


def test_a_pattern_that_changes_before_the_backward_is_noticed():
    mine, x = layer(), torch.randn(4, 32, dtype=torch.float64)
    y = mine(x)
    mine.rewire_(torch.rand(mine.values.numel()), torch.rand(32, 32), 9)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
