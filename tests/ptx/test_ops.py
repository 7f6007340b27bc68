"""The tests of tests/csrc again, on what nvcc made of the kernels; and no kernel is shipped that none of them runs.

One file of them: SPARSEGNN_EMULATED=sparsegnn_ptx pytest tests/csrc/test_spmm.py
"""

import os
import re
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from .conftest import NAME, shipped

CSRC = Path(__file__).parents[1] / "csrc"
#: of the emulator alone: planted kernels, tensor cores by a kernel of the test, the library of entries
OTHERS = ("test_emulator", "test_mma", "test_entries")
FILES = sorted(path.stem for path in CSRC.glob("test_*.py") if path.stem not in OTHERS)
pytestmark = [pytest.mark.deep, pytest.mark.timeout(1500)]


def run(stem: str, ran: Path) -> subprocess.CompletedProcess:
    """One file in a process of its own, which writes the names of its kernels."""
    env = os.environ | {"SPARSEGNN_EMULATED": NAME, "SPARSEGNN_PTX_RAN": str(ran)}
    command = [sys.executable, "-m", "pytest", str(CSRC / f"{stem}.py"), "-q", "-p", "no:cacheprovider"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=1200)


@pytest.fixture(scope="module")
def runs(module, tmp_path_factory) -> dict[str, tuple[Future, Path]]:
    folder = tmp_path_factory.mktemp("ran")
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield {stem: (pool.submit(run, stem, folder / stem), folder / stem) for stem in FILES}


@pytest.mark.parametrize("stem", FILES)
def test_an_op_on_its_ptx(runs, stem):
    done = runs[stem][0].result()
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 5


def test_every_kernel_is_decoded(module):
    assert len(shipped()) > 100
    assert all(module.ptx_decode(name) > 0 for name in shipped())


def test_every_kernel_that_is_shipped_has_run(runs):
    """A kernel that no case reaches, a user reaches first; or nobody does, and it is weight."""
    ran = set()
    for done, path in runs.values():
        done.result()
        ran |= set(path.read_text().split())
    never = subprocess.run(["c++filt"], input="\n".join(sorted(shipped() - ran)), capture_output=True, text=True).stdout
    assert ran == shipped(), f"never run:\n{never}"
