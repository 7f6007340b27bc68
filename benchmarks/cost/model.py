"""Milliseconds that an H200 should need, by counted instructions, filled lanes and bytes. PREDICTIONS, not measured.

A kernel takes as long as the slowest of what works at once: issuing, the load-store units, the other pipes, the L2, the
memory, and waiting for loads with the warps that there are. ``ASSUMED`` holds every number that is not counted.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from cost import schedule
from cost.counts import Count
from cost.degrees import Graph
from cost.schedule import WARP, Filled, occupancy, passes_table, plan, segments

#: value, unit, where it is from. Sections: shared/notes/cuda-kernels.md. What a GPU has measured replaces it
ASSUMED = {
    "sms": (132, "", "H200"),
    "clock": (1.98e9, "Hz", "measured on an H200 under load (section 1)"),
    "issue": (0.7, "of 4 warp instructions a clock and SM", "planned: what a good kernel reaches"),
    "pipes": (0.85, "of the load-store and tensor pipes' peak", "planned"),
    "mma": (0.62, "of the tensor cores' peak, by mma.sync", "from memory of a microbenchmark (section 1)"),
    "hbm": (4.3e12, "B/s", "a copy, measured on an H200 (section 1)"),
    "l2": (9.7e12, "B/s", "reads of at most 30 MB, measured by others (section 1)"),
    "l2 kept": (36 << 20, "B", "of a gathered table: 3/5 of 60 MB, as segments.cuh reckons"),
    "l2 latency": (250e-9, "s", "142 ns unloaded (section 1); under load planned"),
    "hbm latency": (700e-9, "s", "346 ns unloaded (section 1); under load planned"),
    "launch": (3e-6, "s", "of a kernel, planned"),
    "enough warps": (16, "on an SM to hide loads from shared memory", "planned: four a scheduler"),
    "shared rows": (0.8, "of a block's warps gather until its tile is full", "planned: shares are equal, hubs are not"),
    "granule": (64, "B", "what a read of memory brings at least"),
    "cublas fp32": (50e12, "FLOP/s", "planned (section 1)"),
    "cublas tf32": (380e12, "FLOP/s", "planned (section 1)"),
    "cublas bf16": (790e12, "FLOP/s", "measured on an H200 (section 1)"),
    "cusparse": (0.95, "of the speed of memory, or of the L2 where all rows fit", "planned: section 2.4 without reuse"),
    "pyg passes": (9, "reads or writes of an [E, H, D] tensor in an attention forward", "planned"),
    "topk row": (12e-9, "s", "of torch.topk, a row of 256: planned"),
}


@dataclass
class Machine:
    """The numbers of ``ASSUMED``, or those that a GPU was measured to have."""

    values: dict[str, float] = field(default_factory=lambda: {k: v[0] for k, v in ASSUMED.items()})

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    @property
    def cycles(self) -> float:
        """SM clocks a second, of all SMs."""
        return self["sms"] * self["clock"]


@dataclass(frozen=True)
class Cost:
    """Seconds that each part of the machine is busy with one kernel; they overlap, so the longest counts."""

    name: str
    bounds: dict[str, float]

    @property
    def seconds(self) -> float:
        return max(self.bounds.values())

    @property
    def bound(self) -> str:
        return max(self.bounds, key=self.bounds.get)


def total(costs: list[Cost], machine: Machine) -> float:
    """Seconds of kernels one after the other."""
    return sum(c.seconds for c in costs) + machine["launch"] * len(costs)


def bound(costs: list[Cost]) -> str:
    """What holds up the longest of them."""
    longest = max(costs, key=lambda c: c.seconds)
    return longest.bound if len(costs) == 1 else f"{longest.name}: {longest.bound}"


# ---- memory


def rounded(width_bytes: float, machine: Machine) -> float:
    """Bytes that memory gives for a row of so many that begins anywhere at a multiple of its size."""
    granule = machine["granule"]
    return width_bytes if width_bytes % granule == 0 else width_bytes + granule - min(granule, 16)


def gathered(graph: Graph, width_bytes: float, slice_bytes: float, extra: float, written: float,
             machine: Machine) -> tuple[float, float, float]:  # fmt: skip
    """Bytes from the L2 and from memory, and the share of a gather's loads that the L2 has, where every edge reads a
    row in slices, and ``extra`` bytes of its own for each of them."""
    slices = width_bytes / slice_bytes
    table, moved = graph.nodes * width_bytes, graph.edges * width_bytes
    other = extra * graph.edges * slices + 4 * graph.nodes * slices + written
    kept = min(1.0, machine["l2 kept"] / (graph.nodes * slice_bytes))
    missed = (1 - kept) * graph.edges * slices * rounded(slice_bytes, machine)
    return moved + other, max(table, missed) + other, kept


def streamed(name: str, bytes_: float, machine: Machine) -> Cost:
    """A kernel that reads and writes memory once and does little else."""
    return Cost(name, {"HBM": bytes_ / machine["hbm"]})


# ---- what is issued


def issued(count: Count, units: float, around: float, machine: Machine, tail: float = 0.0) -> dict[str, float]:
    """Seconds of the pipes for so many units of a loop, warps that come by, and units left over, each of a warp."""
    instructions = units * count.instructions + tail * (count.tail or 0) + around * count.around
    full = units + (tail if count.tail else 0)
    peak = machine.cycles
    found = {
        "issue": instructions / (4 * machine["issue"] * peak),
        "LSU": full * count.cycles / (machine["pipes"] * peak),
        "XU": full * count.of["xu"] * 2 / (machine["pipes"] * peak),
    }
    if count.of["mma"]:
        found["tensor"] = full * count.of["mma"] * count.facts.get("mma_clocks", 1.0) / (machine["mma"] * peak)
    return found


def waiting(steps: float, trips: float, kept: float, warps: int, alive: float, machine: Machine) -> float:
    """Seconds in which so many warps, of which ``alive`` have work, wait out all steps, each of ``trips`` loads."""
    latency = kept * machine["l2 latency"] + (1 - kept) * machine["hbm latency"]
    return steps * trips * latency / (machine["sms"] * warps * alive)


# ---- kernels


@dataclass(frozen=True)
class Scores:
    """What the lanes of a warp do for ``edges`` edges of every row at once: a step of ``count``, and ``reduction``
    instructions beside."""

    count: Count
    edges: int
    reduction: float = 0.0

    @property
    def of_edge(self) -> float:
        """Instructions of a warp for an edge of each of its rows."""
        return (self.count.instructions + self.reduction) / self.edges


def reduced(name: str, count: Count, graph: Graph, width: int, size: int, vector: int, header: str, machine: Machine,
            extra: float = 4, read: float | None = None, written: float | None = None, sliced: bool | None = None,
            scores: Scores | None = None) -> Cost:  # fmt: skip
    """A reduction over the edges of every row by ``common/segments.cuh``: bytes ``size`` of a gathered column, a lane
    ``vector`` columns. ``read``: bytes of a row that an edge needs, if not all. ``sliced``: may slices be taken, if the
    header does not tell for all. ``scores``: what lanes do for the edges of a warp beside."""
    sliced = passes_table(header) if sliced is None else sliced
    p, filled = segments(graph, width, size, vector, int(count.unroll), count.tail is None, sliced)
    slices = p["slices"]
    row = width * size if read is None else read
    l2, hbm, kept = gathered(
        graph, row, row / slices, extra, graph.nodes * (row if written is None else written), machine
    )
    found = issued(count, slices * filled.bodies * count.unroll, slices * filled.warps, machine, slices * filled.tails)
    warps = occupancy(count.registers, count.shared, int(p["threads"]))
    wait = waiting(slices * filled.steps, count.facts.get("trips", 2), kept, warps, filled.alive, machine)
    if scores:
        _, by_scores = segments(graph, width, size, vector, scores.edges, True, sliced)
        more = issued(scores.count, slices * by_scores.bodies, 0, machine)
        more["issue"] += slices * by_scores.bodies * scores.reduction / (4 * machine["issue"] * machine.cycles)
        found = {k: v + more.get(k, 0.0) for k, v in found.items()}
        trips = scores.count.facts.get("trips", 2)
        wait += waiting(slices * by_scores.bodies, trips, 1.0, warps, filled.alive, machine)
    return Cost(name, found | {"L2": l2 / machine["l2"], "HBM": hbm / machine["hbm"], "latency": wait})


def maxk_forward(name: str, count: Count, graph: Graph, width: int, k: int, machine: Machine) -> Cost:
    p = plan("maxk_spmm", graph.nodes, graph.edges, width, k)
    several = int(p["copies"] * count.unroll)
    filled = schedule.walked(graph.degrees, int(p["window"]), 1, int(p["warps"]), several, True)
    rounds = -(-k // int(p["lanes"] * p["vector"]))
    row = k * 5
    l2, hbm, kept = gathered(graph, row, row, 4, 4 * graph.nodes * width, machine)
    found = issued(count, filled.bodies * count.unroll * rounds, filled.warps, machine)
    warps = occupancy(count.registers, p["shared"], int(p["threads"]))
    wait = waiting(filled.steps, count.facts.get("trips", 2), kept, warps, filled.alive, machine)
    return Cost(name, found | {"L2": l2 / machine["l2"], "HBM": hbm / machine["hbm"], "latency": wait})


def sampled(name: str, count: Count, units: float, bytes_: float, stores: float, warps: int, machine: Machine,
            moved: float | None = None) -> Cost:  # fmt: skip
    """A product by a sparse weight: units of the loop by single warps, ``stores`` of a warp in all, bytes of memory.
    ``moved``: units whose lanes are all there, where idle ones issue but load nothing."""
    found = issued(count, units, 0, machine)
    found["LSU"] *= (units if moved is None else moved) / units
    clocks = (
        stores * sum(count.facts.get(fact, 0) for fact in ("lines", "staged")) / (machine["pipes"] * machine.cycles)
    )
    full = min(1.0, warps / machine["enough warps"])
    return Cost(name, {k: v / full for k, v in found.items()} | {"LSU": (found["LSU"] + clocks) / full}
                | {"HBM": bytes_ / machine["hbm"]})  # fmt: skip


def of_lanes(counts: dict[str, Count], name: str, lanes: int) -> Count:
    """The loop for lanes of so many samples, or the narrowest that is counted: few samples take narrow ones."""
    for key in (f"{name}, NL = {n}" for n in (lanes, 1, 2, 4)):
        with contextlib.suppress(KeyError):
            return counts[key]
    raise KeyError(f"{name}: no loop of it is in budget.json")


def linear(
    name: str, counts: dict[str, Count], batch: int, inputs: int, outputs: int, nnz: int, machine: Machine
) -> Cost:
    """``y`` of sparse_linear in fp32; a unit is 4 nonzeros and 32 * NL samples."""
    p = plan("linear", batch, inputs, outputs, 4, nnz)
    count = of_lanes(counts, "sparse_linear", int(p["per_lane"]))
    tiles = -(-batch // (WARP * int(p["per_lane"])))
    longest = schedule.quarters(inputs, outputs, nnz, int(p["chunk"]), int(p["together"]))
    padded = nnz + outputs * p["chunks"] * (p["together"] - 1) / 2
    stores = tiles * -(-outputs // int(p["outputs"])) * p["per_lane"] * 2  # 16 of 32 bytes
    warps = occupancy(count.registers, p["shared"], int(p["threads"]))
    return sampled(name, count, tiles * longest, 4 * batch * (inputs + outputs), stores, warps, machine,
                   tiles * padded / 4)  # fmt: skip


def linear_values(name: str, counts: dict[str, Count], batch: int, inputs: int, outputs: int, nnz: int,
                  machine: Machine) -> Cost:  # fmt: skip
    """``dvalues`` of sparse_linear in fp32; a unit is a nonzero and 32 * NL samples."""
    p = plan("dvalues", batch, inputs, outputs, 4)
    count = of_lanes(counts, "sparse_linear dvalues", int(p["per_lane"]))
    tiles = -(-batch // (WARP * int(p["per_lane"])))
    warps = occupancy(count.registers, p["shared"], int(p["threads"]))
    moved = 4 * batch * (inputs * p["panels"] + outputs * p["chunks"]) + 8 * nnz * p["spans"]
    return sampled(name, count, tiles * nnz, moved, 0, warps, machine)


def fused(name: str, counts: dict[str, Count], graph: Graph, inputs: int, outputs: int, nnz: int, backward: bool,
          machine: Machine) -> Cost:  # fmt: skip
    """``spmm_linear`` or its backward with both gradients, in fp32: gather and products of blocks on an SM overlap."""
    gathers = outputs if backward else inputs
    p = plan("fused_backward" if backward else "fused", graph.nodes, inputs, outputs, 4)
    lanes, which = int(p["per_lane"]), "backward " if backward else ""
    gather, product = (of_lanes(counts, f"spmm_linear {which}{part}", lanes) for part in ("gather", "product"))
    tiles = -(-graph.nodes // (WARP * lanes))
    made = inputs if backward else outputs
    longest = schedule.quarters(gathers, made, nnz, gathers, 2)
    # a gather's unit is 512 bytes of an edge; a share's last iteration is half full
    units = (graph.edges + graph.nodes) * gathers * 4 / 512 + graph.nodes * gather.unroll / 2
    parts = [issued(gather, units, graph.nodes, machine), issued(product, tiles * longest, 0, machine)]
    parts[1]["LSU"] *= (nnz + made / 2) / 4 / longest
    l2, hbm, kept = gathered(graph, gathers * 4, gathers * 4, 4, 4 * graph.nodes * outputs, machine)
    stores = tiles * -(-made // 8) * lanes * 2 * (product.facts.get("lines", 1) + product.facts.get("staged", 0))
    if backward:
        values = of_lanes(counts, "spmm_linear backward values", lanes)
        parts.append(issued(values, tiles * nnz, 0, machine))
        hbm += 4 * graph.nodes * inputs + 8 * nnz * p["spans"]
    found = {k: sum(part.get(k, 0.0) for part in parts) for k in ("issue", "LSU", "XU")}
    found["LSU"] += stores / (machine["pipes"] * machine.cycles)
    warps = occupancy(gather.registers, p["shared"], int(p["threads"]))
    steps = units / gather.unroll
    found["latency"] = waiting(steps, gather.facts.get("trips", 2), kept, warps, machine["shared rows"], machine)
    return Cost(name, found | {"L2": l2 / machine["l2"], "HBM": hbm / machine["hbm"]})


def blocks(name: str, count: Count, batch: int, inputs: int, outputs: int, side: int, share: float, size: int,
           machine: Machine) -> Cost:  # fmt: skip
    """``block_linear`` on tensor cores; a unit is 8 HMMA: 32 samples, 32 outputs and 16 columns in 16 bits."""
    p = plan("block", batch, inputs, outputs, side, size, size == 4)
    tiles = -(-batch // int(p["samples"]))
    depth = 32 // size  # columns of an HMMA
    hmma = tiles * (p["samples"] / 16) * (outputs / 8) * (inputs * share / depth)
    found = issued(count, hmma / 8, 0, machine)
    l2 = size * tiles * inputs * outputs * share  # W through every tile, in whole sectors
    moved = size * batch * (inputs * p["chunks"] + outputs)
    warps = occupancy(count.registers, p["shared"], int(p["threads"]))
    per_warp = hmma / 8 / (machine["sms"] * warps)  # steps, each of which waits for its fragments of W
    found["latency"] = per_warp * count.facts.get("trips", 1) * machine["l2 latency"]
    return Cost(name, found | {"L2": (l2 + moved) / machine["l2"], "HBM": moved / machine["hbm"]})


def selected(name: str, counts: dict[str, Count], rows: int, width: int, k: int, machine: Machine) -> Cost:
    """``maxk``: a warp has ``rows`` of its facts at once, which take the rounds of its slowest, and
    lanes write what stays of their columns, one after the other."""
    count, stays = counts["maxk select"], counts["maxk select, what stays"]
    several = int(count.facts.get("rows", 1))
    p = plan("rounds", width, k, 400, several, width * several // WARP)
    warps = rows / several
    found = issued(count, warps * p["rounds"], 0, machine)
    found["issue"] += warps * (count.most + p["stay"] * stays.instructions) / (4 * machine["issue"] * machine.cycles)
    return Cost(name, found | {"HBM": rows * (4 * width + 5 * k) / machine["hbm"]})


def filled_of(graph: Graph, count: Count, width: int, size: int, vector: int, header: str) -> Filled:
    """Lanes and warps that a graph fills."""
    return segments(graph, width, size, vector, int(count.unroll), count.tail is None, passes_table(header))[1]
