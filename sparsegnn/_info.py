"""What this installation is and can do: versions, build, environment variables, and the kernels of every op."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform

import torch

from sparsegnn import _console, _malloc, _native
from sparsegnn._version import __version__

#: every environment variable that the package, its build or its tests read
VARIABLES = {
    "SPARSEGNN_STRICT": "1: falling back to plain PyTorch is an error",
    "SPARSEGNN_CHECK": "1: every op checks the numbers in its index arguments before it runs",
    "SPARSEGNN_ISA": "instruction set of the CPU kernels: portable, avx2, avx512; default the best there is",
    "SPARSEGNN_KERNEL": "sparse or dense: force the kernel of every sparse layer; auto: choose, the default",
    "SPARSEGNN_DATA": "folder(s) in which `train --data NAME` looks for NAME.npz",
    "SPARSEGNN_CACHE": "folder for downloaded graphs and measured plans; default ~/.cache/sparsegnn",
    "SPARSEGNN_PLAN": "a file of measured verdicts, sparse or dense: then sparsify(only_if_faster=True) measures none",
    "SPARSEGNN_ISAS": "build: instruction sets; auto (the best that this machine runs), all, or avx2,avx512,...",
    "SPARSEGNN_CUDA": "build: auto, on or off",
    "TORCH_CUDA_ARCH_LIST": "build: GPU architectures",
    "MAX_JOBS": "build: parallel compiler processes",
}
PEERS = ("numpy", "torch-geometric", "torch-scatter", "torch-sparse", "scikit-learn", "typer", "rich", "safetensors")


def info() -> dict:
    """Versions, build flags, environment variables, and for each op what runs on CPU and CUDA and why."""
    reasons = {name: _native.reason(name) for name in ("cpu", "cuda")}
    return {
        "versions": {
            "sparsegnn": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            **_peers(),
        },
        "machine": {
            "cpu": _cpu_name(),
            "threads": torch.get_num_threads(),
            "isa": _isa(),
            "malloc": "keeps memory" if _malloc.kept else "default",
            "gpus": _gpus(),
        },
        "libraries": {name: reasons[name] or "loaded" for name in _native.status},
        "build": _build(),
        "environment": {name: os.environ.get(name) for name in VARIABLES},
        "ops": [{"op": op} | {name: _kernel(op, name, why) for name, why in reasons.items()} for op in _ops()],
    }


def plain_text(content: dict) -> str:
    """The same as lines of text, for terminals without rich."""
    lines = []
    for section, value in content.items():
        lines.append(f"{section}:")
        if section == "ops":
            lines += [f"  {row['op']:24} cpu: {row['cpu']:12}  cuda: {row['cuda']}" for row in value]
        else:
            lines += [f"  {k:24} {text(v)}" for k, v in value.items()]
    return "\n".join(_console.clean(line) for line in lines)


def text(value: object) -> str:
    """A value of a section in words."""
    return "-" if value in (None, "", []) else str(value)


def _ops() -> list[str]:
    from sparsegnn.ops._library import LIBRARY

    return sorted(name.rpartition("::")[2].partition(".")[0] for name in LIBRARY._op_defs)


def _gpus() -> list[str]:
    """Names of the GPUs, or why those that are there cannot be used."""
    count = torch.cuda.device_count()  # by the driver's library of management, where torch has CUDA
    if count and (wrong := _native.gpu_error()):
        return [f"{count} that CUDA cannot use: {wrong}"]
    return [torch.cuda.get_device_name(i) for i in range(count)]


def _kernel(op: str, device: str, reason: str) -> str:
    """`compiled`, `PyTorch` (by design), or `fallback: why`; `reason`: why no kernel of the device runs."""
    from sparsegnn.ops._library import COMPOSITE

    try:
        present = _native.has_kernel(op, device.upper())
    except RuntimeError:  # an op without a schema in this process
        present = False
    if present and not reason:
        return "compiled"
    if op in COMPOSITE:
        return "PyTorch"
    return f"fallback: {reason or 'no kernel in this build'}"


def _isa() -> str:
    if _native.status.get("cpu", "not built"):
        return "none: the CPU library is not loaded"
    used, built = torch.ops.sparsegnn.isa(), torch.ops.sparsegnn.isas().split(",")
    return f"{used} (in this build: {', '.join(built)})"


def _peers() -> dict[str, str]:
    found = {}
    for name in PEERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _build() -> dict:
    """What setup.py wrote into the package; empty for a development build."""
    path = _native.FOLDER / "_build.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"flags": "unknown: built without setup.py (no _build.json)"}


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", errors="replace") as f:
            return next(line.partition(":")[2].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
