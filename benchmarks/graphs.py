"""Synthetic graphs with fixed seeds, as CSR: stand-ins for real ones of the same size and skew."""

import functools

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
