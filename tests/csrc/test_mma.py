"""The emulator's tensor cores, against products of matrices in numpy."""

import numpy as np
import pytest

from .conftest import TYPES, Dtype


def tf32(x):
    """Eleven significant bits, to nearest, ties away from zero."""
    mantissa, exponent = np.frexp(np.asarray(x, np.float64))
    return np.ldexp(np.sign(mantissa) * np.floor(np.abs(mantissa) * 2**11 + 0.5) / 2**11, exponent)


DEPTHS = [(name, depth) for name, depth in (("float32", 8), ("bfloat16", 16), ("float16", 16)) if name in TYPES]


@pytest.mark.parametrize("name, depth", DEPTHS)
def test_products_by_fragments(emulated, name, depth):
    rng, dtype = np.random.default_rng(0), Dtype(name)
    a, b = dtype.pack(rng.standard_normal((16, depth))), dtype.pack(rng.standard_normal((depth, 8)))
    d = rng.standard_normal((16, 8)).astype(np.float32)
    left, right = dtype.unpack(a), dtype.unpack(b)
    if name == "float32":
        left, right = tf32(left), tf32(right)
    np.testing.assert_allclose(emulated.mma_product(a, b, d), d + left @ right, rtol=0, atol=3e-6)


@pytest.mark.parametrize("name, depth", DEPTHS)
def test_every_place_of_the_fragments(emulated_module, name, depth):
    """One nonzero in A and one in B: the product has it where it belongs, exactly."""
    dtype, zero = Dtype(name), np.zeros((16, 8), np.float32)
    for i in range(16):
        for k in range(depth):
            a, b = np.zeros((16, depth)), np.zeros((depth, 8))
            a[i, k], b[k, (i + k) % 8] = i + 1, k + 1
            got = emulated_module.mma_product(dtype.pack(a), dtype.pack(b), zero)
            np.testing.assert_array_equal(got, a @ b)


def test_a_warp_that_lacks_lanes_is_an_error(emulated):
    x = np.zeros((16, 8), np.float32)
    with pytest.raises(RuntimeError, match="an instruction of the whole warp lacks lanes"):
        emulated.mma_product(x, x[:8], x, lanes=20)


def test_rounding_to_tf32(emulated_module):
    rng = np.random.default_rng(1)
    x = rng.integers(0, 1 << 32, 100_000, dtype=np.uint32).view(np.float32)
    x = x[np.isfinite(x) & (np.abs(x) >= 2.0**-126) & (np.abs(x) < 3e38)]
    ties = np.array([1 + 2.0**-11, -1 - 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-11 - 2.0**-23], np.float32)
    x = np.concatenate([x, ties, np.float32([0, -0.0, 3.5])])
    np.testing.assert_array_equal(emulated_module.to_tf32(x), tf32(x).astype(np.float32))
    special = np.array([np.inf, -np.inf, np.nan, 3.4028235e38], np.float32)
    np.testing.assert_array_equal(emulated_module.to_tf32(special), np.array([np.inf, -np.inf, np.nan, np.inf]))


def test_byte_permutation(emulated_module):
    x, y = 0x33221100, 0x77665544
    for selector, want in ((0x5410, 0x55441100), (0x7632, 0x77663322), (0x0123, 0x00112233), (0x7777, 0x77777777)):
        assert emulated_module.byte_perm(x, y, selector) == want
