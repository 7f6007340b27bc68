"""SparseLinear against a masked nn.Linear."""

import copy
import io
import math
import pickle

import pytest
import torch
from nn.twins import assert_equals_dense
from torch import nn

from sparsegnn import pattern, use_kernel
from sparsegnn.nn import SparseLinear

KINDS = ["unstructured", "fan_in"]


def masked_pair(sparsity=0.8, bias=True, kind="unstructured", shape=(13, 9)):
    """A sparse layer and the nn.Linear with the same weights, zeros included."""
    layer = SparseLinear(*shape, bias, sparsity=sparsity, pattern=kind).double()
    dense = nn.Linear(*shape, bias).double()
    with torch.no_grad():
        dense.weight.zero_()
        crow, col = layer.pattern()
        for r in range(shape[1]):
            at = slice(int(crow[r]), int(crow[r + 1]))
            dense.weight[r, col[at].long()] = layer.values[at]
        if bias:
            dense.bias.copy_(layer.bias)
    return layer, dense


def entries(layer, matrix):
    crow, col = layer.pattern()
    return matrix[pattern.rows_of(crow, col), col.long()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (1,), (0,), (5,), (2, 3), (2, 1, 4)])
def test_values_and_gradients(kind, bias, lead):
    layer, dense = masked_pair(bias=bias, kind=kind)
    x = torch.randn(*lead, 13, dtype=torch.float64, requires_grad=True)
    assert_equals_dense(layer, dense, x)


def test_probe_collects_the_dense_gradient():
    layer, dense = masked_pair()
    layer.probe = torch.zeros(9, 13, dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 5, 13, dtype=torch.float64)
    y = layer(x)
    torch.testing.assert_close(y, dense(x))
    y.square().sum().backward()
    dense(x).square().sum().backward()
    torch.testing.assert_close(layer.probe.grad, dense.weight.grad)
    torch.testing.assert_close(layer.values.grad, entries(layer, dense.weight.grad))


def test_counts_and_initial_range():
    layer = SparseLinear(100, 50, sparsity=0.9)
    assert layer.values.shape == (500,) and layer.sparsity == pytest.approx(0.9)
    assert layer.values.abs().max() <= 1 / math.sqrt(10) and layer.values.abs().max() > 0.9 / math.sqrt(10)
    assert SparseLinear(128, 1, sparsity=1 - 0.0078).values.numel() == 1
    assert SparseLinear(10, 4, sparsity=0).values.numel() == 40
    assert SparseLinear(10, 4, sparsity=0.75, pattern="fan_in").crow.diff().tolist() == [2, 2, 2, 2]
    assert "in_features=10, out_features=4, bias=True, nnz=20" in repr(SparseLinear(10, 4, sparsity=0.5))


def test_manual_seed_decides_everything():
    def make():
        torch.manual_seed(5)
        return SparseLinear(30, 20).state_dict()

    a, b = make(), make()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert list(a) == ["values", "bias", "crow", "col", "shape"]


def test_from_dense_and_back():
    dense = nn.Linear(12, 7)
    kept = SparseLinear.from_dense(dense, sparsity=0.75)
    assert not any(t.is_meta for t in kept.to("cpu").state_dict().values())
    flat = dense.weight.detach().abs().flatten()
    cut = flat.sort(descending=True).values[20]
    want = torch.where(dense.weight.abs() >= cut, dense.weight, 0)
    assert kept.values.numel() == 21
    back = kept.to_dense()
    assert torch.equal(back.weight, want) and torch.equal(back.bias, dense.bias)
    assert back.weight.requires_grad and back.bias is not dense.bias
    mask = torch.rand(7, 12) < 0.5
    masked = SparseLinear.from_dense(dense, mask)
    assert torch.equal(masked.to_dense().weight, dense.weight * mask)
    again = SparseLinear.from_dense(masked.to_dense())
    assert torch.equal(again.to_dense().weight, masked.to_dense().weight)
    per_row = SparseLinear.from_dense(nn.Linear(12, 7, bias=False).eval(), sparsity=0.75, pattern="fan_in")
    assert per_row.crow.diff().tolist() == [3] * 7 and per_row.bias is None and not per_row.training


def test_from_dense_keeps_frozen_weights_frozen():
    dense = nn.Linear(4, 4).requires_grad_(False)
    layer = SparseLinear.from_dense(dense, sparsity=0.5)
    assert not layer.values.requires_grad and not layer.bias.requires_grad
    assert not layer.to_dense().weight.requires_grad


def copies(layer):
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    fresh = SparseLinear(13, 9, sparsity=0.3)
    fresh.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    yield fresh
    yield copy.deepcopy(layer)
    yield pickle.loads(pickle.dumps(layer))


def test_copies_agree():
    layer = SparseLinear(13, 9)
    x = torch.randn(4, 13)
    layer(x).sum().backward()
    for other in copies(layer):
        assert torch.equal(other(x), layer(x))
        for name in ("crow", "col", "ccol", "row", "perm"):
            assert torch.equal(getattr(other, name), getattr(layer, name))
            assert getattr(other, name).data_ptr() != getattr(layer, name).data_ptr()


def test_safetensors(tmp_path):
    st = pytest.importorskip("safetensors.torch")
    model = nn.Sequential(SparseLinear(13, 9), nn.ReLU(), SparseLinear(9, 2, sparsity=0.5))
    st.save_model(model, str(tmp_path / "m.safetensors"))
    other = nn.Sequential(SparseLinear(13, 9, sparsity=0.2), nn.ReLU(), SparseLinear(9, 2, sparsity=0.8))
    st.load_model(other, str(tmp_path / "m.safetensors"))
    x = torch.randn(4, 13)
    assert torch.equal(model(x), other(x))


def test_loading_another_nnz_keeps_the_parameter_object():
    source, target = SparseLinear(13, 9, sparsity=0.5), SparseLinear(13, 9, sparsity=0.9)
    optimizer, values = torch.optim.AdamW(target.parameters()), target.values
    target(torch.randn(2, 13)).sum().backward()
    target.load_state_dict(source.state_dict())
    assert target.values is values is optimizer.param_groups[0]["params"][0]
    x = torch.randn(4, 13)
    y = target(x)
    assert torch.equal(y, source(x))
    y.sum().backward()
    optimizer.step()


def test_loading_with_assign_into_meta():
    source = SparseLinear(13, 9, sparsity=0.5)
    target = SparseLinear(13, 9, sparsity=0.9, device="meta")
    target.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(4, 13)
    assert torch.equal(target(x), source(x))


@pytest.mark.parametrize("shape", [(13, 8), (40, 9), (5, 9)])
def test_checkpoint_of_another_shape(shape):
    source, model = SparseLinear(*shape), nn.Sequential(SparseLinear(13, 9))
    before = copy.deepcopy(model.state_dict())
    got = rf"\[{shape[1]}, {shape[0]}\]"
    with pytest.raises(ValueError, match=rf"SparseLinear: checkpoint '0.shape' must be \[9, 13\], got {got}"):
        model.load_state_dict({"0." + k: v for k, v in source.state_dict().items()})
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_broken_checkpoints():
    model, good = SparseLinear(13, 9), SparseLinear(13, 9).state_dict()
    with pytest.raises(ValueError, match="checkpoint 'values' must have shape"):
        model.load_state_dict({**good, "values": good["values"][:-1]})
    with pytest.raises(ValueError, match=r"checkpoint 'bias' must have shape \[9\], got \[8\]"):
        model.load_state_dict({**good, "bias": good["bias"][:-1]})
    with pytest.raises(ValueError, match="checkpoint '': col must ascend strictly"):
        model.load_state_dict({**good, "col": good["col"].flip(0)})
    with pytest.raises(TypeError, match="col. must hold integers, got torch.float64"):
        model.load_state_dict({**good, "col": good["col"].double()})
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({k: v for k, v in good.items() if k != "shape"})
    with pytest.raises(ValueError, match="checkpoint 'values' must have shape"):
        model.load_state_dict({"values": good["values"][1:]}, strict=False)
    with pytest.raises(ValueError, match="crow must start at 0"):
        model.load_state_dict({"crow": good["crow"] - 1}, strict=False)


def test_meta_layers_become_usable():
    layer = SparseLinear(13, 9, device="meta")
    assert layer(torch.empty(4, 13, device="meta")).shape == (4, 9)
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    pattern.check_pattern(*layer.pattern(), 9, 13)
    assert layer(torch.randn(4, 13)).isfinite().all()
    with torch.device("meta"):
        assert SparseLinear(13, 9).crow.is_meta


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_moves_only_floating_tensors(dtype):
    layer = SparseLinear(13, 9).to(dtype)
    assert layer.values.dtype == layer.bias.dtype == dtype
    assert {layer.crow.dtype, layer.col.dtype, layer.perm.dtype} == {torch.int32}
    assert layer(torch.randn(3, 13, dtype=dtype)).dtype == dtype


def pointers(layer):
    return [t.data_ptr() for t in (layer.values, layer.crow, layer.col, layer.ccol, layer.row, layer.perm)]


def test_set_pattern_in_place():
    layer = SparseLinear(13, 9)
    crow, col = pattern.random_pattern(9, 13, nnz=layer.values.numel())
    values, where = torch.randn(col.numel()), pointers(layer)
    layer.set_pattern_(crow, col, values)
    assert pointers(layer) == where
    want = torch.zeros(9, 13)
    want[pattern.rows_of(crow, col), col.long()] = values
    assert torch.equal(layer.to_dense().weight, want)
    torch.testing.assert_close(layer(torch.eye(13)), want.T + layer.bias)


def test_set_pattern_with_another_nnz_keeps_the_parameter_object():
    layer = SparseLinear(13, 9)
    values = layer.values
    layer.set_pattern_(*pattern.random_pattern(9, 13, nnz=3), torch.ones(3))
    assert layer.values is values and values.shape == layer.col.shape == (3,)
    torch.testing.assert_close(layer(torch.ones(13)).sum(), 3 + layer.bias.sum())


def test_set_pattern_refuses():
    layer = SparseLinear(4, 3, sparsity=0.5, pattern="fan_in")
    crow, col = torch.tensor([0, 1, 2, 3]).int(), torch.tensor([0, 3, 1]).int()
    layer.set_pattern_(crow, col, torch.ones(3))
    with pytest.raises(ValueError, match=r"values must have shape \[3\], got \[2\]"):
        layer.set_pattern_(crow, col, torch.ones(2))
    with pytest.raises(ValueError, match="crow must start at 0"):
        layer.set_pattern_(crow + 1, col, torch.ones(3))
    with pytest.raises(ValueError, match="every output as many inputs"):
        layer.set_pattern_(torch.tensor([0, 2, 2, 3]).int(), torch.tensor([0, 3, 1]).int(), torch.ones(3))


def test_rewire_moves_values_in_place():
    layer = SparseLinear(4, 3)
    crow, col = torch.tensor([0, 2, 3, 4]).int(), torch.tensor([0, 2, 1, 3]).int()
    layer.set_pattern_(crow, col, torch.tensor([1.0, -0.1, 2.0, 3.0]))
    where, grow = pointers(layer), torch.zeros(3, 4)
    grow[1, 3] = 5
    source = layer.rewire_(layer.values.detach().abs(), grow, 1)
    assert pointers(layer) == where
    assert source.tolist() == [0, 2, -1, 3]
    want = torch.zeros(3, 4)
    want[0, 0], want[1, 1], want[2, 3] = 1, 2, 3
    assert torch.equal(layer.to_dense().weight, want)
    torch.testing.assert_close(layer(torch.eye(4)), want.T + layer.bias)


def test_dense_kernel_is_equal_labelled_and_saved():
    layer, dense = masked_pair()
    layer.choose_kernel_(1.5)
    assert layer.kernel == "dense" and "kernel='dense'" in repr(layer)
    x = torch.randn(4, 13, dtype=torch.float64)
    torch.testing.assert_close(layer(x), dense(x))
    layer(x).square().sum().backward()
    dense(x).square().sum().backward()
    torch.testing.assert_close(layer.values.grad, entries(layer, dense.weight.grad))
    other = SparseLinear(13, 9)
    other.load_state_dict(layer.state_dict())
    assert other.kernel == "dense" and other.dense_kernel == 1.5
    other.load_state_dict(SparseLinear(13, 9).state_dict())
    assert other.kernel == "sparse"


def test_fx_and_compile():
    model = nn.Sequential(SparseLinear(13, 9), nn.ReLU(), SparseLinear(9, 2))
    x = torch.randn(4, 13)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("kernel", ["sparse", "dense"])
def test_a_parametrized_bias(kernel):
    class Twice(nn.Module):
        def forward(self, t):
            return 2 * t

    layer, x = SparseLinear(13, 9, sparsity=0.5), torch.randn(4, 13)
    torch.nn.utils.parametrize.register_parametrization(layer, "bias", Twice())
    with use_kernel(kernel):
        y = layer(x)
        torch.testing.assert_close(y, x @ layer.dense_weight().T + layer.bias)
        y.sum().backward()
    assert layer.parametrizations.bias.original.grad is not None


def test_autocast_keeps_one_dtype():
    layer, x = SparseLinear(13, 9), torch.randn(4, 13)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert layer.values.grad.dtype == torch.float32


@pytest.mark.parametrize("sparsity", [1.0, -0.1, float("nan"), 90])
def test_bad_sparsity(sparsity):
    with pytest.raises(ValueError, match=r"SparseLinear: sparsity must be in \[0, 1\), got"):
        SparseLinear(4, 3, sparsity=sparsity)
    with pytest.raises(ValueError, match=r"SparseLinear: sparsity must be in \[0, 1\), got"):
        SparseLinear.from_dense(nn.Linear(4, 3), sparsity=sparsity)


def test_bad_arguments():
    with pytest.raises(TypeError, match="sparsity must be a number"):
        SparseLinear(4, 3, sparsity="0.9")
    with pytest.raises(ValueError, match="SparseLinear: pattern must be one of 'unstructured', 'fan_in'"):
        SparseLinear(4, 3, pattern="4:8")
    with pytest.raises(ValueError, match="rows and cols must be positive"):
        SparseLinear(0, 3)
    with pytest.raises(ValueError, match="mask must have shape"):
        SparseLinear.from_dense(nn.Linear(4, 3), torch.ones(4, 3))
    with pytest.raises(ValueError, match="must not both be given"):
        SparseLinear.from_dense(nn.Linear(4, 3), torch.ones(3, 4), sparsity=0.5)
    layer = SparseLinear(4, 3)
    for bad in (torch.randn(2, 5), torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"SparseLinear: input must have shape \[\.\.\., 4\], got"):
            layer(bad)
