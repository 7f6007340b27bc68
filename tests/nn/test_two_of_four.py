"""Pattern "2:4": two of every four inputs, through every place that makes, moves, saves or multiplies by a pattern."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from sparsegnn import densify, sparsify
from sparsegnn import pattern as patterns
from sparsegnn.controllers import SET, GradualMagnitude, RigL
from sparsegnn.nn import GATConv, GATv2Conv, GCNConv, GraphConv, SAGEConv, SGConv, SparseLinear, TAGConv


def fours(crow, col, cols):
    """How many of each four positions exist."""
    return patterns.to_mask(crow, col, cols).view(-1, 4).sum(1)


def make(inputs=24, outputs=10, **options):
    return SparseLinear(inputs, outputs, sparsity=0.5, pattern="2:4", **options)


def saved(layer):
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    return file.getvalue()


def test_random_pattern():
    crow, col = patterns.random_pattern(50, 16, sparsity=0.5, kind="2:4")
    patterns.check_pattern(crow, col, 50, 16)
    assert fours(crow, col, 16).eq(2).all()
    again = patterns.random_pattern(50, 16, nnz=400, kind="2:4", generator=torch.Generator().manual_seed(3))
    assert torch.equal(again[1], patterns.random_pattern(50, 16, nnz=400, kind="2:4",
                                                         generator=torch.Generator().manual_seed(3))[1])  # fmt: skip
    places = torch.cat([patterns.random_pattern(100, 4, sparsity=0.5, kind="2:4")[1] for _ in range(20)])
    assert places.bincount(minlength=4).sub(1000).abs().max() < 150  # all positions are as likely
    meta = patterns.random_pattern(5, 8, sparsity=0.5, kind="2:4", device="meta")
    assert [t.shape for t in meta] == [(6,), (20,)] and meta[1].is_meta


def test_from_dense_keeps_the_best_two_of_four():
    linear = nn.Linear(16, 6)
    with torch.no_grad():
        linear.weight[0, :4] = torch.tensor([1.0, -1.0, 1.0, 0.5])  # ties go to the lower index
        linear.weight[1, 4:8] = torch.tensor([float("nan"), 0.1, 0.0, -0.2])
    layer = SparseLinear.from_dense(linear, sparsity=0.5, pattern="2:4")
    dense = layer.dense_weight()
    groups, kept = linear.weight.detach().abs().nan_to_num(-1).view(-1, 4), dense.view(-1, 4) != 0
    for group, mask in zip(groups.tolist(), kept.tolist(), strict=True):
        best = sorted(range(4), key=lambda i: (-group[i], i))[:2]
        assert [i for i in range(4) if mask[i]] == sorted(best)
    assert torch.equal(dense[dense != 0], linear.weight[dense != 0])
    x = torch.randn(5, 16)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, dense, linear.bias))
    back = SparseLinear.from_dense(layer.to_dense(), pattern="2:4")
    assert torch.equal(back.col, layer.col) and torch.equal(back.values, layer.values)
    mask = patterns.to_mask(*layer.pattern(), 16)
    assert torch.equal(SparseLinear.from_dense(linear, mask, pattern="2:4").col, layer.col)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_same_as_the_dense_layer(dtype):
    layer = make(dtype=dtype)
    dense = layer.to_dense().double()
    x = torch.randn(40, 24, dtype=dtype, requires_grad=True)
    y, want = layer(x), dense(x.double())
    bound = 1e-2 if dtype == torch.bfloat16 else 1e-5
    flow = torch.randn(40, 10, dtype=dtype)
    got = torch.autograd.grad(y, (x, layer.values, layer.bias), flow)
    wanted = torch.autograd.grad(want, (x, dense.weight, dense.bias), flow.double())
    wanted = (wanted[0], patterns.gather(wanted[1], *layer.pattern(), "2:4"), wanted[2])
    for a, b in zip((y, *got), (want, *wanted), strict=True):
        assert (a.double() - b.double()).norm() <= bound * b.double().norm()


def test_rewire_keeps_two_of_four():
    layer = make()
    drop, grow = layer.values.detach().abs(), torch.rand(10, 24)
    drop[3] = float("nan")  # the first to go
    grow[0, 2] = float("nan")
    before, col, n = layer.dense_weight().detach(), layer.col.clone(), 7
    lowest = drop.nan_to_num(-1).view(-1, 2).amin(1)
    moved = set(lowest.argsort(stable=True)[:n].tolist())
    source = layer.rewire_(drop, grow, n)
    patterns.check_pattern(*layer.pattern(), 10, 24)
    assert fours(*layer.pattern(), 24).eq(2).all() and source.dtype == torch.int32
    for i, (old, new) in enumerate(zip(col.view(-1, 2).tolist(), layer.col.view(-1, 2).tolist(), strict=True)):
        if i not in moved:
            assert new == old
            continue
        row, first = divmod(i * 4, 24)
        stays = old[0] if drop.nan_to_num(-1)[2 * i + 1] < drop.nan_to_num(-1)[2 * i] else old[1]
        free = [j for j in range(first, first + 4) if j != stays]
        best = max(free, key=lambda j: grow.nan_to_num(-1)[row, j].item())
        assert new == sorted([stays, best])
    after = layer.dense_weight().detach()
    assert torch.equal(after[after != 0], before[after != 0])
    twin = copy.deepcopy(layer)
    moved = layer.rewire_(drop, grow, 9), twin.rewire_(drop, grow, torch.tensor(9))  # as a recorded update has it
    assert torch.equal(*moved) and torch.equal(layer.col, twin.col) and torch.equal(layer.values, twin.values)
    layer.rewire_(drop, grow, 1000)  # more than there are fours
    assert fours(*layer.pattern(), 24).eq(2).all()
    before = layer.col.clone()
    assert layer.rewire_(drop, grow, 0).tolist() == list(range(120)) and torch.equal(layer.col, before)


@pytest.mark.parametrize("method", (SET, RigL))
def test_sparse_training(method):
    layer = make(96, 64)
    before, storage = layer.col.clone(), layer.values.data_ptr()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    controller = method(layer, optimizer, update_every=2, stop_at=7)
    x, y = torch.randn(200, 96), torch.randn(200, 64)
    for _ in range(8):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(layer(x), y).backward()
        optimizer.step()
    assert controller.updates == 3 and controller.grown[""] > 0
    assert fours(*layer.pattern(), 96).eq(2).all() and not torch.equal(layer.col, before)
    assert layer.values.data_ptr() == storage
    torch.testing.assert_close(layer(x), layer.to_dense()(x))


def test_its_number_of_weights_is_fixed():
    model = nn.Sequential(nn.Linear(16, 8), make(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"GradualMagnitude: model must have no layer of pattern '2:4'.*got \['1'\]"):
        GradualMagnitude(model, optimizer, sparsity=0.9)
    assert not optimizer._optimizer_step_post_hooks


def test_checkpoints_and_copies():
    layer, other = make(), make()
    other.load_state_dict(layer.state_dict())
    x = torch.randn(5, 24)
    assert torch.equal(other(x), layer(x)) and torch.equal(copy.deepcopy(layer)(x), layer(x))
    stored = torch.load(io.BytesIO(saved(layer)), weights_only=True)
    assert torch.equal(stored["col"], layer.col) and torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))
    real = make(device="meta").to_empty(device="cpu")
    assert fours(*real.pattern(), 24).eq(2).all()


def test_sparsify_and_graph_layers():
    model = nn.Sequential(nn.Linear(52, 64), nn.ReLU(), nn.Linear(64, 7))
    sparse = sparsify(model, 0.5, pattern="2:4", inplace=False)
    assert all(sparse[i].structure == "2:4" and sparse[i].sparsity == 0.5 for i in (0, 2))
    assert torch.equal(densify(sparse, inplace=False)[0].weight, sparse[0].dense_weight())
    named = sparsify(model, distribution={"0": 0.5}, pattern="2:4", inplace=False)
    assert named[0].structure == "2:4" and type(named[2]) is nn.Linear
    edges, x = torch.randint(9, (2, 30)), torch.randn(9, 48)
    for make_conv in (GCNConv, SAGEConv, SGConv, TAGConv, GraphConv, GATConv, GATv2Conv):
        conv = make_conv(48, 32, sparsity=0.5, pattern="2:4")
        sparse = [m for m in conv.modules() if isinstance(m, SparseLinear)]
        assert sparse and all(m.structure == "2:4" for m in sparse)
        torch.testing.assert_close(conv(x, edges), densify(conv, inplace=False)(x, edges))


def test_refused():
    for call, text in (
        (lambda: SparseLinear(8, 4, pattern="2:4"), "SparseLinear: sparsity must be 0.5 for pattern '2:4', got 0.9"),
        (lambda: sparsify(nn.Linear(8, 4), pattern="2:4"), "sparsify: sparsity must be 0.5 for pattern '2:4', got 0.9"),
        (lambda: SparseLinear.from_dense(nn.Linear(8, 4), sparsity=0.7, pattern="2:4"), "must be 0.5 for pattern"),
        (
            lambda: SparseLinear.from_dense(nn.Linear(8, 4), pattern="2:4"),
            r"two nonzeros in every four.*sparsity=0.5, p",
        ),
        (lambda: SparseLinear.from_dense(nn.Linear(5, 3), sparsity=0.5, pattern="2:4"), "multiple of 4 columns"),
        (lambda: SparseLinear.from_dense(nn.Linear(6, 4), pattern="2:4"), "multiple of 4 columns"),
        (lambda: sparsify(nn.Linear(6, 4), 0.5, pattern="2:4"), r"multiple of 4 columns .* exclude=\[name\]"),
        (lambda: GCNConv(8, 4, pattern="2:4"), "sparsity must be 0.5 for pattern '2:4', got 0.0; pass sparsity=0.5"),
        (lambda: make(1433), r"'2:4' must have a multiple of 4 columns \(inputs\), got 1433"),
        (lambda: patterns.random_pattern(4, 8, nnz=10, kind="2:4"), "nnz must be 16, half of all, .* got 10"),
        (lambda: patterns.from_dense_topk(torch.randn(4, 8), 10, "2:4"), "nnz must be 16, half of all, .* got 10"),
        (lambda: patterns.from_dense_topk(torch.randn(4, 6), 12, "2:4"), "must have a multiple of 4 columns"),
    ):
        with pytest.raises(ValueError, match=text):
            call()
    layer = make(8, 2)
    crow, col = patterns.random_pattern(2, 8, nnz=8, kind="fan_in", generator=torch.Generator().manual_seed(0))
    assert not fours(crow, col, 8).eq(2).all()
    with pytest.raises(ValueError, match="SparseLinear: col must hold two of every four inputs of each output"):
        layer.set_pattern_(crow, col, torch.zeros(8))
    other = SparseLinear(8, 2, sparsity=0.5, pattern="fan_in")
    other.set_pattern_(crow, col, torch.zeros(8))
    with pytest.raises(ValueError, match="SparseLinear: checkpoint '': col must hold two of every four inputs"):
        layer.load_state_dict(other.state_dict())
