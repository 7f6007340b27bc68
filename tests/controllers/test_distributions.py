"""Allocation of weights to layers: published numbers, exact counts, guards."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsegnn.controllers.distributions import allocate


def chain(*widths):
    return {f"{i}": (m, k) for i, (k, m) in enumerate(zip(widths, widths[1:], strict=False))}


@pytest.mark.parametrize(
    "widths,kept,fractions,counts",
    [
        ((16, 128, 1), 0.05, (0.0280, 0.4016), (57, 51)),
        ((16, 128, 1), 0.5, (0.4688, 1.0), (960, 128)),
        ((64, 256, 128, 10), 0.1, (0.1170, 0.0702, 0.6457), (1917, 2300, 827)),
        ((1433, 16, 7), 0.1, (0.0989, 0.3214), (2268, 36)),
        ((602, 256, 256, 41), 0.1, (0.0769, 0.1079, 0.3907), None),
    ],
)
def test_erk_golden_numbers(widths, kept, fractions, counts):
    shapes = chain(*widths)
    got = allocate(shapes, 1 - kept, "erk")
    assert list(got) == list(shapes)
    if counts:
        assert tuple(got.values()) == counts
    for (m, k), n, fraction in zip(shapes.values(), got.values(), fractions, strict=True):
        assert abs(n - fraction * m * k) <= 0.5 + 5e-5 * m * k


def test_uniform():
    assert allocate(chain(10, 20, 5), 0.9, "uniform") == {"0": 20, "1": 10}
    assert allocate(chain(128, 1), 1 - 0.0078, "uniform") == {"0": 1}


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=6),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["erk", "uniform"]),
)
def test_counts_add_up_and_stay_in_range(layers, sparsity, distribution):
    shapes = {str(i): shape for i, shape in enumerate(layers)}
    got = allocate(shapes, sparsity, distribution)
    assert all(1 <= got[name] <= m * k for name, (m, k) in shapes.items())
    want = (1 - sparsity) * sum(m * k for m, k in layers)
    assert want - len(layers) <= sum(got.values()) <= want + 1.5 * len(layers)  # rounding, and one weight at least


def test_global_magnitude():
    weights = {"a": torch.tensor([3.0, -5.0, 0.1]), "b": torch.tensor([[4.0, 0.2], [0.3, 0.1]]), "c": torch.zeros(3)}
    assert allocate({}, 0.7, "global", weights) == {"a": 2, "b": 1, "c": 1}
    assert allocate({}, 0.0, "global", weights) == {"a": 3, "b": 4, "c": 3}


def test_explicit():
    shapes = chain(10, 20, 5)
    assert allocate(shapes, 0.9, {"0": 0.5, "1": 0}) == {"0": 100, "1": 100}
    with pytest.raises(ValueError, match="distribution must name layer '1'"):
        allocate(shapes, 0.9, {"0": 0.5})
    with pytest.raises(ValueError, match="distribution must not name layer 'x'"):
        allocate(shapes, 0.9, {"0": 0.5, "1": 0.5, "x": 0.5})
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\), got nan"):
        allocate(shapes, 0.9, {"0": float("nan"), "1": 0.5})


def test_refused():
    with pytest.raises(ValueError, match="distribution must be 'erk', 'er', 'uniform', 'global' or a dict"):
        allocate(chain(2, 2), 0.5, "even")
    with pytest.raises(ValueError, match=r"sparsify: sparsity must be in \[0, 1\), got 1.0"):
        allocate(chain(2, 2), 1.0, op="sparsify")
