"""The CPU kernels under ASan and UBSan: no access out of bounds and no undefined behaviour on the ops' own cases."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sparsegnn import _native

TESTS = Path(__file__).parent
ROOT = TESTS.parent
pytestmark = pytest.mark.deep


def runtime(name: str) -> str:
    """Path of a sanitizer's library, as the compiler knows it."""
    compiler = os.environ.get("CXX", "g++")
    return subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()


@pytest.fixture(scope="module")
def libraries(tmp_path_factory) -> Path:
    if not shutil.which("g++") or not shutil.which("cmake") or sys.platform != "linux":
        pytest.skip("needs g++ and cmake")
    build, out = ROOT / "build" / "sanitize", tmp_path_factory.mktemp("sanitized")
    torch = importlib.util.find_spec("torch").submodule_search_locations[0]
    isas = ",".join(_native.processor_isas())
    flags = ["-DSPARSEGNN_CUDA=off", "-DSPARSEGNN_SANITIZE=address,undefined", f"-DSPARSEGNN_ISAS={isas}"]
    configure = ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DSPARSEGNN_TORCH={torch}", *flags]
    subprocess.check_call([*configure, f"-DSPARSEGNN_OUTPUT={out}"], stdout=subprocess.DEVNULL)
    subprocess.check_call(["cmake", "--build", str(build), "-j", str(os.cpu_count())], stdout=subprocess.DEVNULL)
    return out


def run(libraries: Path, *command: str, **variables: str) -> subprocess.CompletedProcess:
    preload = f"{runtime('libasan.so')} {runtime('libubsan.so')}"
    environment = os.environ | {
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "SPARSEGNN_LIBRARIES": str(libraries),
        **variables,
    }
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, cwd=TESTS)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("isa", list(_native.FLAGS))
def test_ops(libraries, isa):
    if isa not in _native.processor_isas():
        pytest.skip(f"this processor has no {isa}")
    variables = {"SPARSEGNN_ISA": isa, "SPARSEGNN_TEST_STRIDE": "8"}
    arguments = ("-m", "pytest", "-s", "-q", "-x", "-p", "no:cacheprovider", str(TESTS / "ops"), "-k", "values")
    result = run(libraries, *arguments, **variables)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


def test_a_bad_index_is_caught(libraries):
    """The leg works: a pattern that breaks its contract, given to the raw op, is reported at the kernel's line."""
    code = (
        "import torch, sparsegnn; x = torch.ones(4, 16); crow = torch.tensor([0, 1], dtype=torch.int32);"
        "col = torch.tensor([100000], dtype=torch.int32);"
        "torch.ops.sparsegnn.spmm(x, crow, col, *[None] * 7, 'sum')"
    )
    result = run(libraries, "-c", code)
    assert result.returncode != 0 and "AddressSanitizer" in result.stderr and "spmm.kernel.cpp" in result.stderr
