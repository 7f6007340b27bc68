"""What a layer derives from its positions fits them, however the positions came: against dense products."""

import contextlib

import pytest
import torch
from torch import nn

from sparsegnn.nn import GCNConv, SparseLinear

KINDS = ("unstructured", "fan_in", "grouped:8", "block:16x16", "2:4")


def model(kind="unstructured", seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        SparseLinear(32, 32, sparsity=0.5, pattern=kind), nn.ReLU(), SparseLinear(32, 16, sparsity=0.5)
    )


def owner(module, key):
    path, _, name = key.rpartition(".")
    return module.get_submodule(path), name


def set_one(module, key, t):
    """accelerate's set_module_tensor_to_device, transformers' loader: past every method of the module."""
    mine, name = owner(module, key)
    kind = mine._parameters if name in mine._parameters else mine._buffers
    kind[name] = nn.Parameter(t, requires_grad=t.requires_grad) if kind is mine._parameters else t


@contextlib.contextmanager
def parameters_on_meta():
    """accelerate's init_empty_weights without buffers."""
    register = nn.Module.register_parameter

    def registered(self, name, parameter):
        register(self, name, parameter)
        if parameter is not None:
            self._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    nn.Module.register_parameter = registered
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def pretrained(kind, state):
    """transformers: made on meta, loaded tensor by tensor, what is not in the checkpoint is uninitialised memory."""
    with torch.device("meta"):
        made = model(kind, 1)
    for key, t in state.items():
        set_one(made, key, t.clone())
    for key, t in made.named_buffers():
        if t.is_meta:
            mine, name = owner(made, key)
            setattr(mine, name, torch.full_like(t, -7, device="cpu"))
    return made.eval()


def pretrained_then_moved(kind, state):
    with torch.device("meta"):
        made = model(kind, 1)
    for key, t in state.items():
        set_one(made, key, t.clone())
    return made.to("cpu")


def dispatched(kind, state):
    with parameters_on_meta():
        made = model(kind, 1)
    for key, t in state.items():
        set_one(made, key, t.clone())
    return made


def replaced(kind, state):
    made = model(kind, 1)
    for key, t in state.items():
        mine, name = owner(made, key)
        setattr(mine, name, nn.Parameter(t.clone()) if name in mine._parameters else t.clone())
    return made


def written(kind, state):
    """torch.distributed.checkpoint.load, and by hand."""
    made = model(kind, 1)
    with torch.no_grad():
        for key, t in made.state_dict().items():
            t.copy_(state[key])
    return made


def called(kind, state):
    """torch.func.functional_call with the saved tensors alone."""
    made = model(kind, 1)

    class Called(nn.Module):
        def forward(self, x):
            return torch.func.functional_call(made, state, x)

    return Called()


WAYS = (pretrained, pretrained_then_moved, dispatched, replaced, written, called)


def assert_right(made, source):
    """Forward, and the gradient of the input, which the transpose serves, against the dense weights of the source."""
    x = torch.randn(6, 32, requires_grad=True)
    first, last = (source[i].to_dense().requires_grad_(False) for i in (0, 2))
    y, want = made(x), last(torch.relu(first(x)))
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x), torch.autograd.grad(want.sum(), x))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_derived_positions_fit(kind, way):
    source = model(kind)
    state = {k: t.detach().clone() for k, t in source.state_dict().items()}
    made = way(kind, state)
    for _ in range(2):
        assert_right(made, source)
    if way is not called:
        for key, t in source.named_buffers():
            assert torch.equal(t, made.get_buffer(key)), key


def test_a_layer_inside_of_a_convolution():
    torch.manual_seed(0)
    source, edges = GCNConv(8, 6, sparsity=0.5), torch.tensor([[0, 1, 2], [1, 2, 0]])
    with torch.device("meta"):
        made = GCNConv(8, 6, sparsity=0.5)
    for key, t in source.state_dict().items():
        set_one(made, key, t.clone())
    for name in ("ccol", "row", "perm"):
        setattr(made.lin, name, torch.zeros_like(getattr(made.lin, name), device="cpu"))
    x = torch.randn(3, 8)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    made(ours, edges).square().sum().backward()
    source(theirs, edges).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("spoil", [lambda t: t // 2, lambda t: t + 1, lambda t: t.flip(0)])
@pytest.mark.parametrize("name", ["crow", "col"])
def test_positions_that_are_none_are_refused(name, spoil):
    made = model()
    with torch.no_grad():
        getattr(made[0], name).copy_(spoil(getattr(made[0], name)))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="crow and col were overwritten and are no pattern now"):
            made(torch.randn(3, 32))
    made.load_state_dict(model(seed=1).state_dict())
    assert_right(made, made)


def test_to_empty_draws_positions():
    made = model()
    made.to_empty(device="cpu")
    for layer in (made[0], made[2]):
        layer.reset_parameters()
        assert layer.shape.tolist() == [layer.out_features, layer.in_features]
    assert_right(made, made)


def test_what_writes_all_positions_makes_nothing_anew(monkeypatch):
    """DDP's broadcast before each call, functional_call with the layer's own tensors, compile, inference mode."""
    made = model()
    made(torch.randn(2, 32))
    monkeypatch.setattr(SparseLinear, "_place", None)
    monkeypatch.setattr(SparseLinear, "_derive", None)
    for t in made.buffers():
        t.copy_(t.clone())
    made(torch.randn(2, 32))
    torch.func.functional_call(made, dict(made.named_parameters()) | dict(made.named_buffers()), torch.randn(2, 32))
    made.half().float()(torch.randn(2, 32))
    with torch.inference_mode():
        made(torch.randn(2, 32))
