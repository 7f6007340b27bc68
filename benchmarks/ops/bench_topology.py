"""One drop-and-grow update of a sparse weight, against the same selection with torch.topk over a masked dense score."""

import torch

import sparsegnn
from sparsegnn import pattern


def cases() -> list[dict]:
    shapes = ((256, 256), (512, 512), (256, 1433), (2048, 2048))
    large = [dict(rows=m, cols=k, sparsity=s, drop=0.3) for m, k in shapes for s in (0.9, 0.98)]
    return [large[0] | dict(quick=True), *large[1:]]


def inputs(case: dict) -> dict:
    g = torch.Generator().manual_seed(0)
    size = (case["rows"], case["cols"])
    crow, col = pattern.random_pattern(*size, sparsity=case["sparsity"], generator=g)
    weight = torch.randn(col.numel(), generator=g)
    mask = pattern.to_mask(crow, col, size[1])
    dense = torch.zeros(size).masked_scatter_(mask, weight)
    n = torch.tensor(int(case["drop"] * col.numel()))
    grow = torch.randn(size, generator=g).abs()
    return dict(crow=crow, col=col, drop=weight.abs(), grow=grow, n=n, dense=dense, mask=mask)


def ours(case: dict):
    i = inputs(case)
    return lambda: torch.ops.sparsegnn.topology_(i["crow"], i["col"], i["drop"], i["grow"], i["n"])


def baselines(case: dict) -> dict:
    i = inputs(case)
    nnz, n = i["drop"].numel(), int(i["n"])

    def masks_topk():  # what mask-based libraries do; ties are left to chance, and nothing is compressed
        kept = torch.where(i["mask"], i["dense"].abs(), -1.0).flatten().topk(nnz - n, sorted=False).indices
        mask = torch.zeros(i["mask"].numel(), dtype=torch.bool).index_fill_(0, kept, True)
        grown = torch.where(mask, -1.0, i["grow"].flatten()).topk(n, sorted=False).indices
        return mask.index_fill_(0, grown, True)

    reference = sparsegnn.ops.topology.reference
    return {
        "masks_topk": masks_topk,
        "stable_sort": lambda: reference(i["crow"], i["col"], i["drop"], i["grow"], i["n"]),
    }


def work(case: dict) -> dict:
    """Bytes that any selection must move: read all scores and the pattern once, write pattern and source once."""
    size = case["rows"] * case["cols"]
    nnz = (1 - case["sparsity"]) * size
    return dict(flop=0, bytes=int(4 * size + 4 * nnz + 12 * nnz))
