"""SparseLinear with weights in blocks and groups: the same layer contract as unstructured ones."""

import copy

import pytest
import torch
from torch import nn

from sparsegnn import densify, sparsify
from sparsegnn import pattern as patterns
from sparsegnn.nn import GATConv, GCNConv, SparseLinear
from sparsegnn.ops.block_linear import apply as block_linear

KINDS = ("grouped:4", "grouped:8", "grouped:16", "block:16x16", "block:32x32")


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_as_the_dense_layer(kind):
    layer = SparseLinear(96, 64, sparsity=0.7, pattern=kind)
    dense = layer.to_dense()
    x = torch.randn(40, 96, requires_grad=True)
    torch.testing.assert_close(layer(x), dense(x))
    torch.testing.assert_close(layer.dense_weight(), dense.weight)
    flow = torch.randn(40, 64)
    got = torch.autograd.grad(layer(x), (x, layer.values, layer.bias), flow)
    want = torch.autograd.grad(dense(x), (x, dense.weight, dense.bias), flow)
    torch.testing.assert_close(got[0], want[0])
    torch.testing.assert_close(got[1], patterns.gather(want[1], *layer.pattern(), kind))
    torch.testing.assert_close(got[2], want[2])
    assert layer(x[0].view(1, 1, 96)).shape == (1, 1, 64)


@pytest.mark.parametrize("allowed", [False, True])
def test_kernels_may_round_to_tf32_where_torch_may(allowed, monkeypatch):
    seen = []
    monkeypatch.setattr("sparsegnn.nn.linear.may_round", lambda x: allowed)
    monkeypatch.setattr("sparsegnn.nn.linear.block_linear", lambda *args: seen.append(args) or block_linear(*args))
    SparseLinear(32, 32, sparsity=0.5, pattern="block:16x16")(torch.randn(3, 32)).sum().backward()
    assert [args[-1] for args in seen] == [allowed] and len(seen[0]) == 11


@pytest.mark.parametrize("kind", KINDS)
def test_positions_are_whole_blocks(kind):
    height, width = patterns.BLOCKS[kind]
    layer = SparseLinear(96, 64, sparsity=0.75, pattern=kind)
    there = (layer.dense_weight() != 0).view(64 // height, height, 96 // width, width)
    assert (there.any(3).any(1) == there.all(3).all(1)).all()
    kept = max(1, round(0.25 * 64 * 96 / (height * width))) * height * width
    assert layer.values.numel() == kept and there.sum() == kept
    assert layer.sparsity == pytest.approx(1 - kept / (64 * 96))
    assert f"pattern='{kind}'" in repr(layer)


@pytest.mark.parametrize("kind", KINDS)
def test_from_dense_keeps_the_strongest_blocks(kind):
    height, width = patterns.BLOCKS[kind]
    linear = nn.Linear(96, 64)
    layer = SparseLinear.from_dense(linear, sparsity=0.75, pattern=kind)
    norms = linear.weight.detach().abs().view(64 // height, height, 96 // width, width).sum((1, 3))
    strongest = norms.flatten().sort(descending=True).indices[: layer.col.numel()].sort().values
    rows, cols = patterns.rows_of(*layer.pattern()), layer.col
    assert torch.equal(rows * norms.size(1) + cols, strongest)
    dense = layer.to_dense().weight
    assert torch.equal(dense[dense != 0], linear.weight[dense != 0])


def test_from_dense_with_a_mask():
    linear, mask = nn.Linear(8, 16, bias=False), torch.zeros(16, 8)
    mask[3, 2] = mask[8:, 5] = 1
    layer = SparseLinear.from_dense(linear, mask, pattern="grouped:8")
    assert layer.col.tolist() == [2, 5] and layer.crow.tolist() == [0, 1, 2]
    assert torch.equal(layer.to_dense().weight, linear.weight * mask)
    back = SparseLinear.from_dense(layer.to_dense(), pattern="grouped:8")
    assert torch.equal(back.values, layer.values)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints(kind):
    layer, other = (SparseLinear(96, 64, sparsity=s, pattern=kind) for s in (0.7, 0.4))
    other.load_state_dict(layer.state_dict())
    x = torch.randn(5, 96)
    assert torch.equal(other(x), layer(x)) and torch.equal(copy.deepcopy(layer)(x), layer(x))
    state = layer.state_dict()
    with pytest.raises(ValueError, match="SparseLinear: checkpoint"):
        SparseLinear(96, 64, sparsity=0.7).load_state_dict(state)
    with pytest.raises(ValueError, match="SparseLinear: checkpoint 'values' must have shape"):
        layer.load_state_dict({**state, "values": state["values"][1:]})


def test_meta_layers_become_real():
    layer = SparseLinear(32, 32, pattern="block:16x16", sparsity=0.5, device="meta").to_empty(device="cpu")
    patterns.check_pattern(*layer.pattern(), 2, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_rewire_moves_whole_blocks(kind):
    layer = SparseLinear(96, 64, sparsity=0.75, pattern=kind)
    before, grid = layer.dense_weight().detach(), patterns.tiles(torch.zeros(64, 96), kind).shape[:2]
    drop, grow = layer.values.detach().abs(), torch.rand(64, 96)
    n = max(1, layer.col.numel() // 4)
    strength = layer.per_position(drop)
    lost = strength.sort().indices[:n]
    source = layer.rewire_(drop, grow, n)
    patterns.check_pattern(*layer.pattern(), *grid)
    kept = set(source[source >= 0].tolist())
    assert (source < 0).sum() <= n and kept >= set(range(len(strength))) - set(lost.tolist())
    after = layer.dense_weight().detach()
    assert torch.equal(after[after != 0], before[after != 0])
    assert layer.values.numel() == source.numel() * layer.block[0] * layer.block[1]
    x = torch.randn(7, 96, requires_grad=True)
    torch.testing.assert_close(layer(x), layer.to_dense()(x))
    flow = torch.randn(7, 64)
    torch.testing.assert_close(*(torch.autograd.grad(f(x), x, flow)[0] for f in (layer, layer.to_dense())))


def test_rewire_keeps_the_fan_in():
    layer = SparseLinear(20, 6, sparsity=0.75, pattern="fan_in")
    drop, grow = layer.values.detach().abs(), torch.rand(6, 20)
    grow[:, 3] = float("nan")
    before, held = layer.dense_weight().detach(), layer.col.view(6, 5).long()
    source = layer.rewire_(drop, grow, 12)
    assert layer.crow.diff().eq(5).all()
    for i in range(6):
        order = drop.view(6, 5)[i].argsort(stable=True)
        kept = set(held[i][order[2:]].tolist())
        free = [j for j in grow[i].nan_to_num(-1).argsort(descending=True).tolist() if j not in kept]
        assert set(layer.col.view(6, 5)[i].tolist()) == kept | set(free[:2])
    after = layer.dense_weight().detach()
    assert torch.equal(after[after != 0], before[after != 0])
    assert source.numel() == 30 and (source < 0).sum() <= 12


@pytest.mark.parametrize("kind", ("grouped:8", "block:16x16"))
@pytest.mark.parametrize("conv", (GCNConv, GATConv))
def test_graph_layers(conv, kind):
    layer = conv(48, 32, sparsity=0.5, pattern=kind)
    edges = torch.randint(9, (2, 30))
    x = torch.randn(9, 48, requires_grad=True)
    dense = densify(layer, inplace=False)
    torch.testing.assert_close(layer(x, edges), dense(x, edges))
    layer(x, edges).sum().backward()
    assert layer.lin.structure == kind and layer.lin.values.grad.abs().sum() > 0


def test_sparsify():
    model = nn.Sequential(nn.Linear(50, 64), nn.ReLU(), nn.Linear(64, 7))
    sparse = sparsify(model, 0.8, pattern="grouped:8", exclude=["2"], inplace=False)
    assert sparse[0].structure == "grouped:8" and type(sparse[2]) is nn.Linear
    assert torch.equal(sparse[0].to_dense().weight, densify(sparse, inplace=False)[0].weight)
    with pytest.raises(ValueError, match="a multiple of 8 rows .outputs., got 7; .* leave this layer out"):
        sparsify(model, 0.8, pattern="grouped:8", inplace=False)


def test_sizes_that_blocks_do_not_divide():
    with pytest.raises(ValueError, match=r"'block:16x16' must have a multiple of 16 columns \(inputs\), got 1433"):
        SparseLinear(1433, 64, pattern="block:16x16")
    assert SparseLinear(1433, 64, pattern="grouped:8").values.numel() % 8 == 0
    with pytest.raises(ValueError, match="nnz must be a multiple of 256"):
        patterns.random_pattern(64, 64, nnz=100, kind="block:16x16")
