"""Sparse features times the nonzeros of a sparse weight, against the same features times its dense form (spmm, and
torch's CSR product), with dW."""

import torch

from sparsegnn import pattern

#: samples, features, share of nonzeros: facebook_pages and coauthor_cs
SHAPES = {"facebook_pages": (22470, 4714, 0.003), "coauthor_cs": (18333, 6805, 0.0088)}
PATTERNS = (
    ("unstructured", 0.8),
    ("unstructured", 0.9),
    ("unstructured", 0.98),
    ("grouped:8", 0.9),
    ("grouped:16", 0.9),
)


def cases() -> list[dict]:
    """``step`` is "forward", or "all": y and the gradient of the values."""
    quick = [
        dict(data="facebook_pages", m=256, pattern=kind, sparsity=s, step="all", quick=True) for kind, s in PATTERNS
    ]
    grid = [
        dict(data=data, m=m, pattern=kind, sparsity=s, step=step)
        for data in SHAPES
        for m in (256, 512)
        for kind, s in PATTERNS
        for step in ("forward", "all")
    ]
    return quick + [c for c in grid if {**c, "quick": True} not in quick]


def features(case: dict) -> dict:
    n, k, kept = SHAPES[case["data"]]
    g = torch.Generator().manual_seed(0)
    each = torch.poisson(torch.full((n,), k * kept), generator=g).long().clamp(max=k)
    popular = torch.rand(k, generator=g).pow(3)  # some words are in many documents
    col = torch.cat([torch.multinomial(popular, int(m), generator=g).sort().values for m in each if m])
    crow = torch.cat([torch.zeros(1, dtype=torch.long), each.cumsum(0)])
    return {"crow": crow.int(), "col": col.int(), "val": torch.rand(col.numel(), generator=g), "shape": (n, k)}


def inputs(case: dict):
    x = features(case)
    (n, k), m, (height, width) = x["shape"], case["m"], pattern.BLOCKS[case["pattern"]]
    g = torch.Generator().manual_seed(1)
    crow, col = pattern.random_pattern(m, k, sparsity=case["sparsity"], kind=case["pattern"], generator=g)
    values = torch.randn(col.numel() * height * width, generator=g)
    return (
        x,
        values,
        (crow, col),
        pattern.transpose(crow, col, k // width),
        (height, width),
        torch.randn(n, m, generator=g),
    )


def ours(case: dict):
    x, values, _, weight, block, dy = inputs(case)
    rows, ops = (x["crow"], x["col"], x["val"], None, None, None), torch.ops.sparsegnn
    if case["step"] == "forward":
        return lambda: ops.features_linear(values, None, *rows, *weight, *block, case["m"])
    return lambda: (
        ops.features_linear(values, None, *rows, *weight, *block, case["m"]),
        ops.features_linear_backward(dy, *rows, *weight, *block, True, False),
    )


def baselines(case: dict) -> dict:
    """The dense form is made at each call, as values change at each step."""
    x, values, (crow, col), _, block, dy = inputs(case)
    ops, k = torch.ops.sparsegnn, x["shape"][1]
    ccol, row, perm = ops.csr_transpose(x["crow"], x["col"], k)
    val_t = x["val"][perm.long()]
    matrix = torch.sparse_csr_tensor(x["crow"], x["col"], x["val"], x["shape"])
    turned = torch.sparse_csr_tensor(ccol, row, val_t, x["shape"][::-1])

    def dense():
        return ops.dense_weight(values, crow, col, k, *block).t()

    def product(offset, index, val, table):
        return ops.spmm(table, offset, index, val, None, None, None, None, None, None, "sum", False)[0]

    def gather(gradient):
        return ops.dense_weight_values(gradient.t().contiguous(), crow, col, *block)

    if case["step"] == "forward":
        return {
            "spmm x dense weight": lambda: product(x["crow"], x["col"], x["val"], dense()),
            "torch CSR x dense weight": lambda: matrix @ dense(),
        }
    return {
        "spmm x dense weight": lambda: (
            product(x["crow"], x["col"], x["val"], dense()),
            gather(product(ccol, row, val_t, dy)),
        ),
        "torch CSR x dense weight": lambda: (matrix @ dense(), gather(turned @ dy)),
    }


def work(case: dict) -> dict:
    """Two for each pair of nonzeros that meet on average; x, the weight, y and dy once."""
    n, k, kept = SHAPES[case["data"]]
    weight, nonzeros = (1 - case["sparsity"]) * k * case["m"], n * k * kept
    steps = 1 if case["step"] == "forward" else 2
    return dict(flop=steps * 2 * nonzeros * weight / k, bytes=steps * (8 * nonzeros + 8 * weight + 4 * n * case["m"]))
