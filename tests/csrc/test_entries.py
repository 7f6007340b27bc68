"""The torch entries csrc/cuda/*.cu under the emulator: they take the place of the CPU library, and ops are tested.

So is GCNConv as one op: there a training step runs on the fused kernels.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import BUILD

TESTS = Path(__file__).parents[1]
#: some of every op: plain graphs, hubs, nothing at all, layouts, public functions; all of it passes but takes minutes
SELECTION = (
    "float32 and cpu and (hub or one_node or zero_edges) and not (test_degrees or hub_source) "
    "or mixed_dtypes or no_entries or no_samples or leading_dim or public_function"
)


@pytest.mark.parametrize(
    "tests, selection, least", [("ops", SELECTION, 40), ("nn/test_gcn_fused.py", "", 30)], ids=["ops", "fused layer"]
)
@pytest.mark.skipif("SPARSEGNN_EMULATED" in os.environ, reason="Python itself is sanitized in that run, torch is not")
def test_ops_pass_with_the_cuda_entries(tmp_path, tests, selection, least):
    folder = BUILD / "sparsegnn_emulated_entries"
    if not (folder / "libsparsegnn_cpu.so").is_file():
        strict = os.environ.get("SPARSEGNN_STRICT") == "1"
        (pytest.fail if strict else pytest.skip)(f"{folder} has no library; build it with `make build-emulator`")
    env = os.environ | {"SPARSEGNN_LIBRARIES": str(folder), "SPARSEGNN_STRICT": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = [sys.executable, "-m", "pytest", str(TESTS / tests), "-q", "-x", "-p", "no:cacheprovider", "-k", selection]
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= least
