"""The CUDA library, as far as a machine without a GPU can tell: symbols, architectures, registers, registrations."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import sparsegnn

ROOT = Path(__file__).parents[1]
BUILD = Path(os.environ.get("SPARSEGNN_CUDA_BUILD", ROOT / "build" / "cuda"))
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
pytestmark = pytest.mark.deep


def missing(what: str):
    """Skips without nvcc; with it, and in a strict run, what should have been built must be there."""
    strict = os.environ.get("SPARSEGNN_STRICT") == "1" and shutil.which("nvcc")
    (pytest.fail if strict else pytest.skip)(what)


of_the_library = pytest.mark.nvcc  # which takes long to compile: `make build-cuda`


@pytest.fixture(scope="session")
def library() -> Path:
    folders = (BUILD / "lib", Path(sparsegnn.__file__).parent)
    found = [p for folder in folders if (p := folder / "libsparsegnn_cuda.so").is_file()]
    if not found:
        missing("libsparsegnn_cuda.so was not built")
    return max(found, key=lambda p: p.stat().st_mtime)


@pytest.fixture(scope="session")
def kernels() -> dict[str, list[dict[str, int]]]:
    """Kernel name, with its Op but no other template argument -> what ptxas said of each instantiation."""
    logs = [BUILD / "ptxas" / f"{source.stem}.txt" for source in SOURCES]
    if absent := [log.name for log in logs if not log.is_file()]:
        missing(f"{BUILD}/ptxas lacks {', '.join(absent)}; run `make build-ptx`")
    text = "\n".join(log.read_text() for log in logs)
    text = subprocess.run(["c++filt"], input=text.replace("'", " "), capture_output=True, text=True, check=True).stdout
    result: dict[str, list[dict[str, int]]] = {}
    for entry in text.split("Compiling entry function ")[1:]:
        name = re.search(r"(\w+_kernel(?:<sparsegnn::cuda::\w+Op)?)\b", entry)  # segments_kernel<SumOp>: by its Op
        assert name, f"a kernel's name must end in _kernel: {entry[:200]}"

        def number(pattern, entry=entry):
            return sum(map(int, re.findall(pattern, entry)))

        result.setdefault(name[1].replace("<sparsegnn::cuda::", " "), []).append(
            dict(
                registers=number(r"Used (\d+) registers"),
                spilled=number(r"(\d+) bytes spill"),
                stack=number(r"(\d+) bytes stack frame"),
                shared=number(r"(\d+) bytes smem"),
            )
        )
    return result


def ptx_of(op: str) -> Path:
    ptx = BUILD / "ptxas" / f"{op}.ptx"
    if not ptx.is_file():
        missing(f"{ptx} is missing; run `make build-ptx`")
    return ptx


def tool(*command) -> str:
    if not shutil.which(command[0]):
        missing(f"{command[0]} is not installed")
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


def test_kernels_keep_their_budget(kernels):
    """csrc/cuda/budget.json names every kernel and its registers; no kernel spills or declares static shared memory."""
    budget = json.loads((ROOT / "csrc" / "cuda" / "budget.json").read_text())["registers"]
    used = {name: max(k["registers"] for k in entries) for name, entries in kernels.items()}
    assert used.keys() == budget.keys(), "budget.json and the kernels differ"
    assert {n: (u, budget[n]) for n, u in used.items() if u > budget[n]} == {}, "registers used and allowed"
    for name, entries in kernels.items():
        for k in entries:
            assert (k["spilled"], k["stack"], k["shared"]) == (0, 0, 0), (name, k)


@pytest.fixture(scope="session")
def counted():
    """What benchmarks/cost counts in the main loops of the kernels, compiled one by one."""
    if not shutil.which("nvcc"):
        missing("nvcc is not installed")
    sys.path[:0] = [str(ROOT / "benchmarks")]
    from cost import counts, cubin

    try:
        return counts.counted()
    except cubin.Missing as error:
        missing(str(error))


def test_main_loops_keep_their_instructions(counted):
    """Of a unit of work; what is true is written there by `python benchmarks/predict.py --write-budget`."""
    budget = json.loads((ROOT / "csrc" / "cuda" / "budget.json").read_text())["loops"]
    assert counted.keys() == budget.keys()
    risen = {n: (c.instructions, budget[n]["instructions"]) for n, c in counted.items()
             if c.instructions > budget[n]["instructions"]}  # fmt: skip
    assert risen == {}, "instructions of a unit and what is allowed"
    wider = {
        n: (c.registers, budget[n]["registers"]) for n, c in counted.items() if c.registers > budget[n]["registers"]
    }
    assert wider == {}, "registers and what is allowed"
    assert not [n for n, c in counted.items() if c.spilled]


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_ptx_has_no_float_atomics_and_no_local_memory(source):
    ptx = ptx_of(source.stem)
    text = ptx.read_text()
    assert not re.search(r"\b(atom|red)\.[\w.]*\.(f16|f32|f64|bf16)", text), "float atomics make results change"
    assert not re.search(r"\b(ld|st)\.local\b", text)


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_block_indices_are_multiplied_in_64_bits(source):
    """What a block is told to do begins at its index times a size, past 2^31 where matrices are large.

    A 32-bit product by a variable shows in PTX; one by a constant looks like what a hash does with the lower half.
    """
    for header in sorted((ROOT / "csrc").glob(f"cuda/{source.stem}*.cuh")):
        narrow = re.findall(r"(?<!int64_t\{)\bblockIdx\.[xyz]\s*\*\s*(?:k[A-Z]\w*|\d+|\w+::k\w+)", header.read_text())
        assert not narrow, (header.name, narrow)
    ptx = ptx_of(source.stem)
    for function in ptx.read_text().split(".entry ")[1:]:
        for index in re.findall(r"mov\.u32\s+(%r\d+), %ctaid\.[xyz];", function):
            found = re.findall(rf"m(?:ul|ad)\.lo\.[su]32\s+%r\d+, (?:\S+, )?{index}[,;].*", function)
            assert not found, (function.partition("(")[0], found)


@pytest.mark.parametrize("stem", ["spmm", "sddmm"])
def test_rows_are_read_128_bits_at_a_time(stem):
    ptx = ptx_of(stem)
    assert "ld.global.nc.v4" in ptx.read_text()


def test_tensor_cores_multiply_where_they_may():
    """block_linear in 16 bits and in TF32; the kernels of strict fp32, fp64 and groups of 4 do without."""
    ptx = ptx_of("block_linear")
    kinds, strict = set(), 0
    for entry in ptx.read_text().split(".entry ")[1:]:
        name = entry.partition("(")[0]
        found = set(re.findall(r"mma\.sync\.aligned\.(m16n8k\d+)\.row\.col\.f32\.(\w+)", entry))
        kinds |= found
        assert bool(found) == ("MmaOp" in name), name
        converts = any(kind == "tf32" for _, kind in found) or "fragments_kernelIf" in name  # which lays a weight out
        assert ("cvt.rna.tf32.f32" in entry) == converts, name
        strict += "FmaOp" in name
    assert kinds == {("m16n8k8", "tf32"), ("m16n8k16", "bf16"), ("m16n8k16", "f16")} and strict > 0
    code = machine_code(ptx.with_suffix(".cubin"))
    hmma = 0x23C  # its opcode, the lower 12 bits of an instruction's 16 bytes
    assert {name: hmma in opcodes for name, opcodes in code.items()} == {name: "MmaOp" in name for name in code} != {}


def machine_code(cubin: Path) -> dict[str, set[int]]:
    """The opcodes of every kernel in a cubin for sm_80 to sm_90."""
    content = cubin.read_bytes()
    (table,), (size, count, names) = struct.unpack_from("<Q", content, 40), struct.unpack_from("<HHH", content, 58)
    sections = [struct.unpack_from("<IIQQQQ", content, table + i * size) for i in range(count)]
    found = {}
    for at, _, _, _, offset, length in sections:
        begin = sections[names][4] + at
        name = content[begin : content.index(b"\0", begin)].decode()
        if name.startswith(".text."):
            starts = range(offset, offset + length, 16)
            found[name] = {struct.unpack_from("<H", content, i)[0] & 0xFFF for i in starts}
    return found


@of_the_library
def test_symbols(library):
    """Only PyTorch's stable C functions: nothing of Python, at:: or c10::."""
    symbols = tool("nm", "-D", "-C", library)
    assert re.search(r" U aoti_torch_get_current_cuda_stream", symbols)
    assert not re.search(r"\b(at|c10|torch)::|\bPy[A-Z_]\w+|pybind11", symbols)


@of_the_library
def test_needed_libraries(library):
    """libtorch.so brings libtorch_cuda.so along, where the current stream lives; the CUDA runtime is inside."""
    needed = re.findall(r"NEEDED.*\[(.*)\]", tool("readelf", "-d", library))
    assert "libtorch.so" in needed
    assert not any("cudart" in n or "c10" in n or "python" in n for n in needed)
    assert "RPATH" not in tool("readelf", "-d", library) and "RUNPATH" not in tool("readelf", "-d", library)


@of_the_library
def test_device_code(library):
    """Machine code for sm_80 and sm_90 and PTX for later ones, from the headers of the embedded fat binaries."""
    content, found, at = library.read_bytes(), set(), 0
    while (at := content.find(b"\x50\xed\x55\xba", at)) >= 0:
        header, size = struct.unpack_from("<HQ", content, at + 6)
        entry, end = at + header, at + header + size
        while entry + 64 <= min(end, len(content)):
            kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", content, entry)
            if kind not in (1, 2) or entry_header == 0:
                break
            found.add(("PTX" if kind == 1 else "SASS", struct.unpack_from("<I", content, entry + 28)[0]))
            entry += entry_header + entry_size
        at += 4
    assert found >= {("SASS", 90), ("PTX", 90)}, found
    assert sparsegnn._native.architectures(library) == found
    if "TORCH_CUDA_ARCH_LIST" not in os.environ:
        assert ("SASS", 80) in found


@pytest.mark.parametrize("architecture", ["75", "70-real", "61;90"])
def test_gpus_that_are_too_old_are_refused_when_configuring(architecture, tmp_path):
    if not shutil.which("cmake") or not shutil.which("ninja"):
        missing("cmake or ninja is not installed")
    command = ["cmake", "-S", ROOT, "-B", tmp_path, "-G", "Ninja", "-DSPARSEGNN_TORCH=/nowhere", "-DSPARSEGNN_CUDA=on",
               f"-DCMAKE_CUDA_ARCHITECTURES={architecture}", f"-DSPARSEGNN_OUTPUT={tmp_path}"]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    said = " ".join(done.stderr.split())
    assert done.returncode != 0 and "need compute capability 8.0 (A100) or newer, got" in said
    assert "set TORCH_CUDA_ARCH_LIST=8.0, or SPARSEGNN_CUDA=off" in said


@of_the_library
def test_registers_every_op(library, tmp_path):
    """Loaded into this torch, with stand-ins for the three functions that only a CUDA build has, every op registers.

    So each other function it asks for exists here, and each schema matches.
    """
    stub = tmp_path / "stub.c"
    stub.write_text(
        "int aoti_torch_get_current_cuda_stream(int d, void** s) { return 1; }\n"
        "int torch_c10_cuda_check_msg(int e, char* f, char* g, unsigned l, _Bool c, char** m) { return 1; }\n"
        "void torch_c10_cuda_free_error_msg(char* m) {}\n"
    )
    tool(os.environ.get("CC", "cc"), "-shared", "-fPIC", stub, "-o", tmp_path / "stub.so")
    registered = re.findall(r'm\.impl\("(\w+)"', "".join(p.read_text() for p in SOURCES))
    assert len(registered) >= len(SOURCES) > 0
    code = f"""
import torch, sparsegnn, ctypes
ctypes.CDLL({str(tmp_path / "stub.so")!r}, mode=ctypes.RTLD_GLOBAL)
if {bool(sparsegnn._native.status.get("cuda") != "")!r}:
    torch.ops.load_library({str(library)!r})
for op in {registered!r}:
    assert torch._C._dispatch_has_kernel_for_dispatch_key("sparsegnn::" + op, "CUDA"), op
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
