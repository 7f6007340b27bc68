"""How fast: the stages of gpu_check.py that measure. Each yields (case, function that returns a row).

``s`` says where and how large: ``s.device``, and ``s.dry_run`` for tiny sizes on the CPU. sparsegnn is imported in the
stages: which libraries it loads is settled by then.
"""

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable

import torch

warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)")  # torch's, about the baselines


@contextlib.contextmanager
def tf32(allowed: bool):
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def measure(s, contenders: dict[str, Callable]) -> dict[str, dict]:
    """Median ms of every contender, with the 10th and 90th percentile: samples in turns, each about 50 ms."""

    def sample(function, runs: int) -> float:
        if s.dry_run:
            start = time.perf_counter()
            for _ in range(runs):
                function()
            return 1e3 * (time.perf_counter() - start) / runs
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(runs):
            function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / runs

    runs, samples, result = {}, {name: [] for name in contenders}, {}
    for name, function in contenders.items():
        function()
        once = sample(function, 1)
        least = 20 if once < 5 else 1  # so that the launch of one hides behind the run of another
        runs[name] = 1 if s.dry_run else max(least, min(1000, int(50 / max(once, 1e-3))))
    for _ in range(2 if s.dry_run else 9):
        for name, function in contenders.items():
            samples[name].append(sample(function, runs[name]))
    for name, values in samples.items():
        cuts = statistics.quantiles(values, n=10, method="inclusive")
        result[name] = dict(ms=round(statistics.median(values), 5), p10=round(cuts[0], 5), p90=round(cuts[-1], 5))
    return result


def compare(s, contenders: dict[str, Callable], oracle=None, tolerance: float = 1e-5) -> dict:
    """Times of all; speed-ups over the first, which is ours; its error against the oracle, over memory full of NaN."""
    row: dict = {}
    ours = next(iter(contenders))
    if oracle is not None:
        want = oracle()
        poison = [torch.full((want.numel() * 4,), torch.nan, device=s.device) for _ in range(2)]
        del poison  # the allocator hands these bytes to the next output: one that is not written shows
        got = contenders[ours]().double()
        row["error"] = None
        row["relative_error"] = float((got - want).norm() / want.norm().clamp_min(1e-300))
        if not row["relative_error"] <= tolerance:
            raise AssertionError(f"relative error {row['relative_error']:.2e} is over {tolerance:.0e}")
    times = measure(s, contenders)
    row["times"] = times
    row["speedup"] = {n: round(t["ms"] / times[ours]["ms"], 3) for n, t in times.items() if n != ours}
    return row


def make_graph(s, nodes: int, edges: int, sigma: float):
    """A graph with log-normal degrees on both ends, randomly labelled, made on the device."""
    from sparsegnn import CSRGraph

    torch.manual_seed(0)
    weight = torch.exp(sigma * torch.randn(nodes, device=s.device, dtype=torch.float64)).cumsum(0)
    ends = [
        torch.searchsorted(weight, weight[-1] * torch.rand(edges, device=s.device, dtype=torch.float64)).clamp_(
            max=nodes - 1
        )
        for _ in range(2)
    ]
    return CSRGraph.from_edge_index(torch.stack(ends), nodes)


def graphs(s) -> dict[str, tuple[int, int, float]]:
    """Stand-ins: nodes, edges, spread of the degrees."""
    if s.dry_run:
        return {"tiny": (60, 500, 1.0)}
    return {
        "arxiv": (169_343, 2_315_598, 1.0),
        "reddit": (232_965, 114_615_891, 1.0),
        "products": (2_449_029, 123_718_280, 1.0),
    }


# ---- stages: how fast is it


def linear(s):
    """Sparse-weight matmuls against torch.mm in strict fp32, TF32 and bf16, and torch.sparse.mm."""
    from sparsegnn import pattern

    batch = 70 if s.dry_run else 169_343
    shapes = [(9, 13)] if s.dry_run else [(256, 256), (1024, 1024), (128, 256), (602, 256), (256, 47)]

    def case(k: int, m: int, sparsity: float, dtype) -> dict:
        torch.manual_seed(0)
        crow, col = (t.to(s.device) for t in pattern.random_pattern(m, k, sparsity=sparsity))
        index = (crow, col, *pattern.transpose(crow, col, k))
        x, dy = (torch.randn(batch, n, device=s.device, dtype=dtype) for n in (k, m))
        values = torch.randn(col.numel(), device=s.device, dtype=dtype)
        rows = torch.repeat_interleave(torch.arange(m, device=s.device), crow.diff().long(), output_size=col.numel())
        w = torch.zeros(m, k, device=s.device, dtype=dtype)
        w[rows, col.long()] = values
        op, backward = torch.ops.sparsegnn.sparse_linear, torch.ops.sparsegnn.sparse_linear_backward
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2

        def parts(what: str):
            need = (what == "dx", what == "dvalues", False)
            if what == "forward":
                dense, wide = (lambda: x @ w.t()), (lambda: x.double() @ w.double().t())
                return (lambda: op(x, values, None, *index)), dense, wide
            ours = lambda: backward(dy, x, values, *index, *need)[what == "dvalues"]  # noqa: E731
            if what == "dx":
                return ours, (lambda: dy @ w), (lambda: dy.double() @ w.double())
            return ours, (lambda: dy.t() @ x), (lambda: (dy.double().t() @ x.double())[rows, col.long()])

        result = {}
        for what in ("forward", "dx", "dvalues"):
            ours, dense, oracle = parts(what)
            contenders = {"sparsegnn": ours, "torch.mm": dense}
            if dtype == torch.float32:

                def allowed(dense=dense):
                    with tf32(True):
                        return dense()

                contenders["torch.mm TF32"] = allowed
                if what == "forward":
                    csr = torch.sparse_csr_tensor(crow, col, values, (m, k))
                    contenders["torch.sparse.mm"] = lambda csr=csr: torch.sparse.mm(csr, x.t())
            result[what] = compare(s, contenders, oracle, tolerance)
        return result

    for k, m in shapes:
        for sparsity in (0.9,) if s.dry_run else (0.8, 0.9, 0.95, 0.98):
            for dtype in (torch.float32, torch.bfloat16):
                name = dict(batch=batch, inputs=k, outputs=m, sparsity=sparsity, dtype=str(dtype).partition(".")[2])
                yield name, lambda a=(k, m, sparsity, dtype): case(*a)


def aggregation(s):
    """Sum, max and edge products over graphs against cuSPARSE (torch.sparse.mm with int32 indices)."""
    from sparsegnn import ops

    def case(graph, width: int, dtype) -> dict:
        x = torch.randn(graph.num_cols, width, device=s.device, dtype=dtype)
        ones = torch.ones(graph.num_edges, device=s.device, dtype=dtype)
        csr = torch.sparse_csr_tensor(graph.crow, graph.col, ones, (graph.num_rows, graph.num_cols))
        contenders = {
            "sparsegnn": lambda: ops.spmm(graph, x),
            "torch.sparse.mm": lambda: torch.sparse.mm(csr, x),
            "ours, max": lambda: ops.spmm(graph, x, reduce="max"),
            "ours, sddmm": lambda: ops.sddmm(graph, x, x),
        }
        if dtype != torch.float32 and s.dry_run:
            del contenders["torch.sparse.mm"]  # no such kernel on the CPU
        few = min(graph.num_rows, 20_000)  # rows the oracle is computed for

        def oracle():
            last = int(graph.crow[few])
            rows = torch.repeat_interleave(torch.arange(few, device=s.device), graph.crow[: few + 1].diff().long())
            out = x.new_zeros(few, width, dtype=torch.float64)
            for begin in range(0, last, 1 << 22):
                span = slice(begin, min(begin + (1 << 22), last))
                out.index_add_(0, rows[span], x[graph.col[span].long()].double())
            return out

        check = compare(s, {"sparsegnn": lambda: ops.spmm(graph, x)[:few]}, oracle,
                        1e-5 if dtype == torch.float32 else 1e-2)  # fmt: skip
        row = compare(s, contenders) | {"relative_error": check["relative_error"]}
        ms = row["times"]["sparsegnn"]["ms"]
        row["gathered_gbytes_per_second"] = graph.num_edges * (4 + width * x.element_size()) / ms / 1e6
        return row

    for name, size in graphs(s).items():
        made = []
        for width in (7,) if s.dry_run else (64, 256):
            for dtype in (torch.float32, torch.bfloat16):

                def run(width=width, dtype=dtype, size=size, made=made):
                    made or made.append(make_graph(s, *size))
                    return case(made[0], width, dtype)

                yield dict(graph=name, width=width, dtype=str(dtype).partition(".")[2]), run


def attention(s):
    """Training steps of GATConv against PyG's, peak memory beside time."""
    from sparsegnn import nn

    try:
        from torch_geometric.nn import GATConv
    except ImportError:
        GATConv = None

    def case(name: str, heads: int, width: int) -> dict:
        graph = make_graph(s, *graphs(s)[name]).add_self_loops()
        torch.manual_seed(0)
        x = torch.randn(graph.num_cols, 16 if s.dry_run else 128, device=s.device)
        layers = {"sparsegnn": nn.GATConv(x.size(1), width, heads=heads, add_self_loops=False).to(s.device)}
        edges = {"sparsegnn": graph}
        if GATConv:
            layers["PyG"] = GATConv(x.size(1), width, heads=heads, add_self_loops=False).to(s.device)
            layers["PyG"].load_state_dict(layers["sparsegnn"].state_dict())
            rows = torch.repeat_interleave(torch.arange(graph.num_rows, device=s.device), graph.crow.diff().long())
            edges["PyG"] = torch.stack([graph.col.long(), rows])

        def step(which: str):
            return lambda: layers[which](x, edges[which]).square().sum().backward()

        error = None
        if GATConv:
            with torch.no_grad():
                ours, theirs = (layers[n](x, edges[n]) for n in layers)
            error = float((ours - theirs).norm() / theirs.norm())
            assert error < 1e-4, f"relative difference from PyG {error:.2e}"
        peak = {}
        for which in layers if not s.dry_run else ():
            step(which)()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step(which)()
            peak[which] = torch.cuda.max_memory_allocated() - before
        return compare(s, {n: step(n) for n in layers}) | dict(relative_error=error, peak_bytes=peak)

    for name in [n for n in graphs(s) if n in ("tiny", "arxiv")]:
        for heads, width in ((2, 3),) if s.dry_run else ((4, 64), (8, 8), (1, 256)):
            yield dict(graph=name, heads=heads, width=width), lambda a=(name, heads, width): case(*a)


def topology(s):
    """Updates of a pattern against sorting in plain PyTorch."""
    from sparsegnn import pattern
    from sparsegnn.ops.topology import reference

    def case(m: int, k: int) -> dict:
        torch.manual_seed(0)
        crow, col = (t.to(s.device) for t in pattern.random_pattern(m, k, sparsity=0.9))
        drop, grow = torch.randn(col.numel(), device=s.device), torch.randn(m, k, device=s.device)
        n = torch.tensor(int(0.3 * col.numel()), device=s.device)
        op, copies = torch.ops.sparsegnn.topology_, [(crow.clone(), col.clone()) for _ in range(2)]
        sources = [op(*copies[0], drop, grow, n), reference(*copies[1], drop, grow, n)]
        for a, b in zip((*copies[0], sources[0]), (*copies[1], sources[1]), strict=True):
            assert torch.equal(a, b), "differs from sorting"
        return compare(s, {
            "sparsegnn": lambda: op(crow, col, drop, grow, n), "sorting": lambda: reference(crow, col, drop, grow, n)
        })  # fmt: skip

    for m, k in [(13, 9)] if s.dry_run else [(256, 256), (1024, 1024), (4096, 4096)]:
        yield dict(outputs=m, inputs=k, sparsity=0.9, moved=0.3), lambda a=(m, k): case(*a)


STAGES = (linear, aggregation, attention, topology)
