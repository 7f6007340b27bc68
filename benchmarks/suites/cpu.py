"""The bars of the CPU kernels, as data. Ours goes through the public API, with fresh outputs, in every row."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable

import torch
from harness import FOLDER, runner
from harness.suite import Group, Row
from suites import oracles, peers

#: (rows, in, out): (bar, stretch) of forward + dx + dW at the nonzeros, by sparsity
WEIGHTS = {
    (4096, 256, 256): {0.5: (1.5, 1.75), 0.7: (2.4, 2.9), 0.9: (5.5, 6.8), 0.95: (8.5, 11), 0.98: (13, 17)},
    (16384, 512, 512): {0.5: (1.6, 1.8), 0.7: (2.5, 2.9), 0.9: (5.8, 7.0), 0.95: (9, 12), 0.98: (15, 19)},
    (65536, 256, 256): {0.5: (1.6, 1.85), 0.7: (2.5, 3.0), 0.9: (5.5, 6.8), 0.95: (7.5, 9.5), 0.98: (11, 14)},
    (8192, 1024, 1024): {0.5: (1.7, 1.85), 0.7: (2.6, 3.0), 0.9: (6.5, 7.8), 0.95: (10, 13), 0.98: (17, 21)},
}
#: SparseLinear with autograd at 90 %: bars against nn.Linear, SparseProp and sparselab
LAYERS = {
    (4096, 256, 256): (None, 4.0, 3.0),
    (16384, 512, 512): (5.0, 7.0, 3.0),
    (65536, 256, 256): (5.0, 7.0, 3.0),
    (8192, 1024, 1024): (5.0, 7.0, 3.0),
}
BLOCKS = {"grouped:8": "8x1", "block:16x16": "16x16"}
#: (reduce, width): bars with default malloc, with kept memory
AGGREGATION = {
    ("sum", 16): ((3.8, 4.5), (2.9, 3.6)),
    ("sum", 64): ((4.0, 5.0), (3.2, 4.0)),
    ("sum", 128): ((3.2, 4.0), (2.3, 3.0)),
    ("sum", 256): ((2.7, 3.5), (1.8, 2.5)),
    ("mean", 64): ((4.0, None), (2.5, None)),
    ("max", 64): ((3.5, None), (2.2, None)),
}
GAT = {True: ((9.0, 14.0), (4.4, 5.5)), False: ((9.0, 14.0), (3.9, 5.5))}  # training step, inference
SPMM_PEERS = ("torch.sparse.mm", "torch.sparse.mm reduce", "torch_sparse", "gather+scatter")
BOTH = ("default", "kept")
USER = ("default",)


def groups(quick: bool) -> list[Group]:
    """Every group of the suite; tiny ones when ``quick``."""
    shapes = {(256, 64, 64): {0.5: (1, 2), 0.9: (1, 2)}} if quick else WEIGHTS
    found = [weights(shape, bars) for shape, bars in shapes.items()]
    found += [layer(shape, *bars) for shape, bars in ({(256, 64, 64): (1.0, 1.0, 1.0)} if quick else LAYERS).items()]
    wide = [(256, 64, 64)] if quick else [(16384, 512, 512), (8192, 1024, 1024)]
    found += [structured(shape, sparsity) for shape in wide for sparsity in (0.5, 0.9)]
    found += [scaling(shape) for shape in wide]
    found += [overhead()]
    size = dict(nodes=2000, edges=20_000) if quick else dict(nodes=170_000, edges=2_300_000)
    wanted = [("sum", 64), ("max", 64)] if quick else list(AGGREGATION)
    found += [spmm("lognormal", reduce, width, size, AGGREGATION[reduce, width]) for reduce, width in wanted]
    found += [] if quick else [spmm("rmat", reduce, 64, size, None) for reduce in ("sum", "max")]
    found += [gat("gat", train, size, quick) for train in (True, False)] + [gat("gatv2", True, size, quick)]
    found += [*gcn(size, quick), sparse_features()]
    if not quick:
        found += [memory("GAT", 8.0), memory("GCN", None)]
    return [group for group in found if group is not None]


def both(bars: tuple | None) -> dict:
    return {} if bars is None else dict(zip(BOTH, bars, strict=True))


def named(shape: tuple[int, int, int]) -> str:
    return ",".join(map(str, shape))


def percent(sparsity: float) -> str:
    return f"{100 * sparsity:g} %"


# --- weights ---------------------------------------------------------------------------------------------------------


def weights(shape: tuple[int, int, int], bars: dict) -> Group:
    """Forward, dx and the gradient at the nonzeros, against three dense ``torch.mm(out=)``: they need no new memory."""
    bench = runner.load("sparse_linear")
    cases = {s: dict(zip("nkm", shape, strict=True)) | dict(sparsity=s, step="all") for s in bars}

    def make() -> dict[str, Callable]:
        dense = bench.baselines(next(iter(cases.values())))["torch.mm(out=)"]  # takes the same time for any weights
        return {"torch.mm(out=)": dense} | {percent(s): bench.ours(case) for s, case in cases.items()}

    rows = [
        Row(f"weights {named(shape)}, {percent(s)} sparse", percent(s), ("torch.mm(out=)",), {"default": bars[s]},
            work=bench.work(case)) for s, case in cases.items()
    ]  # fmt: skip
    errors = functools.partial(oracles.linear, bench, cases, percent)
    return Group(f"weights {named(shape)}", dict(shape=shape), tuple(rows), make, errors, regimes=USER, seconds=5)


def layer(shape: tuple[int, int, int], bar: float | None, bar_sparseprop: float, bar_sparselab: float) -> Group:
    """SparseLinear as users call it, through autograd, all outputs fresh."""
    names = ("SparseLinear", "nn.Linear", *peers.SPARSE)
    text, work = f"SparseLinear, autograd {named(shape)}, 90 %", layer_work(shape, 0.9)
    rows = (
        Row(text, "SparseLinear", ("nn.Linear",), {} if bar is None else {"default": (bar, None)}, work=work),
        *(Row(f"{text}: {name}", "SparseLinear", (name,), {"default": (bar, None)}, work=work)
          for name, bar in zip(peers.SPARSE, (bar_sparseprop, bar_sparselab), strict=True)),
    )  # fmt: skip
    make = functools.partial(peers.steps, names, shape, 0.9)
    errors = functools.partial(oracles.layer, shape, 0.9, names)
    return Group(f"layer {named(shape)}", dict(shape=shape, sparsity=0.9), rows, make, errors, regimes=USER, seconds=4)


def layer_work(shape: tuple[int, int, int], sparsity: float) -> dict:
    n, k, m = shape
    nnz = round(k * m * (1 - sparsity))
    return dict(flop=6 * n * nnz, bytes=4 * n * (3 * k + 2 * m) + 20 * nnz)


def structured(shape: tuple[int, int, int], sparsity: float) -> Group:
    """Structured weights against unstructured ones of the same sparsity; blocks also by their share of the FMA peak."""
    unstructured, blocks = runner.load("sparse_linear"), runner.load("block_linear")
    case = dict(zip("nkm", shape, strict=True)) | dict(sparsity=sparsity, step="all")

    def make() -> dict[str, Callable]:
        found = {"unstructured": unstructured.ours(case), "fan_in": peers.fan_in(unstructured, case)}
        return found | {p: blocks.ours(case | dict(block=block)) for p, block in BLOCKS.items()}

    text = f"{named(shape)}, {percent(sparsity)}"
    rows = [
        Row(f"{p} {text}: unstructured", p, ("unstructured",), {"default": (bar, None)}, work=unstructured.work(case))
        for p, bar in (("fan_in", 0.97), *((p, 1.0) for p in BLOCKS))  # fan_in: the same kernel, equal but for noise
    ]
    work = blocks.work(case)
    rows.append(Row(f"block:16x16 {text}, share of FMA peak", "block:16x16", (), {"default": (75, None)},
                    "share of peak", work))  # fmt: skip
    return Group(f"structured {text}", dict(shape=shape, sparsity=sparsity), tuple(rows), make, regimes=USER, seconds=4)


def scaling(shape: tuple[int, int, int]) -> Group:
    """One thread against two, where arithmetic is the limit."""
    bench, threads = runner.load("sparse_linear"), max(2, torch.get_num_threads())
    cases = {s: dict(zip("nkm", shape, strict=True)) | dict(sparsity=s, step="all") for s in (0.5, 0.9)}

    def alone(function: Callable) -> Callable:
        def run():
            torch.set_num_threads(1)
            function()
            torch.set_num_threads(threads)

        return run

    def make() -> dict[str, Callable]:
        found = {}
        for s, case in cases.items():
            found[percent(s)] = bench.ours(case)
            found[f"{percent(s)}, one thread"] = alone(found[percent(s)])
        return found

    rows = [
        Row(f"two threads for one, {named(shape)}, {percent(s)}", percent(s), (f"{percent(s)}, one thread",),
            {"default": (1.85, None)}, "scaling", bench.work(case)) for s, case in cases.items()
    ]  # fmt: skip
    return Group(f"scaling {named(shape)}", dict(shape=shape), tuple(rows), make, regimes=USER, seconds=5)


def overhead() -> Group:
    """What a call costs: Cora's first layer, and one row, where only the call is left."""
    from sparsegnn.nn import SparseLinear

    def make() -> dict[str, Callable]:
        ours, theirs = SparseLinear(1433, 16), torch.nn.Linear(1433, 16)
        found = {}
        for rows in (2708, 1):
            x = torch.randn(rows, 1433)
            for name, module in (("SparseLinear", ours), ("nn.Linear", theirs)):
                found[f"{name}, {rows}"] = functools.partial(module, x)
        return found

    rows = tuple(
        Row(f"SparseLinear(1433, 16), {n:,} row{'s' * (n > 1)}, call, beyond nn.Linear", f"SparseLinear, {n}",
            (f"nn.Linear, {n}",), {"default": (15, None)}, "extra time") for n in (2708, 1)
    )  # fmt: skip
    return Group("overhead", {}, rows, make, regimes=USER, seconds=3)


# --- graphs ----------------------------------------------------------------------------------------------------------


def spmm(graph: str, reduce: str, width: int, size: dict, bars: tuple | None) -> Group:
    bench = runner.load("spmm")
    case = dict(graph=graph, **size, width=width, reduce=reduce)
    text = f"spmm {reduce}, {width} features" + (", R-MAT graph" if graph == "rmat" else "")

    def make() -> dict[str, Callable]:
        return {"sparsegnn": bench.ours(case), **bench.baselines(case)}

    row = Row(text, "sparsegnn", SPMM_PEERS if reduce == "sum" else SPMM_PEERS[1:], both(bars), work=bench.work(case))
    errors = functools.partial(oracles.spmm, bench, case)
    seconds = 5 if width < 128 else 7
    return Group(text, case, (row,), make, errors, regimes=USER if graph == "rmat" else BOTH, seconds=seconds)


def gat(op: str, train: bool, size: dict, quick: bool) -> Group:
    bench = runner.load(op)
    case = dict(**size, inputs=128, heads=8, width=8, train=train)
    text = f"{op.upper().replace('V', 'v')}Conv 128 to 8x8, " + ("training step" if train else "inference")

    def make() -> dict[str, Callable]:
        return {"sparsegnn": bench.ours(case), **bench.baselines(case)}

    bars = both(GAT[train]) if op == "gat" else {}
    row = Row(text, "sparsegnn", ("PyG edge_index", "PyG SparseTensor"), bars, work=bench.work(case))
    errors = functools.partial(oracles.gat, bench) if op == "gat" and train and not quick else None
    return Group(text, case, (row,), make, errors, regimes=BOTH if bars else USER, seconds=8 if train else 5)


def gcn(size: dict, quick: bool) -> list[Group]:
    """A step as a user writes it; against PyG, and against dense weights on the best dense path there is."""
    bench = runner.load("gcn_step")
    case = dict(**size, hidden=256, sparsity=0.9)
    text, work = "GCN 128-256-40, 90 %, step", bench.work(case)
    adj, edges, dense = "PyG torch_sparse", "PyG edge_index", ("dense", "dense fused")
    fused, both_19 = {"default": (6, 10), "kept": (5, 7)}, {r: (1.9, 3) for r in BOTH}

    def make(names: tuple[str, ...]) -> dict[str, Callable]:
        found = {"sparsegnn": bench.ours(case), **bench.baselines(case)}
        return {name: function for name, function in found.items() if name in names}

    def row(what: str, ours: str, other: str | tuple, bars: dict) -> Row:
        others = (other,) if isinstance(other, str) else other
        name = "dense weights" if isinstance(other, tuple) else other
        return Row(f"{text}{what}: {name}", ours, others, bars, work=work)

    def group(name: str, rows: tuple[Row, ...], regimes: tuple[str, ...], errors: Callable | None) -> Group:
        names = tuple({name for row in rows for name in (row.ours, *row.against)})
        return Group(name, case, rows, functools.partial(make, names), errors, regimes=regimes, seconds=12)

    rows = (
        row("", "sparsegnn", adj, {"default": (4, None), "kept": (3.5, None)}),
        row(", act='relu'", "fused", adj, fused),
        row(", act='relu'", "fused", (*dense, adj), both_19),
        row(", act, cached", "fused cached", adj, fused),
        row(", act, cached", "fused cached", (*dense, "dense fused cached", adj), both_19),
    )
    slow = (
        row("", "sparsegnn", edges, {"default": (25, None)}),
        row(", act='relu'", "fused", edges, {"default": (30, 40)}),
        row(", act, cached", "fused cached", edges, {"default": (30, 40)}),
    )
    errors = None if quick else functools.partial(oracles.gcn, bench)
    return [group("GCN step", rows, BOTH, errors), group("GCN step, edge_index", slow, USER, None)]


def sparse_features() -> Group | None:
    """Bag-of-words inputs: forward against dense features and torch's CSR."""
    if "sparse_features" not in runner.names():
        return None
    bench = runner.load("sparse_features")
    case = {k: v for k, v in bench.cases()[0].items() if k != "quick"}

    def make() -> dict[str, Callable]:
        return {"sparsegnn": bench.ours(case), **bench.baselines(case)}

    text, work = "sparse features, Cora, 1433 to 16", bench.work(case)
    rows = [Row(f"{text}: {name}", "sparsegnn", (name,), {"default": (bar, None)}, work=work)
            for name, bar in (("nn.Linear", 30), ("torch CSR", 1.8))]  # fmt: skip
    rows += [Row(f"{text}, weight 90 % sparse: {name}", "sparse weight", (name,), work=work)
             for name in ("nn.Linear", "torch CSR")]  # fmt: skip
    return Group("sparse features", case, tuple(rows), make, regimes=USER, seconds=4)


# --- memory ----------------------------------------------------------------------------------------------------------


def memory(layer: str, bar: float | None) -> Group:
    """Peak memory of one training step above its inputs, every contender in a process of its own."""
    contenders = ("sparsegnn", "PyG edge_index", "PyG SparseTensor")
    bars = {} if bar is None else {"default": (bar, None)}
    row = Row(f"{layer} training step, peak memory above inputs", "sparsegnn", contenders[1:], bars, "memory")

    def measure() -> dict[str, float]:
        return {name: value for name in contenders if (value := peak(layer, name)) is not None}

    return Group(f"{layer} memory", dict(nodes=170_000, edges=2_300_000), (row,), measure=measure, regimes=USER)


def peak(layer: str, contender: str) -> int | None:
    """Bytes, measured by ``suites/memory.py``; None where the contender is not installed."""
    if contender != "sparsegnn" and importlib.util.find_spec("torch_geometric") is None:
        return None
    if contender == "PyG SparseTensor" and importlib.util.find_spec("torch_sparse") is None:
        return None
    command = [sys.executable, str(FOLDER / "suites" / "memory.py"), layer, contender]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FOLDER), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{layer}, {contender}: {done.stderr.strip().splitlines()[-1:]}")
    return int(done.stdout)
