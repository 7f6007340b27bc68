"""torch's product of 2:4 weights: when a layer takes it, what it is given, and, on a GPU, what it gives."""

import contextlib
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sparsegnn import pattern, policy, summary, use_kernel
from sparsegnn.controllers import RigL
from sparsegnn.nn import SparseLinear, semi_structured
from sparsegnn.nn.kernel_choice import KernelChoice

HALVES = torch.bfloat16, torch.float16
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.delenv("SPARSEGNN_KERNEL", raising=False)
    policy.read_environment()
    monkeypatch.setattr(semi_structured, "_warned", set())
    yield
    monkeypatch.undo()
    policy.read_environment()


@pytest.fixture
def capable(monkeypatch):
    """A machine on which torch's product works, as far as the choice goes."""
    monkeypatch.setattr(semi_structured, "capability", lambda device, precision: "")
    monkeypatch.setattr(semi_structured, "multiples", lambda precision: (16, 32))


@contextlib.contextmanager
def autocast_on_a_gpu(dtype=torch.bfloat16):
    """torch.autocast("cuda", dtype), which switches itself off where there is no GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    yield
    torch.set_autocast_enabled("cuda", before[0])
    torch.set_autocast_dtype("cuda", before[1])


def on_a_gpu(inputs: int = 1024, outputs: int = 1024, dtype=torch.bfloat16, structure="2:4") -> SimpleNamespace:
    """What a layer on a GPU consists of, as far as its choice goes: no GPU is needed."""
    nnz = inputs * outputs // 2
    values = SimpleNamespace(device=torch.device("cuda", 0), dtype=dtype, numel=lambda: nnz)
    found = SimpleNamespace(values=values, in_features=inputs, out_features=outputs, structure=structure, _static={},
                            _ratio=None, _ratio_of=None)  # fmt: skip
    KernelChoice._follow_policy(found, nnz)
    return found


def kernel(layer) -> str:
    return KernelChoice.kernel.fget(layer)


def make(inputs=64, outputs=32, **options):
    return SparseLinear(inputs, outputs, sparsity=0.5, pattern="2:4", **options)


# --- the choice ------------------------------------------------------------------------------------------------------


def test_wide_layers_in_16_bit_take_it(capable):
    for dtype in HALVES:
        assert kernel(on_a_gpu(dtype=dtype)) == kernel(on_a_gpu(2048, 512, dtype)) == "2:4"
        assert kernel(on_a_gpu(256, 256, dtype)) == kernel(on_a_gpu(1024, 128, dtype)) == "dense"  # bound by memory
    for dtype in (torch.float32, torch.float64):
        mine = on_a_gpu(dtype=dtype)
        assert kernel(mine) == "dense"
        with autocast_on_a_gpu():
            assert kernel(mine) == ("2:4" if dtype == torch.float32 else "dense")
    assert kernel(on_a_gpu(structure="fan_in")) == "dense"  # 50 % sparse too
    assert kernel(on_a_gpu(1024 + 8)) == "dense" == kernel(on_a_gpu(1024, 1024 + 8))  # not a multiple of 32, of 16


def test_what_was_asked_for_or_measured_comes_first(capable):
    wide, narrow, full = on_a_gpu(), on_a_gpu(256, 256), on_a_gpu(dtype=torch.float32)
    with use_kernel("dense"):
        assert kernel(wide) == kernel(narrow) == kernel(full) == "dense"
    with use_kernel("sparse"):
        assert kernel(wide) == kernel(narrow) == "2:4"
        assert kernel(full) == kernel(on_a_gpu(1024 + 8)) == "sparse"  # ours
    with use_kernel("auto"):
        assert (kernel(wide), kernel(narrow)) == ("2:4", "dense")
    wide._ratio, wide._ratio_of = 1.2, ("cuda", torch.bfloat16)
    narrow._ratio, narrow._ratio_of = 0.9, ("cuda", torch.bfloat16)
    assert (kernel(wide), kernel(narrow)) == ("dense", "2:4")


def test_the_environment_has_its_say(capable, monkeypatch):
    mine = on_a_gpu()
    monkeypatch.setenv("SPARSEGNN_KERNEL", "dense")
    policy.read_environment()
    assert kernel(mine) == "dense"


def test_not_on_an_incapable_machine(monkeypatch):
    monkeypatch.setattr(semi_structured, "capability", lambda device, precision: "it is too old")
    mine = on_a_gpu()
    assert kernel(mine) == "dense"
    with use_kernel("sparse"):
        assert kernel(mine) == "sparse"


def test_not_while_calls_are_recorded(capable, monkeypatch):
    mine = on_a_gpu()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert kernel(mine) == "dense"
    with use_kernel("sparse"):
        assert kernel(mine) == "sparse"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert kernel(mine) == "2:4"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert kernel(mine) == "dense"
    with use_kernel("sparse"):
        assert kernel(mine) == "sparse"


def test_a_layer_on_the_cpu_never_takes_it(capable):
    layer = make(1024, 1024, dtype=torch.bfloat16)
    assert layer.kernel in ("sparse", "dense")
    with use_kernel("sparse"):
        assert layer.kernel == "sparse" and "forced" in summary(layer, show=False)[0]["kernel"]
    meta = make(device="meta")
    assert meta.kernel in ("sparse", "dense")


# --- why not, and what to do -----------------------------------------------------------------------------------------


def test_reasons_name_the_fix(capable, monkeypatch):
    gpu = torch.device("cuda", 0)
    assert semi_structured.reason(gpu, (64, 64), torch.bfloat16) == ""
    assert "in float32: use bfloat16 or float16, or autocast" in semi_structured.reason(gpu, (64, 64), torch.float32)
    assert "in TF32: use" in semi_structured.reason(gpu, (64, 64), policy.TF32)
    want = "it needs a multiple of 16 outputs and 32 inputs in float16, got 64 and 40: choose other widths"
    assert semi_structured.reason(gpu, (64, 40), torch.float16) == want


def test_the_machine_is_asked(monkeypatch):
    capability, gpu = semi_structured.capability.__wrapped__, torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "CUDA devices only" in capability(gpu, torch.bfloat16)
    assert "CUDA devices only" in capability(torch.device("cpu"), torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "needs compute capability 8.0 (A100) or newer, got 7.5" in capability(gpu, torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(semi_structured, "trial", lambda device, precision: f"tried {device} in {precision}")
    assert capability(gpu, torch.bfloat16) == "tried cuda:0 in torch.bfloat16"
    monkeypatch.delattr(torch.sparse, "to_sparse_semi_structured")
    assert "install a newer torch" in capability(gpu, torch.bfloat16)


def test_the_multiples_are_torchs():
    """By the class whose from_dense() this torch would call: 16 x 16 with cuSPARSELt, 32 x 64 with CUTLASS."""
    for dtype in HALVES:
        rows, cols = semi_structured.multiples(dtype)
        assert rows in (16, 32, 64) and cols in (16, 32, 64)


@pytest.mark.parametrize("dtype", HALVES)
def test_the_trial(monkeypatch, dtype):
    def trial(compress):
        monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", compress)
        return semi_structured.trial(torch.device("cpu"), dtype)

    def missing(weight):
        raise RuntimeError("cuSPARSELt not supported on your machine.\nmore")

    def full(weight):
        raise torch.OutOfMemoryError("CUDA out of memory")

    seen = []
    assert trial(lambda weight: (seen.append(weight), weight)[1]) == ""
    assert seen[0].dtype == dtype and seen[0].view(-1, 4).ne(0).sum(1).eq(2).all()
    want = "it fails here (cuSPARSELt not supported on your machine.): install a torch wheel that brings cuSPARSELt"
    assert trial(missing) == want
    assert "wrong" in trial(lambda weight: 1.1 * weight) and "wrong" in trial(lambda weight: weight * torch.nan)
    with pytest.raises(torch.OutOfMemoryError):
        trial(full)


def test_it_warns_once_for_each_cause(capable):
    def text(layer, runs="dense"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            semi_structured.explain(layer, runs)
        return [str(w.message) for w in caught]

    full, odd = on_a_gpu(dtype=torch.float32), on_a_gpu(1024 + 8)
    with use_kernel("dense"):
        assert text(full) == []  # as the user wants it
    (first,) = text(full)
    assert first.startswith(
        "SimpleNamespace: torch's 2:4 product is not used, the dense kernel runs: it has no kernels"
    )
    assert "autocast" in first and text(full) == text(on_a_gpu(512, 512, torch.float32)) == []
    assert "choose other widths" in text(odd, "sparse")[0] and text(odd) == []
    assert text(on_a_gpu(256, 256)) == []  # dense because it is faster


# --- the product -----------------------------------------------------------------------------------------------------


@pytest.fixture
def given(monkeypatch):
    """torch's compression as the identity, on any device: the weights that it was given."""
    weights = []

    def compress(weight):
        assert weight.is_contiguous() and weight.view(-1, 4).ne(0).sum(1).le(2).all()
        weights.append(weight)
        return weight

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", compress)
    return weights


def taken(monkeypatch):
    monkeypatch.setattr(KernelChoice, "kernel", property(lambda layer: "2:4"))


@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16))
def test_values_and_gradients(given, monkeypatch, dtype, bias):
    taken(monkeypatch)
    layer = make(bias=bias, dtype=dtype)
    dense = layer.to_dense().double()
    x = torch.randn(3, 20, 64, dtype=dtype).transpose(0, 1).requires_grad_()  # not contiguous
    y, want = layer(x), dense(x.double())
    flow = torch.randn(20, 3, 32, dtype=dtype)
    leaves = [x, *layer.parameters()]
    got = torch.autograd.grad(y, leaves, flow)
    wanted = list(torch.autograd.grad(want, (x, *dense.parameters()), flow.double()))
    wanted[1] = pattern.gather(wanted[1], *layer.pattern(), "2:4")
    assert len(given) == 1 and y.shape == (20, 3, 32) and y.dtype == dtype
    for a, b in zip((y, *got), (want, *wanted), strict=True):
        assert (a.double() - b.double()).norm() <= (1e-2 if dtype == torch.bfloat16 else 1e-12) * b.double().norm()


def test_only_the_gradients_that_are_wanted(given, monkeypatch):
    taken(monkeypatch)
    layer = make()
    layer.values.requires_grad_(False)
    x = torch.randn(5, 64)
    layer(x).sum().backward()
    assert layer.bias.grad.tolist() == [5.0] * 32 and layer.values.grad is None and x.grad is None
    y = layer(x[:0])
    assert y.shape == (0, 32) and len(given) == 1  # torch's product wants rows
    layer = make(8, 4, dtype=torch.float64)
    inputs = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, v: torch.func.functional_call(layer, {"values": v}, x),
                                        (inputs, layer.values.detach().requires_grad_()))  # fmt: skip


def test_a_change_of_the_weight_is_seen(given, monkeypatch):
    taken(monkeypatch)
    layer, x = make(bias=False), torch.randn(5, 64)
    with torch.no_grad():
        y = layer(x)
        layer.values.data.mul_(2)  # which no version counter tells of
        torch.testing.assert_close(layer(x), 2 * y)
        layer.rewire_(layer.values.abs(), torch.rand(32, 64), 100)
        torch.testing.assert_close(layer(x), layer.to_dense()(x))
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), layer.to_dense()(x))
    assert len(given) == 4


def test_autocast_decides_on_the_precision(given):
    x, weight = torch.randn(7, 64, requires_grad=True), torch.zeros(32, 64)
    weight[:, ::2] = torch.randn(32, 32)
    weight.requires_grad_()
    with autocast_on_a_gpu():
        y = semi_structured.linear(x, weight, torch.ones(32))
    assert y.dtype == given[0].dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == weight.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad, weight.detach().sum(0).expand(7, -1), rtol=0.05, atol=0.05)


def test_growth_sees_the_dense_gradient(given, monkeypatch):
    taken(monkeypatch)
    layer = make()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    controller = RigL(layer, optimizer, update_every=1, stop_at=4)
    x, y = torch.randn(50, 64), torch.randn(50, 32)
    dense = layer.to_dense()
    losses = []
    for step in range(4):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(layer(x), y)
        loss.backward()
        if step == 0:
            nn.functional.mse_loss(dense(x), y).backward()
            torch.testing.assert_close(layer.probe.grad, dense.weight.grad)
        optimizer.step()
        losses.append(loss.item())
    assert controller.updates == 3 and losses[-1] < losses[0] and pattern.two_of_four(*layer.pattern(), 64)


def test_the_summary_names_it(monkeypatch):
    taken(monkeypatch)
    row = summary(nn.Sequential(make()), show=False)[0]
    assert row["kernel"] == "torch 2:4" and row["flops_per_row"] == 2 * 32 * 32 and row["sparsity"] == 0.5
    with use_kernel("sparse"):
        assert summary(make(), show=False)[0]["kernel"] == "torch 2:4 (forced)"


# --- on a GPU --------------------------------------------------------------------------------------------------------


@needs_cuda
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("rows", (1, 100, 4099))
def test_cuda_against_fp64(dtype, rows):
    device = torch.device("cuda", torch.cuda.current_device())
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no sparse tensor cores")
    assert semi_structured.reason(device, (512, 1024), dtype) == ""
    layer = make(1024, 512, dtype=dtype, device=device)
    dense = layer.to_dense().double()
    x = torch.randn(rows, 1024, device=device, dtype=dtype, requires_grad=True)
    flow = torch.randn(rows, 512, device=device, dtype=dtype)
    with use_kernel("sparse"):
        assert layer.kernel == "2:4" and summary(layer, show=False)[0]["kernel"] == "torch 2:4 (forced)"
        y = layer(x)
        got = torch.autograd.grad(y, (x, *layer.parameters()), flow)
    want = dense(x.double())
    wanted = list(torch.autograd.grad(want, (x, *dense.parameters()), flow.double()))
    wanted[1] = pattern.gather(wanted[1], *layer.pattern(), "2:4")
    for a, b in zip((y, *got), (want, *wanted), strict=True):
        assert (a.double() - b.double()).norm() <= 1e-2 * b.double().norm()
    with torch.no_grad(), use_kernel("sparse"):
        assert torch.equal(layer(x), layer(x)) and layer(x[:0]).shape == (0, 512)


@needs_cuda
def test_cuda_choice_and_warning():
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no sparse tensor cores")
    layer, x = make(1024, 1024, device="cuda"), torch.randn(64, 1024, device="cuda")
    with pytest.warns(UserWarning, match="no kernels for 2:4 weights in float32"):
        y = layer(x)
    with torch.autocast("cuda", torch.bfloat16):
        assert layer.kernel == "2:4"
        half = layer(x)
    assert half.dtype == torch.bfloat16 and (half.double() - y.double()).norm() <= 1e-2 * y.double().norm()
    layer, x = layer.bfloat16(), x.bfloat16()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        layer(x)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.no_grad(), torch.cuda.graph(graph):
        recorded = layer(x)
    graph.replay()
    with torch.no_grad():
        assert (recorded.double() - layer(x).double()).norm() <= 1e-2 * recorded.double().norm()
