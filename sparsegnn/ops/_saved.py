"""Outputs that a backward reads and that their caller may overwrite, as an activation in place does."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from sparsegnn.ops._autograd import transformed


@functools.cache
def _empty(dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.empty(0, dtype=dtype, device=device)


def keep_output(ctx, y: Tensor) -> Tensor:
    """``y`` as ``ctx`` should save it: writing to it is no error, and :func:`kept_output` finds that it happened.

    Under torch.func it stays an error.
    """
    ctx.watch = None
    if transformed():
        return y
    ctx.watch = y.detach()  # shares the counter of writes with y
    if type(y) is Tensor and not torch._C._len_torch_dispatch_stack():  # nothing records this
        ctx.watch.data = _empty(y.dtype, y.device)  # but not the memory, which would be held longer than what is saved
    ctx.version = y._version
    return y.data


def kept_output(ctx, y: Tensor, make: Callable, *inputs) -> Tensor:
    """``y`` as it was, made again from the inputs of the op where it has been overwritten."""
    if ctx.watch is None or ctx.watch._version == ctx.version:
        return y
    with torch.autocast(y.device.type, enabled=False):
        return make(*inputs)[0]
