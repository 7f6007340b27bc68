"""The torch entries csrc/cuda/*.cu under the emulator: they take the place of the CPU library, and ops are tested.

So are MaxK and GCNConv as one op: there training steps run on the fused kernels.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import EMULATOR_BUILD

TESTS = Path(__file__).parents[1]
#: some of every op: plain graphs, hubs, nothing at all, layouts, public functions; all of it passes but takes minutes
OPS = (
    "float32 and cpu and (hub or one_node or zero_edges) and not (test_degrees or hub_source) "
    "or mixed_dtypes or no_entries or no_samples or leading_dim or public_function or tf32"
)
#: forward and backward of graph layers behind MaxK, in every way the layers call the kernels
MAXK = "training_step or weighted_graphs or (compressed_rows_as_dense_ones and 0.0)"
FUSED = "not (sixteen_bits and dtype1)"  # not float16


def run(cwd: Path, tests: list[Path], selection: str) -> int:
    """How many tests pass with the entries in place of the CPU library, and no fallback allowed."""
    folder = EMULATOR_BUILD / "sparsegnn_emulated_entries"
    if not (folder / "libsparsegnn_cpu.so").is_file():
        strict = os.environ.get("SPARSEGNN_STRICT") == "1"
        (pytest.fail if strict else pytest.skip)(f"{folder} has no library; build it with `make build-emulator`")
    env = os.environ | {"SPARSEGNN_LIBRARIES": str(folder), "SPARSEGNN_STRICT": "1", "CUDA_VISIBLE_DEVICES": ""}
    env["SPARSEGNN_TEST_STRIDE"] = "4"
    command = [sys.executable, "-m", "pytest", *map(str, tests), "-q", "-x", "-p", "no:cacheprovider", "-k", selection]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return int(re.search(r"(\d+) passed", done.stdout)[1])


sanitized = pytest.mark.skipif(
    "SPARSEGNN_EMULATED" in os.environ, reason="Python itself is sanitized in that run, torch is not"
)


@sanitized
@pytest.mark.parametrize(
    "part, layer, selection, least", [(0, "maxk", MAXK, 35), (1, "gcn_fused", FUSED, 70)], ids=["maxk", "gcn_fused"]
)
def test_ops_and_layers_pass_with_the_cuda_entries(tmp_path, part, layer, selection, least):
    """Half of the ops, and a layer whose training steps run on these kernels."""
    ops, layer = sorted((TESTS / "ops").glob("test_*.py"))[part::2], TESTS / "nn" / f"test_{layer}.py"
    chosen = f"{layer.name} and ({selection}) or not {layer.name} and ({OPS})"
    assert run(tmp_path, [*ops, layer], chosen) >= least
