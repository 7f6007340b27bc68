"""What is predicted: the cases with their peers' arithmetic and targets, and the bars on counts and filled lanes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cost import degrees, model
from cost.counts import Count
from cost.model import Cost, Machine
from cost.schedule import passes_table, plan

HEADS, HEAD = 4, 64  # of attention: 256 columns
ARXIV = 169_343
BACK = 3 * 4 * HEADS * HEAD  # bytes of a node that each pass beside the gather of GAT's backward reads and writes


@dataclass(frozen=True)
class Case:
    """``run`` predicts kernels one after the other; ``peer`` seconds of the others' arithmetic, ``target`` seconds.

    ``how`` says what measures the same on a GPU (``gpu/calibration.py``); real graphs do not go along, and have none.
    """

    op: str
    name: str
    graph: str | None
    run: Callable[[dict[str, Count], Machine], list[Cost]]
    peer: Callable[[Machine], float] | None = None
    target: Callable[[dict[str, Count], Machine], float | None] | None = None
    against: str = ""
    how: dict = field(default_factory=dict)


# ---- the others' arithmetic


def cusparse(name: str, width: int, size: int = 4) -> Callable[[Machine], float]:
    """All rows are found in the L2 where they fit, else none, and memory reads whole granules: section 2.4."""

    def seconds(m: Machine) -> float:
        g = degrees.graph(name)
        row = width * size
        if g.nodes * row <= m["l2 kept"]:
            compulsory = 2 * g.nodes * row + 8 * g.edges
            return max(g.edges * (row + 8) / m["l2"], compulsory / m["hbm"]) / m["cusparse"]
        bytes_ = g.edges * (model.rounded(row, m) + 8) + g.nodes * row
        return bytes_ / (m["cusparse"] * m["hbm"])

    return seconds


def cublas(n: int, k: int, m_: int, rate: str = "fp32") -> Callable[[Machine], float]:
    size = 2 if rate == "bf16" else 4

    def seconds(m: Machine) -> float:
        return max(2 * n * k * m_ / m[f"cublas {rate}"], size * n * (k + m_) / m["hbm"])

    return seconds


def both(*parts: Callable[[Machine], float]) -> Callable[[Machine], float]:
    return lambda m: sum(part(m) for part in parts)


def pyg_attention(name: str) -> Callable[[Machine], float]:
    def seconds(m: Machine) -> float:
        g = degrees.graph(name)
        return m["pyg passes"] * 4 * g.edges * HEADS * HEAD / m["hbm"]

    return seconds


def at(ms: float) -> Callable[[dict[str, Count], Machine], float]:
    return lambda counts, m: ms / 1e3


def times(ratio: float, peer: Callable[[Machine], float]) -> Callable[[dict[str, Count], Machine], float]:
    return lambda counts, m: peer(m) / ratio


# ---- ours


def vector(width: int, size: int = 4) -> int:
    """Columns of a lane, as spmm's launcher takes them."""
    return int(plan("vectors", width)["V"]) if size == 4 else 16 // size


def spmm(name: str, width: int, kind: str = "spmm sum") -> Callable[[dict[str, Count], Machine], list[Cost]]:
    def run(counts: dict[str, Count], m: Machine) -> list[Cost]:
        wide = int(plan("vectors", width)["padded"])
        v = vector(wide)
        count = counts[kind if v == 4 else f"{kind}, V = {v}"]
        return [model.reduced("spmm", count, degrees.graph(name), wide, 4, v, "spmm.cuh", m)]

    return run


def scores(counts: dict[str, Count], name: str, which: str, dropout: bool = False) -> tuple[model.Scores, int]:
    """What lanes do for the scores of 4 heads of 64, and how many heads a slice of the graph's columns has."""
    g, width = degrees.graph(name), HEADS * HEAD
    header = {"gat forward": "gat.cuh", "gat backward": "gat_backward.cuh"}[which]
    p = plan("segments", g.nodes, g.nodes, g.edges, width, 4, 4, passes_table(header))
    edges = int(plan("team", HEADS, HEAD, 4, p["lanes"])["edges"])
    levels = edges.bit_length() - 1 if which == "gat forward" else 0
    count = counts[f"{which}, scores{', dropout' if dropout else ''}"]
    reduction = levels * counts["gat forward, reduction"].instructions if levels else 0.0
    return model.Scores(count, 2 * edges, reduction), -(-HEADS // int(p["slices"]))


def gat(name: str, backward: bool) -> Callable[[dict[str, Count], Machine], list[Cost]]:
    width = HEADS * HEAD

    def run(counts: dict[str, Count], m: Machine) -> list[Cost]:
        g, which = degrees.graph(name), "gat backward" if backward else "gat forward"
        count, (by_lanes, heads) = counts[which], scores(counts, name, which)
        if not backward:
            return [model.reduced("gather", count, g, width, 4, 4, "gat.cuh", m, extra=4 + 4 * heads,
                                  written=2 * 4 * width, scores=by_lanes)]  # fmt: skip
        return [
            model.streamed("nodes", g.nodes * BACK, m),
            model.reduced("gather", count, g, width, 4, 4, "gat_backward.cuh", m, extra=4 + 16 * heads,
                          written=2 * 4 * width, scores=by_lanes),
            model.streamed("parts", g.nodes * width, m),
            model.streamed("columns", g.nodes * BACK, m),
        ]  # fmt: skip

    return run


def gat_target(name: str, ratio: float) -> Callable[[dict[str, Count], Machine], float]:
    return lambda counts, m: ratio * model.total(spmm(name, HEADS * HEAD)(counts, m), m)


def maxk_backward(name: str, width: int, k: int) -> Callable[[dict[str, Count], Machine], list[Cost]]:
    def run(counts: dict[str, Count], m: Machine) -> list[Cost]:
        g = degrees.graph(name)
        if plan("maxk_spmm", g.nodes, g.edges, width, k)["reads_rows"]:
            count = counts["maxk_spmm backward, rows"]
            return [model.reduced("rows", count, g, width, 4, 4, "maxk_spmm_backward.cuh", m, written=4 * k,
                                  sliced=True)]  # fmt: skip
        sectors = width * 4 / 32 * (1 - (1 - 8 / width) ** k)  # of 32 bytes that hold one of k random columns
        count = counts["maxk_spmm backward, gather"]
        return [model.reduced("gather", count, g, k, 4, 1, "maxk_spmm_backward.cuh", m, read=32 * sectors,
                              written=4 * k, sliced=False)]  # fmt: skip

    return run


def nonzeros(k: int, m: int, sparsity: float) -> int:
    return round(k * m * (1 - sparsity))


def everything() -> Iterator[Case]:
    yield from aggregation()
    yield from weights()
    yield from layers()


def aggregation() -> Iterator[Case]:
    for graph, width, ms in (("arxiv", 256, 0.37), ("arxiv", 41, None), ("reddit", 256, 17), ("reddit", 602, None),
                             ("products", 100, None), ("products", 256, 35)):  # fmt: skip
        yield Case("spmm", f"spmm sum, {graph}, F = {width}", graph, spmm(graph, width), cusparse(graph, width),
                   at(ms) if ms else None, "cuSPARSE", dict(what="spmm", reduce="sum", width=width))  # fmt: skip
    for name in degrees.available():
        if name not in degrees.STAND_INS:
            peer = cusparse(name, 256)
            yield Case("spmm", f"spmm sum, {name}, F = 256", name, spmm(name, 256), peer, None, "cuSPARSE")
    yield Case("spmm", "spmm max, arxiv, F = 256", "arxiv", spmm("arxiv", 256, "spmm max"), None,
               gat_target("arxiv", 1.15), "", dict(what="spmm", reduce="max", width=256))  # fmt: skip
    for graph in ("arxiv", "reddit"):
        peer = pyg_attention(graph) if graph == "arxiv" else None
        for backward, ratio in ((False, 1.25), (True, 1.25 * 1.5)):
            against = "" if backward else "PyG" if peer else "PyG does not fit"
            yield Case("gat", f"GAT {'backward' if backward else 'forward'}, {graph}, 4 x 64", graph,
                       gat(graph, backward), None if backward else peer, gat_target(graph, ratio), against,
                       dict(what="gat", backward=backward))  # fmt: skip
    peer = cusparse("reddit", 256)
    yield Case("maxk_spmm", "MaxK spmm forward, Reddit, k = 32", "reddit",
               lambda c, m: [model.maxk_forward("rows", c["maxk_spmm forward"], degrees.graph("reddit"), 256, 32, m)],
               peer, at(4.5), "cuSPARSE of dense rows", dict(what="maxk_spmm", backward=False))  # fmt: skip
    yield Case("maxk_spmm", "MaxK spmm backward, Reddit, k = 32", "reddit", maxk_backward("reddit", 256, 32), peer,
               at(7.0), "cuSPARSE of dense rows", dict(what="maxk_spmm", backward=True))  # fmt: skip


#: sparsity -> how many times faster than cuBLAS y, dx and the gradient of the values should be
RATIOS = {0.9: (2.3, 1.5), 0.95: (4.2, 2.5)}


def weights() -> Iterator[Case]:
    peer = cublas(ARXIV, 256, 256)
    for sparsity, (ratio, of_values) in RATIOS.items():
        nnz = nonzeros(256, 256, sparsity)

        def product(c, m, nnz=nnz):
            return [model.linear("product", c, ARXIV, 256, 256, nnz, m)]

        def values(c, m, nnz=nnz):
            return [model.linear_values("dvalues", c, ARXIV, 256, 256, nnz, m)]

        for what, run, goal in (("y", product, ratio), ("dx", product, ratio), ("dvalues", values, of_values)):
            text = f"sparse_linear {ARXIV:,}x256x256 {what}, {100 * sparsity:g} %"
            how = dict(what="sparse_linear", of=what, sparsity=sparsity)
            yield Case("sparse_linear", text, None, run, peer, times(goal, peer), "cuBLAS fp32", how)
    peer = cublas(ARXIV + 1, 1024, 1024, "bf16")
    yield Case("block_linear", "block:32x32 bf16, 1024 wide, 90 %", None,
               lambda c, m: [model.blocks("block", c["block_linear 32x32 bf16"], ARXIV + 1, 1024, 1024, 32, 0.1, 2, m)],
               peer, times(2.0, peer), "cuBLAS bf16", dict(what="block_linear"))  # fmt: skip


def layers() -> Iterator[Case]:
    nnz = nonzeros(256, 256, 0.9)
    for backward, ratio in ((False, 1.8), (True, 2.0)):
        peer = both(cusparse("arxiv", 256), *[cublas(ARXIV, 256, 256)] * (1 + backward))
        yield Case("spmm_linear", f"fused layer {'backward' if backward else 'forward'}, arxiv, 256, 90 %", "arxiv",
                   lambda c, m, b=backward: [model.fused("layer", c, degrees.graph("arxiv"), 256, 256, nnz, b, m)],
                   peer, times(ratio, peer), "cuSPARSE + cuBLAS", dict(what="gcn", backward=backward))  # fmt: skip
    rows = degrees.STAND_INS["products"][0]
    yield Case("maxk", "MaxK select, products, 256 to 32", None,
               lambda c, m: [model.selected("select", c, rows, 256, 32, m)],
               lambda m: rows * m["topk row"], at(1.0), "torch.topk", dict(what="maxk"))  # fmt: skip


# ---- bars


@dataclass(frozen=True)
class Bar:
    """A number that must be at least or at most ``bar``; ``before`` is what the audit found."""

    op: str
    name: str
    found: float
    bar: float
    least: bool = False
    before: str = ""
    note: str = ""
    graph: str | None = None

    @property
    def met(self) -> bool:
        return self.found >= self.bar if self.least else self.found <= self.bar


#: of what fills lanes by rows: the loop, its header, bytes gathered of a column
BY_ROWS = {
    "spmm sum": ("spmm.cuh", 4),
    "spmm max": ("spmm.cuh", 4),
    "gat forward": ("gat.cuh", 4),
    "gat backward": ("gat_backward.cuh", 4),
    "gatv2 forward": ("gatv2.cuh", 4),
    "maxk_spmm backward, gather": ("maxk_spmm_backward.cuh", 4),
}


FILLED = ("arxiv", "reddit", "products", "facebook_pages", "soc_slashdot0902")


#: whether bars of an op on a graph are wanted; what they need is not reckoned elsewhere
Wanted = Callable[[str, "str | None"], bool]


def filling(counts: dict[str, Count], wanted: Wanted) -> Iterator[Bar]:
    """The least of all ops that share rows among lanes, over a row of 256 columns and a slice of 32."""
    for name in FILLED:
        if name not in degrees.available() or not wanted("segments", name):
            continue
        g, worst = degrees.graph(name), {}
        for op, (header, size) in BY_ROWS.items():
            one = counts[op].facts.get("columns", 4)
            for width in (256, 32):
                filled = model.filled_of(g, counts[op], width, size, int(one), header)
                for what in ("lanes", "alive"):
                    worst[what] = min(worst.get(what, (2.0, "")), (getattr(filled, what), f"{op}, F = {width}"))
        yield Bar(
            "segments", f"lanes filled, {name}", worst["lanes"][0], 0.95, True, ".56 to .68", worst["lanes"][1], name
        )
        yield Bar("segments", f"warps alive in a block, {name}", worst["alive"][0], 0.9, True, ".45 to .65",
                  worst["alive"][1], name)  # fmt: skip


def counting(counts: dict[str, Count], wanted: Wanted) -> Iterator[Bar]:
    if wanted("spmm", None):
        for name, label, bar in (("spmm sum", "spmm sum: instructions of an edge and 512 B", 10),
                                 ("spmm sum, values", "the same with values", 13)):  # fmt: skip
            yield Bar("spmm", label, counts[name].instructions, bar, before="23")
    for which, header, bar, before in (("forward", "gat.cuh", 20, "92"), ("backward", "gat_backward.cuh", 24, "87")):
        if wanted("gat", None):
            rows = counts[f"gat {which}"].instructions
            found, dropped = (rows + scores(counts, "arxiv", f"gat {which}", d)[0].of_edge for d in (False, True))
            sliced = "slices of the L2" if passes_table(header) else "no slices of the L2"
            yield Bar("gat", f"GAT {which}: instructions of an edge and 512 B", found, bar, before=before,
                      note=f"{rows:.1f} but for scores; {dropped:.1f} with dropout; {sliced}")  # fmt: skip
    if wanted("sparse_linear", None):
        lanes = int(plan("linear", ARXIV, 256, 256, 4, nonzeros(256, 256, 0.9))["per_lane"])
        count = counts[f"sparse_linear, NL = {lanes}"]
        note = f"NL = {lanes} at K = 256, {count.facts.get('lines', 1):g} lines of a store"
        yield Bar("sparse_linear", "sparse_linear y and dx: of 4 nonzeros and 64 samples",
                  count.instructions * 2 / lanes, 22, before="35", note=note)  # fmt: skip
        lanes = int(plan("dvalues", ARXIV, 256, 256, 4)["per_lane"])
        count = counts[f"sparse_linear dvalues, NL = {lanes}"]
        yield Bar("sparse_linear", "sparse_linear dvalues: of a nonzero and 64 samples",
                  count.instructions * 2 / lanes, 9, before="22 to 26", note=f"NL = {lanes}")  # fmt: skip
    if wanted("block_linear", None):
        yield Bar("block_linear", "block_linear: LDG for 8 HMMA", counts["block_linear 32x32 bf16"].loads, 3,
                  before="9")  # fmt: skip


def timing(counts: dict[str, Count], m: Machine, wanted: Wanted) -> Iterator[Bar]:
    for name, bar, before in (("MaxK select, products, 256 to 32", 1.2, "4"),
                              ("MaxK spmm backward, Reddit, k = 32", 8, "17")):  # fmt: skip
        case = next(c for c in everything() if c.name == name)
        if wanted(case.op, case.graph):
            yield Bar(case.op, f"{name}: predicted ms", 1e3 * model.total(case.run(counts, m), m), bar, before=before,
                      graph=case.graph)  # fmt: skip
    for graph, width in (("reddit", 602), ("arxiv", 41), ("products", 100)):
        if not wanted("spmm", graph):
            continue
        here, next_ = (model.total(spmm(graph, w)(counts, m), m) for w in (width, -(-width // 4) * 4))
        v = vector(int(plan("vectors", width)["padded"]))
        yield Bar("spmm", f"F = {width}, {graph}: by the next multiple of 4", here / next_, 1.05, before="V = 2 or 1",
                  note=f"V = {v}", graph=graph)  # fmt: skip


def policy(counts: dict[str, Count], m: Machine) -> Iterator[Bar]:
    """How much longer a step takes, y, dx and dvalues of 256 by 256, by the kernels that the policy takes than by the
    better of both, at the worst sparsity. With the policy of the checkout, which needs torch."""
    from sparsegnn import policy as ours

    worst = (0.0, "")
    dense = 3 * cublas(ARXIV, 256, 256)(m)
    for sparsity in [i / 100 for i in range(50, 100)]:
        nnz = nonzeros(256, 256, sparsity)
        parts = [model.linear("y", counts, ARXIV, 256, 256, nnz, m)] * 2
        values = model.linear_values("dvalues", counts, ARXIV, 256, 256, nnz, m)
        products = sum(c.seconds for c in parts)
        of_values = values.seconds
        if ours.gathers_gradient(nnz, (256, 256), ours.torch.float32):
            of_values = dense / 3
        sparse = products + of_values
        best = min(dense, products + min(values.seconds, dense / 3))
        taken = sparse if ours.static_kernel(nnz, (256, 256), device="cuda") == "sparse" else dense
        worst = max(worst, (taken / best, f"{100 * sparsity:.0f} % sparse"))
    yield Bar("sparse_linear", "policy, fp32: a step by the better of both, worst", worst[0], 1.1,
              before="prices y alone", note=worst[1])  # fmt: skip
