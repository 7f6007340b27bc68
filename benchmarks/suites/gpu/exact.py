"""Results in fp64, in plain PyTorch: what contenders are compared with. Of large graphs only some rows."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1 << 28  # numbers of messages at a time


def some_rows(graph, count: int = 2000) -> Tensor:
    """The heaviest rows of a graph and others at random, ascending; all of a small one."""
    degree = graph.crow.diff()
    if graph.num_rows <= count:
        return torch.arange(graph.num_rows, device=degree.device)
    g = torch.Generator(degree.device).manual_seed(7)
    random = torch.randperm(graph.num_rows, device=degree.device, generator=g)[:count]
    return torch.cat([degree.topk(8).indices, random]).unique()


def slots(crow: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Slots of the edges of these rows, and which of the rows each belongs to."""
    begin, count = crow[rows].long(), crow.diff()[rows].long()
    at = torch.repeat_interleave(torch.arange(rows.numel(), device=rows.device), count)
    first = count.cumsum(0) - count
    return begin[at] + torch.arange(at.numel(), device=rows.device) - first[at], at


def aggregate(crow: Tensor, col: Tensor, x: Tensor, rows: Tensor, val: Tensor | None = None,
              reduce: str = "sum") -> Tensor:  # fmt: skip
    """Rows of A x."""
    slot, at = slots(crow, rows)
    y = torch.zeros(rows.numel(), x.size(1), dtype=torch.float64, device=x.device)
    for part in torch.arange(slot.numel(), device=x.device).split(max(1, CHUNK // x.size(1))):
        message = x[col[slot[part]].long()].double()
        if val is not None:
            message *= val[slot[part]].double()[:, None]
        y.index_add_(0, at[part], message)
    if reduce == "mean":
        y /= crow.diff()[rows].clamp(min=1)[:, None]
    return y


def extremum(graph, x: Tensor, dy: Tensor) -> list[Tensor]:
    """y and dx of the maximum over edges, of the whole graph."""
    rows, col = graph.rows(), graph.col.long()
    y = torch.zeros(graph.num_rows, x.size(1), dtype=torch.float64, device=x.device)
    dx = torch.zeros(graph.num_cols, x.size(1), dtype=torch.float64, device=x.device)
    for begin in range(0, x.size(1), 32):  # a few columns at a time
        columns = slice(begin, begin + 32)
        message = x[:, columns].double()[col]
        index = rows[:, None].expand_as(message)
        y[:, columns] = y[:, columns].scatter_reduce(0, index, message, "amax", include_self=False)
        hit = message == y[:, columns].gather(0, index)
        dx[:, columns].index_add_(0, col, hit * dy[:, columns].double().gather(0, index))
    return [y, dx]


def attention(graph, x: Tensor, a_src: Tensor, a_dst: Tensor, dy: Tensor, slope: float = 0.2) -> list[Tensor]:
    """y, dx, da_src, da_dst of attention with given scores, through torch's own gradients."""
    x, a_src, a_dst = (t.double().requires_grad_() for t in (x, a_src, a_dst))
    rows, col = graph.rows(), graph.col.long()
    score = torch.nn.functional.leaky_relu(a_src[col] + a_dst[rows], slope)
    y = softmax_sum(graph, score, x)
    return [y.detach(), *torch.autograd.grad(y, (x, a_src, a_dst), dy.double())]


def softmax_sum(graph, score: Tensor, x: Tensor) -> Tensor:
    """Sum over the edges of a row of softmax(score [E, H]) x[col] [N, H, D]."""
    rows, col = graph.rows(), graph.col.long()
    index = rows[:, None].expand_as(score)
    top = score.detach().new_full((graph.num_rows, score.size(1)), -torch.inf)
    weight = (score - top.scatter_reduce(0, index, score.detach(), "amax")[rows]).exp()
    total = weight.new_zeros(graph.num_rows, score.size(1)).index_add(0, rows, weight)
    alpha = weight / total[rows]
    return x.new_zeros(graph.num_rows, *x.shape[1:]).index_add(0, rows, alpha[..., None] * x[col])


class Symmetric(torch.autograd.Function):
    """A x for a symmetric A, by a function that multiplies; its gradient is A dy."""

    @staticmethod
    def forward(ctx, x, multiply):
        ctx.multiply = multiply
        return multiply(x)

    @staticmethod
    def backward(ctx, dy):
        return ctx.multiply(dy.contiguous()), None


def normalized(graph) -> tuple[Tensor, Tensor, Tensor]:
    """(crow, col, val) of the GCN norm with self-loops, of a graph without any; val in fp64."""
    n = graph.num_rows
    node = torch.arange(n, device=graph.device)
    keys = torch.cat([graph.rows() * n + graph.col, node * n + node]).sort().values
    crow = graph.crow + torch.arange(n + 1, device=graph.device, dtype=torch.int32)
    scale = crow.diff().double().rsqrt()
    return crow, (keys % n).int(), scale[keys // n] * scale[keys % n]
