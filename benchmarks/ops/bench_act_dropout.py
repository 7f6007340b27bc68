"""Bias, activation and dropout behind a layer, and their gradients, against the operators of PyTorch one by one."""

import torch
from torch.nn import functional as F

from sparsegnn.ops import act_dropout

PLAIN = {"none": lambda y: y, "relu": torch.relu_, "elu": F.elu_}


def cases() -> list[dict]:
    """facebook_pages and coauthor_cs at hidden widths, Cora; p is that of the recipes of GCN."""
    shapes = ((2708, 64), (22470, 256), (18333, 512))
    grid = [dict(nodes=n, width=w, act=act, dropout=0.5) for n, w in shapes for act in PLAIN]
    grid.append(dict(nodes=22470, width=256, act="relu", dropout=0.0))
    return [dict(grid[0], quick=True), *grid[1:]]


def inputs(case: dict):
    g = torch.Generator().manual_seed(1)
    x, dy = torch.randn(2, case["nodes"], case["width"], generator=g)
    return x.requires_grad_(), torch.randn(case["width"], generator=g).requires_grad_(), dy


def step(f, x, bias, dy):
    return lambda: torch.autograd.grad(f(), (x, bias), dy)


def ours(case: dict):
    x, bias, dy = inputs(case)
    seed = torch.tensor([3])
    return step(lambda: act_dropout(x, bias, case["act"], case["dropout"], seed), x, bias, dy)


def baselines(case: dict) -> dict:
    x, bias, dy = inputs(case)

    def plain():
        return F.dropout(PLAIN[case["act"]](x + bias), case["dropout"])

    return {"add, activation in place, F.dropout": step(plain, x, bias, dy)}


def work(case: dict) -> dict:
    """Forward x and y once, backward dy and dx, and y where an activation needs it."""
    return dict(flop=0, bytes=4 * case["nodes"] * case["width"] * (4 if case["act"] == "none" else 5))
