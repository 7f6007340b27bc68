"""The tree is a table: every op has all its files, imports point one way, files stay short, kernels stay apart."""

import ast
import io
import re
import shutil
import subprocess
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sparsegnn"
CELLS = (
    "csrc/cpu/{}.kernel.cpp",
    "csrc/cpu/{}.cpp",
    "csrc/cuda/{}.cuh",
    "csrc/cuda/{}.cu",
    "sparsegnn/ops/{}.py",
    "tests/ops/test_{}.py",
    "benchmarks/ops/bench_{}.py",
)
SHARED = {"csrc/cpu/isa.cpp", "csrc/cpu/pool.cpp"}  # sources that belong to no op

needs_checkout = pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="not run from a checkout")


def stems() -> set[str]:
    """Names of ops; a file `<op>_<part>` belongs to the op, unless it has tests of its own."""
    names = {p.stem for p in (PACKAGE / "ops").glob("[!_]*.py")}
    tested = {n for n in names if (ROOT / f"tests/ops/test_{n}.py").is_file()}
    return {n for n in names if n in tested or not any(n.startswith(other + "_") for other in names)}


@needs_checkout
@pytest.mark.parametrize("stem", sorted(stems()))
def test_every_op_has_all_its_files(stem):
    missing = [cell.format(stem) for cell in CELLS if not (ROOT / cell.format(stem)).is_file()]
    assert not missing, f"op {stem} lacks {', '.join(missing)}"


@needs_checkout
def test_every_kernel_file_belongs_to_an_op():
    found = [*ROOT.glob("csrc/cpu/*.cpp"), *ROOT.glob("csrc/cuda/*.cu*")]
    for path in found:
        stem = path.name.partition(".")[0]
        ok = any(stem == s or stem.startswith(s + "_") for s in stems())
        assert ok or str(path.relative_to(ROOT)) in SHARED, f"{path.relative_to(ROOT)} belongs to no op"
    for folder, prefix in (("tests/ops", "test_"), ("benchmarks/ops", "bench_")):
        others = {p.stem.removeprefix(prefix) for p in (ROOT / folder).glob(prefix + "*.py")} - stems()
        assert not others, f"{folder} has files of no op: {others}"


# --- imports ---------------------------------------------------------------------------------------------------------

RANK = {
    **dict.fromkeys(("_console", "_files", "_malloc", "_native", "_version", "data"), 0),
    **dict.fromkeys(("graph", "graph_formats", "graph_spans", "pattern", "plans", "policy"), 1),
    "ops": 2,
    "nn": 3,
    **dict.fromkeys(("compaction", "convert", "controllers", "linears", "pyg", "width"), 4),
    **dict.fromkeys(("_info", "advice", "capture", "experiments", "report", "integrations"), 5),
    "study": 6,
    **dict.fromkeys(("cli", "__main__"), 7),
}
APPLICATION = ("advice", "experiments", "study", "cli")


def imports(path: Path) -> set[str]:
    """Modules of this package that a file imports, anywhere in it, as dotted names without `sparsegnn.`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.partition(".")[0] == "sparsegnn"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "sparsegnn":
                found |= {f"sparsegnn.{a.name}" for a in node.names}
            elif (node.module or "").startswith("sparsegnn."):
                found.add(node.module)
    return {name.removeprefix("sparsegnn.") for name in found}


def modules() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if p != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    me = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert me in RANK, f"sparsegnn.{me} has no place in the order of imports"
    for name in imports(path):
        part = name.partition(".")[0]
        if part == "__version__":
            continue
        assert part in RANK, f"sparsegnn.{part} has no place in the order of imports"
        assert RANK[part] <= RANK[me], f"{path.name} imports sparsegnn.{name}, which is above it"
        allowed = me in (*APPLICATION, "__main__") or part not in APPLICATION
        assert allowed, f"{path.name} of the library imports sparsegnn.{name}, which is an application of it"
        if me == "ops" and part == "ops" and path.name != "__init__.py":
            module = name.removeprefix("ops.")
            assert module.startswith("_"), f"{path.name} imports sparsegnn.{name}; call torch.ops.sparsegnn.* instead"


def local_includes(path: Path) -> tuple[set[Path], set[str]]:
    """Our own headers that a file includes, directly or not, and the other headers."""
    ours, others, todo = set(), set(), [path]
    while todo:
        here = todo.pop()
        for quote, name in re.findall(r'^\s*#\s*include\s*(["<])([^">]+)', here.read_text(), re.M):
            target = (here.parent / name).resolve()
            if quote == "<":
                others.add(name)
            elif target.is_file() and target not in ours:
                ours.add(target)
                todo.append(target)
    return ours, others


@needs_checkout
def test_kernels_know_neither_torch_nor_the_standard_library():
    plain = {"cstddef", "cstdint", "cstring", "immintrin.h"}  # nothing that is linked between instruction sets
    for path in ROOT.glob("csrc/cpu/*.kernel.cpp"):
        others = local_includes(path)[1]
        assert others <= plain, f"{path.name} includes {others - plain}"
    for path in ROOT.glob("csrc/cuda/*.cuh"):
        ours, others = local_includes(path)
        assert not [name for name in others if "torch" in name or "ATen" in name], path.name
        assert not [p for p in ours if p.name == "tensor.h"], path.name
    for path in (ROOT / "csrc" / "common").iterdir():
        assert not [p for p in local_includes(path)[0] if p.parent.name in ("cpu", "cuda")], path.name


# --- length ----------------------------------------------------------------------------------------------------------


def code_lines(path: Path) -> int:
    """Lines without blank ones, comments and docstrings."""
    text, lines = path.read_text(), set()
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def length(path: Path) -> int:
    return len(path.read_text().splitlines())


@needs_checkout
def test_files_are_short():
    """Kernel files 300 lines, ops 80 lines of code, layers 150 lines, everything 500."""
    too_long = {p: length(p) for p in ROOT.glob("csrc/*/*") if length(p) > 300}
    too_long |= {p: code_lines(p) for p in PACKAGE.glob("ops/[!_]*.py") if code_lines(p) > 80}
    too_long |= {p: length(p) for p in PACKAGE.glob("nn/*.py") if length(p) > 150}
    ours = [
        p
        for name in ("sparsegnn", "tests", "benchmarks", "examples", "csrc", "scripts")
        for p in ROOT.glob(f"{name}/**/*")
    ]
    text = [p for p in ours if p.suffix in (".py", ".cpp", ".h", ".cu", ".cuh", ".sh") and "__pycache__" not in p.parts]
    too_long |= {p: length(p) for p in text if length(p) > 500}
    assert not too_long, {str(p.relative_to(ROOT)): n for p, n in too_long.items()}


# --- symbols ---------------------------------------------------------------------------------------------------------


@needs_checkout
@pytest.mark.deep
@pytest.mark.parametrize("isa, flags", [("avx512", "-march=x86-64-v4"), ("avx2", "-march=x86-64-v3")])
def test_weak_symbols_of_a_variant_are_its_own(isa, flags, tmp_path):
    """A weak symbol outside of the variant's namespace may replace the baseline's, and then runs everywhere."""
    compiler, nm = shutil.which("g++"), shutil.which("nm")
    if not compiler or not nm or "x86" not in subprocess.check_output([compiler, "-dumpmachine"], text=True):
        pytest.skip("needs g++ for x86-64 and nm")
    for source in sorted(ROOT.glob("csrc/cpu/*.kernel.cpp")):
        target = tmp_path / f"{source.name}.o"
        options = [
            f"-DSG_ISA={isa}",
            f"-DSG_HAVE_{isa.upper()}",
            flags,
            "-std=c++20",
            "-O0",
            "-w",
        ]  # -O0: nothing is inlined
        subprocess.run([compiler, *options, "-c", str(source), "-o", str(target)], check=True)
        symbols = subprocess.check_output([nm, "-C", "--defined-only", str(target)], text=True).splitlines()
        weak = [name for _, kind, name in (line.split(maxsplit=2) for line in symbols) if kind in "WVu"]
        strays = [n for n in weak if f"sparsegnn::{isa}::" not in n and not n.startswith("DW.ref.")]
        assert not strays, f"{source.name}: {strays[:3]}"
        assert any(f"sparsegnn::{isa}::" in line for line in symbols)
