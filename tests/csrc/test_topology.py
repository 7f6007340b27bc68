"""The CUDA topology kernels under the emulator, against sorting."""

import numpy as np
import pytest

from .conftest import HALF, Dtype


def highest(score, count):
    """Positions of the `count` highest, ties to the lower, NaN last."""
    rank = np.lexsort((np.arange(score.size), -np.nan_to_num(score, nan=0.0), np.isnan(score)))
    return rank[:count]


def expected(mask, drop, grow, n):
    """(crow, col, source) by the definition."""
    linear = np.flatnonzero(mask)
    kept = linear[highest(drop, linear.size - n)]
    free = np.setdiff1d(np.arange(mask.size), kept)
    chosen = np.sort(np.concatenate([kept, free[highest(grow.ravel()[free], n)]]))
    slot = np.full(mask.size, -1)
    slot[linear] = np.arange(linear.size)
    return csr_of(chosen, mask.shape) + (slot[chosen],)


def csr_of(linear, shape):
    rows, cols = shape
    counts = np.bincount(linear // max(cols, 1), minlength=rows) if linear.size else np.zeros(rows, int)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32), (linear % max(cols, 1)).astype(np.int32)


def check(emulated, dtype, mask, drop, grow, n):
    crow, col = csr_of(np.flatnonzero(mask), mask.shape)
    drop, grow = dtype.pack(drop), dtype.pack(grow)
    got = emulated.topology(crow, col, drop, grow, n)
    want = expected(mask, dtype.unpack(drop), dtype.unpack(grow), n)
    for name, actual, wanted in zip(("crow", "col", "source"), got, want, strict=True):
        np.testing.assert_array_equal(actual, wanted, err_msg=name)


@pytest.mark.parametrize("shape", [(1, 1), (1, 67), (67, 1), (9, 33), (80, 130)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_random_scores(emulated, dtype, shape, share):
    rng = np.random.default_rng(shape[1])
    mask = rng.random(shape) < 0.4
    mask.flat[0] = True
    nnz = mask.sum()
    check(emulated, dtype, mask, rng.standard_normal(nnz), rng.standard_normal(shape), int(share * nnz))


@pytest.mark.parametrize("values", [[0.0], [0.0, -0.0, 1.0], [np.nan, 1.0, -np.inf, np.inf, -1.0, 0.0]], ids=str)
def test_ties_and_special_values(emulated, dtype, values):
    """Few distinct scores over more than two tiles: the ties are cut at the right place, across tiles too."""
    rng = np.random.default_rng(1)
    mask = rng.random((70, 130)) < 0.5
    nnz = mask.sum()
    check(emulated, dtype, mask, rng.choice(values, nnz), rng.choice(values, mask.shape), int(nnz * 0.4))


@pytest.mark.parametrize("n", [0, 5, 12])
def test_full_and_empty_patterns(emulated, dtype, n):
    rng = np.random.default_rng(2)
    check(emulated, dtype, np.ones((3, 4), bool), rng.standard_normal(12), rng.standard_normal((3, 4)), n)
    check(emulated, dtype, np.zeros((3, 4), bool), np.zeros(0), rng.standard_normal((3, 4)), 0)
    check(emulated, dtype, np.zeros((0, 4), bool), np.zeros(0), np.zeros((0, 4)), 0)
    check(emulated, dtype, np.zeros((3, 0), bool), np.zeros(0), np.zeros((3, 0)), 0)


def test_scores_may_differ_in_type(emulated):
    rng = np.random.default_rng(3)
    mask = rng.random((20, 30)) < 0.3
    drop, half = rng.standard_normal(mask.sum()).astype(np.float32), Dtype(HALF)
    grow = half.pack(rng.standard_normal(mask.shape))
    got = emulated.topology(*csr_of(np.flatnonzero(mask), mask.shape), drop, grow, 40)
    for actual, wanted in zip(got, expected(mask, drop.astype(np.float64), half.unpack(grow), 40), strict=True):
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("n, held", [(-1, 0), (-(2**62), 0), (13, 12), (2**62, 12)])
def test_counts_out_of_range_are_held_in_it(emulated, n, held):
    """The count is read on the device, which cannot refuse it."""
    rng = np.random.default_rng(4)
    pattern = csr_of(np.sort(rng.permutation(70)[:12]), (7, 10))
    scores = rng.standard_normal(12, np.float32), rng.standard_normal((7, 10), np.float32)
    for actual, wanted in zip(*(emulated.topology(*pattern, *scores, k) for k in (n, held)), strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_bad_patterns_do_not_leave_their_arrays(emulated):
    """Columns out of range and duplicates give some pattern, not a crash; ASan watches when it runs this."""
    crow, col = np.array([0, 2, 4], np.int32), np.array([1, 1, -7, 999], np.int32)
    new_crow, _, _ = emulated.topology(crow, col, np.ones(4, np.float32), np.ones((2, 5), np.float32), 1)
    assert new_crow[0] == 0 and new_crow[-1] == 4
