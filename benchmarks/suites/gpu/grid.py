"""Never slower than dense, on a GPU: SparseLinear as it chooses its kernel against the better of dense and sparse."""

from __future__ import annotations

import torch
from harness.suite import Group, Row
from suites.gpu.common import bars, group
from torch import nn

import gpu

STAGE = "dispatch"
ROWS = 169_343
SHAPES = ((64, 64), (128, 128), (256, 256), (512, 512), (1024, 1024), (128, 256), (602, 256), (256, 47))
SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.99)
RATES = ("fp32", "tf32", "bf16")
CELL, MEAN = 1.10, 1.03  # bars
CHOOSERS = {"static": "static policy", "measured": "only_if_faster"}


def groups(quick: bool) -> list[Group]:
    shapes, sparsities = (((16, 24),), (0.5, 0.9)) if quick else (SHAPES, SPARSITIES)
    return [cell(*shape, sparsity, rate, quick) for shape in shapes for rate in RATES for sparsity in sparsities]


def cell(k: int, m: int, sparsity: float, rate: str, quick: bool) -> Group:
    """Forward and backward, the gradient of the input included."""
    n = 70 if quick else ROWS

    def make() -> gpu.Contest:
        from sparsegnn import pattern, plans
        from sparsegnn.nn import SparseLinear

        torch.manual_seed(0)
        dtype, contest = gpu.DTYPES[rate], gpu.Contest()
        static, measured, sparse = (SparseLinear(k, m, sparsity=sparsity, device=gpu.device(), dtype=dtype)
                                    for _ in range(3))  # fmt: skip
        with gpu.tf32(rate == "tf32"):
            measured.choose_kernel_(plans.measure(measured, n)["ratio"])
        sparse.choose_kernel_(0.0)
        dense = nn.Linear(k, m, device=gpu.device(), dtype=dtype)
        x = gpu.randn(n, k, precision=rate).requires_grad_()
        dy = gpu.randn(n, m, precision=rate, seed=2)
        for name, layer in (("static", static), ("measured", measured), ("sparse", sparse), ("nn.Linear", dense)):
            leaves = (x, *layer.parameters())

            def step(layer=layer, leaves=leaves):
                with gpu.tf32(rate == "tf32"):
                    return torch.autograd.grad(layer(x), leaves, dy)

            def want(layer=layer) -> list[torch.Tensor]:
                w = layer.weight.detach().double()
                dw = dy.double().t() @ x.detach().double()
                if layer is not dense:
                    dw = pattern.gather(dw, *layer.pattern(), layer.structure)
                return [dy.double() @ w, dw, dy.double().sum(0)]

            kernel = getattr(layer, "kernel", "dense")
            long = rate == "fp32" and kernel == "dense"  # cuBLAS's sum over all rows; ours is bound to 1e-5
            contest.add(name, step, precision=rate, want=want, tolerance=gpu.LONG_SUM if long else None)
            contest.facts[f"kernel, {name}"] = kernel
        return contest

    name = f"dispatch {n:,}x{k}x{m}, {100 * sparsity:g} %, {rate.replace('tf', 'TF')}"
    rows = [Row(f"{name}, {text}", chooser, ("nn.Linear", "sparse"), bars(CELL, MEAN), "slow-down")
            for chooser, text in CHOOSERS.items()]  # fmt: skip
    case = dict(rows=n, inputs=k, outputs=m, sparsity=sparsity, precision=rate)
    return group(name, STAGE, case, rows, make, seconds=0.3)
