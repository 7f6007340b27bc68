"""The wheel, the sdist and the library's symbols: what installs, where it runs, and what it needs."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import sparsegnn

ROOT = Path(__file__).parents[1]
PACKAGE = Path(sparsegnn.__file__).parent


def call(*command, **options) -> str:
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the tracked files: building must not write into the checkout."""
    copy = tmp_path_factory.mktemp("source") / "sparsegnn"
    for name in call("git", "ls-files", cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory) -> dict:
    """An environment in which importing torch fails."""
    folder = tmp_path_factory.mktemp("no_torch")
    (folder / "torch.py").write_text("raise ImportError('no torch here')\n")
    return os.environ | {"PYTHONPATH": str(folder)}


@pytest.mark.timeout(1800)
def test_wheel_runs_from_a_clean_environment(source, tmp_path):
    environment = os.environ | {"SPARSEGNN_CUDA": "off"}
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    call(*pip, "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", tmp_path, source, env=environment)
    (wheel,) = tmp_path.glob("*.whl")
    assert re.fullmatch(r"sparsegnn-[\d.]+-py3-none-\w+\.whl", wheel.name)
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("sparsegnn/libsparsegnn_cpu.so", "sparsegnn/py.typed", "sparsegnn/_build.json"):
        assert name in names
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/", "csrc/"))]

    call(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    call(*pip, "install", "-q", "--no-deps", "--target", site, wheel)
    (site / "torch_of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")  # torch, not another sparsegnn
    code = (
        "import sparsegnn, torch; print(sparsegnn.__file__);"
        "g = sparsegnn.CSRGraph.from_edge_index(torch.tensor([[0, 1, 2], [1, 2, 0]]));"
        "print(sparsegnn.ops.spmm(g, torch.eye(3)).tolist())"
    )
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"SPARSEGNN_STRICT": "1"}
    lines = call(tmp_path / "venv" / "bin" / "python", "-c", code, cwd=tmp_path, env=clean).splitlines()
    assert Path(lines[0]).is_relative_to(tmp_path / "venv")
    assert lines[1] == "[[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]"


def test_sdist_needs_no_torch_and_is_complete(source, without_torch, tmp_path):
    code = f"import setuptools.build_meta as b; b.build_sdist({str(tmp_path)!r})"
    call(sys.executable, "-c", code, cwd=source, env=without_torch)
    (archive,) = tmp_path.glob("*.tar.gz")
    names = {n.partition("/")[2] for n in tarfile.open(archive).getnames()}
    needed = {"setup.py", "CMakeLists.txt", "LICENSE", "csrc/cpu/spmm.cpp", "csrc/cpu/spmm.kernel.cpp"}
    assert needed | {"csrc/common/tensor.h", "csrc/cuda/spmm.cuh", "cmake/cpu.cmake", "sparsegnn/py.typed"} <= names
    assert not [n for n in names if n.endswith(".so")]


def test_building_without_torch_says_what_to_do(source, without_torch):
    command = [sys.executable, "setup.py", "build_ext"]
    result = subprocess.run(command, cwd=source, env=without_torch, capture_output=True, text=True)
    assert result.returncode != 0
    assert "install torch >= 2.10 first, then: pip install --no-build-isolation ." in result.stderr


def test_cpu_library_uses_the_stable_abi_alone():
    library = PACKAGE / "libsparsegnn_cpu.so"
    undefined = call("nm", "-D", "--undefined-only", "-C", library)
    bad = [s for s in undefined.splitlines() if re.search(r"\b(at|c10|pybind11)::|\bPy[A-Z_]", s)]
    assert not bad
    assert "aoti_torch" in undefined or "torch_call_dispatcher" in undefined


def test_import_without_libraries_falls_back(tmp_path):
    """No compiled library: the package imports, warns once with the command that builds it, and is right."""
    environment = os.environ | {"SPARSEGNN_LIBRARIES": str(tmp_path), "SPARSEGNN_STRICT": ""}
    code = (
        "import sparsegnn, torch, warnings; warnings.simplefilter('always');"
        "g = sparsegnn.CSRGraph.from_csr(torch.tensor([0, 1]), torch.tensor([0]));"
        "print(*[sparsegnn.ops.spmm(g, torch.full((1, 2), 3.0)).tolist() for _ in range(2)])"
    )
    where = dict(cwd=tmp_path, capture_output=True, text=True)
    result = subprocess.run([sys.executable, "-c", code], env=environment, **where)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[0] == "[[3.0, 3.0]] [[3.0, 3.0]]"
    assert result.stderr.count("no compiled cpu kernel for spmm") == 1
    assert "pip install --no-build-isolation ." in result.stderr
    strict = subprocess.run([sys.executable, "-c", code], env=environment | {"SPARSEGNN_STRICT": "1"}, **where)
    assert strict.returncode != 0 and "SPARSEGNN_STRICT=1" in strict.stderr
