"""``SparseLinear.weight``: the dense weight for who reads that of an nn.Linear, which nobody writes to unnoticed."""

import copy
import pickle

import pytest
import torch
from torch import nn

import sparsegnn
from sparsegnn.nn import SparseLinear
from sparsegnn.nn.read_only import ReadOnlyWeight

PATTERNS = ("unstructured", "fan_in", "grouped:8", "block:16x16", "2:4")


def layer(pattern="unstructured", sparsity=0.5, **more):
    torch.manual_seed(0)
    return SparseLinear(32, 16, sparsity=sparsity, pattern=pattern, **more)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_is_the_dense_weight(pattern, sparsity):
    if pattern == "2:4" and not sparsity:
        pytest.skip("always half")
    sparse, x = layer(pattern, sparsity).double(), torch.randn(5, 32, dtype=torch.float64)
    weight = sparse.weight
    assert weight.shape == (16, 32) and weight.dtype == torch.float64 and weight.requires_grad
    assert torch.equal(weight, sparse.to_dense().weight)
    assert (weight != 0).sum() == sparse.values.numel()
    torch.testing.assert_close(nn.functional.linear(x, weight, sparse.bias), sparse(x))
    y = x @ weight.t() - sparse(input=x) + weight.pow(3).sum()
    assert type(y) is torch.Tensor
    (got,) = torch.autograd.grad(y.sum(), sparse.values)
    torch.testing.assert_close(got, 240 * sparse.values.detach() ** 2)


def test_is_not_saved_and_moves_along():
    sparse = layer()
    keys = list(sparse.state_dict())
    assert sparse.weight is not None and list(sparse.state_dict()) == keys and "weight" not in "".join(keys)
    assert [name for name, _ in sparse.named_parameters()] == ["values", "bias"]
    assert sparse.bfloat16().weight.dtype == torch.bfloat16
    assert sparse.to("meta").weight.is_meta
    again = layer(sparsity=0.8)
    again.set_pattern_(again.crow, again.col, torch.ones_like(again.values))
    assert again.weight.sum() == again.values.numel()
    loaded = pickle.loads(pickle.dumps(copy.deepcopy(again)))
    assert torch.equal(loaded.weight, again.weight)


WRITES = {
    "fill_": lambda w: w.fill_(1), "init": lambda w: nn.init.normal_(w), "xavier": lambda w: nn.init.xavier_uniform_(w),
    "data": lambda w: w.data.normal_(), "detach": lambda w: w.detach().zero_(), "copy_": lambda w: w.copy_(w + 1),
    "item": lambda w: w.__setitem__(0, 1.0), "add": lambda w: w.__iadd__(1), "clip": lambda w: torch.clamp_(w, 0, 1),
    "freeze": lambda w: w.requires_grad_(False), "out": lambda w: torch.mul(torch.ones(16, 32), 2, out=w),
    "set data": lambda w: setattr(w, "data", w + 1), "flag": lambda w: setattr(w, "requires_grad", False),
    "parameter": lambda w: nn.Parameter(w), "constant": lambda w: nn.init.constant_(tensor=w, val=1),
}  # fmt: skip


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("write", WRITES)
def test_is_not_written(write, sparsity):
    sparse = layer(sparsity=sparsity)
    before = copy.deepcopy(sparse.state_dict())
    for grad in (torch.enable_grad, torch.no_grad):
        with grad(), pytest.raises(RuntimeError, match="SparseLinear: weight must only be read.*write to values"):
            WRITES[write](sparse.weight)
    assert all(torch.equal(t, before[name]) for name, t in sparse.state_dict().items())
    assert sparse.values.requires_grad


@pytest.mark.parametrize("value", [nn.Parameter(torch.ones(16, 32)), torch.ones(16, 32), None])
def test_is_not_assigned(value):
    sparse = layer()
    with pytest.raises(AttributeError, match="SparseLinear: weight must only be read.*got an assignment of"):
        sparse.weight = value
    with pytest.raises(AttributeError):
        del sparse.weight
    with pytest.raises((ValueError, KeyError, TypeError)):
        nn.utils.parametrize.register_parametrization(sparse, "weight", nn.Identity())
    with pytest.raises((AttributeError, KeyError, TypeError)):
        nn.utils.prune.l1_unstructured(sparse, "weight", 0.5)


def test_other_tensors_take_it():
    sparse = layer()
    mine, total = torch.zeros(16, 32), torch.ones(16, 32)
    mine.copy_(sparse.weight.detach())
    total.add_(sparse.weight.detach())
    assert torch.equal(mine, sparse.weight.detach()) and torch.equal(total, mine + 1)
    assert type(sparse.weight) is ReadOnlyWeight and type(sparse.weight.clone()) is torch.Tensor
    assert sparse.weight.clone().zero_().sum() == 0
    assert sparse.weight.detach().numpy().shape == (16, 32)


def test_from_dense_of_a_sparse_layer():
    sparse = layer()
    for grad in (torch.enable_grad, torch.no_grad):
        with grad():
            again = SparseLinear.from_dense(sparse, sparsity=0.8)
        assert again.values.numel() == round(0.2 * 512) and again.values.requires_grad
        kept = again.to_dense().weight != 0
        assert torch.equal(again.to_dense().weight[kept], sparse.to_dense().weight[kept])
        assert again.values.abs().min() >= sparse.to_dense().weight[~kept].abs().max()


@pytest.mark.parametrize("kernel", ["sparse", "dense"])
def test_torchs_transformer_in_evaluation(kernel):
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
    model, x = (
        sparsegnn.sparsify(nn.TransformerEncoder(block, 2, enable_nested_tensor=False), 0.5),
        torch.randn(3, 7, 32),
    )
    dense = sparsegnn.densify(copy.deepcopy(model))
    assert sum(isinstance(m, SparseLinear) for m in model.modules()) == 4
    for mode in (True, False):
        for grad in (torch.enable_grad, torch.no_grad):
            with grad(), sparsegnn.use_kernel(kernel):
                torch.testing.assert_close(model.train(mode)(x), dense.train(mode)(x), rtol=1e-5, atol=1e-5)


def test_reports_count_a_sparse_layer_once():
    model = nn.Sequential(layer(), nn.ReLU(), nn.Linear(16, 4))
    rows = {row["layer"]: row for row in sparsegnn.summary(model, show=False)}
    assert rows["0"]["sparsity"] == 0.5 and rows["0"]["weights"] == 256 + 16 and rows["2"]["sparsity"] == 0.0
    dense = sparsegnn.densify(copy.deepcopy(model))
    assert type(dense[0]) is nn.Linear and torch.equal(dense[0].weight, model[0].weight)
    again = sparsegnn.sparsify(model, 0.5)
    assert again[0] is model[0] and isinstance(again[2], SparseLinear)


def test_compiled_and_traced():
    sparse, x = layer(), torch.randn(5, 32)

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = sparse

        def forward(self, x):
            return nn.functional.linear(x, self.inner.weight)

    wanted = Reads()(x)
    torch.testing.assert_close(torch.compile(Reads(), backend="eager", fullgraph=True)(x), wanted)
    torch.testing.assert_close(torch.func.functional_call(Reads(), dict(sparse.named_parameters("inner")), x), wanted)
    grads = torch.func.grad(lambda p: torch.func.functional_call(Reads(), p, x).sum())(
        {"inner.values": sparse.values.detach()})  # fmt: skip
    torch.testing.assert_close(grads["inner.values"], torch.autograd.grad(wanted.sum(), sparse.values)[0])


# --- the dtype of the input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["sparse", "dense"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_another_dtype_is_refused(pattern, kernel):
    sparse = layer(pattern)
    with sparsegnn.use_kernel(kernel):
        for dtype in (torch.float64, torch.bfloat16, torch.int64):
            with pytest.raises(
                TypeError, match=r"input must have the dtype of the weight \(torch.float32\), got torch."
            ):
                sparse(torch.ones(5, 32, dtype=dtype))
        with torch.autocast("cpu", torch.bfloat16):
            assert sparse(torch.ones(5, 32).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["GCNConv", "SAGEConv", "GraphConv", "SGConv", "TAGConv", "GATConv", "GATv2Conv"])
@pytest.mark.parametrize("size", [4, 16])
def test_another_dtype_is_refused_by_graph_layers(name, size):
    conv = getattr(sparsegnn.nn, name)(8, size, sparsity=0.5)
    edges = torch.randint(20, (2, 60))
    with pytest.raises(TypeError, match=r"must have the dtype of the weight \(torch.float32\), got torch.float64"):
        conv(torch.randn(20, 8, dtype=torch.float64), edges)
