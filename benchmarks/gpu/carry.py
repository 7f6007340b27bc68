"""What a lent GPU machine gets of this checkout, and whether it is small enough.

    python benchmarks/gpu/carry.py            the size of what travels, with build/gpu/lib; exit code 1 if over 64 MiB
    python benchmarks/gpu/carry.py --build    first builds both libraries there for an H100 or H200 (nvcc; no GPU)

Libraries that were built here of the sources as they are save the minutes that the build takes there:
``scripts/gpu_check.sh`` finds them in build/gpu/lib.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if not __package__:  # run by its path
    sys.path.insert(0, str(ROOT / "benchmarks"))
LIMIT = 64 << 20  # bytes
CARRIED = ("build/gpu/lib",)  # ignored by git, and needed


def travelling(root: Path, carried: tuple[str, ...] = CARRIED) -> dict[str, int]:
    """Bytes of every file that goes along: tracked ones, others that git does not ignore, and the carried folders."""
    command = ["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout.split("\0")
    paths = {root / name for name in listed if name}
    for name in carried:
        paths |= {p for p in (root / name).rglob("*") if p.is_file()}
    return {str(p.relative_to(root)): p.lstat().st_size for p in paths if p.is_file() or p.is_symlink()}


def report(sizes: dict[str, int], limit: int = LIMIT) -> tuple[str, bool]:
    """A line, with the largest files where they are too much; and whether all fit."""
    total = sum(sizes.values())
    text = f"{total / (1 << 20):.1f} MiB of {limit / (1 << 20):.0f} in {len(sizes)} files"
    if total <= limit:
        return text, True
    largest = sorted(sizes, key=sizes.get, reverse=True)[:5]
    return f"{text}: too much. Largest: " + ", ".join(f"{n} {sizes[n] / (1 << 20):.1f}" for n in largest), False


def build() -> None:
    from gpu import stages

    folder = ROOT / "build" / "gpu"
    stages.configure(folder, "-DSPARSEGNN_CUDA=on", "-DCMAKE_CUDA_ARCHITECTURES=90-real", "-DSPARSEGNN_ISAS=all")
    jobs = os.environ.get("MAX_JOBS") or os.cpu_count()
    stages.command("cmake", "--build", folder, "-j", jobs, seconds=4 * 3600)
    stages.stamp(folder / "lib")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", action="store_true", help="build the libraries first")
    if parser.parse_args(arguments).build:
        build()
    text, fits = report(travelling(ROOT))
    print(text)
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
