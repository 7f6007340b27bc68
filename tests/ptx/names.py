"""Writes a C++ file with a function for every kernel in some PTX: python names.py OUT FILE.ptx ...

The bindings of tests/csrc name a kernel by its address, and in the module of the PTX machine no code of the kernel
itself: these functions give it one. A kernel that a binding launches and nvcc has not made is an error of the linker.
"""

import re
import sys
from pathlib import Path


def kernels(text: str) -> list[str]:
    """Names of the kernels in some PTX."""
    return re.findall(r"^\s*\.(?:visible|weak) \.entry (\w+)\(", text, re.M)


def source(texts: list[str]) -> str:
    """The C++ file."""
    names = sorted({name for text in texts for name in kernels(text)})
    functions = "".join(f"void {name}() {{}}\n" for name in names)
    pairs = "".join(f'    sparsegnn::ptx::name_kernel(reinterpret_cast<void*>(&{n}), "{n}"),\n' for n in names)
    return f"""// Made by tests/ptx/names.py.
namespace sparsegnn::ptx {{
bool name_kernel(const void* kernel, const char* name);
}}
extern "C" {{
{functions}}}
namespace {{
[[maybe_unused]] const bool named[] = {{
{pairs}}};
}}
"""


if __name__ == "__main__":
    out, *files = map(Path, sys.argv[1:])
    out.write_text(source([path.read_text() for path in files]))
