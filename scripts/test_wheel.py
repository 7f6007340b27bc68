"""Installs what `make wheel` made into clean environments and checks it there: `make test-wheel` (takes minutes).

    python scripts/test_wheel.py dist [PYTHON:TORCH ...] [--keep FOLDER]

The folder holds one wheel and one sdist. Each row is an environment, by default 3.10:2.10.0 and newest:newest; PYTHON
is a version or the path of an interpreter, TORCH a version. In each the wheel must do what check_install.py says, with
every instruction set that the processor has; in the last one then the sdist, compiled there. pip's own settings
(PIP_INDEX_URL, PIP_CONFIG_FILE, ...) say where torch comes from. --keep leaves the environments, and uses those that
are there again: torch is several GB.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CHECK = Path(__file__).resolve().with_name("check_install.py")
BUILD_TOOLS = ("setuptools>=77", "wheel", "cmake", "ninja")
ISAS = {"x86_64": ("portable", "avx2", "avx512")}


def call(*command, **options) -> str:
    """Standard output of a command that must not fail, run away from any checkout."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SPARSEGNN_"))}
    clean |= options.pop("environment", {})
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=clean, **options)
    if result.returncode:
        sys.exit(f"failed: {' '.join(map(str, command))}\n{result.stdout[-3000:]}{result.stderr[-6000:]}")
    return result.stdout


def interpreter(wish: str) -> str:
    """The Python of a version, a path, or `newest`: the newest release among those on the PATH."""
    names = [f"python3.{minor}" for minor in range(30, 9, -1)] if wish == "newest" else [wish, f"python{wish}"]
    for name in names:
        path = shutil.which(name)
        if path and subprocess.run([path, "-c", "import ensurepip, venv"], capture_output=True).returncode == 0:
            return path
    sys.exit(f"test_wheel: no Python {wish} on the PATH")


def check_wheel(wheel: Path) -> dict:
    """What can be seen without installing: the tag, all parts, nothing of torch or the compiler bundled."""
    match = re.fullmatch(r"(sparsegnn-[\w.]+)-py3-none-(?:manylinux\w+\.)*manylinux_\d+_\d+_(\w+)\.whl", wheel.name)
    if not match:
        sys.exit(f"test_wheel: {wheel.name} has no manylinux tag after py3-none: auditwheel did not repair it")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        build = json.loads(archive.read("sparsegnn/_build.json"))
    libraries = sorted(name for name in names if ".so" in name)
    wanted = [f"sparsegnn/libsparsegnn_{kind}.so" for kind in ("cpu", "cuda") if kind == "cpu" or build["cuda"]]
    others = {name.partition("/")[0] for name in names} - {"sparsegnn", f"{match[1]}.dist-info"}
    isas = ISAS.get(match[2], ("portable",))
    for what, found, expected in (
        ("libraries", libraries, wanted),
        ("top-level folders besides the package", sorted(others), []),
        ("instruction sets", sorted(build["isas"]), sorted(isas)),
    ):
        if found != expected:
            sys.exit(f"test_wheel: {wheel.name}: {what}: {found}, expected {expected}")
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, CUDA: {build['cuda']}", flush=True)
    return build


def environment(folder: Path, python: str, torch: str) -> Path:
    """The interpreter of a virtual environment that has torch and not yet sparsegnn."""
    if not (folder / "torch").is_file():
        call(python, "-m", "venv", "--clear", folder)
        requirement = "torch" if torch == "newest" else f"torch=={torch}"
        call(folder / "bin" / "python", "-m", "pip", "install", "-q", requirement)
        (folder / "torch").touch()
    python = folder / "bin" / "python"
    call(python, "-m", "pip", "uninstall", "-q", "-y", "sparsegnn")
    return python


def check(python: Path, isas: tuple[str, ...]) -> list[dict]:
    """Runs check_install.py with each of these instruction sets, the best one as the default; and the command line."""
    found = []
    for isa in (*isas, None):
        given = {"SPARSEGNN_ISA": isa} if isa else {}
        found.append(json.loads(call(python, "-I", CHECK, environment=given, cwd=python.parent)))
        assert found[-1]["isa"] == (isa or isas[-1]), (isa, found[-1])
        assert Path(found[-1]["package"]).is_relative_to(python.parents[1]), found[-1]
    command = "train --data digits --sparsity 0.9 --epochs 5 --json".split()
    strict = {"SPARSEGNN_STRICT": "1"}
    trained = json.loads(call(python.with_name("sparsegnn"), *command, environment=strict, cwd=python.parent))
    assert abs(trained["sparsity"] - 0.9) < 0.01, trained
    return found


def runnable(python: Path, isas: list[str]) -> tuple[str, ...]:
    """Those of the build's instruction sets that this processor has."""
    best = call(python, "-c", "import torch, sparsegnn; print(torch.ops.sparsegnn.best_isa())", cwd=python.parent)
    return tuple(isas[: isas.index(best.strip()) + 1])


def row(what: str, facts: list[dict], build: dict) -> None:
    last = facts[-1]
    cuda = last["libraries"]["cuda"].partition(":")[0]  # "loaded", or "loaded, but no GPU can be used: ..."
    if build["cuda"] and not cuda.startswith("loaded") and "this torch has no CUDA" not in cuda:
        sys.exit(f"test_wheel: the CUDA library does not load: {last['libraries']['cuda']}")
    isas = ", ".join(dict.fromkeys(fact["isa"] for fact in facts))
    print(f"| {what} | {last['python']} | {last['torch']} | {isas} | {last['compiled']} | {cuda} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("rows", nargs="*", default=["3.10:2.10.0", "newest:newest"], metavar="PYTHON:TORCH")
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    wheels, sdists = list(given.folder.glob("*.whl")), list(given.folder.glob("*.tar.gz"))
    if (len(wheels), len(sdists)) != (1, 1) or not all(":" in wish for wish in given.rows):
        parser.error(f"folder must hold one wheel and one sdist, rows be PYTHON:TORCH, got {' '.join(sys.argv[1:])}")
    (wheel,), (sdist,) = wheels, sdists
    build = check_wheel(wheel)
    print("| what | Python | torch | instruction sets run | compiled ops | CUDA library |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="sparsegnn-wheel-") as temporary:
        for number, wish in enumerate(given.rows, 1):
            name, torch = wish.rsplit(":", 1)
            folder = (given.keep or Path(temporary)).resolve() / f"python{name}-torch{torch}".replace("/", "_")
            python = environment(folder, interpreter(name), torch)
            pip = (python, "-m", "pip", "install", "-q")
            call(*pip, f"{wheel.resolve()}[cli]")
            isas = runnable(python, build["isas"])
            row("wheel", check(python, isas), build)
            if number == len(given.rows):
                call(python, "-m", "pip", "uninstall", "-q", "-y", "sparsegnn")
                call(*pip, *BUILD_TOOLS)
                call(*pip, "--no-build-isolation", "--no-deps", sdist.resolve(), environment={"SPARSEGNN_CUDA": "off"})
                row("sdist", check(python, isas[-1:]), {"cuda": None})
            if not given.keep:
                shutil.rmtree(folder)


if __name__ == "__main__":
    main()
