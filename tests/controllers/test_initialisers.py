"""Where weights begin: exact counts at random or by magnitude, and regular graphs against networkx."""

import networkx
import numpy as np
import pytest
import torch

from sparsegnn import pattern as patterns
from sparsegnn.controllers import RGP, initialisers
from sparsegnn.nn import SparseLinear

KINDS = ("unstructured", "fan_in", "grouped:8", "block:16x16")


@pytest.mark.parametrize("kind", KINDS)
def test_random_positions_are_among_those_held(kind):
    layer = SparseLinear(96, 64, sparsity=0.5, pattern=kind)
    before = layer.dense_weight().detach().clone()
    generator = torch.Generator().manual_seed(5)
    fewer = initialisers.random_positions(layer, 1536, generator)
    again = initialisers.random_positions(layer, 1536, generator.manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(fewer, again, strict=True))
    initialisers.place(layer, *fewer)
    after = layer.dense_weight().detach()
    assert layer.values.numel() == 1536 and torch.equal(after[after != 0], before[after != 0])
    initialisers.place(layer, *initialisers.random_positions(layer, 4608, generator))
    assert layer.values.numel() == 4608 and torch.equal(layer.dense_weight().detach(), after)  # new ones are zero
    patterns.check_pattern(*layer.pattern(), *layer.grid)
    patterns.check_regular(*layer.pattern(), 96, kind, "test")


@pytest.mark.parametrize("count", [24, 12])
def test_random_positions_are_uniform(count):
    """Of 24 weights among 48, when they get fewer and when they get more."""
    layer, times = SparseLinear(8, 6, sparsity=1 - count / 48), np.zeros((6, 8))
    held = patterns.to_mask(*layer.pattern(), 8).numpy()
    for seed in range(400):
        crow, col = initialisers.random_positions(layer, 18, torch.Generator().manual_seed(seed))
        times += patterns.to_mask(crow, col, 8).numpy()
    free = times[held] if count == 24 else times[~held]
    share = 18 / 24 if count == 24 else 6 / 36
    assert abs(free - 400 * share).max() < 5 * (400 * share * (1 - share)) ** 0.5
    assert times.sum() == 400 * 18 and (count == 24 or (times[held] == 400).all())


@pytest.mark.parametrize("kind", KINDS)
def test_magnitude_positions_are_those_of_a_dense_weight(kind):
    layer = SparseLinear(96, 64, sparsity=0.0, pattern=kind)
    want = patterns.from_dense_topk(layer.dense_weight().detach(), 1536, kind)
    found = initialisers.magnitude_positions(layer, 1536)
    assert all(torch.equal(a, b) for a, b in zip(want, found, strict=True))
    with pytest.raises(ValueError, match=r"initialisers: count must be in \[.*, 6144\] of 6144 weights, got"):
        initialisers.magnitude_positions(layer, 6144 + 1536)


def test_chosen_ranks_nan_lowest_and_may_take_back():
    layer = SparseLinear(3, 2, sparsity=0.5)
    layer.set_pattern_(torch.tensor([0, 2, 3]).int(), torch.tensor([0, 1, 2]).int(), torch.tensor([1.0, 2.0, 3.0]))
    keep, grow = torch.tensor([5.0, torch.nan, 1.0]), torch.tensor([[9.0, torch.nan, 0.0], [0.0, 0.0, 7.0]])
    crow, col = initialisers.chosen(layer, keep, grow, 1, 3)  # keeps slot 0, then (1, 2), which was let go, and (0, 2)
    assert crow.tolist() == [0, 2, 3] and col.tolist() == [0, 2, 2]
    assert initialisers.source_of(layer, crow, col).tolist() == [0, -1, 2]


@pytest.mark.parametrize("nodes, degree", [(16, 3), (20, 2), (9, 4), (6, 1)])
def test_regular_graph(nodes, degree):
    tries = 600 if degree == 2 else 60
    graph = initialisers.regular_graph(nodes, degree, tries=tries, seed=3)
    start = initialisers.regular_graph(nodes, degree, tries=0, seed=3)
    for adjacency in (graph, start):
        assert torch.equal(adjacency, adjacency.T) and not adjacency.diagonal().any()
        assert (adjacency.sum(0) == degree).all()
        length = dict(networkx.all_pairs_shortest_path_length(networkx.from_numpy_array(adjacency.numpy())))
        total = sum(length[a].get(b, nodes) for a in range(nodes) for b in range(nodes))
        assert initialisers.average_path(adjacency) == pytest.approx(total / (nodes * (nodes - 1)))
    assert initialisers.average_path(graph) <= initialisers.average_path(start)
    assert degree == 2 or torch.equal(graph, initialisers.regular_graph(nodes, degree, tries=60, seed=3))
    if (nodes, degree) == (20, 2):  # one ring is the best
        assert initialisers.average_path(graph) == pytest.approx(100 / 19)


@pytest.mark.parametrize("nodes, degree, text", [
    (6, 6, r"degree must be in \[1, 5\], and times 6 nodes even, got 6"), (5, 3, ".* times 5 nodes even, got 3"),
    (5, 0, r"degree must be in \[1, 4\]"),
])  # fmt: skip
def test_no_such_graph(nodes, degree, text):
    with pytest.raises(ValueError, match="regular_graph: " + text):
        initialisers.regular_graph(nodes, degree)


def rgp(layer, tries=50, **settings):
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    layer(torch.randn(4, layer.in_features)).square().sum().backward()
    optimizer.step()
    return optimizer, RGP(layer, optimizer, tries=tries, **settings)


@pytest.mark.parametrize("kind, nodes, shape", [
    ("unstructured", 10, (53, 37)), ("fan_in", 16, (50, 48)), ("grouped:8", 8, (64, 19)), ("block:16x16", 4, (96, 80)),
])  # fmt: skip
def test_rgp(kind, nodes, shape):
    """Outputs and inputs in consecutive groups, whose sizes differ by one at most; weights between neighbours."""
    torch.manual_seed(0)
    layer = SparseLinear(*shape[::-1], sparsity=0.0, pattern=kind)
    values = layer.values
    rows, cols = layer.grid
    before = layer.dense_weight().detach().clone()
    optimizer, method = rgp(layer, sparsity=0.75 if nodes == 4 else 0.8, nodes=nodes, seed=1)
    after = layer.dense_weight().detach()
    moment = optimizer.state[values]["exp_avg"]
    assert layer.values is values and moment.shape == values.shape and method.settled_at == 0
    assert not torch.equal(before, after)  # the step before
    mask = patterns.to_mask(*layer.pattern(), cols).numpy()
    found = []
    for lines, n in ((mask, rows), (mask.T, cols)):
        changes = np.flatnonzero((lines[1:] != lines[:-1]).any(1)) + 1
        sizes = np.diff([0, *changes, n])
        assert len(sizes) == nodes and sizes.max() - sizes.min() <= 1
        found.append(np.array([0, *changes]))
    small = mask[np.ix_(*found)]
    degree = max(1, round(nodes * (0.25 if nodes == 4 else 0.2)))
    assert np.array_equal(small, method.graph.numpy()) and (small.sum(0) == degree).all() and (small == small.T).all()
    optimizer.step()
    assert layer.values.numel() == mask.sum() * layer.block[0] * layer.block[1]


def test_rgp_leaves_narrow_layers_dense():
    model = torch.nn.Sequential(SparseLinear(40, 32, sparsity=0.0), SparseLinear(32, 7, sparsity=0.0))
    RGP(model, torch.optim.SGD(model.parameters(), lr=0.1), nodes=20, tries=9)
    assert model[0].values.numel() == 128 and model[1].values.numel() == 224


@pytest.mark.parametrize("layer, settings, text", [
    ({"sparsity": 0.5}, {"nodes": 8}, r"RGP: model must have layers with all of their weights, got \[''\]: begin with"),
    ({"sparsity": 0.0}, {}, "RGP: nodes must be at most the outputs and inputs .* of {'': \\[32, 40\\]}, got 64"),
    ({"sparsity": 0.0}, {"nodes": 9, "sparsity": 0.7}, "RGP: nodes must be even, or more, for 3 neighbours each"),
    ({"sparsity": 0.0}, {"nodes": 8, "sparsity": 0.01}, "RGP: nodes must be even, or more, for 8 neighbours each"),
    ({"sparsity": 0.0, "pattern": "fan_in"}, {"nodes": 16}, "as many inputs, or none"),
    ({"sparsity": 0.5, "pattern": "2:4"}, {"nodes": 8}, "RGP: model must have layers with all of their weights"),
])  # fmt: skip
def test_rgp_refuses(layer, settings, text):
    layer = SparseLinear(40, 32, **layer)
    before = layer.values.detach().clone()
    with pytest.raises(ValueError, match=text):
        RGP(layer, torch.optim.SGD(layer.parameters(), lr=0.1), tries=9, **settings)
    assert torch.equal(before, layer.values)
