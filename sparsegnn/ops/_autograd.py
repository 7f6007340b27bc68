"""Derivatives of the ops: gradients, their derivatives, forward mode, and the transforms of torch.func.

Where a gradient may be differentiated again (``create_graph=True``, torch.func, forward over reverse) it is made of
differentiable operations instead of the compiled backward; :func:`recorded` says so. Forward mode runs the reference.
``vmap`` runs the op once for each example.
"""

from collections.abc import Callable
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch._C._dynamo import eval_frame as dynamo
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

from sparsegnn.ops._library import LIBRARY, REFERENCES

#: Whether a node may be made below the transforms of torch.func; from torch 2.14 on they run the reference instead.
NESTS = isinstance(vars(torch.autograd.Function).get("apply"), classmethod)


def register_autograd(op, backward: Callable, setup_context: Callable, leading: int | None = None,
                      linear: Callable | None = None, formula: Callable | None = None) -> Callable:  # fmt: skip
    """Give an op a gradient, which must be differentiable wherever :func:`recorded`, and all that follows from it.

    Only the ``leading`` arguments may have one, by default all. A ``linear`` op names its reference, which the eager op
    runs where a transform wants to look inside: a batch in one call. ``formula`` is what forward mode differentiates,
    by default the reference.

    Returns the op for eager callers that count microseconds: the same results through ``torch.autograd.Function``,
    which spares most of the 80 us that a call through torch.library's Python autograd costs, and half a microsecond
    more for each argument behind the ``leading`` ones.
    """
    name = op.name().partition("::")[2]
    defaults = tuple(a.default_value for a in op._schema.arguments)
    leading = len(defaults) if leading is None else leading
    formula = formula or REFERENCES[name]

    def below(keyset, *args):
        try:
            with torch._C._AutoDispatchBelowAutograd():
                return op(*args) if keyset is None else op.redispatch(keyset & torch._C._after_autograd_keyset, *args)
        except RuntimeError as error:
            _raise_out_of_memory(error)
            raise

    def forward(ctx, *args):
        keyset, rest = args[-1]
        args = args[:-1] + rest
        with _other_levels() if keyset is not None and _transforms() else nullcontext():
            output = below(keyset, *args)
        if not isinstance(output, torch.fx.Proxy):  # a traced call, which is recorded as the op
            ctx.set_materialize_grads(False)  # or every saved state and index output gets a gradient of zeros
            setup_context(ctx, args, output)
        return output

    def eager_backward(ctx, *grads):
        if all(g is None for g in grads):
            return (None,) * (leading + 1)
        try:
            return (*backward(ctx, *grads)[:leading], None)
        except RuntimeError as error:
            _raise_out_of_memory(error)
            raise

    members = dict(forward=staticmethod(forward), backward=staticmethod(eager_backward))
    apply_node = node_apply(type(name, (torch.autograd.Function,), members))

    def dispatched(keyset, *args):
        args += defaults[len(args) :]
        if transformed() and (not NESTS or any(isinstance(a, Tensor) and _tangent(a) is not None for a in args)):
            return formula(*args)
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)):
            return below(keyset, *args)
        with enable_single_level_autograd_function() if _transforms() else nullcontext():
            return apply_node(*args[:leading], (keyset, args[leading:]))

    for inner in (dispatched, forward, eager_backward):
        _leave_alone(inner)
    LIBRARY.impl(name, dispatched, "Autograd", with_keyset=True)

    def apply(*args):
        inside = transformed()
        if inside and linear is not None:
            return linear(*args)
        if inside or torch.compiler.is_compiling() or torch._C._is_any_autocast_enabled():
            return op(*args)
        args += defaults[len(args) :]
        if torch.is_grad_enabled():
            return apply_node(*args[:leading], (None, args[leading:]))
        return below(None, *args)

    return apply


def node_apply(function: type[torch.autograd.Function]) -> Callable:
    """``function.apply`` without its questions about torch.func, which take 2 us; for callers that have asked them."""
    return super(torch.autograd.Function, function).apply


def transformed() -> bool:
    """Whether ops are seen by a transform of torch.func, or by forward-mode differentiation."""
    return _transforms() or forward_ad._current_level >= 0


def recorded() -> bool:
    """Whether a gradient that is being made may be differentiated itself."""
    return torch.is_grad_enabled() or transformed()


def differentiate(function: Callable, inputs: tuple, wanted: tuple, flow: Tensor) -> tuple:
    """The gradients of ``function(*inputs)``, or of its first output, for the inputs that are ``wanted``, else None.

    ``wanted`` may be longer: what follows the inputs has no gradient.
    """
    places = [i for i, w in enumerate(wanted[: len(inputs)]) if w]

    def of(*values):
        y = function(*(values[places.index(i)] if i in places else v for i, v in enumerate(inputs)))
        return y[0] if isinstance(y, tuple) else y

    _, pull = torch.func.vjp(of, *(inputs[i] for i in places))
    found = dict(zip(places, pull(flow), strict=True))
    return tuple(found.get(i) for i in range(len(wanted)))


def inverted(perm: Tensor) -> Tensor:
    """The permutation that undoes ``perm``: that of the transpose of the transpose."""
    return torch.empty_like(perm).scatter_(0, perm.long(), torch.arange(perm.numel(), device=perm.device).int())


def _transforms() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


@contextmanager
def _other_levels():
    """Inside the forward of a node, which switches derivatives off: those of the transforms around this one go on."""
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        yield


def _leave_alone(function: Callable) -> None:
    """Compiled graphs call kernels, in which the compiler finds nothing to compile, and wrappers it does not know."""
    strategy = dynamo._FrameExecStrategy(dynamo._FrameAction.SKIP, dynamo._FrameAction.SKIP)
    dynamo.set_code_exec_strategy(function.__code__, strategy)


def _tangent(value: Tensor) -> Tensor | None:
    return forward_ad.unpack_dual(value, level=0).tangent  # a compiled graph enters the level without telling Python


def _raise_out_of_memory(error: RuntimeError) -> None:
    """As torch's own ops do: a kernel can raise RuntimeError only, and callers that retry catch the other."""
    if any(words in str(error) for words in ("out of memory", "can't allocate memory", "bad_alloc")):
        raise torch.OutOfMemoryError(str(error)) from error
