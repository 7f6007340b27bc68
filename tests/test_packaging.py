"""The wheel, the sdist and the library's symbols: what installs, where it runs, and what it needs."""

import email
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import fresh
import pytest

import sparsegnn
from sparsegnn import _native

ROOT = Path(__file__).parents[1]


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


@pytest.fixture(scope="module")
def sdist(source, without_torch, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    code = f"import setuptools.build_meta as b; b.build_sdist({str(folder)!r})"
    call(sys.executable, "-c", code, cwd=source, env=without_torch)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def test_sdist_has_every_source_and_nothing_else(source, sdist):
    names = {n.partition("/")[2] for n in tarfile.open(sdist).getnames()}
    folders = ("sparsegnn", "csrc", "cmake")
    files = {str(p.relative_to(source)) for folder in folders for p in (source / folder).rglob("*") if p.is_file()}
    files |= {"setup.py", "pyproject.toml", "MANIFEST.in", "CMakeLists.txt", "constraints.txt", "LICENSE", "README.md"}
    assert not files - names
    made = {n for n in names - files if n in ("", "PKG-INFO", "setup.cfg") or n.startswith("sparsegnn.egg-info")}
    parents = {str(folder) for name in files for folder in Path(name).parents}
    assert not names - files - made - parents


def test_nothing_of_earlier_builds_is_packed(source, without_torch, tmp_path):
    """Builds leave libraries in the checkout and copies of modules in build/lib."""
    left = ("build/lib/sparsegnn/deleted.py", "sparsegnn/libsparsegnn_cuda.so", "sparsegnn/_build.json")
    checkout = tmp_path / "checkout"
    shutil.copytree(source, checkout)
    for name in left:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("left over")
    call(sys.executable, "setup.py", "-q", "build_py", "--build-lib", "build/lib", cwd=checkout, env=without_torch)
    call(sys.executable, "setup.py", "-q", "sdist", cwd=checkout, env=without_torch)
    packed = {str(p.relative_to(checkout / "build/lib")) for p in (checkout / "build/lib").rglob("*") if p.is_file()}
    tracked = {str(p.relative_to(source)) for p in (source / "sparsegnn").rglob("*") if p.is_file()}
    assert packed == {name for name in tracked if "egg-info" not in name}
    (archive,) = (checkout / "dist").glob("*.tar.gz")
    names = {n.partition("/")[2] for n in tarfile.open(archive).getnames()}
    assert not names & set(left) and packed <= names


def test_metadata_needs_no_torch(source, without_torch, tmp_path):
    code = f"import setuptools.build_meta as b; print(b.prepare_metadata_for_build_wheel({str(tmp_path)!r}))"
    folder = call(sys.executable, "-c", code, cwd=source, env=without_torch).splitlines()[-1]
    found = Path(tmp_path, folder)
    metadata = email.message_from_string((found / "METADATA").read_text())
    assert (metadata["Name"], metadata["Version"]) == ("sparsegnn", sparsegnn.__version__)
    assert metadata["Requires-Python"] == ">=3.10" and metadata["License-Expression"] == "Apache-2.0"
    required = metadata.get_all("Requires-Dist")
    assert [r for r in required if "extra ==" not in r] == ["torch>=2.10", "numpy"]
    assert {"cli", "pyg", "dev"} <= set(metadata.get_all("Provides-Extra"))
    assert "sparsegnn = sparsegnn.cli:main" in (found / "entry_points.txt").read_text()


@pytest.mark.deep
@pytest.mark.wheel
@pytest.mark.timeout(1800)
def test_wheel_of_the_sdist_runs_in_a_clean_environment(sdist, tmp_path):
    """Built for this machine's instruction set, without CUDA; `make wheel test-wheel` does the rest."""
    environment = os.environ | {"SPARSEGNN_CUDA": "off", "SPARSEGNN_ISAS": "auto"}
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    call(*pip, "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", tmp_path, sdist, env=environment)
    (wheel,) = tmp_path.glob("*.whl")
    assert re.fullmatch(r"sparsegnn-[\d.]+-py3-none-\w+\.whl", wheel.name)
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("sparsegnn/libsparsegnn_cpu.so", "sparsegnn/py.typed", "sparsegnn/_build.json"):
        assert name in names
    assert not [n for n in names if not n.startswith(("sparsegnn/", "sparsegnn-"))]

    call(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    call(*pip, "install", "-q", "--no-deps", "--target", site, wheel)
    (site / "torch_of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")  # torch, not another sparsegnn
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SPARSEGNN_"))}
    check = (tmp_path / "venv" / "bin" / "python", "-I", ROOT / "scripts" / "check_install.py")
    facts = json.loads(call(*check, cwd=tmp_path, env=clean))
    assert Path(facts["package"]) == site / "sparsegnn"


def test_building_without_torch_says_what_to_do(source, without_torch):
    command = [sys.executable, "setup.py", "build_ext"]
    result = subprocess.run(command, cwd=source, env=without_torch, capture_output=True, text=True)
    assert result.returncode != 0
    assert "install torch >= 2.10 first, then: pip install --no-build-isolation ." in result.stderr


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_library_needs_the_stable_abi_and_the_system_alone(device):
    """What a wheel could not bundle, or should not: another OpenMP, the CUDA runtime, Python, torch's C++ ABI."""
    library = _native.FOLDER / f"libsparsegnn_{device}.so"
    if not library.exists():
        pytest.skip(f"{library.name} is not built here")
    undefined = call("nm", "-D", "--undefined-only", "-C", library)
    assert not [s for s in undefined.splitlines() if re.search(r"\b(at|c10|pybind11)::|\bPy[A-Z_]", s)]
    assert "aoti_torch" in undefined or "torch_call_dispatcher" in undefined
    dynamic = call("readelf", "-dW", library)
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))
    system = {
        "libstdc++.so.6",
        "libm.so.6",
        "libgcc_s.so.1",
        "libc.so.6",
        "libpthread.so.0",
        "libdl.so.2",
        "librt.so.1",
    }
    assert {n for n in needed - system if not n.startswith("ld-linux")} <= {"libtorch.so", "libtorch_cpu.so"}
    assert "libtorch_cpu.so" in needed and not re.search(r"\((RPATH|RUNPATH)\)", dynamic)
    exported = [line.split()[-1] for line in call("nm", "-D", "--defined-only", library).splitlines()]
    linker = {"__bss_start", "_edata", "_end"}
    assert not [s for s in exported if not s.startswith(("_Z", "sparsegnn_")) and s not in linker]
    assert not [s for s in exported if s.startswith("_Z") and "9sparsegnn" in s]


def test_import_without_libraries_falls_back(tmp_path):
    """No compiled library: the package imports, warns once with the command that builds it, and is right."""
    code = (
        "import sparsegnn, torch, warnings; warnings.simplefilter('always');"
        "g = sparsegnn.CSRGraph.from_csr(torch.tensor([0, 1]), torch.tensor([0]));"
        "print(*[sparsegnn.ops.spmm(g, torch.full((1, 2), 3.0)).tolist() for _ in range(2)])"
    )
    folder = str(tmp_path)
    result = fresh.python(code, cwd=tmp_path, SPARSEGNN_LIBRARIES=folder, SPARSEGNN_STRICT="")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[0] == "[[3.0, 3.0]] [[3.0, 3.0]]"
    assert result.stderr.count("no compiled cpu kernel for spmm") == 1
    assert "pip install --no-build-isolation ." in result.stderr
    strict = fresh.python(code, cwd=tmp_path, SPARSEGNN_LIBRARIES=folder, SPARSEGNN_STRICT="1")
    assert strict.returncode != 0 and "SPARSEGNN_STRICT=1" in strict.stderr


# --- scripts/test_wheel.py: what it refuses ---------------------------------------------------------------------------

GOOD = "sparsegnn-1.0-py3-none-manylinux_2_34_x86_64.whl"
BUILD = dict(isas=["portable", "avx2", "avx512"], cuda="80-real;90")
LIBRARIES = ("sparsegnn/libsparsegnn_cpu.so", "sparsegnn/libsparsegnn_cuda.so")


@pytest.mark.parametrize(
    "name, build, files, wrong",
    [
        (GOOD, BUILD, LIBRARIES, None),
        (GOOD, BUILD | {"cuda": None}, LIBRARIES[:1], None),
        ("sparsegnn-1.0-py3-none-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl", BUILD, LIBRARIES, None),
        ("sparsegnn-1.0-py3-none-manylinux_2_34_aarch64.whl", BUILD | {"isas": ["portable"]}, LIBRARIES, None),
        ("sparsegnn-1.0-py3-none-linux_x86_64.whl", BUILD, LIBRARIES, "no manylinux tag"),
        ("sparsegnn-1.0-cp311-cp311-manylinux_2_34_x86_64.whl", BUILD, LIBRARIES, "py3-none"),
        (GOOD, BUILD | {"isas": ["avx2"]}, LIBRARIES, "instruction sets: ['avx2']"),
        (GOOD, BUILD, LIBRARIES[:1], "libraries"),
        (GOOD, BUILD | {"cuda": None}, LIBRARIES, "libraries"),
        (GOOD, BUILD, (*LIBRARIES, "sparsegnn.libs/libgomp-24e2ab19.so.1.0.0"), "libraries"),
        (GOOD, BUILD, (*LIBRARIES, "tests/test_cli.py"), "top-level folders besides the package: ['tests']"),
    ],
)
def test_wheels_that_are_refused(name, build, files, wrong, tmp_path):
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        for file in (*files, "sparsegnn/__init__.py", "sparsegnn-1.0.dist-info/METADATA"):
            archive.writestr(file, "")
        archive.writestr("sparsegnn/_build.json", json.dumps(build))
    check_wheel = runpy.run_path(str(ROOT / "scripts" / "test_wheel.py"))["check_wheel"]
    if wrong is None:
        assert check_wheel(tmp_path / name) == build
    else:
        with pytest.raises(SystemExit, match=re.escape(wrong)):
            check_wheel(tmp_path / name)
