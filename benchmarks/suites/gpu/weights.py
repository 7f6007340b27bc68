"""Sparse weights: unstructured ones in strict fp32 against torch.mm, groups and blocks in TF32 and bf16 against it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from harness.suite import Group, Row
from suites.gpu.common import SIZE, bars, group, product_work

import gpu

STAGE = "weights"
ROWS = 169_343  # nodes of arxiv
SPARSITIES = (0.9, 0.95, 0.8, 0.98)
#: what is computed -> bar and target against torch.mm fp32, by sparsity; 256 inputs and outputs
UNSTRUCTURED = {
    "forward": {0.9: (1.3, 2.3), 0.95: (1.3, 4.2)},
    "dx": {0.9: (1.3, 2.3), 0.95: (1.3, 4.2)},
    "dw": {0.9: (1.0, 1.5), 0.95: (1.2, 2.5)},
}
PATTERNS = ("grouped:8", "grouped:16", "block:16x16", "block:32x32")
#: (width, precision) -> bar and target of the quickest pattern at 90 % against torch.mm of that precision
STRUCTURED = {
    (1024, "tf32"): (1.0, 2.2),
    (1024, "bf16"): (1.0, 2.0),
    (512, "tf32"): (1.0, 1.25),
    (512, "bf16"): (1.0, 1.25),
}
WHAT = {"forward": "forward", "dx": "dx", "dw": "gradient of the weights"}


def groups(quick: bool) -> list[Group]:
    found = [unstructured(256, 256, what, ratios, quick, STAGE) for what, ratios in UNSTRUCTURED.items()]
    found += [halves(width, quick) for width in (1024, 2048)]
    return found + [structured(width, precision, what, ratio if what == "forward" else None, quick)
                    for (width, precision), ratio in STRUCTURED.items()
                    for what in (("forward", "dx", "dw") if width == 1024 else ("forward",))]  # fmt: skip


def more(quick: bool) -> list[Group]:
    return [unstructured(k, m, "forward", {}, quick, "more") for k, m in ((1024, 1024), (128, 256), (256, 47))]


def index_of(crow, col, columns: int) -> tuple:
    from sparsegnn import pattern

    return tuple(t.to(gpu.device()) for t in (crow, col, *pattern.transpose(crow, col, columns)))


def percent(sparsity: float) -> str:
    return f"{100 * sparsity:g} %"


def products(what: str, x, dy, w) -> Callable[[], torch.Tensor]:
    return {"forward": lambda: x @ w.t(), "dx": lambda: dy @ w, "dw": lambda: dy.t() @ x}[what]


def one_gradient(forward: Callable, x: torch.Tensor, values: torch.Tensor, dy: torch.Tensor, what: str) -> Callable:
    """The forward product, or one gradient of it alone, through autograd."""
    if what == "forward":
        return lambda: forward(x, values)
    leaf = (x if what == "dx" else values).detach().requires_grad_()
    y = forward(leaf, values) if what == "dx" else forward(x, leaf)
    return lambda: torch.autograd.grad(y, leaf, dy, retain_graph=True)[0]


def unstructured(k: int, m: int, what: str, ratios: dict, quick: bool, stage: str) -> Group:
    n, k, m = (70, 16, 16) if quick else (ROWS, k, m)

    def make() -> gpu.Contest:
        from sparsegnn import ops, pattern

        contest, sets = gpu.Contest(), gpu.sets_of(4 * n * (k + m))
        contest.facts["sets of inputs"] = sets
        data = [(gpu.randn(n, k, seed=2 * s), gpu.randn(n, m, seed=2 * s + 1)) for s in range(sets)]
        dense = gpu.randn(m, k, seed=90)
        for sparsity in SPARSITIES:
            crow, col = pattern.random_pattern(m, k, sparsity=sparsity, generator=torch.Generator().manual_seed(0))
            index, values = index_of(crow, col, k), gpu.randn(col.numel(), seed=91)
            rows = torch.repeat_interleave(torch.arange(m), crow.diff().long()).to(gpu.device())
            column = index[1].long()

            def want(x=data[0][0], dy=data[0][1], rows=rows, column=column, values=values) -> list[torch.Tensor]:
                w = torch.zeros(m, k, device=gpu.device(), dtype=torch.float64)
                w[rows, column] = values.double()
                full = products(what, x.double(), dy.double(), w)()
                return [full[rows, column] if what == "dw" else full]

            def forward(x, values, index=index):
                return ops.sparse_linear(x, values, None, *index)

            ours = [one_gradient(forward, x, values, dy, what) for x, dy in data]
            contest.add(percent(sparsity), ours, want=functools.cache(want))
            if what == "forward" and sparsity == 0.9:
                csr = torch.sparse_csr_tensor(*index[:2], values, (m, k))
                calls = [lambda x=x, w=csr: torch.sparse.mm(w, x.t()) for x, _ in data]
                contest.add("torch.sparse.mm", calls, want=functools.cache(want), view=lambda y: [y.t()])
        oracle = functools.cache(lambda: [products(what, *(t.double() for t in (*data[0], dense)))()])
        mm = [products(what, x, dy, dense) for x, dy in data]
        contest.add("torch.mm fp32", mm, want=oracle, tolerance=gpu.LONG_SUM if what == "dw" else None)
        contest.add("torch.mm TF32", [gpu.with_tf32(f) for f in mm], precision="tf32", want=oracle)
        return contest

    text = f"sparse_linear {n:,}x{k}x{m}, {WHAT[what]}"
    rows = []
    for sparsity in SPARSITIES:
        nnz = round(k * m * (1 - sparsity))
        work = dict(flop=2 * n * nnz, rate="operand", bytes=4 * n * (k + m) + 8 * nnz)
        against = ("torch.mm fp32", "torch.sparse.mm") if what == "forward" else ("torch.mm fp32",)
        rows.append(Row(f"{text}, {percent(sparsity)}, fp32: torch.mm fp32", percent(sparsity), against,
                        bars(*ratios.get(sparsity, ())), work=work))  # fmt: skip
        rows.append(Row(f"{text}, {percent(sparsity)}, fp32: torch.mm TF32", percent(sparsity), ("torch.mm TF32",),
                        work=work))  # fmt: skip
    return group(text, stage, dict(rows=n, inputs=k, outputs=m, precision="fp32"), rows, make, seconds=2.5)


def blocks_of(name: str, m: int, k: int, sparsity: float, kind: str) -> tuple:
    """Index and values of a weight in groups or blocks, the weight itself, and the rows of its blocks."""
    from sparsegnn import pattern

    height, columns = pattern.BLOCKS[name]
    generator = torch.Generator().manual_seed(0)
    crow, col = pattern.random_pattern(m, k, sparsity=sparsity, kind=name, generator=generator)
    index = index_of(crow, col, k // columns)
    values = gpu.randn(col.numel() * height * columns, precision=kind, seed=4)
    w = torch.zeros(m // height, k // columns, height, columns, device=gpu.device(), dtype=values.dtype)
    at = torch.repeat_interleave(torch.arange(m // height), crow.diff().long()).to(gpu.device())
    w[at, index[1].long()] = values.view(-1, height, columns)
    return index, values, w.transpose(1, 2).reshape(m, k), at


def two_of_four(x: torch.Tensor, w: torch.Tensor) -> Callable:
    """torch's product by a 2:4 weight that is compressed once."""
    weight = torch.sparse.to_sparse_semi_structured(w)
    return lambda: torch.nn.functional.linear(x, weight)


def halves(width: int, quick: bool) -> Group:
    """At 50 %, in bf16, forward: torch's 2:4 product, compressed before, beside groups and blocks; and as our layer
    calls it, which compresses at every call."""
    n, k = (96, 64) if quick else (ROWS + 1, width)

    def make() -> gpu.Contest:
        from sparsegnn import ops, pattern, use_kernel
        from sparsegnn.nn import SparseLinear

        contest, x, dense = gpu.Contest(), gpu.randn(n, k, precision="bf16"), gpu.randn(k, k, precision="bf16", seed=3)

        def oracle(w):
            return dict(precision="bf16", want=functools.cache(lambda: [x.double() @ w.double().t()]))

        contest.add("torch.mm", lambda: x @ dense.t(), **oracle(dense))
        for name in PATTERNS:
            index, values, w, _ = blocks_of(name, k, k, 0.5, "bf16")
            args = (x, values, None, *index, *pattern.BLOCKS[name])
            contest.add(name, lambda args=args: ops.block_linear(*args), **oracle(w))
        layer = SparseLinear(k, k, False, sparsity=0.5, pattern="2:4", device=gpu.device(), dtype=x.dtype)
        half = layer.dense_weight().detach()

        def ours():
            with use_kernel("sparse"), torch.no_grad():
                return layer(x)

        with use_kernel("sparse"):
            contest.facts["kernel of the 2:4 layer"] = layer.kernel  # ours where torch's does not run
        contest.add("2:4", ours, **oracle(half))
        contest.offer("torch 2:4", lambda: two_of_four(x, half), **oracle(half))
        return contest

    text, bytes_ = f"{n:,}x{k}x{k}, 50 %, bf16, forward", product_work(n, k, k, "bf16")
    work = bytes_ | dict(flop=bytes_["flop"] // 2)
    rows = [Row(f"{name} {text}: torch.mm bf16", name, ("torch.mm",), work=work) for name in ("2:4", *PATTERNS)]
    rows.append(Row(f"groups or blocks {text}: torch's 2:4", PATTERNS, ("torch 2:4",), work=work))
    rows.append(Row(f"2:4 {text}: torch's 2:4, compressed before", "2:4", ("torch 2:4",), work=work))
    case = dict(rows=n, inputs=k, outputs=k, precision="bf16", sparsity=0.5)
    return group(f"2:4 beside groups and blocks {text}", STAGE, case, rows, make, seconds=2)


def structured(width: int, precision: str, what: str, ratio: tuple | None, quick: bool) -> Group:
    """The quickest of the patterns has the bar; each has a line of its own too. torch's own block-sparse (Triton) and
    2:4 products join in where they run; of a 2:4 weight half is there."""
    n, k = (96, 64) if quick else (ROWS + 1, width)  # a multiple of 32, which torch's block-sparse products want
    m, kind = k, "tf32" if precision == "tf32" else "bf16"

    def make() -> gpu.Contest:
        from sparsegnn import ops, pattern

        contest = gpu.Contest()
        data = gpu.randn(n, k, precision=kind), gpu.randn(n, m, precision=kind, seed=2)
        dense = gpu.randn(m, k, precision=kind, seed=3)
        allow = gpu.with_tf32 if kind == "tf32" else (lambda function: function)

        def oracle(w, pick=lambda full: full):
            return functools.cache(lambda: [pick(products(what, *(t.double() for t in (*data, w)))())])

        contest.add("torch.mm", allow(products(what, *data, dense)), precision=kind, want=oracle(dense))
        for name in PATTERNS:
            height, columns = pattern.BLOCKS[name]
            index, values, w, at = blocks_of(name, m, k, 0.9, kind)
            column = index[1].long()

            def tiles(full, at=at, col=column, h=height, c=columns):
                if what != "dw":
                    return full
                return full.view(m // h, h, k // c, c).transpose(1, 2)[at, col].flatten()

            def forward(x, values, index=index, block=(height, columns)):
                return ops.block_linear(x, values, None, *index, *block)

            with gpu.tf32(kind == "tf32"):  # the backward may follow what the forward was allowed
                call = one_gradient(forward, data[0], values, data[1], what)
            contest.add(name, allow(call), precision=kind, want=oracle(w, tiles))
            if name.startswith("block") and what == "forward":

                def blocked(w=w, size=height):
                    bsr = w.to_sparse_bsr((size, size))
                    return allow(lambda: torch.nn.functional.linear(data[0], bsr))

                contest.offer(f"torch BSR {name[6:]}", blocked, precision=kind, want=oracle(w))
        if what == "forward" and kind == "bf16":
            half = dense * torch.tensor([1, 1, 0, 0], device=gpu.device(), dtype=dense.dtype).repeat(m, k // 4)
            contest.offer("torch 2:4", lambda: two_of_four(data[0], half), precision=kind, want=oracle(half))
        return contest

    shown = {"tf32": "TF32", "bf16": "bf16"}[kind]
    text = f"{n:,}x{k}x{m}, 90 %, {shown}, {WHAT[what]}"
    bytes_ = product_work(n, k, m, kind)
    work = dict(flop=bytes_["flop"] // 10, rate=kind, bytes=bytes_["bytes"] + SIZE[kind] * k * m // 10)
    rows = [Row(f"groups or blocks {text}: torch.mm {shown}", PATTERNS, ("torch.mm",), bars(*ratio or ()), work=work)]
    rows += [Row(f"{name} {text}: torch.mm {shown}", name, ("torch.mm",), work=work) for name in PATTERNS]
    if what == "forward":
        for size in ("16x16", "32x32"):
            rows.append(Row(f"block:{size} {text}: torch's BSR", f"block:{size}", (f"torch BSR {size}",),
                            bars(1.5, 1.5) if ratio else {}, work=work))  # fmt: skip
        if kind == "bf16":
            rows.append(Row(f"groups or blocks {text}: torch's 2:4 (50 %)", PATTERNS, ("torch 2:4",), work=work))
    case = dict(rows=n, inputs=k, outputs=m, precision=shown, sparsity=0.9)
    return group(f"groups and blocks {text}", STAGE, case, rows, make, seconds=2)
