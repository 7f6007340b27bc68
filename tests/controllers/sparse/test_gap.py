"""GaP against masked dense training: partitions take turns to be dense, masks are chosen by sorts in numpy."""

import numpy as np
import pytest
import torch
from controllers.simulation import MaskedModel, masks, sparse_model, train

from sparsegnn.controllers import GaP
from sparsegnn.nn import SparseLinear

WIDTHS = (20, 16, 12, 6)


class Twin(MaskedModel):
    def __init__(self, model, make_optimizer):
        super().__init__(model, make_optimizer)
        self.counts = [m.sum() for m in self.masks]

    def move(self, i, linear, fraction, growing):
        weight, mask = linear.weight.detach().numpy(), self.masks[i]
        new = np.ones_like(mask) if growing else np.zeros_like(mask)
        active = [tuple(p) for p in np.argwhere(mask)]
        for p in sorted(active, key=lambda p: (-abs(weight[p]), p))[: self.counts[i]]:
            new[p] = True
        with torch.no_grad():
            linear.weight *= torch.from_numpy(new)
            for slot in self.optimizer.state[linear.weight].values():
                if slot.shape == linear.weight.shape:
                    slot *= torch.from_numpy(new)
        self.masks[i] = new


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.Adam(p, lr=0.02), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)]
)
@pytest.mark.parametrize("partitions, groups", [(1, [[0, 1, 2]]), (2, [[0], [1, 2]]), (3, [[0], [1], [2]])])
def test_partitions_take_turns(make, partitions, groups):
    model = sparse_model(widths=WIDTHS)
    twin, optimizer = Twin(model, make), make(model.parameters())
    before = [m.sum() for m in masks(model)]
    controller = GaP(model, optimizer, partitions=partitions, start_at=2, update_every=3, stop_at=16)
    turns = [2, 5, 8, 11]  # the last one is longer
    assert [s for s in range(40) if controller.due(s)] == [*turns, 16]
    for step in range(19):
        train(model, optimizer, 1, step)
        turn = sum(s <= step + 1 for s in turns) - 1
        dense = groups[turn % partitions] if 2 <= step + 1 < 16 else []
        assert [m.all() for m in masks(model)] == [i in dense for i in range(3)]
        assert all(m.sum() == n for i, (m, n) in enumerate(zip(masks(model), before, strict=True)) if i not in dense)
    twin.train(
        19,
        lambda s: s in (*turns, 16),
        lambda s: 0.0,
        lambda i, s, g: s < 16 and i in groups[turns.index(s) % partitions],
    )
    twin.assert_equal(model)


def test_what_exists_on_average():
    """Of two equal layers with a fraction d: (1 - 1/2) d + 1/2."""
    model = sparse_model(widths=(16, 16, 16), sparsity=0.75)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    GaP(model, optimizer, update_every=2, stop_at=9)
    exist = []
    for step in range(8):
        train(model, optimizer, 1, step)
        exist.append(sum(m.mean() for m in masks(model)) / 2)
    assert exist == [0.625] * 8


def test_a_single_layer_is_one_partition():
    layer = SparseLinear(8, 6, sparsity=0.5)
    assert GaP(layer, torch.optim.SGD(layer.parameters(), lr=0.1)).partitions == [[""]]


def test_frozen_layers_keep_their_weights():
    model = sparse_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    GaP(model, optimizer, update_every=1, start_at=1, stop_at=4)
    train(model, optimizer, 1)
    before, model[0].values.requires_grad = masks(model)[0], False
    train(model, optimizer, 4, first=1)
    assert before.all() and masks(model)[0].all()
