"""Thin driver of CMake. Metadata and sdist need no torch; compiling does: it is imported only then.

Environment: SPARSEGNN_ISAS=auto|all|names (auto: the best instruction set that this machine runs),
SPARSEGNN_CUDA=auto|on|off (auto: nvcc is there), TORCH_CUDA_ARCH_LIST, MAX_JOBS.
"""

import contextlib
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def tool(name: str) -> str:
    """A program beside this Python (pip installs cmake and ninja there) or on the PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(name, path=path)
    if not found:
        sys.exit(f"sparsegnn: {name} is needed to build the kernels; install it with: pip install {name}")
    return found


def torch_package():
    try:
        import torch
    except ImportError:
        sys.exit("sparsegnn: install torch >= 2.10 first, then: pip install --no-build-isolation .")
    return torch


def cuda() -> bool:
    wish = os.environ.get("SPARSEGNN_CUDA", "auto")
    if wish not in ("auto", "on", "off"):
        sys.exit(f"sparsegnn: SPARSEGNN_CUDA must be auto, on or off, got {wish!r}")
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=os.path.join(os.environ.get("CUDA_HOME", ""), "bin"))
    if wish == "on" and not nvcc:
        sys.exit("sparsegnn: SPARSEGNN_CUDA=on, but no nvcc on the PATH or in CUDA_HOME")
    return wish != "off" and nvcc is not None


def architectures() -> str:
    """CMake's form of TORCH_CUDA_ARCH_LIST ("8.0;9.0+PTX"); the default covers A100 and H100, and later ones by PTX."""
    wish = os.environ.get("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX").replace(" ", ";")
    names = [a.replace(".", "") for a in wish.split(";") if a]
    return ";".join(a[: -len("+PTX")] if a.endswith("+PTX") else f"{a}-real" for a in names)


class FreshPackage(build_py):
    """Starts from nothing: what an earlier build left in build/lib would be packed too, deleted modules for example."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "sparsegnn", ignore_errors=True)
        super().run()


class BuildLibraries(build_ext):
    """Runs CMake once; the libraries land in the package, without Python's suffix."""

    def run(self) -> None:
        torch = torch_package()
        package = ROOT / "sparsegnn" if self.editable_mode or self.inplace else Path(self.build_lib) / "sparsegnn"
        package.mkdir(parents=True, exist_ok=True)
        with_cuda, jobs = cuda(), os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        if not with_cuda:
            (package / "libsparsegnn_cuda.so").unlink(missing_ok=True)
        with self.folder() as build:
            subprocess.check_call(
                [
                    *(tool("cmake"), "-S", str(ROOT), "-B", build, "-G", "Ninja"),
                    f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
                    f"-DSPARSEGNN_TORCH={Path(torch.__file__).parent}",
                    f"-DSPARSEGNN_OUTPUT={package.resolve()}",
                    f"-DSPARSEGNN_ISAS={os.environ.get('SPARSEGNN_ISAS') or 'auto'}",
                    f"-DSPARSEGNN_CUDA={'on' if with_cuda else 'off'}",
                    f"-DCMAKE_CUDA_ARCHITECTURES={architectures()}",
                ]
            )
            subprocess.check_call([tool("cmake"), "--build", build, "-j", jobs])
            isas = (Path(build) / "isas.txt").read_text().split(";")
        facts = dict(
            built=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            torch=torch.__version__,
            python=platform.python_version(),
            machine=platform.machine(),
            isas=isas,
            cuda=architectures() if with_cuda else None,
        )
        (package / "_build.json").write_text(json.dumps(facts, indent=1) + "\n")

    def folder(self):
        """Where CMake works: a folder that is kept for libraries in the source tree, so that only what has changed is
        compiled again, else a temporary one beside it: the same relative paths, so that both share a compiler cache."""
        if self.editable_mode or self.inplace:
            return contextlib.nullcontext(str(ROOT / "build" / "dev"))
        (ROOT / "build").mkdir(exist_ok=True)
        return tempfile.TemporaryDirectory(prefix="wheel-", dir=ROOT / "build")

    def get_outputs(self) -> list[str]:
        return sorted(str(p) for p in (Path(self.build_lib) / "sparsegnn").glob("*.so"))

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class AnyPythonWheel(bdist_wheel):
    """The libraries use neither Python's ABI nor torch's C++ ABI: one wheel per platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("sparsegnn._libraries", sources=[])],
    cmdclass={"build_py": FreshPackage, "build_ext": BuildLibraries, "bdist_wheel": AnyPythonWheel},
)
