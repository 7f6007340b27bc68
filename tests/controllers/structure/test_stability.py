"""The early-bird detector against a list of numpy masks."""

import numpy as np
import pytest
import torch

from sparsegnn.controllers.stability import MaskStability


def test_is_the_largest_of_the_last_distances_over_the_first():
    rng, detector = np.random.default_rng(0), MaskStability(eta=0.2, window=3)
    masks, first, settled = [], None, []
    for step in range(12):
        flips = [0.5, 0.4, 0.3, 0.1, 0.05, 0.02, 0.02, 0, 0, 0, 0.5, 0][step]
        last = masks[-1] if masks else (rng.random(40) < 0.5, rng.random(100) < 0.1)
        new = tuple(m ^ (rng.random(m.size) < flips) for m in last)
        found = [np.mean([(a != b).mean() for a, b in zip(new, old, strict=True)]) for old in masks[-3:]]
        if found and first is None:
            first = found[-1]
        wanted = len(found) == 3 and max(found) / first < 0.2
        assert detector.stop_when(*map(torch.from_numpy, new)) == wanted
        if found:
            assert detector.distance == pytest.approx(max(found) / first)
        masks.append(new)
        settled.append(wanted)
    assert any(settled) and not all(settled[4:])


def test_masks_that_never_change_settle_after_the_window():
    detector, mask = MaskStability(window=2), torch.tensor([True, False])
    assert [detector.stop_when(mask) for _ in range(4)] == [False, False, True, True]


def test_state_and_refusals():
    detector, other, g = MaskStability(), MaskStability(), torch.Generator().manual_seed(0)
    masks = [torch.rand(30, generator=g) < 0.5 for _ in range(6)]
    for m in masks[:3]:
        detector.stop_when(m)
    other.read("x", {"x": detector.state()}, 30, torch.device("cpu"))()
    for m in masks[3:]:
        assert detector.stop_when(m) == other.stop_when(m) and detector.distance == other.distance
    with pytest.raises(ValueError, match="masks must have 30 entries as before, got 4"):
        detector.stop_when(torch.ones(4, dtype=torch.bool))
    for spoiled in ({"masks": [torch.ones(30)]}, {"masks": [masks[0]] * 4}, {"masks": 3}):
        with pytest.raises(ValueError, match="must be up to 3 bool tensors"):
            detector.read("x", {"x": {**other.state(), **spoiled}}, 30, torch.device("cpu"))
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        MaskStability(window=0)
