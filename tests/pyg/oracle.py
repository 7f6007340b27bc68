"""The same model of PyG with and without accelerate: outputs, gradients, and proof of which path ran."""

import copy
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sparsegnn
from sparsegnn.pyg.route import route_of

KERNELS = ("spmm", "gat", "gatv2")


class Watch(TorchDispatchMode):
    """Counts the calls of the library's aggregations, of its conversions, and of PyG's gathers."""

    def __init__(self):
        super().__init__()
        self.kernels = self.conversions = self.gathers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        self.kernels += name.removeprefix("sparsegnn::") in KERNELS
        self.conversions += name == "sparsegnn::csr_from_edges"
        self.gathers += name == "aten::index_select" and args[0].dim() > 1
        return func(*args, **(kwargs or {}))


@contextmanager
def watched():
    watch = Watch()
    with watch:
        yield watch


def accelerated(model):
    return sparsegnn.accelerate(copy.deepcopy(model))


def outputs(y):
    return [t for t in (y.values() if isinstance(y, dict) else y if isinstance(y, tuple) else (y,)) if t is not None]


def gradients(model, call, leaves):
    """The outputs of ``call(model)``, and gradients of all leaves and parameters."""
    torch.manual_seed(1)
    ys = outputs(call(model))
    loss = sum((y * torch.arange(y.numel(), dtype=y.dtype).view_as(y).sin()).sum() for y in ys)
    wanted = [*leaves, *(p for p in model.parameters() if p.requires_grad)]
    return ys, torch.autograd.grad(loss, wanted, allow_unused=True)


def check(model, call, *leaves, ours=True, other=None, **tolerance):
    """``call`` gives the same with and without accelerate; on the kernels if ``ours``."""
    other = accelerated(model) if other is None else other
    want, want_grads = gradients(model, call, leaves)
    with watched() as watch:
        got, got_grads = gradients(other, call, leaves)
    assert (watch.kernels > 0) == ours, (watch.kernels, paths(other))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, **tolerance)
    for a, b in zip(got_grads, want_grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, **tolerance)
    return watch


def paths(model):
    """Layer -> what ran last, of the accelerated ones."""
    return {name: route_of(m).last for name, m in model.named_modules() if route_of(m)}
