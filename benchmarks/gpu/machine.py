"""What this GPU can do at most, measured in the process that asks: the limits of which rooflines are fractions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import gpu

SOURCE = Path(__file__).with_name("machine.cu")
RATES = ("fp32", "tf32", "bf16")


@functools.cache
def limits() -> dict:
    """FLOP/s of large products by precision (``flops``: fp32) and of multiply-adds with an operand in shared memory;
    bytes/s of a copy (read and written), of reading, of rows of 128 bytes gathered from L2; ``by`` which means."""
    found = {rate: 2 * size**3 / seconds(product(size, rate)) for rate in RATES for size in (8192 if big() else 64,)}
    found["flops"], (found["bandwidth"], found["read"]) = found["fp32"], streamed()
    found["l2"] = gathered(24 << 20 if big() else 1 << 16, 128)
    found["operand"] = operand()
    return found | {"by": "NVRTC" if kernel("gather") else "torch", "device": gpu.name()}


def big() -> bool:
    return gpu.on_gpu()


def seconds(function: Callable, samples: int = 7) -> float:
    """The least of several samples: a limit is what can be reached."""
    clock = gpu.DeviceClock()
    timer = clock.timer(function)
    runs = clock.runs(clock.once(timer), 0.02)
    return min(clock.sample(timer, runs)[1] for _ in range(samples if big() else 2))


def streamed() -> tuple[float, float]:
    """Bytes/s of a copy, read and written, and of reading."""
    x = gpu.randn(1 << (28 if big() else 14))
    y = torch.empty_like(x)
    return 2 * x.nbytes / seconds(lambda: y.copy_(x)), x.nbytes / seconds(lambda: x.view(-1, 4096).amax(1))


def product(size: int, rate: str) -> Callable:
    a, b = (gpu.randn(size, size, precision=rate, seed=s) for s in (1, 2))
    return gpu.with_tf32(lambda: a @ b) if rate == "tf32" else lambda: a @ b


def gathered(working_set: int, row_bytes: int) -> float:
    """Bytes/s of random rows of that size out of a table of ``working_set`` bytes."""
    rows, width = working_set // row_bytes, row_bytes // 4
    table = gpu.randn(rows, width)
    count = (1 << 30 if big() else 1 << 18) // row_bytes
    index = torch.randint(rows, (count,), device=gpu.device(), dtype=torch.int32)
    function = kernel("gather")
    if function is None:  # by torch, where sums of 64 rows are the nearest thing
        bags = index.view(-1, 64)
        return index.numel() * row_bytes / seconds(lambda: torch.nn.functional.embedding_bag(bags, table, mode="sum"))
    lanes, block, per = min(32, width // 4), 256, 64
    threads = count // per * lanes
    out = torch.empty(threads, 4, device=gpu.device())
    run = launcher(function, threads // block, block, 0, table, index, out, per, width // 4)
    return threads // block * block // lanes * per * row_bytes / seconds(run)


def scattered(working_set: int, row_bytes: int) -> float:
    """Bytes/s of numbers that ``red.global.add.v4.f32`` adds to random rows of a table; by torch on the CPU."""
    rows, width = working_set // row_bytes, row_bytes // 4
    table = torch.zeros(rows, width, device=gpu.device())
    count = (1 << 28 if big() else 1 << 18) // row_bytes // 256 * 256
    index = torch.randint(rows, (count,), device=gpu.device(), dtype=torch.int32)
    if not big():
        add = torch.ones(count, width)
        return count * row_bytes / seconds(lambda: table.index_add_(0, index, add))
    lanes, block, per = min(32, width // 4), 256, 32
    launch = launcher(needed("scatter"), count // per * lanes // block, block, 0, table, index, per, width // 4)
    launch()
    found = table.sum(dtype=torch.float64).item()
    if found != count * width:
        raise RuntimeError(f"scatter has added {found:.0f} ones of {count * width}")
    return count * row_bytes / seconds(launch)


def bulk(working_set: int, row_bytes: int) -> float:
    """Bytes/s of random rows that ``cp.async.bulk`` brings into shared memory; by torch on the CPU."""
    if not big():
        return gathered(working_set, row_bytes)
    rows, width, per = working_set // row_bytes, row_bytes // 4, 256
    table, blocks = gpu.randn(rows, width), (1 << 30) // row_bytes // per
    index = torch.randint(rows, (blocks, per), device=gpu.device(), dtype=torch.int32)
    out = torch.empty(blocks, 32, device=gpu.device())
    launch = launcher(needed("bulk"), blocks, 32, 64 * row_bytes + 16, table, index, out, per, row_bytes)
    launch()
    last = table[index[:, -64:].long().view(-1, 2, 32), 0].sum(1)
    if not torch.allclose(out, last, atol=1e-5):
        raise RuntimeError("bulk copies did not bring the rows that were asked for")
    return blocks * per * row_bytes / seconds(launch)


def operand() -> float | None:
    """FLOP/s of multiply-adds that take one operand each from shared memory; None without a way to compile."""
    if kernel("operand") is None:
        return None
    blocks, threads, rounds = 4 * torch.cuda.get_device_properties(gpu.device()).multi_processor_count, 1024, 500
    out = torch.empty(blocks * threads, device=gpu.device())
    run = launcher(kernel("operand"), blocks, threads, 16384, out, rounds)
    return blocks * threads * rounds * 16 * 4 * 2 / seconds(run)


# --- kernels of machine.cu, compiled by NVRTC --------------------------------------------------------------------


@functools.cache
def kernel(name: str) -> Callable | None:
    """``run(blocks, threads, shared, arguments)``, or None on the CPU and where neither torch nor CuPy compiles it."""
    return next(iter(compiled(name)), None) if big() else None


def needed(name: str) -> Callable:
    if kernel(name) is None:
        raise RuntimeError(f"{name}: {'; '.join(failures) or 'no GPU'}")
    return kernel(name)


failures: list[str] = []


def compiled(name: str) -> Iterator[Callable]:
    for way in (through_torch, through_cupy):
        try:
            yield way(name)
        except Exception as problem:
            failures.append(f"{way.__name__}: {type(problem).__name__}: {str(problem)[:200]}")


def through_torch(name: str) -> Callable:
    from torch.utils import cpp_extension

    home = cpp_extension.CUDA_HOME
    cpp_extension.CUDA_HOME = home or "/usr"  # of which it wants headers: these kernels include none
    try:
        function = torch.cuda._compile_kernel(SOURCE.read_text(), name)
    finally:
        cpp_extension.CUDA_HOME = home
    return lambda blocks, threads, shared, arguments: function(
        grid=(blocks, 1, 1), block=(threads, 1, 1), args=list(arguments), shared_mem=shared
    )


def through_cupy(name: str) -> Callable:
    import cupy
    import numpy

    function = cupy.RawModule(code=SOURCE.read_text(), options=("-std=c++17",)).get_function(name)
    function.max_dynamic_shared_size_bytes  # noqa: B018  (compiles now, and fails here if it does)

    def run(blocks, threads, shared, arguments):
        given = tuple(cupy.asarray(a) if isinstance(a, torch.Tensor) else numpy.int32(a) for a in arguments)
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            function((blocks,), (threads,), given, shared_mem=shared)

    return run


def launcher(function: Callable, blocks: int, threads: int, shared: int, *arguments) -> Callable:
    return lambda: function(blocks, threads, shared, arguments)
