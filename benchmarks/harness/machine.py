"""What this machine can do at most: the measures that roofline fractions are fractions of."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
import time
import timeit
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("machine.c")


@functools.cache
def limits(threads: int) -> dict:
    """FLOP/s of fp32 multiply-adds, bytes/s of a copy past the caches (read and written bytes counted), and ``by``:
    a loop in C, or ``torch`` (a large ``mm`` and ``copy_``, which reach less) where no compiler for x86-64 is found."""
    library = _compiled()
    if library is None:
        return {**_by_torch(), "by": "torch"}
    with ThreadPoolExecutor(threads) as pool:
        return {"flops": threads * _flops(library), "bandwidth": _bandwidth(library, pool, threads), "by": "C"}


def _compiled() -> ctypes.CDLL | None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "machine.so"
        command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", "-o", str(target), str(SOURCE)]
        if subprocess.run(command, capture_output=True).returncode:
            return None
        library = ctypes.CDLL(str(target))
    library.multiply_adds.restype = ctypes.c_double
    return library


def _flops(library: ctypes.CDLL, n: int = 4_000_000) -> float:
    """Of one core, in time of the thread: work of others does not count."""
    out, rates = (ctypes.c_float * 16)(), []
    for _ in range(5):
        start = time.thread_time()
        done = library.multiply_adds(ctypes.c_long(n), out)
        rates.append(done / (time.thread_time() - start))
    return max(rates)


def _bandwidth(library: ctypes.CDLL, pool: ThreadPoolExecutor, threads: int, size: int = 1 << 25) -> float:
    part = size // threads // 16 * 16
    pairs = [(torch.zeros(part), torch.ones(part)) for _ in range(threads)]

    def copy(to: torch.Tensor, source: torch.Tensor) -> int:
        library.copy(ctypes.c_void_p(to.data_ptr()), ctypes.c_void_p(source.data_ptr()), ctypes.c_size_t(part))
        return 2 * to.nbytes

    return max(_rate(pool, [lambda p=p: copy(*p) for p in pairs]) for _ in range(7))


def _rate(pool: ThreadPoolExecutor, jobs: list) -> float:
    start = time.perf_counter()
    done = sum(pool.map(lambda job: job(), jobs))
    return done / (time.perf_counter() - start)


def _by_torch() -> dict:
    def best(function) -> float:
        return min(timeit.repeat(function, number=1, repeat=4))

    a, b, c = (torch.randn(2048, 2048) for _ in range(3))
    x, y = torch.randn(1 << 26), torch.randn(1 << 26)
    mm, copied = best(lambda: torch.mm(a, b, out=c)), best(lambda: y.copy_(x))
    return dict(flops=2 * 2048**3 / mm, bandwidth=2 * x.nbytes / copied)
