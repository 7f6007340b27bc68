"""The CUDA maxk kernels under the emulator, against a stable sort."""

import numpy as np
import pytest

SHAPES = [(1, 1, 0), (40, 7, 0), (64, 64, 0), (256, 32, 0), (256, 32, 8), (96, 18, 16), (48, 24, 4), (90, 12, 15)]
SHAPES += [(300, 9, 0), (1000, 31, 0), (1500, 8, 0), (320, 20, 32), (40, 20, 2), (12, 12, 1)]
SHAPES += [(128, 16, 0), (512, 64, 0), (1024, 128, 0), (1024, 1000, 0), (2048, 100, 0), (256, 128, 8), (16, 5, 16)]
SHAPES += [(8, 3, 8), (1024, 256, 4), (512, 96, 128), (33, 11, 3)]


def expected(x, k, group):
    """Columns: NaN first, then the largest, of equals the lower."""
    rows, width = x.shape
    group = group or width
    parts = np.where(np.isnan(x), np.inf, x).reshape(rows, -1, group)
    order = np.lexsort((-parts, ~np.isnan(x.reshape(parts.shape))), axis=2)[..., : k * group // width]
    return np.sort((order + np.arange(0, width, group)[:, None]).reshape(rows, k), 1)


def rows(kind, width):
    rng = np.random.default_rng(width)
    x = rng.standard_normal((9, width))
    if kind == "ties":
        x = np.round(x)
    if kind == "relu":
        x = np.maximum(x - 0.8, 0)
    if kind == "constant":
        x = np.full_like(x, -1.5)
    if kind == "heavy":
        x = np.clip(rng.standard_cauchy((9, width)) ** 3, -6e4, 6e4)
    if kind == "mixed":  # of four rows that are chosen from together one is not finite
        x[2, ::5], x[5, 0], x[6, -1] = np.nan, np.inf, -np.inf
        x[7] = 0.25
    if kind == "special":
        x = np.where(rng.random(x.shape) < 0.3, np.nan, x)
        x = np.where(rng.random(x.shape) < 0.2, rng.choice([np.inf, -np.inf, 0.0, -0.0], x.shape), x)
    return x


@pytest.mark.parametrize("kind", ["normal", "ties", "special", "mixed", "relu", "constant", "heavy"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_choice(emulated, dtype, shape, kind):
    width, k, group = shape
    x = dtype.pack(rows(kind, width))
    values, index = emulated.maxk(x, k, group)
    wanted = expected(dtype.unpack(x), k, group)
    np.testing.assert_array_equal(index, wanted)
    np.testing.assert_array_equal(dtype.unpack(values), np.take_along_axis(dtype.unpack(x), wanted, 1))


#: by eight lanes or a warp, 16 or 32 columns of a lane or none, by vectors or not; groups that a thread compares
WIDE = [(330, 30, 33), (402, 40, 201), (400, 40, 200), (301, 30, 0), (601, 20, 0), (1501, 10, 0), (512, 64, 8)]
WIDE += [(512, 96, 16)]


@pytest.mark.parametrize("shape", WIDE, ids=str)
def test_wide_rows(emulated, dtype, shape):
    test_choice(emulated, dtype, shape, "special")


@pytest.mark.parametrize("shape", [(256, 32, 0), (256, 32, 8), (256, 128, 16), (40, 10, 4)], ids=str)
def test_misaligned_rows(emulated, dtype, shape):
    width, k, group = shape
    emulated.set_misalignment(1)
    x = dtype.pack(rows("normal", width))
    values, index = emulated.maxk(x, k, group)
    dense = emulated.maxk_expand(values, index, width)
    emulated.set_misalignment(0)
    np.testing.assert_array_equal(index, expected(dtype.unpack(x), k, group))
    np.testing.assert_array_equal(dense[np.arange(9)[:, None], index], values)


@pytest.mark.parametrize("width", [1, 40, 256, 300, 1024, 2100])
def test_expand_and_gather(emulated, dtype, width):
    x = dtype.pack(rows("normal", width))
    values, index = emulated.maxk(x, max(1, width // 3))
    dense = np.zeros_like(x)
    np.put_along_axis(dense, index.astype(np.int64), values, 1)
    np.testing.assert_array_equal(emulated.maxk_expand(values, index, width), dense)
    np.testing.assert_array_equal(emulated.maxk_gather(x, index), values)


def test_nothing(emulated):
    values, index = emulated.maxk(np.zeros((0, 8), np.float32), 3)
    assert values.shape == index.shape == (0, 3)
