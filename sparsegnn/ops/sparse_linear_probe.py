"""dense_probe: a term of value 0 beside sparse_linear, whose gradient is that of the dense weight."""

from sparsegnn.ops._library import define, register_autograd


def probe_reference(x, probe):
    """Zeros whose only gradient is dense: d probe = dy^T x, what RigL-like growth looks at on update steps."""
    return x.new_zeros(1, 1).expand(x.size(0), probe.size(0))


probe_op = define(
    "dense_probe(Tensor x, Tensor probe) -> Tensor", probe_reference, probe_reference, cast=("x",), composite=True
)


def probe_backward(ctx, dy):
    (x,) = ctx.saved_tensors
    return None, (dy.mT @ x).to(ctx.dtype) if ctx.needs_input_grad[1] else None


def probe_setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[0])
    ctx.dtype = inputs[1].dtype


register_autograd(probe_op, probe_backward, probe_setup)
