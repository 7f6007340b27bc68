"""Checkpoints that do not fit a sparse layer: each is refused at once, and the layer stays as it was, bit for bit."""

import copy
import time

import pytest
import torch
from torch import nn

from sparsegnn import SET, pattern
from sparsegnn.nn import GCNConv, SparseLinear

I32 = torch.int32


def layer(kind="unstructured", seed=0, sparsity=0.5, **kwargs):
    torch.manual_seed(seed)
    return SparseLinear(32, 32, sparsity=sparsity, pattern=kind, **kwargs)


def everything(module: nn.Module) -> dict:
    """Each parameter and buffer, those that are not saved too: the object, its memory, a copy; and what is chosen."""
    found = {}
    for name, m in module.named_modules():
        for key, t in {**m._parameters, **m._buffers}.items():
            found[f"{name}.{key}"] = None if t is None else (id(t), t.data_ptr(), t.detach().clone(), t.grad)
        if isinstance(m, SparseLinear):
            found[f"{name} kernel"] = m.kernel, m._ratio, m._ratio_of
    return found


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name, x in a.items():
        y = b[name]
        same = (
            x == y
            if x is None or "kernel" in name[-7:] and not name.endswith("_kernel")
            else (x[:2] == y[:2] and x[2].shape == y[2].shape and torch.equal(x[2], y[2]) and x[3] is y[3])
        )
        assert same, name


def assert_consistent(mine: SparseLinear) -> None:
    """What is derived is that of the positions, by plain PyTorch; the layer multiplies by the weight that it says."""
    pattern.check_pattern(*mine.pattern(), *mine.grid)
    for got, want in zip(
        (mine.ccol, mine.row, mine.perm), pattern.transpose(*mine.pattern(), mine.grid[1]), strict=True
    ):
        assert torch.equal(got, want)
    x = torch.randn(3, mine.in_features, requires_grad=True)
    weight = mine.to_dense().weight.detach()
    torch.testing.assert_close(mine(x), x @ weight.T + mine.bias)
    dx = torch.autograd.grad(mine(x).sum(), x)[0]
    torch.testing.assert_close(dx, weight.sum(0).expand(3, -1))


def expanded(n, dtype=I32):
    return torch.zeros(1, dtype=dtype).expand(n)


def wrapped(good):
    """Row ends whose differences, in int32, are all positive."""
    crow = good["crow"].clone()
    crow[1:4] = torch.tensor([2**31 - 1, -(2**31), -1])
    return crow


class Refuses(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.detach:
            raise ArithmeticError("a tensor of its own kind")
        return super().__torch_function__(func, types, args, kwargs)


class Own(torch.Tensor):
    pass


BAD = {  # name: (changes to a good checkpoint, exception, message)
    "values, repeated": (lambda g: {"values": expanded(2**31, torch.float32)}, ValueError, "values' must have memory"),
    "col, repeated": (
        lambda g: {"col": expanded(2**31)},
        ValueError,
        "col' must have memory of its own for 2147483648",
    ),
    "crow, repeated": (lambda g: {"crow": expanded(2**31)}, ValueError, r"crow' must have shape \[33\], got \[21474"),
    "bias, repeated": (lambda g: {"bias": expanded(2**31, torch.float32)}, ValueError, r"bias' must have shape \[32\]"),
    "bias, repeated in a part": (lambda g: {"bias": expanded(32, torch.float32)}, ValueError, "bias' must have memory"),
    "shape, repeated": (lambda g: {"shape": expanded(2**31)}, ValueError, r"shape' must have shape \[2\]"),
    "verdict, repeated": (
        lambda g: {"dense_kernel": expanded(2**31, torch.float32)},
        ValueError,
        r"must have shape \[\]",
    ),
    "col of overlapping rows": (
        lambda g: {"col": torch.zeros(9, dtype=I32).as_strided((5, 5), (1, 1))},
        ValueError,
        r"col' must have shape \[\*\]",
    ),
    "more entries than positions": (
        lambda g: {"col": torch.arange(1025, dtype=I32), "values": torch.zeros(1025)},
        ValueError,
        "at most 1024 entries",
    ),
    **{
        f"{name} on meta": (lambda g, name=name: {name: g[name].to("meta")}, ValueError, f"{name}' must hold data")
        for name in ("values", "crow", "col", "bias", "shape")
    },
    "all on meta": (lambda g: {k: t.to("meta") for k, t in g.items()}, ValueError, "shape' must hold data"),
    "verdict on meta": (lambda g: {"dense_kernel": torch.zeros((), device="meta")}, ValueError, "must hold data"),
    "int64 col": (lambda g: {"col": g["col"].long()}, TypeError, "col must be an int32 tensor, got torch.int64"),
    "int64 crow": (lambda g: {"crow": g["crow"].long()}, TypeError, "crow must be an int32 tensor, got torch.int64"),
    "float col": (lambda g: {"col": g["col"].float()}, TypeError, "col' must hold integers, got torch.float32"),
    "bool shape": (lambda g: {"shape": g["shape"].bool()}, TypeError, "shape' must hold integers, got torch.bool"),
    "integer values": (lambda g: {"values": g["values"].int()}, TypeError, "values' must hold floating-point numbers"),
    "bool values": (lambda g: {"values": g["values"].bool()}, TypeError, "values' must hold floating-point numbers"),
    "complex values": (
        lambda g: {"values": g["values"].cfloat()},
        TypeError,
        "values' must hold floating-point numbers",
    ),
    "complex bias": (lambda g: {"bias": g["bias"].cfloat()}, TypeError, "bias' must hold floating-point numbers"),
    "integer verdict": (lambda g: {"dense_kernel": torch.tensor(1)}, TypeError, "dense_kernel' must hold floating"),
    "NaN verdict": (
        lambda g: {"dense_kernel": torch.tensor(float("nan"))},
        ValueError,
        "must be a ratio of times, got nan",
    ),
    "infinite verdict": (
        lambda g: {"dense_kernel": torch.tensor(float("inf"))},
        ValueError,
        "must be a ratio of times",
    ),
    "negative verdict": (
        lambda g: {"dense_kernel": torch.tensor(-1.0)},
        ValueError,
        "must be a ratio of times, got -1",
    ),
    "two verdicts": (lambda g: {"dense_kernel": torch.ones(2)}, ValueError, r"dense_kernel' must have shape \[\]"),
    "sparse values": (
        lambda g: {"values": g["values"].to_sparse()},
        TypeError,
        "values' must be a dense tensor, got torch",
    ),
    "sparse col": (lambda g: {"col": g["col"].to_sparse()}, TypeError, "col' must be a dense tensor"),
    "nested values": (
        lambda g: {"values": torch.nested.nested_tensor([g["values"]])},
        TypeError,
        "values' must be a dense tensor, got nes",
    ),
    "no tensor": (lambda g: {"values": g["values"].tolist()}, TypeError, "values' must be a tensor, got list"),
    "None": (lambda g: {"crow": None}, TypeError, "crow' must be a tensor, got NoneType"),
    "a lazy tensor": (
        lambda g: {"values": nn.UninitializedParameter()},
        TypeError,
        "values' must be a tensor, got Uninit",
    ),
    "a number as key": (lambda g: {10**5000: g["col"]}, TypeError, "checkpoint must have names as keys, got int"),
    "matrix of values": (lambda g: {"values": g["values"][None]}, ValueError, r"values' must have shape \[\*\]"),
    "another bias": (lambda g: {"bias": g["bias"][1:]}, ValueError, r"bias' must have shape \[32\], got \[31\]"),
    "scalar col": (lambda g: {"col": g["col"][0]}, ValueError, r"col' must have shape \[\*\], got \[\]"),
    "col too large": (lambda g: {"col": g["col"] + 1}, ValueError, r"col must be in \[0, 32\), got \[1, 32\]"),
    "col too small": (lambda g: {"col": g["col"] - 1}, ValueError, r"col must be in \[0, 32\), got \[-1, 30\]"),
    "col at the end of int32": (lambda g: {"col": g["col"] | 2**31 - 1}, ValueError, r"col must be in \[0, 32\)"),
    "col unsorted": (lambda g: {"col": g["col"].flip(0)}, ValueError, "col must ascend strictly"),
    "col twice": (
        lambda g: {"col": g["col"].clone().index_fill_(0, torch.arange(2), 0)},
        ValueError,
        "ascend strictly",
    ),
    "crow negative": (lambda g: {"crow": g["crow"] - 1}, ValueError, "crow must start at 0"),
    "crow that falls": (lambda g: {"crow": g["crow"][[0, 2, 1, *range(3, 33)]]}, ValueError, "crow must not decrease"),
    "crow that wraps": (lambda g: {"crow": wrapped(g)}, ValueError, "crow must not decrease"),
    "crow that ends early": (lambda g: {"crow": g["crow"].clamp(max=400)}, ValueError, "end at 512, got 0 and 400"),
    "one value less": (
        lambda g: {"values": g["values"][1:]},
        ValueError,
        r"values' must have shape \[512\], got \[511\]",
    ),
    "another shape": (
        lambda g: {"shape": g["shape"].flip(0) + 1},
        ValueError,
        r"shape' must be \[32, 32\], got \[33, 33\]",
    ),
    "missing bias": (lambda g: {"bias": ...}, RuntimeError, 'Missing key.*"bias"'),
    "missing col": (lambda g: {"col": ...}, RuntimeError, 'Missing key.*"col"'),
    "missing shape": (lambda g: {"shape": ...}, RuntimeError, 'Missing key.*"shape"'),
    "missing all": (lambda g: dict.fromkeys(g, ...), RuntimeError, "Missing key"),
    "one more": (lambda g: {"weight": torch.zeros(2)}, RuntimeError, 'Unexpected key.*"weight"'),
    "one more that is derived": (lambda g: {"perm": g["col"]}, RuntimeError, 'Unexpected key.*"perm"'),
    "one more inside": (lambda g: {"values.x": g["col"]}, RuntimeError, 'Unexpected key.*"values.x"'),
    "one more that is no tensor": (lambda g: {"_extra_state": {}}, RuntimeError, 'Unexpected key.*"_extra_state"'),
    "a tensor that raises": (lambda g: {"values": g["values"].as_subclass(Refuses)}, ArithmeticError, "its own kind"),
}


def spoilt(change, good: dict) -> dict:
    return {k: t for k, t in {**good, **change(good)}.items() if t is not ...}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", BAD)
def test_a_refused_checkpoint_changes_nothing(kind, assign):
    change, error, message = BAD[kind]
    mine = layer()
    mine.choose_kernel_(0.5)
    mine(torch.randn(2, 32)).sum().backward()
    before, started = everything(mine), time.process_time()
    with pytest.raises(error, match=message) as e:
        mine.load_state_dict(spoilt(change, layer(seed=1, sparsity=0.5).state_dict()), assign=assign)
    assert time.process_time() - started < 1 and len(str(e.value)) < 500
    assert_same(before, everything(mine))
    assert_consistent(mine)


@pytest.mark.parametrize("kind", ["fan_in", "2:4", "grouped:8", "block:16x16"])
def test_other_patterns(kind):
    mine, good = layer(kind), layer(kind, seed=1).state_dict()
    more, unequal = layer("unstructured", seed=2).state_dict(), good["crow"].clone()
    unequal[1] += 1 if kind != "block:16x16" else 0
    before = everything(mine)
    for bad in ({**good, "crow": unequal} if kind in pattern.REGULAR else {**good, "col": good["col"] + 31},
                {**good, "values": good["values"][1:]}, {**more, "crow": more["crow"].flip(0)},
                {**good, "col": expanded(2**31), "values": expanded(2**31, torch.float32)}):  # fmt: skip
        with pytest.raises(ValueError, match="SparseLinear: checkpoint"):
            mine.load_state_dict(bad)
        assert_same(before, everything(mine))
    mine.load_state_dict(good)
    assert_consistent(mine)


@pytest.mark.parametrize("assign", [False, True])
def test_of_a_model_each_layer_is_the_old_or_the_new(assign):
    model = nn.Sequential(layer(), nn.ReLU(), GCNConv(32, 32, sparsity=0.5), layer(seed=2))
    good = nn.Sequential(layer(seed=3, sparsity=0.7), nn.ReLU(), GCNConv(32, 32, sparsity=0.7), layer(seed=4))
    old, new = everything(model[3]), good.state_dict()
    state = {**new, "3.col": new["3.col"] - 1}
    with pytest.raises(ValueError, match="checkpoint '3': col must be in"):
        model.load_state_dict(state, assign=assign)
    assert_same(old, everything(model[3]))
    assert torch.equal(model[0].to_dense().weight, good[0].to_dense().weight)
    for mine in (model[0], model[2].lin, model[3]):
        x = torch.randn(3, 32)
        torch.testing.assert_close(mine(x), x @ mine.to_dense().weight.T + (0 if mine.bias is None else mine.bias))
        pattern.check_pattern(*mine.pattern(), *mine.grid)
    before = everything(model[2].lin)
    del new["2.lin.crow"]
    with pytest.raises(RuntimeError, match="Missing key.*2.lin.crow"):
        model.load_state_dict(new, assign=assign)
    assert_same(before, everything(model[2].lin))


def test_memory_that_runs_out_changes_nothing(monkeypatch):
    mine, other = layer(), layer(seed=1, sparsity=0.7).state_dict()
    before = everything(mine)

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as m:
        m.setattr(SparseLinear, "_derive", fail)
        with pytest.raises(torch.OutOfMemoryError):
            mine.load_state_dict(other)
    assert_same(before, everything(mine))
    mine.load_state_dict(other)
    assert_consistent(mine)


@pytest.mark.parametrize("assign", [False, True])
def test_any_memory_layout_and_type_loads_as_its_numbers(assign):
    source = layer(seed=1, sparsity=0.7)
    want, x = source.to_dense().weight, torch.randn(3, 32)
    for form in (
        lambda t: t.repeat_interleave(2)[::2] if t.dim() else t,
        lambda t: torch.stack([t, t], -1)[..., 0],
        lambda t: torch.cat([t[:1], t])[1:] if t.dim() else t,
        lambda t: nn.Parameter(t, requires_grad=False),
        lambda t: torch._neg_view(-t) if t.is_floating_point() else t,
        lambda t: t.detach().as_subclass(Own),
    ):
        mine = layer()
        mine.load_state_dict({k: form(t) for k, t in source.state_dict().items()}, assign=assign)
        assert torch.equal(mine.to_dense().weight, want) and torch.equal(mine(x), source(x))
        assert all(t.is_contiguous() and not t.is_neg() for t in mine.state_dict().values())
        mine(x).sum().backward()
        assert_consistent(mine)
    half = {k: t.bfloat16() if t.is_floating_point() else t for k, t in source.state_dict().items()}
    mine.load_state_dict(half, assign=assign)
    assert mine.values.dtype == (torch.bfloat16 if assign else torch.float32)


def test_layers_with_an_assigned_checkpoint_do_not_share_it():
    source, mine = layer(seed=1), layer()
    mine.load_state_dict(source.state_dict(), assign=True)
    before = everything(source)
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.1)
    SET(mine, optimizer, update_every=1)
    mine(torch.randn(2, 32)).sum().backward()
    optimizer.step()
    assert not torch.equal(mine.col, source.col)
    assert_same(before, everything(source))
    assert_consistent(source)


def test_a_meta_layer_takes_meta_and_real_checkpoints():
    mine = layer(device="meta")
    mine.load_state_dict(layer(seed=1, sparsity=0.7, device="meta").state_dict(), assign=True)
    assert mine.values.is_meta and mine.values.numel() == mine.col.numel() == 307
    source = layer(seed=1, sparsity=0.7)
    with pytest.warns(UserWarning, match="copying from a non-meta parameter"):
        mine.load_state_dict(source.state_dict())
    with pytest.raises(ValueError, match="must be on one device, got .*'cpu', 'meta'"):
        mine.load_state_dict({k: t for k, t in source.state_dict().items() if k != "values"}, assign=True, strict=False)
    mine.load_state_dict(source.state_dict(), assign=True)
    assert_consistent(mine)


def test_a_partial_checkpoint_loads_when_it_fits():
    mine, other = layer(), layer(seed=1)
    mine.load_state_dict({"values": other.values.detach()}, strict=False)
    assert torch.equal(mine.values, other.values)
    mine.load_state_dict({"bias": other.bias.detach(), "more": 3}, strict=False)
    assert torch.equal(mine.bias, other.bias)
    before = copy.deepcopy(mine.state_dict())
    with pytest.raises(ValueError, match="crow must start at 0 and end at"):
        mine.load_state_dict({"col": other.col[1:], "values": other.values[1:].detach()}, strict=False)
    assert all(torch.equal(before[k], t) for k, t in mine.state_dict().items())
