"""Keeping k of F features of every node, against torch.topk, alone and with the scatter that makes dense rows."""

import torch

from sparsegnn.ops import maxk


def cases() -> list[dict]:
    large = [
        dict(nodes=170_000, width=width, k=k, group=group)
        for width, k, group in ((256, 16, 0), (256, 32, 0), (256, 64, 0), (256, 32, 8), (1024, 64, 0))
    ]
    return [dict(nodes=20_000, width=256, k=32, group=0, quick=True), *large]


def ours(case: dict):
    x = inputs(case)
    return lambda: maxk(x, case["k"], case["group"] or None)


def inputs(case: dict) -> torch.Tensor:
    return torch.randn(case["nodes"], case["width"], generator=torch.Generator().manual_seed(1))


def baselines(case: dict) -> dict:
    x, k = inputs(case), case["k"]

    def dense():
        values, index = torch.topk(x, k, sorted=False)
        return torch.zeros_like(x).scatter_(1, index, values)

    def ours_dense():
        return torch.ops.sparsegnn.maxk_expand(*maxk(x, k, case["group"] or None), case["width"])

    if case["group"]:
        parts = x.view(case["nodes"], -1, case["group"])
        return {"torch.topk of groups": lambda: parts.topk(k * case["group"] // case["width"], sorted=False)}
    return {"torch.topk": lambda: torch.topk(x, k, sorted=False), "topk+scatter": dense, "ours, dense": ours_dense}


def work(case: dict) -> dict:
    """Rows read once, values and columns written once."""
    column = 1 if case["width"] <= 256 else 2
    return dict(flop=0, bytes=case["nodes"] * (4 * case["width"] + (4 + column) * case["k"]))
