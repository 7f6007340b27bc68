"""What the cost model predicts beside what this GPU takes, and the model's assumptions as they come out.

``calibration.json`` has the machine's own rates, a row for every case of ``cost/cases.py`` on the graph that is
measured, and of the cases that one bound holds up how far they are from it; ``assumptions.json`` is for
``benchmarks/predict.py --assumptions``. The counts are those of ``csrc/cuda/budget.json``.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import gpu

#: what a bound's cases correct: assumptions that are multiplied by measured / predicted, and such that are divided
CORRECTS = {
    "latency": (("l2 latency", "hbm latency"), ()),
    "issue": ((), ("issue",)),
    "LSU": ((), ("pipes",)),
    "tensor": ((), ("mma",)),
    "L2": ((), ("l2",)),
    "HBM": ((), ("hbm",)),
}


def machine() -> dict[str, float]:
    """Assumptions of the model that can be measured by themselves, under their names there."""
    from gpu import machine as limits

    found = limits.limits()
    values = {"hbm": found["bandwidth"], "l2": found["l2"]} | {f"cublas {r}": found[r] for r in limits.RATES}
    if gpu.on_gpu():
        values["sms"] = torch.cuda.get_device_properties(gpu.device()).multi_processor_count
    return values


def seconds(function: Callable) -> float:
    """Median of seven samples on the device."""
    clock = gpu.DeviceClock()
    timer = clock.timer(function)
    runs = clock.runs(clock.once(timer), 0.02)
    return statistics.median(clock.sample(timer, runs)[1] for _ in range(7 if gpu.on_gpu() else 2))


# ---- what is measured: the call that a case's ``how`` asks for


def gradient(y: torch.Tensor, leaves: list, seed: int = 4) -> Callable:
    dy = gpu.randn(*y.shape, seed=seed).to(y.dtype)
    return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)


def spmm(graph, quick: bool, how: dict) -> Callable:
    from sparsegnn import ops

    x = gpu.randn(graph.num_cols, min(how["width"], 13) if quick else how["width"])
    return lambda: ops.spmm(graph, x, reduce=how["reduce"])


def gat(graph, quick: bool, how: dict) -> Callable:
    from sparsegnn import ops

    heads, width = (2, 4) if quick else (4, 64)
    leaves = [gpu.randn(graph.num_cols, heads, width), *(gpu.randn(graph.num_cols, heads, seed=s) for s in (2, 3))]
    leaves = [t.requires_grad_() for t in leaves]
    if how["backward"]:
        return gradient(ops.gat(graph, *leaves), leaves)
    return lambda: ops.gat(graph, *leaves).detach()


def maxk_spmm(graph, quick: bool, how: dict) -> Callable:
    from suites.gpu.maxk import size_of, sum_of

    from sparsegnn import ops

    width, k = size_of(quick)
    values, index = ops.maxk(gpu.randn(graph.num_cols, width), k, None)
    dy = gpu.randn(graph.num_rows, width, seed=2) if how["backward"] else None
    return sum_of(graph, values, index, width, None, dy, graph.transpose())


def gcn(graph, quick: bool, how: dict) -> Callable:
    from suites.gpu.weights import index_of

    from sparsegnn import ops, pattern

    n = 16 if quick else 256
    crow, col = pattern.random_pattern(n, n, sparsity=0.9, generator=torch.Generator().manual_seed(0))
    index, values = index_of(crow, col, n), gpu.randn(col.numel(), seed=5).requires_grad_()
    x = gpu.randn(graph.num_rows, n).requires_grad_()
    if how["backward"]:
        return gradient(ops.gcn(graph, x, values, None, pattern=index), [x, values])
    return lambda: ops.gcn(graph, x.detach(), values.detach(), None, pattern=index)


def sparse_linear(graph, quick: bool, how: dict) -> Callable:
    from suites.gpu.weights import index_of, one_gradient

    from sparsegnn import ops, pattern

    n, k = (70, 16) if quick else (169_343, 256)
    generator = torch.Generator().manual_seed(0)
    crow, col = pattern.random_pattern(k, k, sparsity=how["sparsity"], generator=generator)
    index, values = index_of(crow, col, k), gpu.randn(col.numel(), seed=91)
    what = {"y": "forward", "dx": "dx", "dvalues": "dw"}[how["of"]]

    def forward(x, values):
        return ops.sparse_linear(x, values, None, *index)

    return one_gradient(forward, gpu.randn(n, k), values, gpu.randn(n, k, seed=2), what)


def block_linear(graph, quick: bool, how: dict) -> Callable:
    from suites.gpu.weights import blocks_of

    from sparsegnn import ops

    n, k = (96, 64) if quick else (169_344, 1024)
    index, values, _, _ = blocks_of("block:32x32", k, k, 0.9, "bf16")
    x = gpu.randn(n, k, precision="bf16")
    return lambda: ops.block_linear(x, values, None, *index, 32, 32)


def maxk(graph, quick: bool, how: dict) -> Callable:
    from suites.gpu.maxk import size_of

    from sparsegnn import ops

    width, k = size_of(quick)
    x = gpu.randn(300 if quick else 2_449_029, width)
    return lambda: ops.maxk(x, k, None)


CALLS = {f.__name__: f for f in (spmm, gat, maxk_spmm, gcn, sparse_linear, block_linear, maxk)}


# ---- the stage


def cases(quick: bool, folder: Path) -> Iterator[tuple[dict, Callable[[], dict]]]:
    """What ``stages.Record`` runs: the machine, then every case, then what comes out."""
    from cost import cases as every

    yield {"what": "machine"}, machine
    listed = [case for case in every.everything() if case.how]
    for case in sorted(listed, key=lambda case: case.graph or ""):  # one graph after the other
        yield {"case": case.name}, lambda case=case: beside(case, quick, folder)
    measured = sum("measured_ms" in row for row in rows_of(folder))
    yield {"what": "assumptions", "of": measured}, lambda: corrected(folder)


def rows_of(folder: Path) -> list[dict]:
    path = folder / "calibration.json"
    return json.loads(path.read_text())["rows"] if path.is_file() else []


def measured_machine(folder: Path) -> dict[str, float]:
    from cost import model

    found = next((r for r in rows_of(folder) if r["case"] == {"what": "machine"} and not r.get("error")), {})
    return {k: v for k, v in found.items() if k in model.ASSUMED}


def beside(case, quick: bool, folder: Path) -> dict:
    """One case: predicted with the model's own assumptions, with this machine's rates, and measured, in ms."""
    from cost import counts, degrees, model
    from suites.gpu.common import graph_of

    found, here, graph, same = counts.budgeted(), model.Machine(), None, contextlib.nullcontext()
    here.values |= measured_machine(folder)
    if case.graph:
        graph = graph_of(case.graph, quick)
        same = degrees.used(case.graph, graph.crow.diff().cpu().numpy())
    with same:
        predicted, adapted = (case.run(found, m) for m in (model.Machine(), here))
    took = 1e3 * seconds(CALLS[case.how["what"]](graph, quick, case.how))
    ms = 1e3 * model.total(predicted, model.Machine())
    again = 1e3 * model.total(adapted, here)
    return dict(predicted_ms=ms, measured_ms=took, ratio=took / ms, predicted_with_this_machine_ms=again,
                bound=model.bound(adapted), kernels=len(adapted))  # fmt: skip


def corrected(folder: Path) -> dict:
    """Measured over predicted, on this machine's rates: the geometric mean of the cases of one bound. Written as
    ``assumptions.json``: this machine's rates, corrected by them."""
    from cost import model

    ratios: dict[str, list[float]] = {}
    for row in rows_of(folder):
        if "measured_ms" in row:
            ratio = row["measured_ms"] / row["predicted_with_this_machine_ms"]
            ratios.setdefault(row["bound"].rpartition(": ")[2], []).append(ratio)
    values = model.Machine().values | measured_machine(folder)
    means = {b: math.exp(statistics.fmean(map(math.log, found))) for b, found in ratios.items()}
    for bound, mean in means.items():
        multiplied, divided = CORRECTS.get(bound, ((), ()))
        values |= {k: values[k] * mean for k in multiplied} | {k: values[k] / mean for k in divided}
    (folder / "assumptions.json").write_text(json.dumps(values, indent=1) + "\n")
    return dict(measured_over_predicted=means, cases={b: len(found) for b, found in ratios.items()})


def table(folder: Path) -> str:
    """Predicted beside measured, of what is there."""
    rows = [r for r in rows_of(folder) if "measured_ms" in r]
    lines = [f"{'predicted ms':>12}  {'measured ms':>11}  {'ratio':>6}  bound, predicted"]
    for r in rows:
        text = f"{r['case']['case']}  ({r['bound']})"
        lines.append(f"{r['predicted_ms']:12.3f}  {r['measured_ms']:11.3f}  {r['ratio']:6.2f}  {text}")
    return "\n".join(lines) if rows else ""
