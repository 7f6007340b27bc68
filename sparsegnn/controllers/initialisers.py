"""Where the weights of a layer are when training begins: at random, by magnitude, or along a regular graph.

Positions are the ``(crow, col)`` of a layer's pattern; ``place`` puts the layer there, a method does so with the state
of its optimizer. A layer with constant fan-in gets as many inputs for every output, one with blocks whole blocks.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import torch
from torch import Tensor

from sparsegnn import pattern as patterns
from sparsegnn.controllers.distributions import allocate
from sparsegnn.nn import SparseLinear

Positions = tuple[Tensor, Tensor]


def start_counts(layers: Mapping[str, SparseLinear], sparsity: float, distribution: str | Mapping[str, float] = "erk",
                 op: str = "start_counts") -> dict[str, int]:  # fmt: skip
    """How many weights each layer begins with, as its pattern can hold them; see :func:`allocate`."""
    shapes = {name: (x.out_features, x.in_features) for name, x in layers.items()}
    sizes = {name: m * k for name, (m, k) in shapes.items()}
    if distribution == "global":
        if lacking := [name for name, x in layers.items() if x.values.numel() < sizes[name]]:
            raise ValueError(f"{op}: distribution must not be 'global' for layers that lack weights, got {lacking}")
    found = allocate(shapes, sparsity, distribution, {name: x.values for name, x in layers.items()}, op)
    for name, x in layers.items():
        patterns.check_sparsity(1 - found[name] / sizes[name], f"{op}: layer {name!r}", x.structure)
    return {n: patterns.count_kept(*shapes[n], 1 - found[n] / sizes[n], x.structure) for n, x in layers.items()}


def random_positions(layer: SparseLinear, count: int, generator: torch.Generator | None = None) -> Positions:
    """``count`` weights at random: of those that the layer holds, or all of these and others where it lacks some."""
    held, where = layer.values.numel(), {"generator": generator, "device": layer.col.device}
    drop, grow = torch.rand(held, **where), torch.rand(layer.out_features, layer.in_features, **where)
    return chosen(layer, drop, grow, min(count, held), count)


def magnitude_positions(layer: SparseLinear, count: int) -> Positions:
    """The ``count`` weights of the layer that are largest; ties to the earlier one."""
    return chosen(layer, layer.values.detach().abs(), None, count, count)


def chosen(layer: SparseLinear, keep: Tensor, grow: Tensor | None, kept: int, count: int) -> Positions:
    """The ``kept`` weights of highest ``keep`` [nnz], and others of highest ``grow`` [out, in], ``count`` in all.

    NaN ranks lowest, ties go to the earlier one, as in ``topology_``; a weight that was not kept may be among these.
    """
    (rows, cols), (height, width), op = layer.grid, layer.block, "initialisers"
    lines = rows if layer.structure == "fan_in" else 1  # whose counts are equal
    unit = height * width * lines
    kept, count, held = round(kept / unit), round(count / unit), layer.values.numel() // unit
    if not 0 <= kept <= min(count, held) or not 1 <= count <= rows * cols // lines:
        size = layer.out_features * layer.in_features
        raise ValueError(f"{op}: count must be in [{kept * unit}, {held * unit if grow is None else size}] of {size} "
                         f"weights, got {count * unit}")  # fmt: skip
    if layer.structure == "fan_in":
        patterns.check_even(layer.crow, op)
    at = patterns.flat(*layer.pattern(), cols).view(lines, -1)
    taken = torch.zeros(lines, rows * cols // lines, dtype=torch.bool, device=at.device)
    best = patterns.top(layer.per_position(keep).view(lines, -1), kept)
    taken.view(-1)[at.gather(1, best)] = True
    if count > kept:
        grow = patterns.block_sums(grow, layer.structure) if layer.block != (1, 1) else grow
        free = grow.reshape(lines, -1).masked_fill(taken, -torch.inf)
        taken |= patterns.top_mask(free, torch.full((lines,), count - kept, device=at.device))
    return patterns.from_mask(taken.view(rows, cols))


def source_of(layer: SparseLinear, crow: Tensor, col: Tensor) -> Tensor:
    """Which entry of the layer's own ``col`` each one of ``(crow, col)`` is, int64; -1 for a new one."""
    rows, cols = layer.grid
    before = torch.full((rows * cols,), -1, dtype=torch.int64, device=col.device)
    before[patterns.flat(*layer.pattern(), cols)] = torch.arange(layer.col.numel(), device=col.device)
    return before[patterns.flat(crow, col, cols)]


@torch.no_grad()
def place(layer: SparseLinear, crow: Tensor, col: Tensor) -> None:
    """Put a layer that no method moves at these positions. Weights that stay keep their values, new ones are zero."""
    source = source_of(layer, crow, col)
    values = layer.values.detach().view(layer.col.numel(), -1)[source.clamp(min=0)]
    layer.set_pattern_(crow, col, values.masked_fill_((source < 0)[:, None], 0).flatten())


# --- regular graphs (RGP, TNNLS 2024) ---


def regular_graph(nodes: int, degree: int, *, tries: int = 1000, seed: int = 0) -> Tensor:
    """Boolean adjacency [nodes, nodes] of a random ``degree``-regular graph with a short average path.

    Of ``tries`` swaps of two edges a-b, c-d for a-d, c-b, which keep all degrees, those stay that shorten the path.
    """
    import networkx  # which torch brings along

    op = "regular_graph"
    if not 1 <= degree < nodes or degree * nodes % 2:
        raise ValueError(f"{op}: degree must be in [1, {nodes - 1}], and times {nodes} nodes even, got {degree}")
    edges = [list(e) for e in networkx.random_regular_graph(degree, nodes, seed=seed).edges]
    edges.sort()  # not in the order of a set
    adjacency = torch.zeros(nodes, nodes, dtype=torch.bool)
    for a, b in edges:
        adjacency[a, b] = adjacency[b, a] = True
    best, draw = average_path(adjacency), random.Random(seed)
    for _ in range(tries):
        i, j = draw.randrange(len(edges)), draw.randrange(len(edges))
        (a, b), (c, d) = edges[i], edges[j][:: draw.choice((1, -1))]
        if len({a, b, c, d}) < 4 or adjacency[a, d] or adjacency[c, b]:
            continue
        new = adjacency.clone()
        for u, v, there in ((a, b, False), (c, d, False), (a, d, True), (c, b, True)):
            new[u, v] = new[v, u] = there
        if (path := average_path(new)) < best:
            adjacency, best, edges[i], edges[j] = new, path, [a, d], [c, b]
    return adjacency


def average_path(adjacency: Tensor) -> float:
    """Mean length of the shortest path between two nodes; that of a pair without one counts as ``nodes``."""
    nodes, links = adjacency.size(0), adjacency.float()
    reached = torch.eye(nodes, dtype=torch.bool, device=links.device)
    length = torch.full_like(links, nodes).fill_diagonal_(0)
    for step in range(1, nodes):
        new = ((reached.float() @ links) > 0) & ~reached
        if not new.any():
            break
        length.masked_fill_(new, step)
        reached |= new
    return length.double().sum().item() / (nodes * (nodes - 1))


def graph_positions(layer: SparseLinear, adjacency: Tensor, generator: torch.Generator | None = None) -> Positions:
    """Let each node have as many outputs, and inputs, as another, or one more; weights are where nodes are neighbours.

    In layers of blocks, rows and columns of blocks. ``generator``: of which nodes have one more, on the CPU.
    """
    op, nodes = "graph_positions", adjacency.size(0)
    if min(layer.grid) < nodes:
        raise ValueError(f"{op}: layer must have {nodes} outputs and inputs (or blocks) at least, got {layer.grid}")
    rows, cols = (_groups(n, nodes, generator) for n in layer.grid)
    mask = adjacency.cpu()[rows][:, cols].to(layer.col.device)
    crow, col = patterns.from_mask(mask)
    patterns.check_regular(crow, col, layer.in_features, layer.structure, op)
    return crow, col


def _groups(channels: int, nodes: int, generator: torch.Generator | None) -> Tensor:
    """The node of each channel; those of a node are consecutive."""
    size = torch.full((nodes,), channels // nodes)
    size[torch.randperm(nodes, generator=generator)[: channels % nodes]] += 1
    return torch.arange(nodes).repeat_interleave(size)
