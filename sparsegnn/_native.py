"""Loads the compiled libraries if they are there, and remembers why not."""

import ctypes
import functools
import mmap
import os
import re
import stat
import struct
from pathlib import Path

import torch

#: where the libraries are; SPARSEGNN_LIBRARIES names another folder (sanitizer builds, prebuilt libraries)
FOLDER = Path(os.environ.get("SPARSEGNN_LIBRARIES") or Path(__file__).parent)
BUILD_HINT = "pip install --no-build-isolation ."  # from a checkout

#: the schemas of the ops that a library must be compiled for, as csrc/common/interface.cpp says it: another number
#: whenever one changes, since a kernel reads its arguments as it was compiled to
INTERFACE = 4

#: library -> "" when loaded, else the reason
status: dict[str, str] = {}


def strict() -> bool:
    """True when SPARSEGNN_STRICT=1: a fallback to plain PyTorch is an error (tests, benchmarks, CI)."""
    return os.environ.get("SPARSEGNN_STRICT", "") == "1"


def load() -> None:
    """Load libsparsegnn_cpu.so, and libsparsegnn_cuda.so where this torch has CUDA; what does not load is no error."""
    for name in ("cpu", "cuda"):
        path = FOLDER / f"libsparsegnn_{name}.so"
        try:
            status[name] = _load(name, path)
        except Exception as error:  # whatever lies there instead of a library
            status[name] = f"does not load: {error}"


def _load(name: str, path: Path) -> str:
    """Load a library; why not, or ""."""
    if not os.path.lexists(path):
        return "not built"
    if name == "cuda" and torch.version.cuda is None:
        return "built, but this torch has no CUDA"
    if wrong := broken(path):
        return f"does not load: {wrong}"
    if wrong := stale(path):
        return wrong
    if name == "cpu" and (wrong := missing_isa(instruction_sets(path), processor_isas())):
        return wrong
    torch.ops.load_library(str(path))
    return ""


def broken(path: Path) -> str:
    """What would stop or stall the process that loads this file, or be named wrongly by the loader; "" if nothing."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        return f"{path}: not a regular file"
    if not os.access("/proc/self/exe", os.R_OK):  # this interpreter, to compare with
        return ""
    with open(path, "rb") as f, open("/proc/self/exe", "rb") as here:
        header, mine, size = f.read(64), here.read(64), os.fstat(f.fileno()).st_size
        if len(header) < 64 or header[:6] != mine[:6]:
            return f"{path}: not a library of this system"
        if header[18:20] != mine[18:20]:  # e_machine
            return f"{path}: built for another kind of processor"
        offset, entry, count = *struct.unpack_from("<Q", header, 32), *struct.unpack_from("<HH", header, 54)
        f.seek(offset)
        segments = [f.read(entry).ljust(56, b"\xff") for _ in range(count)]
    end = max((start + length for start, length in (struct.unpack_from("<Q16xQ", s, 8) for s in segments)), default=0)
    return f"{path}: cut off after {size} of {end} bytes" if size < end else ""  # beyond the end: SIGBUS


def stale(path: Path) -> str:
    """Why the entries of a library are not those that this Python calls; "" if they are."""
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = re.search(rb"sparsegnn-interface:(\d+);\0", content)
        number = int(found[1]) if found else None
    if number == INTERFACE:
        return ""
    got = "no interface" if number is None else f"interface {number}"
    return f"built from other sources than this Python ({got}, not {INTERFACE}); to rebuild: {BUILD_HINT}"


def check_isa() -> None:
    """ValueError where SPARSEGNN_ISA names what cannot be had; without it the first op raises, in words of C++."""
    wish = os.environ.get("SPARSEGNN_ISA")
    if wish and wish not in FLAGS:
        raise ValueError(f"SPARSEGNN_ISA must be one of {', '.join(FLAGS)}, got {wish!r}")
    if wish and status.get("cpu") == "":
        try:
            torch.ops.sparsegnn.isa()
        except RuntimeError as error:
            text = str(error).splitlines()[0]
            raise ValueError(text[text.find("SPARSEGNN_ISA") :]) from None  # after the place in the source


def reason(device: str) -> str:
    """Why the kernels of a type of device do not run, "" where they do. Asks the GPU: not to be called on import."""
    found = status.get(device, f"no kernels for device {device}")
    if found or device != "cuda":
        return found
    if wrong := gpu_error():
        return f"loaded, but no GPU can be used: {wrong}"
    return unsupported_gpu()


def has_kernel(op: str, key: str) -> bool:
    """Whether a compiled kernel of ``sparsegnn::op`` is registered for the dispatch key ``CPU`` or ``CUDA``."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"sparsegnn::{op}", key)


# --- processors: is there code for this one? -------------------------------------------------------------------------

#: what a kernel compiled for an instruction set uses of a processor, in the words of /proc/cpuinfo
FLAGS = {
    "portable": frozenset(),
    "avx2": frozenset({"avx2", "fma", "f16c", "bmi2"}),
    "avx512": frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx2", "fma"}),
}


def instruction_sets(library: Path) -> list[str]:
    """The instruction sets that a build of the CPU library has, as it says of itself; none: an unknown build."""
    with open(library, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = re.search(rb"sparsegnn-isas:([a-z0-9,]+),\0", content)  # whole: the compiler may also copy it in parts
        names = found[1].decode().split(",") if found else []
    return [name for name in names if name in FLAGS]


def processor_isas() -> list[str]:
    """The instruction sets that this processor runs; every one where it cannot be asked."""
    try:
        with open("/proc/cpuinfo") as f:
            flags = next(line for line in f if line.startswith("flags")).partition(":")[2].split()
    except (OSError, StopIteration):
        return list(FLAGS)
    return [name for name, needed in FLAGS.items() if needed <= set(flags)]


def missing_isa(built: list[str], here: list[str]) -> str:
    """Why a processor that runs the instruction sets ``here`` has no use for a build with ``built``; "" if it has."""
    if not built or set(built) & set(here):
        return ""
    return f"built for {', '.join(built)}, this processor runs {', '.join(here)}; to rebuild: {BUILD_HINT}"


# --- GPUs: is there code for this one? -------------------------------------------------------------------------------

LEAST_CAPABILITY = (8, 0)  # cp.async, conversion to bfloat16


def gpu_error() -> str:
    """Why CUDA can use no GPU, in its own words; "" where it can. device_count() is no answer: it does not ask CUDA."""
    try:
        torch.cuda.init()
        torch.cuda.get_device_capability()
    except Exception as error:  # a RuntimeError without a driver or with one too old, an AssertionError without CUDA
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def unsupported_gpu(device: int | str | torch.device | None = None) -> str:
    """What is wrong with this GPU, the current one by default, and what to do; "" where the kernels run on it."""
    capability = torch.cuda.get_device_capability(device)
    wrong = missing_architecture(capability, architectures(FOLDER / "libsparsegnn_cuda.so"))
    return f"{torch.cuda.get_device_name(device)}: {wrong}" if wrong else ""


def check_gpu(device: int | str | torch.device | None = None) -> None:
    """RuntimeError where the library is loaded but has no code for this GPU."""
    if status.get("cuda") == "" and (wrong := unsupported_gpu(device)):
        raise RuntimeError(f"sparsegnn: {wrong}")


def missing_architecture(capability: tuple[int, int], built: frozenset[tuple[str, int]]) -> str:
    """Why a GPU of this compute capability cannot run code for ``built``; "" if it can.

    Machine code runs on GPUs of its own major version that are not older; PTX is compiled there for any newer one.
    """
    version, mine = f"{capability[0]}.{capability[1]}", 10 * capability[0] + capability[1]
    if capability < LEAST_CAPABILITY:
        return f"compute capability {version} is too old, the kernels need 8.0 (A100) or newer: use the CPU"
    if any(number <= mine and (kind == "PTX" or number // 10 == capability[0]) for kind, number in built):
        return ""
    have = ", ".join(f"{'sm' if kind == 'SASS' else 'compute'}_{n}" for kind, n in sorted(built)) or "no GPU code"
    how = f"TORCH_CUDA_ARCH_LIST={version} {BUILD_HINT}"
    return f"this build has no kernels for compute capability {version} (it has {have}); to rebuild: {how}"


@functools.cache
def architectures(library: Path) -> frozenset[tuple[str, int]]:
    """``("SASS", 90)``, ``("PTX", 90)``, ...: what the fat binaries inside a library say of themselves."""
    found, at = set(), -1
    with open(library, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
        while (at := content.find(b"\x50\xed\x55\xba", at + 1)) >= 0:
            header, size = struct.unpack_from("<HQ", content, at + 6)
            entry, end = at + header, min(at + header + size, len(content))
            while entry + 64 <= end:
                kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", content, entry)
                if kind not in (1, 2) or entry_header == 0:
                    break
                found.add(("PTX" if kind == 1 else "SASS", struct.unpack_from("<I", content, entry + 28)[0]))
                entry += entry_header + entry_size
    return frozenset(found)


# --- memory of the CPU ops -------------------------------------------------------------------------------------------


def kept_memory() -> tuple[int, int]:
    """Bytes of large CPU outputs: held by live tensors, and kept for later ones."""
    live, kept = ctypes.c_uint64(), ctypes.c_uint64()
    if status.get("cpu") == "":
        _library().sparsegnn_pool_use(ctypes.byref(live), ctypes.byref(kept))
    return live.value, kept.value


def empty_cache() -> None:
    """Give the memory that CPU ops keep for their next outputs back to the system.

    Outputs of 4 MiB and more come from a pool (``SPARSEGNN_POOL=0`` switches it off): it keeps freed ones, together
    with those in use never more than were in use at once lately.
    """
    if status.get("cpu") == "":
        _library().sparsegnn_pool_release()


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(FOLDER / "libsparsegnn_cpu.so"))  # the loaded one
