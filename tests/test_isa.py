"""Every instruction-set variant of the CPU kernels gives right results."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sparsegnn  # noqa: F401

TESTS = Path(__file__).parent
ISAS = ("portable", "avx2", "avx512")


@pytest.mark.parametrize("isa", ISAS)
def test_variant(isa):
    """A sample of the ops' value tests in a process that is told to use this variant."""
    best = torch.ops.sparsegnn.best_isa()
    if ISAS.index(isa) > ISAS.index(best):
        pytest.skip(f"this processor has {best}, not {isa}")
    environment = os.environ | {"SPARSEGNN_ISA": isa, "SPARSEGNN_TEST_STRIDE": "6"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(TESTS / "ops"), "-k", "values"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=TESTS)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]


def test_override_is_checked():
    code = "import torch, sparsegnn; torch.ops.sparsegnn.isa()"
    environment = os.environ | {"SPARSEGNN_ISA": "sse9"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=TESTS)
    assert result.returncode != 0 and "SPARSEGNN_ISA must be portable, avx2 or avx512, got sse9" in result.stderr
