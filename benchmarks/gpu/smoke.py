"""Every op once on small odd shapes, forward and backward, on a device in fp32 and 16 bits against the CPU's fp64.

``python benchmarks/gpu/smoke.py cuda`` is what compute-sanitizer runs; ``cpu`` shows that the program is right.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import torch

TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
WIDTHS = (8, 7)


class Smoke:
    def __init__(self, device: str):
        self.device, self.ran = torch.device(device), 0

    def both(self, function: Callable, *arguments, dtype: torch.dtype = torch.float32, tf32: bool = False) -> None:
        """Outputs and gradients here, and on the CPU in fp64 of the same (rounded) numbers."""
        rounded, results = [a.to(dtype) if a.is_floating_point() else a for a in arguments], []
        for place, kind in ((self.device, dtype), (torch.device("cpu"), torch.float64)):
            leaves = [a.to(place, kind if a.is_floating_point() else a.dtype, copy=True) for a in rounded]
            wanted = [a.requires_grad_() for a in leaves if a.is_floating_point()]
            y = function(*leaves)
            g = torch.Generator().manual_seed(1)
            flow = torch.randn(y.shape, generator=g, dtype=torch.float64).to(dtype).to(y)
            results.append([y, *torch.autograd.grad(y, wanted, flow)])
        limit = 5e-3 if tf32 else TOLERANCE[dtype]
        for got, want in zip(*results, strict=True):
            error = (got.detach().cpu().double() - want).norm() / want.norm().clamp_min(1e-30)
            assert error <= limit, f"{function}: relative error {error:.1e} in {dtype}"
        self.ran += 1


def graph_ops(smoke: Smoke) -> None:
    from sparsegnn import CSRGraph, ops

    g = torch.Generator().manual_seed(0)
    edges = torch.randint(40, (2, 900), generator=g)
    edges[1, :600] = 7  # a hub longer than a window
    seed = torch.tensor([5])

    def on(edges: torch.Tensor) -> CSRGraph:  # csr_from_edges, csr_transpose
        return CSRGraph.from_edge_index(edges, 40)

    for width in WIDTHS:
        x = torch.randn(40, width, generator=g)
        weight = torch.rand(900, generator=g) + 0.1
        for reduce in ("sum", "mean", "max", "min"):
            smoke.both(lambda x, e, r=reduce: ops.spmm(on(e), x, reduce=r), x, edges)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            smoke.both(lambda x, w, e: ops.spmm(on(e), x, edge_weight=w), x, weight, edges, dtype=dtype)
            smoke.both(lambda a, b, e: ops.sddmm(on(e), a, b), x, x + 1, edges, dtype=dtype)
        smoke.both(lambda w, e: torch.ops.sparsegnn.csr_degrees(on(e).crow, w), weight, edges)
        scores, heads = torch.randn(2, 40, 3, generator=g), torch.randn(40, 3, width, generator=g)
        att = torch.randn(3, width, generator=g)
        smoke.both(lambda x, s, t, e: ops.gat(on(e), x, s, t), heads, *scores, edges)
        smoke.both(lambda x, a, b, e: ops.gat(on(e), x, a[None], b[None]), heads, att, att + 1, edges)
        smoke.both(lambda x, y, a, e: ops.gatv2(on(e), x, y, a), heads, heads + 1, att, edges)
        smoke.both(lambda x, s, t, e: ops.gat(on(e), x, s, t, dropout=0.4, seed=seed.to(x.device)), heads, *scores,
                   edges)  # fmt: skip
    for width, k, group in ((16, 4, None), (16, 4, 8), (16, 3, None)):
        x = torch.randn(40, width, generator=g)

        def compress(x, k=k, group=group):
            return ops.maxk(x, k, group)

        def select(x, compress=compress, width=width):
            return torch.ops.sparsegnn.maxk_expand(*compress(x), width)

        smoke.both(select, x)
        for reduce in ("sum", "mean"):
            smoke.both(lambda x, e, c=compress, w=width, r=reduce: ops.maxk_spmm(on(e), *c(x), w, r), x, edges)


def weight_ops(smoke: Smoke) -> None:
    from sparsegnn import CSRGraph, ops, pattern

    g = torch.Generator().manual_seed(0)
    seed = torch.tensor([5])
    for width in WIDTHS:
        crow, col = pattern.random_pattern(13, width, sparsity=0.5, generator=g)
        index = (crow, col, *pattern.transpose(crow, col, width))
        x, values, bias = (torch.randn(*size, generator=g) for size in ((70, width), (col.numel(),), (13,)))
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            smoke.both(ops.sparse_linear, x, values, bias, *index, dtype=dtype)

        def epilogue(x, values, bias, *index):
            return ops.sparse_linear(x, values, bias, *index, "relu", 0.3, seed.to(x.device))

        smoke.both(epilogue, x, values, bias, *index)
        for act in ("none", "relu", "elu"):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                smoke.both(lambda x, b, a=act: ops.act_dropout(x, b, a, 0.3, seed.to(x.device)), x, x[0].clone(),
                           dtype=dtype)  # fmt: skip
        edges = torch.randint(70, (2, 300), generator=g)
        for act, dropout in (("none", 0.0), ("relu", 0.3)):

            def layer(x, values, bias, edges, *index, act=act, dropout=dropout):
                graph = CSRGraph.from_edge_index(edges, 70)
                seeded = dict(dropout=dropout, seed=seed.to(x.device)) if dropout else {}
                return ops.gcn(graph, x, values, bias, pattern=index, act=act, **seeded)

            smoke.both(layer, x, values, bias, edges, *index)
        topology(smoke, crow, col, width, g)
    for kind in ("grouped:4", "grouped:8", "grouped:16", "block:16x16", "block:32x32"):
        height, width = pattern.BLOCKS[kind]
        m, k = 64, 32 if width > 1 else 21
        crow, col = pattern.random_pattern(m, k, sparsity=0.5, kind=kind, generator=g)
        index = (crow, col, *pattern.transpose(crow, col, k // width))
        x, bias = torch.randn(70, k, generator=g), torch.randn(m, generator=g)
        values = torch.randn(col.numel() * height * width, generator=g)
        blocks = functools.partial(block_linear, block=(height, width))
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            smoke.both(blocks, x, values, bias, *index, dtype=dtype)
            smoke.both(lambda v, p, c, a=(k, height, width): ops.dense_weight(v, p, c, *a), values, crow, col,
                       dtype=dtype)  # fmt: skip
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        smoke.both(blocks, x, values, bias, *index, tf32=True)
        torch.set_float32_matmul_precision(before)


def block_linear(x, values, bias, *index, block: tuple[int, int]):
    from sparsegnn import ops

    return ops.block_linear(x, values, bias, *index, *block)


def topology(smoke: Smoke, crow: torch.Tensor, col: torch.Tensor, width: int, g: torch.Generator) -> None:
    drop, grow = torch.randn(col.numel(), generator=g), torch.randn(13, width, generator=g)
    found = []
    for place in (smoke.device, torch.device("cpu")):
        p, c = crow.to(place, copy=True), col.to(place, copy=True)
        source = torch.ops.sparsegnn.topology_(p, c, drop.to(place), grow.to(place), torch.tensor(5, device=place))
        found.append([t.cpu().tolist() for t in (p, c, source)])
    assert found[0] == found[1], found
    smoke.ran += 1


def main(device: str) -> None:
    smoke = Smoke(device)
    graph_ops(smoke)
    weight_ops(smoke)
    print(f"smoke: {smoke.ran} checks of all ops on {device} agree with the CPU's fp64")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cuda")
