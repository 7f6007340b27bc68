"""The emulator itself: planted bugs are caught, and kernels without one are not accused."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from .conftest import locate

ORDERS = ("forward", "reversed", "shuffled")


def in_orders(module, f) -> list:
    results = []
    for order in ORDERS:
        module.set_schedule(order, 3)
        results.append(f())
    return results


def test_a_missing_barrier_shows(emulated_module):
    """A reduction without its barrier is wrong in some order, and not the same in all; with it, right in all."""
    x = np.ones(256, np.int32)
    assert in_orders(emulated_module, lambda: emulated_module.planted_block_sum(x, barrier=True)) == [256] * 3
    broken = in_orders(emulated_module, lambda: emulated_module.planted_block_sum(x, barrier=False))
    assert len(set(broken)) > 1, broken


def test_warp_sums(emulated):
    x = np.arange(64, dtype=np.float32)
    for width in (1, 2, 8, 32):
        expected = x.reshape(-1, width).sum(1).repeat(width)
        np.testing.assert_array_equal(emulated.planted_warp_sums(x, width), expected)


@pytest.mark.parametrize(
    "kind, message",
    [
        (0, r"divergent barrier in block \(0, 0, 0\): 32 thread\(s\) wait at __syncthreads, 0 .* 32 have returned"),
        (1, "32 thread.* wait at __syncthreads, .* 32 have returned"),
        (2, "the mask of a warp intrinsic lacks the caller"),
        (3, "lanes of one mask met at different warp intrinsics"),
        (4, "32 thread.* wait at __syncthreads, 32 at a warp intrinsic, 0 have returned"),
    ],
)
def test_divergence_is_an_error_not_a_hang(emulated, kind, message):
    with pytest.raises(RuntimeError, match=message):
        emulated.planted_divergence(kind, 64)
    np.testing.assert_array_equal(emulated.planted_copy_from(np.ones(3, np.float32), 0), 1)  # and goes on working


def test_misaligned_vector_access(emulated):
    x = np.zeros(8, np.float32)
    emulated.planted_vector_copy(x, 4)
    with pytest.raises(RuntimeError, match="misaligned load, needs 16 bytes"):
        emulated.planted_vector_copy(x, 1)


def test_unwritten_shared_memory_is_poisoned(emulated):
    y = emulated.planted_shared_write(8, 2)
    assert y[2] == 1 and (np.delete(y, 2).view(np.uint32) == 0xCBCBCBCB).all()


@pytest.mark.parametrize("grid, block, shared", [(0, 32, 0), (1, 0, 0), (1, 1025, 0), (1, 32, 228 * 1024)])
def test_impossible_launches_return_an_error(emulated_module, grid, block, shared):
    assert emulated_module.planted_launch_error(1, 32, 227 * 1024) == 0
    assert emulated_module.planted_launch_error(grid, block, shared) == 9  # cudaErrorInvalidConfiguration


def test_half_precision_rounds_as_hardware(emulated_module):
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = emulated_module.widen(bits.view(np.float16))
    np.testing.assert_array_equal(wide, bits.view(np.float16).astype(np.float32))
    rng = np.random.default_rng(0)
    x = rng.integers(0, 1 << 32, 200_000, dtype=np.uint32).view(np.float32)
    halves = emulated_module.widen(bits.view(np.float16))[bits.view(np.float16) == bits.view(np.float16)]
    ties = (halves[:-1] + halves[1:]) / 2  # exactly between neighbours
    x = np.concatenate([x[~np.isnan(x)], halves, ties, [65519.996, 65520, 1e-8, 2.0**-25, -(2.0**-25)]])
    x = x.astype(np.float32)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(emulated_module.to_fp16(x), x.astype(np.float16))
    wide = emulated_module.widen(emulated_module.to_bf16(x)).view(np.uint32)
    u = x.view(np.uint32).astype(np.uint64)
    np.testing.assert_array_equal(wide, (u + 0x7FFF + (u >> 16 & 1)) >> 16 << 16)
    assert np.isnan(emulated_module.to_fp16(np.array([np.nan], np.float32))).all()


def run_sanitized(*arguments: str) -> subprocess.CompletedProcess:
    """Run Python with the sanitizers' libraries in front."""
    compiler = os.environ.get("CXX", "c++")
    find = [[compiler, f"-print-file-name={name}"] for name in ("libasan.so", "libubsan.so")]
    libraries = [subprocess.run(c, capture_output=True, text=True, check=True).stdout.strip() for c in find]
    locate("sparsegnn_emulated_asan")
    env = os.environ | {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "SPARSEGNN_EMULATED": "sparsegnn_emulated_asan",
    }
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=900)


def run_code(code: str) -> subprocess.CompletedProcess:
    """Run Python code with the sanitized module as `emulated`."""
    prelude = f"""
        import importlib.util, numpy as np
        spec = importlib.util.spec_from_file_location("sparsegnn_emulated", {str(locate("sparsegnn_emulated_asan"))!r})
        emulated = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(emulated)
    """
    return run_sanitized("-c", textwrap.dedent(prelude) + textwrap.dedent(code))


@pytest.mark.asan
@pytest.mark.deep
@pytest.mark.parametrize(
    "code, report, line",
    [
        ("emulated.planted_copy_from(np.ones(100, np.float32), 1)", "heap-buffer-overflow", "copy_kernel"),
        ("emulated.planted_copy_from(np.ones(100, np.float32), -1)", "heap-buffer-overflow", "copy_kernel"),
        ("emulated.planted_shared_write(8, 8)", "heap-buffer-overflow", "shared_kernel"),
    ],
)
def test_out_of_bounds_access_is_reported(code, report, line):
    """One element too far, in global or shared memory, stops the process with the kernel's name."""
    done = run_code(code)
    assert done.returncode != 0 and report in done.stderr and line in done.stderr, done.stderr


@pytest.mark.asan
@pytest.mark.deep
def test_clean_kernels_pass_the_sanitizers():
    done = run_code("""
        for order in ("forward", "reversed", "shuffled"):
            emulated.set_schedule(order, 5)
            assert emulated.planted_block_sum(np.ones(256, np.int32), barrier=True) == 256
            assert (emulated.planted_copy_from(np.ones(100, np.float32), 0) == 1).all()
            try:
                emulated.planted_divergence(1, 64)
            except RuntimeError:
                pass
            else:
                raise AssertionError
    """)
    assert done.returncode == 0 and "ERROR" not in done.stderr, done.stderr


@pytest.mark.asan
@pytest.mark.deep
@pytest.mark.timeout(1500)
@pytest.mark.skipif("SPARSEGNN_EMULATED" in os.environ, reason="this is the inner run")
def test_every_op_under_the_sanitizers():
    """All other tests of this folder again, with the module built by -fsanitize=address,undefined."""
    done = run_sanitized("-m", "pytest", str(Path(__file__).parent), "-q", "-x", "-p", "no:cacheprovider",
                         f"--ignore={__file__}")  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
