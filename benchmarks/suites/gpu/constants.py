"""What the floors stand on: bandwidths, products, and the peers by themselves."""

from __future__ import annotations

import torch
from harness.suite import Group, Row
from suites.gpu.common import group, product_work

import gpu
from gpu import machine

STAGE = "constants"
WORKING_SETS, ROW_BYTES = (8, 16, 24, 32, 40, 48, 64, 128, 256), (128, 256, 1024)  # MiB; bytes
BULK_BYTES, ATOMIC_BYTES = (128, 256, 512), (128, 1024)  # of a row; their sets: L2 has room for the first
FEW_SETS = (24, 256)
#: where the products of the dense transform stand: rows, inputs, outputs
SHAPES = (
    (169_343, 64, 64),
    (169_343, 128, 128),
    (169_343, 256, 256),
    (169_343, 512, 512),
    (169_343, 1024, 1024),
    (169_343, 128, 256),
    (2_449_029, 256, 256),
)
#: what is done with random rows -> the way to measure it, the sizes of rows, the working sets
ROWS = {
    "read": (machine.gathered, ROW_BYTES, WORKING_SETS),
    "copied by cp.async.bulk": (machine.bulk, BULK_BYTES, FEW_SETS),
    "added to by red.v4.f32": (machine.scattered, ATOMIC_BYTES, FEW_SETS),
}


def groups(quick: bool) -> list[Group]:
    shapes = ((70, 16, 16),) if quick else SHAPES
    found = [memory(quick), *(at_random(what, size, quick) for what, (_, sizes, _) in ROWS.items() for size in sizes)]
    return found + [products(*shape) for shape in shapes]


def memory(quick: bool) -> Group:
    size = 1 << (14 if quick else 28)

    def make() -> gpu.Contest:
        contest, x = gpu.Contest(), gpu.randn(size)
        y, flops = torch.empty_like(x), machine.limits()["operand"]
        contest.add("copy", lambda: y.copy_(x), want=lambda: [x.double()])
        contest.add("read", lambda: x.view(-1, 4096).amax(1), want=lambda: [x.view(-1, 4096).amax(1).double()])
        contest.facts["TFLOP/s with an operand from shared memory"] = None if flops is None else flops / 1e12
        return contest

    rows = [
        Row("copy, read + written", "copy", (), {}, "bytes", dict(flop=0, bytes=8 * size)),
        Row("read", "read", (), {}, "bytes", dict(flop=0, bytes=4 * size)),
    ]
    return group("memory", STAGE, dict(bytes=4 * size), rows, make, seconds=1)


def at_random(what: str, size: int, quick: bool) -> Group:
    """Rows at random, by working set. The rates are measured in ``measure``; the rows only take them over."""
    rate, _, sets = ROWS[what]
    sets = (1,) if quick else sets

    def measure() -> dict[str, float]:
        return {f"{s} MiB": size / rate(s << 20, size) for s in sets}  # seconds per row

    rows = [Row(f"random rows of {size} bytes out of {s} MiB, {what}", f"{s} MiB", (), {}, "bytes",
                dict(flop=0, bytes=size)) for s in sets]  # fmt: skip
    return Group(f"random rows {what}, {size} bytes", dict(row_bytes=size), tuple(rows), measure=measure,
                 regimes=("gpu",), seconds=0.25 * len(sets), stage=STAGE)  # fmt: skip


def products(n: int, k: int, m: int) -> Group:
    """y = x W^T and dW = dy^T x, as cuBLAS has them."""

    def make() -> gpu.Contest:
        contest = gpu.Contest()
        for rate in machine.RATES:
            x, dy, w = (gpu.randn(*shape, precision=rate, seed=s) for s, shape in enumerate(((n, k), (n, m), (m, k))))
            long = gpu.LONG_SUM if rate == "fp32" else None
            allow = gpu.with_tf32 if rate == "tf32" else (lambda f: f)
            contest.add(f"forward {rate}", allow(lambda x=x, w=w: x @ w.t()), precision=rate, view=lambda y: [y[:4096]],
                        want=lambda x=x, w=w: [x[:4096].double() @ w.double().t()])  # fmt: skip
            contest.add(f"dw {rate}", allow(lambda x=x, dy=dy: dy.t() @ x), precision=rate, tolerance=long,
                        want=lambda x=x, dy=dy: [dy.double().t() @ x.double()])  # fmt: skip
        return contest

    rows = [Row(f"torch.mm {what}, {n:,}x{k}x{m}, {rate.replace('tf', 'TF')}", f"{what} {rate}", (), {}, "products",
                product_work(n, k, m, rate)) for what in ("forward", "dw") for rate in machine.RATES]  # fmt: skip
    return group(f"torch.mm {n:,}x{k}x{m}", STAGE, dict(rows=n, inputs=k, outputs=m), rows, make, seconds=1)
