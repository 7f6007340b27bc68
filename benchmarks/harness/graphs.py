"""Synthetic graphs with fixed seeds, as CSR: stand-ins for real ones of the same size and skew."""

import functools
from dataclasses import dataclass

import torch

import sparsegnn


@functools.lru_cache(maxsize=2)
def lognormal(nodes: int, edges: int, sigma: float = 1.1, seed: int = 0) -> sparsegnn.CSRGraph:
    """Log-normal degrees on both ends, randomly labelled: about arxiv at 170,000 nodes and 2,300,000 edges.

    With these numbers and sigma 1.1: median degree 7, largest 1155.
    """
    g = torch.Generator().manual_seed(seed)
    weight = torch.exp(sigma * torch.randn(nodes, generator=g))
    target, source = (torch.multinomial(weight, edges, replacement=True, generator=g) for _ in range(2))
    return sparsegnn.CSRGraph.from_edge_index(torch.stack([source, target]), nodes)


@functools.lru_cache(maxsize=2)
def rmat(scale_nodes: int, edges: int, seed: int = 0) -> sparsegnn.CSRGraph:
    """R-MAT (0.57, 0.19, 0.19, 0.05), randomly relabelled: very skewed, many isolated nodes."""
    g = torch.Generator().manual_seed(seed)
    bits = (scale_nodes - 1).bit_length()
    source, target = torch.zeros(edges, dtype=torch.long), torch.zeros(edges, dtype=torch.long)
    for _ in range(bits):
        draw = torch.rand(edges, generator=g)
        source, target = 2 * source + (draw > 0.76), 2 * target + (((draw > 0.57) & (draw <= 0.76)) | (draw > 0.95))
    label = torch.randperm(1 << bits, generator=g) % scale_nodes
    return sparsegnn.CSRGraph.from_edge_index(torch.stack([label[source], label[target]]), scale_nodes)


# --- stand-ins, made on the device -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class StandIn:
    """Size and skew of a real graph: power-law weights whose largest expected degree is about the real one's, edges
    drawn by weight, symmetric, without duplicates and loops. ``inside`` of the edges stay in blocks of 2,000 nodes."""

    nodes: int
    edges: int  # directed
    features: int
    classes: int
    exponent: float
    inside: float = 0.0


#: named after the graphs that they stand in for; the sizes are those that MaxK-GNN trains on
STAND_INS = {
    "flickr": StandIn(89_250, 989_006, 500, 7, 2.6),
    "arxiv": StandIn(169_343, 2_315_598, 128, 40, 2.5),
    "yelp": StandIn(716_847, 13_954_819, 300, 100, 3.2),
    "reddit": StandIn(232_965, 114_615_891, 602, 41, 3.9),
    "products": StandIn(2_449_029, 123_718_280, 100, 47, 3.3, inside=0.7),
    "tiny": StandIn(300, 3_000, 16, 5, 2.6),
    "tiny blocks": StandIn(300, 3_000, 16, 5, 2.6, inside=0.7),
}
BLOCK = 2000


@functools.lru_cache(maxsize=1)
def stand_in(name: str, device: torch.device | str, order: str = "random", seed: int = 0) -> sparsegnn.CSRGraph:
    """``order="random"``: labelled at random, the worst case; ``"community"``: block after block, the same graph."""
    about, g = STAND_INS[name], torch.Generator(device).manual_seed(seed)
    n, pairs = about.nodes, about.edges // 2
    weight = torch.arange(1, n + 1, device=device, dtype=torch.float64).pow_(-1 / (about.exponent - 1))
    total = weight[torch.randperm(n, device=device, generator=g)].cumsum_(0)

    def draw(low: torch.Tensor | float, high: torch.Tensor, count: int) -> torch.Tensor:
        u = low + (high - low) * torch.rand(count, device=device, generator=g, dtype=torch.float64)
        return torch.searchsorted(total, u).clamp_(max=n - 1)

    keys = torch.empty(0, dtype=torch.int64, device=device)
    for _ in range(20):  # duplicates fall away, so a few rounds
        count = int(1.1 * (pairs - keys.numel())) + 100
        a, b = draw(0.0, total[-1], count), draw(0.0, total[-1], count)
        within = int(about.inside * count)
        first = a[:within] // BLOCK * BLOCK
        last = (first + BLOCK - 1).clamp_(max=n - 1)
        low = torch.where(first > 0, total[first - 1], 0)
        b[:within] = draw(low, total[last], within)
        drawn = torch.minimum(a, b) * n + torch.maximum(a, b)
        keys = torch.cat([keys, drawn[a != b]]).unique()
        if keys.numel() >= pairs:
            break
    keys = keys[torch.randperm(keys.numel(), device=device, generator=g)[:pairs]]
    a, b = keys // n, keys % n
    if order == "random":
        label = torch.randperm(n, device=device, generator=g)
        a, b = label[a], label[b]
    keys = torch.cat([a * n + b, b * n + a]).sort().values
    crow = torch.zeros(n + 1, dtype=torch.int32, device=device)
    crow[1:] = torch.bincount(keys // n, minlength=n).cumsum(0)
    return sparsegnn.CSRGraph.from_csr(crow, (keys % n).int())


def degrees(graph: sparsegnn.CSRGraph) -> dict:
    """Mean, quantiles and maximum of the degrees."""
    counts = graph.crow.diff().double().sort().values
    at = {f"p{q}": int(counts[round(q / 100 * (counts.numel() - 1))]) for q in (10, 50, 90, 99)}
    return dict(mean=round(float(counts.mean()), 2), **at, max=int(counts[-1]))
