"""Every instruction set of the CPU kernels gives right results, and the library knows which of them it has."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fresh
import pytest
import torch

from sparsegnn import _native
from sparsegnn.ops._library import LIBRARY

TESTS = Path(__file__).parent
ROOT = TESTS.parent
OTHERS = [isa for isa in _native.processor_isas() if isa != torch.ops.sparsegnn.isa()]


@pytest.fixture(scope="module")
def others() -> Path:
    """A library of the instruction sets of this processor that the installed one does not use, built as that one is."""
    if not OTHERS or not shutil.which("cmake") or not shutil.which("ninja"):
        pytest.skip("needs cmake, ninja and a processor with a second instruction set")
    build = ROOT / "build" / "isas"
    torch_folder = importlib.util.find_spec("torch").submodule_search_locations[0]
    configure = ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DSPARSEGNN_TORCH={torch_folder}"]
    configure += [f"-DSPARSEGNN_ISAS={','.join(OTHERS)}", "-DSPARSEGNN_CUDA=off", f"-DSPARSEGNN_OUTPUT={build / 'lib'}"]
    subprocess.check_call(configure, stdout=subprocess.DEVNULL)
    subprocess.check_call(["cmake", "--build", str(build), "-j", str(os.cpu_count())], stdout=subprocess.DEVNULL)
    return build / "lib"


@pytest.mark.deep
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("isa", list(_native.FLAGS))
def test_variant(others, isa):
    """A sample of the ops' value tests, and all shapes of the tiled ones, in a process that uses this variant."""
    if isa not in OTHERS:
        pytest.skip("used by all other tests" if isa == torch.ops.sparsegnn.isa() else f"this processor has no {isa}")
    variables = {"SPARSEGNN_LIBRARIES": str(others), "SPARSEGNN_ISA": isa, "SPARSEGNN_TEST_STRIDE": "3"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(TESTS / "ops")]
    command += ["-k", "values or shapes"]
    result = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, cwd=TESTS)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]


def isa_with(wish: str) -> str:
    """What a process says that is told to use this one."""
    code = "import torch, sparsegnn; print(torch.ops.sparsegnn.isa())"
    done = fresh.python(code, SPARSEGNN_ISA=wish)
    return done.stdout.strip() or done.stderr


def test_override_is_checked():
    assert "SPARSEGNN_ISA must be portable, avx2 or avx512, got sse9" in isa_with("sse9")
    isa = next((isa for isa in reversed(_native.FLAGS) if isa not in torch.ops.sparsegnn.isas().split(",")), "portable")
    built, here = isa in torch.ops.sparsegnn.isas().split(","), isa in _native.processor_isas()
    expected = "is not in this build" if here else "is not supported by this processor"
    assert (isa if built else f"SPARSEGNN_ISA={isa} {expected}") in isa_with(isa)


def test_the_library_says_what_it_has():
    """The names in the file are those of the loaded library; the processor's are what torch finds."""
    library = _native.FOLDER / "libsparsegnn_cpu.so"
    assert ",".join(_native.instruction_sets(library)) == torch.ops.sparsegnn.isas()
    here = _native.processor_isas()
    assert here[0] == "portable" and torch.ops.sparsegnn.best_isa() in here
    assert ("avx2" in here) == torch.cpu._is_avx2_supported()
    assert ("avx512" in here) <= torch.cpu._is_avx512_supported()


def test_a_library_for_another_processor_is_not_loaded(monkeypatch):
    """It would stop the process at its first instruction; the import says what it is built for and falls back."""
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    monkeypatch.setattr(_native, "status", {})
    monkeypatch.setattr(_native, "processor_isas", lambda: ["another"])
    _native.load()
    assert not [name for name in loaded if "cpu" in name]
    built = torch.ops.sparsegnn.isas().replace(",", ", ")
    expected = f"built for {built}, this processor runs another; to rebuild: pip install --no-build-isolation ."
    assert _native.status["cpu"] == expected
    assert _native.missing_isa([], ["portable"]) == ""  # a build that does not say what it has is tried


def test_the_interface_has_another_number_whenever_a_schema_changes():
    """If this fails: the next number in sparsegnn/_native.py and csrc/common/interface.cpp, and both here."""
    names = sorted(name.rpartition("::")[2].partition(".")[0] for name in LIBRARY._op_defs)
    schemas = "\n".join(str(getattr(torch.ops.sparsegnn, name).default._schema) for name in names)
    assert (_native.INTERFACE, hashlib.sha256(schemas.encode()).hexdigest()[:16]) == (4, "47af0ef3bbf7ed52")


@pytest.mark.parametrize("stamp", [b"sparsegnn-interface:0;", b"sparsegnn-interfaces", b"sparsegnn-interface:12"])
def test_a_library_of_other_sources_is_not_loaded(stamp, tmp_path, monkeypatch):
    """Its kernels would read arguments that the schemas no longer have; the reason names the command that builds it."""
    ours = f"sparsegnn-interface:{_native.INTERFACE};\0".encode()
    content = (_native.FOLDER / "libsparsegnn_cpu.so").read_bytes()
    assert content.count(ours) == 1
    (tmp_path / "libsparsegnn_cpu.so").write_bytes(content.replace(ours, stamp.ljust(len(ours), b"\0")))
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    monkeypatch.setattr(_native, "status", {})
    monkeypatch.setattr(_native, "FOLDER", tmp_path)
    _native.load()
    assert loaded == []
    assert _native.status["cpu"].startswith("built from other sources than this Python (")
    assert _native.status["cpu"].endswith("to rebuild: pip install --no-build-isolation .")
