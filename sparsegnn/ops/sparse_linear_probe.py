"""Linear layers whose backward also leaves the gradient of the dense weight: what RigL-like growth looks at."""

import torch
from torch.utils.flop_counter import register_flop_formula

from sparsegnn import policy
from sparsegnn.ops._autograd import recorded, register_autograd
from sparsegnn.ops._library import define
from sparsegnn.ops._linear_gradients import gathers, gradients


def probe_reference(x, probe):
    """Zeros beside the output of a layer whose only gradient is dense: d probe = dy^T x."""
    return x.new_zeros(1, 1).expand(x.size(0), probe.size(0))


probe_op = define(
    "dense_probe(Tensor x, Tensor probe) -> Tensor", probe_reference, probe_reference, cast=("x",), composite=True
)


def probe_backward(ctx, dy):
    x, probe = ctx.saved_tensors
    dx = dy @ probe.to(dy.dtype) if ctx.needs_input_grad[0] and recorded() else None  # 0, but not its derivative
    return dx, (dy.mT @ x).to(probe.dtype) if ctx.needs_input_grad[1] else None


def probe_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


register_autograd(probe_op, probe_backward, probe_setup, formula=lambda x, probe: x @ probe.mT.to(x.dtype))


def probed_reference(x, values, bias, crow, col, ccol, row, perm, probe):
    """sparse_linear; in backward dvalues and d probe share the dense product where dvalues are gathered from one."""
    return torch.ops.sparsegnn.sparse_linear(x, values, bias, crow, col, ccol, row, perm)


def probed_fake(x, values, bias, crow, col, ccol, row, perm, probe):
    return x.new_empty(x.size(0), crow.size(0) - 1)


probed_op = define(
    "probed_linear(Tensor x, Tensor values, Tensor? bias, Tensor crow, Tensor col, Tensor ccol, Tensor row, "
    "Tensor perm, Tensor probe) -> Tensor",
    probed_reference,
    probed_fake,
    cast=("x", "values", "bias"),
    composite=True,
)


def probed_backward(ctx, dy):
    need = ctx.needs_input_grad
    gathered = ctx.gathered or (ctx.shared and need[8])
    *saved, probe = ctx.saved_tensors
    dx, dvalues, dbias, dense = gradients(dy, *saved, need[:3], gathered=gathered, need_dense=need[8])
    if need[0] and recorded():
        dx = dx + dy @ probe.to(dy.dtype)  # 0, but not its derivative
    return dx, dvalues, dbias, *[None] * 5, dense.to(probe.dtype) if need[8] else None


def probed_setup(ctx, inputs, output):
    x, values, _, *pattern, probe = inputs
    ctx.save_for_backward(x, values, *pattern, probe)
    ctx.gathered = gathers(x, values, output.size(1))
    ctx.shared = x.is_cuda and policy.forced() != "sparse"  # the probe pays for the product


def probed_formula(x, values, bias, crow, col, ccol, row, perm, probe):
    y = torch.ops.sparsegnn.sparse_linear(x, values, bias, crow, col, ccol, row, perm)
    return y + torch.ops.sparsegnn.dense_probe(x, probe)


probed_linear = register_autograd(probed_op, probed_backward, probed_setup, formula=probed_formula)


@register_flop_formula(torch.ops.sparsegnn.probed_linear)
def _(x, values, *args, out_shape=None, **kwargs) -> int:
    return 2 * x[0] * values[0]  # arguments are shapes
