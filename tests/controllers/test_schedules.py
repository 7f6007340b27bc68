"""Schedules and training cost against closed forms and published numbers."""

import pytest

from sparsegnn.controllers.cost import step_cost, train_and_prune_ratio
from sparsegnn.controllers.schedules import Constant, Cosine, Cubic


def test_cosine():
    f = Cosine(0.3, 100)
    assert [f(s) for s in (0, 50, 100, 150)] == pytest.approx([0.3, 0.15, 0, 0])
    assert f(25) == pytest.approx(0.15 * (1 + 2**-0.5))
    assert Cosine(0.5, 10, 0.005)(10) == pytest.approx(0.005)


def test_cubic():
    f = Cubic(0.9, 20, 120)
    assert [f(s) for s in (0, 20, 70, 120, 500)] == pytest.approx([0, 0, 0.9 * (1 - 0.125), 0.9, 0.9])
    assert Cubic(0.9, 0, 10, 0.5)(0) == pytest.approx(0.5)
    assert Cubic(0.9, 5, 5)(5) == 0.9  # at once


def test_constant():
    assert {Constant(0.2)(s) for s in range(5)} == {0.2}


@pytest.mark.parametrize("update_every,want", [(1, 0.25), (10, 0.1273), (100, 0.1030), (1000, 0.1003), (None, 0.1)])
def test_rigl_step_cost(update_every, want):
    assert step_cost(0.9, update_every) == pytest.approx(want, abs=5e-5)


@pytest.mark.parametrize("sparsity,want", [(0.5, 1.75), (0.75, 3.25), (0.875, 6.25), (0.9, 7.75), (0.96875, 24.25)])
def test_train_and_prune_over_sparse_training(sparsity, want):
    assert train_and_prune_ratio(sparsity) == pytest.approx(want)
