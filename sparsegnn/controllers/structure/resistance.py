"""Effective resistance of edges: how much of the current between its ends an edge carries (Spielman, Srivastava 2008).

R_uv = (e_u - e_v)^T L^+ (e_u - e_v), L the Laplacian of the undirected graph with its weights as conductances.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparsegnn.controllers.settings import check_int
from sparsegnn.controllers.structure.edges import pairs
from sparsegnn.graph import CSRGraph

EXACT = 4000  # nodes whose dense Laplacian is solved: a second, 128 MB


def effective_resistance(
    graph: CSRGraph, *, exact: bool | None = None, projections: int = 200, seed: int = 0
) -> Tensor:
    """[E] float64, the effective resistance of every edge in slot order; 0 of self-loops. On the CPU.

    Args:
        graph: symmetric, with positive weights or none.
        exact: solve the dense Laplacian; None: of graphs of up to 4000 nodes. Else by random projections
            (Johnson, Lindenstrauss) and scipy's conjugate gradients.
        projections: number of them; the relative standard error is sqrt(2 / projections), 10 % for 200.
        seed: of the projections.
    """
    op = "effective_resistance"
    unit, undirected = pairs(graph)
    if not undirected:
        raise ValueError(f"{op}: graph must be symmetric, got one that is not: add the reverse edges")
    weight = torch.ones(graph.num_edges) if graph.val is None else graph.val.detach().cpu()
    if not (weight > 0).all():
        raise ValueError(f"{op}: graph must have positive weights, got {weight.min().item():g}")
    check_int(op, "projections", projections, 1)
    check_int(op, "seed", seed, 0)
    row, col, weight = graph.rows().cpu(), graph.col.long().cpu(), weight.double()
    edge, n = (row != col), graph.num_rows
    row, col, weight, found = row[edge], col[edge], weight[edge], torch.zeros(edge.numel(), dtype=torch.float64)
    if n <= EXACT if exact is None else exact:
        found[edge] = _exact(row, col, weight, n)
    else:
        found[edge] = _projected(row, col, weight, n, projections, torch.Generator().manual_seed(seed))
    return found.to(graph.device)


def components(row: Tensor, col: Tensor, n: int) -> Tensor:
    """[n] the lowest node of the component of each node of an undirected graph."""
    label = torch.arange(n)
    while True:
        lower = label.scatter_reduce(0, row, label[col], "amin")
        lower = torch.minimum(lower, lower[lower])
        if torch.equal(lower, label):
            return label
        label = lower


def _exact(row: Tensor, col: Tensor, weight: Tensor, n: int) -> Tensor:
    """With 1 1^T / size added for each component L is regular, and its inverse gives the resistances of L^+."""
    laplacian = torch.zeros(n, n, dtype=torch.float64).index_put_((row, col), -weight, accumulate=True)
    laplacian.diagonal().sub_(laplacian.sum(1))
    label = components(row, col, n)
    size = label.bincount(minlength=n)[label].double()
    laplacian += (label[:, None] == label) / size
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(laplacian))
    return inverse[row, row] + inverse[col, col] - 2 * inverse[row, col]


def _projected(row: Tensor, col: Tensor, weight: Tensor, n: int, k: int, generator: torch.Generator) -> Tensor:
    """|Z e_u - Z e_v|^2 with Z = Q W^1/2 B L^+, Q of k rows of random signs over sqrt(k), B the incidence matrix."""
    try:
        from scipy.sparse import csr_array, diags_array
        from scipy.sparse.linalg import cg
    except ImportError as e:
        raise ValueError("effective_resistance: a graph of more than 4000 nodes must have scipy's solver: "
                         "pip install scipy, or pass exact=True") from e  # fmt: skip
    degree = torch.zeros(n, dtype=torch.float64).index_add_(0, row, weight)
    matrix = csr_array((weight.numpy(), (row.numpy(), col.numpy())), (n, n))
    laplacian = diags_array(degree.numpy()).tocsr() - matrix
    jacobi = diags_array((1 / degree.clamp(min=1e-300)).numpy())
    one = row < col  # each undirected edge once
    u, v, root = row[one], col[one], weight[one].sqrt()
    found = torch.zeros(row.numel(), dtype=torch.float64)
    for _ in range(k):
        sign = torch.randint(2, u.shape, generator=generator).double() * 2 - 1
        flow = sign * root / math.sqrt(k)
        right = torch.zeros(n, dtype=torch.float64).index_add_(0, u, flow).index_add_(0, v, -flow)
        z, failed = cg(laplacian, right.numpy(), rtol=1e-6, M=jacobi)
        if failed:
            raise RuntimeError("effective_resistance: conjugate gradients did not converge: pass exact=True, or scale "
                               "the weights of the graph to a narrower range")  # fmt: skip
        z = torch.from_numpy(z)
        found += (z[row] - z[col]).square()
    return found
