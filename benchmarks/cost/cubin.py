"""Kernels compiled for sm_90 one by one, and their machine code; kept in a folder under a hash of their source."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from cost import sass

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
FLAGS = ("-std=c++17", "-O3", "-arch=sm_90", "-cubin", "-DNDEBUG", "-DUSE_CUDA")


class Missing(RuntimeError):
    """A program that this needs is not installed."""


def folder() -> Path:
    return Path(os.environ.get("SPARSEGNN_COST_BUILD", ROOT / "build" / "cost"))


@cache
def nvcc() -> str:
    found = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if not found:
        raise Missing("nvcc is not installed: no kernel can be compiled (--budget reckons with the committed counts)")
    return found


@cache
def cuobjdump() -> str:
    """Of the CUDA toolkit, of the wheel ``nvidia-cuda-cuobjdump``, or of Triton's."""
    places = [shutil.which("cuobjdump"), *(str(p) for p in Path("/usr/local").glob("cuda*/bin/cuobjdump"))]
    for package, inside in (("nvidia", "*/bin"), ("triton", "backends/nvidia/bin")):
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec else []:
            places += [str(p) for p in sorted(Path(place).glob(f"{inside}/cuobjdump"))]
    for place in filter(None, places):
        if found := shutil.which(place):
            return found
    raise Missing("cuobjdump is not installed (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm, or a CUDA "
                  "toolkit; --budget reckons with the committed counts)")  # fmt: skip


def run(*command) -> str:
    beside = os.pathsep.join([os.environ.get("PATH", ""), str(Path(command[0]).parent)])  # cuobjdump calls nvdisasm
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=os.environ | {"PATH": beside})
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))[:300]}: exit {done.returncode}: {done.stderr[-3000:]}")
    return done.stdout


def includes(header: Path) -> list[Path]:
    """The header and what of ours it includes, in a fixed order."""
    found, todo = {header}, [header]
    while todo:
        here = todo.pop()
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', here.read_text(), re.M):
            path = (here.parent / name).resolve()
            if path.is_file() and path not in found:
                found.add(path)
                todo.append(path)
    return sorted(found)


def probe(header: str, kernels: list[str]) -> str:
    """A source that makes nvcc instantiate these kernels of ``csrc/cuda/<header>``, and no other."""
    taken = ", ".join(f"reinterpret_cast<const void*>(&{kernel})" for kernel in kernels)
    body = f"const void* taken(int i) {{\n  const void* const all[] = {{{taken}}};\n  return all[i];\n}}\n"
    return f'#include "{CSRC / "cuda" / header}"\nnamespace sparsegnn::cuda {{\n{body}}}\n'


def plain(name: str) -> str:
    """A kernel's name as ``budget.json`` has it and as c++filt prints it, made the same."""
    name = name.replace("sparsegnn::cuda::", "").replace("(anonymous namespace)::", "")
    types = {"uint8_t": "unsigned char", "uint16_t": "unsigned short", "int16_t": "short", "int32_t": "int"}
    for written, meant in (types | {"(bool)1": "true", "(bool)0": "false"}).items():
        name = name.replace(written, meant)
    return re.sub(r"(?<=\d)[ul]+\b", "", name.removeprefix("void ").replace(" ", ""))


def enumerators(text: str) -> dict[str, str]:
    """Of the sources ``Kind::none`` -> ``(Kind)0``, as c++filt prints it."""
    found = {}
    for kind, names in re.findall(r"\benum class (\w+)(?:\s*:\s*\w+)?\s*\{([^}=]*)\}", text):
        for i, name in enumerate(n.strip() for n in names.split(",") if n.strip()):
            found[f"{kind}::{name}"] = f"({kind}){i}"
    return found


def of_signature(text: str) -> str:
    """The name with its template arguments of ``void kernel<...>(...)``."""
    depth = 0
    for at, c in enumerate(text):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0 and not text.startswith("(anonymous", at):
            return plain(text[:at])
    return plain(text)


def compiled(header: str, kernels: list[str]) -> dict[str, sass.Kernel]:
    """The kernels of a header by the names they were asked for with. Compiles where the folder does not have them."""
    source = probe(header, sorted(kernels))
    digest = hashlib.sha256(source.replace(str(ROOT), "").encode())
    for path in includes(CSRC / "cuda" / header):
        digest.update(path.read_bytes())
    digest.update(" ".join([*FLAGS, compiler(), disassembler()]).encode())
    stem = folder() / f"{header.partition('.')[0]}-{digest.hexdigest()[:20]}"
    if not (done := stem.with_suffix(".json")).is_file():
        folder().mkdir(parents=True, exist_ok=True)
        unit, cubin = stem.with_suffix(".cu"), stem.with_suffix(".cubin")
        unit.write_text(source)
        run(nvcc(), *FLAGS, unit, "-o", cubin)
        content = dict(sass=run(cuobjdump(), "-sass", cubin), resources=run(cuobjdump(), "-res-usage", cubin))
        temporary = stem.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(content))
        temporary.replace(done)
    content = json.loads(done.read_text())
    used, found = sass.resources(content["resources"]), {}
    read = list(sass.read(content["sass"]))
    names = run("/usr/bin/env", "c++filt", *(k.name for k in read)).splitlines()
    for kernel, name in zip(read, names, strict=True):
        for key, value in used.get(kernel.name, {}).items():
            setattr(kernel, key, value)
        found[of_signature(name)] = kernel
    names = enumerators("".join(path.read_text() for path in includes(CSRC / "cuda" / header)))
    asked = {k: plain(re.sub(r"\b\w+::\w+\b", lambda m: names.get(m[0], m[0]), k)) for k in kernels}
    if missing := [k for k, name in asked.items() if name not in found]:
        raise RuntimeError(f"{header}: the cubin has no {missing[0]}; it has {', '.join(sorted(found))}")
    return {k: found[name] for k, name in asked.items()}


@cache
def compiler() -> str:
    return run(nvcc(), "--version").strip().splitlines()[-1]


@cache
def disassembler() -> str:
    return run(cuobjdump(), "--version").strip().splitlines()[-1]
