"""The CUDA act_dropout kernels under the emulator, against numpy; and the bits that they share with sparse_linear."""

import numpy as np
import pytest

SHAPES = [(0, 4), (3, 0), (1, 1), (5, 3), (70, 17), (40, 64), (700, 136)]  # rows, columns
VARIANTS = [("none", 0.0), ("none", 0.4), ("relu", 0.0), ("relu", 0.4), ("elu", 0.0), ("elu", 0.4), ("elu", 1.0)]


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def activation(z, act):
    return {"none": z, "relu": np.maximum(z, 0), "elu": np.where(z > 0, z, np.expm1(np.minimum(z, 0)))}[act]


def slope(z, act):
    return {"none": np.ones_like(z), "relu": z > 0, "elu": np.where(z > 0, 1, np.exp(np.minimum(z, 0)))}[act]


def factors(emulated, rows, columns, dropout, real):
    """Of sparse_linear at the same seed, which test_sparse_linear.py compares with the CPU's."""
    ones, none = np.ones(columns, real), np.zeros(0, np.int32)
    return emulated.sparse_linear(np.zeros((rows, 1), real), none.astype(real), ones,
                                  np.zeros(columns + 1, np.int32), none, dropout=dropout, seed=-7)  # fmt: skip


@pytest.mark.parametrize("act, dropout", VARIANTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(emulated, dtype, shape, act, dropout):
    x, bias, dy = dtype.pack(normal(*shape)), dtype.pack(normal(shape[1])), dtype.pack(normal(*shape)[::-1])
    factor = factors(emulated, *shape, dropout, dtype.accumulator) if dropout else np.ones(shape)
    z = dtype.unpack(x) + dtype.unpack(bias)
    y = emulated.act_dropout(x, bias, act, dropout, -7)
    dtype.close(y, activation(z, act) * factor)
    dx, dbias = emulated.act_dropout_backward(dy, None if act == "none" else y, act, dropout, -7)
    wanted = dtype.unpack(dy) * slope(z, act) * factor
    dtype.close(dx, wanted)
    dtype.close(dbias, wanted.sum(0))


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
def test_one_gradient_alone(emulated, dtype, needs):
    y, dy = dtype.pack(normal(90, 24)), dtype.pack(normal(90, 24)[::-1])
    both = emulated.act_dropout_backward(dy, y, "relu", 0.5, 3)
    for got, want, need in zip(emulated.act_dropout_backward(dy, y, "relu", 0.5, 3, *needs), both, needs, strict=True):
        assert got is None if not need else np.array_equal(got, want)


def test_without_bias_and_misaligned(emulated, dtype):
    """Rows that vectors cannot be read from take the other path, to the same bits."""
    x = dtype.pack(normal(50, 32))
    aligned = emulated.act_dropout(x, None, "elu", 0.5, 9)
    emulated.set_misalignment(1)
    np.testing.assert_array_equal(emulated.act_dropout(x, None, "elu", 0.5, 9), aligned)
    dtype.close(emulated.act_dropout_backward(x, None, "none", 0.0)[1], dtype.unpack(x).sum(0))


def test_nan_and_infinity(emulated):
    """The gradient passes where y is not <= 0; what is dropped is 0."""
    x = np.array([[np.nan, -np.inf, 0.0, 1.0, np.inf]], np.float32)
    np.testing.assert_array_equal(emulated.act_dropout(x, None, "relu"), [[np.nan, 0, 0, 1, np.inf]])
    np.testing.assert_array_equal(emulated.act_dropout(x, None, "elu"), [[np.nan, -1, 0, 1, np.inf]])
    np.testing.assert_array_equal(emulated.act_dropout(x, None, "none", 1.0), np.zeros((1, 5)))
    y = emulated.act_dropout(x, None, "relu")
    np.testing.assert_array_equal(emulated.act_dropout_backward(np.ones_like(y), y, "relu")[0], [[1, 0, 0, 1, 1]])
