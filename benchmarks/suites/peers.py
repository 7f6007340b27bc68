"""Linear layers that several groups time, ours and others', and what their results are compared by."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


def linear_step(n: int, k: int, m: int, layer: torch.nn.Module) -> Callable:
    """Forward and backward of a layer on [n, k] through autograd, the gradient of its input included."""
    from sparsegnn import policy

    x, dy = inputs(n, k, m)

    def run():
        x.grad = None
        layer.zero_grad()
        y = layer(x)
        y.backward(dy)
        return y, x.grad

    run.kernel = getattr(layer, "kernel", None)  # which one ran: a row of the table names it
    if run.kernel and policy.forced():
        run.kernel += " (forced)"
    return run


def inputs(n: int, k: int, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x, which wants its gradient, and the gradient of the output."""
    g = torch.Generator().manual_seed(4)
    return torch.randn(n, k, generator=g).requires_grad_(), torch.randn(n, m, generator=g)


# --- the layers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Linear:
    """``make(k, m, sparsity)`` raises ImportError where its project is not there; ``weight`` gives a layer's [m, k],
    and ``values`` names the parameter that holds what of it is not zero, row by row, perhaps with zeros between."""

    make: Callable[[int, int, float], torch.nn.Module]
    weight: Callable[[torch.nn.Module], torch.Tensor]
    values: str

    def gradient(self, layer: torch.nn.Module) -> torch.Tensor:
        """Of the weights that are not zero, row by row."""
        values = getattr(layer, self.values)
        return values.grad[values != 0]


def ours(k: int, m: int, sparsity: float) -> torch.nn.Module:
    from sparsegnn.nn import SparseLinear

    return SparseLinear(k, m, sparsity=sparsity)


def sparseprop(k: int, m: int, sparsity: float) -> torch.nn.Module:
    from sparseprop.modules.linear import SparseLinear

    g = torch.Generator().manual_seed(0)
    weight = torch.randn(m, k, generator=g) * (torch.rand(m, k, generator=g) >= sparsity)
    return SparseLinear(weight, torch.nn.Parameter(torch.zeros(m)))


def sparselab(k: int, m: int, sparsity: float) -> torch.nn.Module:
    import sparselab

    for library in (Path(sparselab.__file__).parents[1] / "sparselab.libs").glob("libgomp*"):  # beside torch's OpenMP
        ctypes.CDLL(str(library)).omp_set_num_threads(torch.get_num_threads())
    sparselab.ops._transpose_cache.clear()  # keyed by id: a layer that is gone may have had the same, and other weights
    return sparselab.SparseLinear(k, m, sparsity=sparsity)


LAYERS = {
    "SparseLinear": Linear(ours, lambda layer: layer.to_dense().weight, "values"),
    "nn.Linear": Linear(lambda k, m, sparsity: torch.nn.Linear(k, m), lambda layer: layer.weight, "weight"),
    "SparseProp": Linear(sparseprop, lambda layer: layer.to_dense().weight, "W_val"),
    "sparselab": Linear(sparselab, lambda layer: layer._csr.to_dense(), "_values"),
}
#: other projects that train only the nonzeros, on CPUs (``scripts/install_peers.sh``)
SPARSE = ("SparseProp", "sparselab")


def layers(names: tuple[str, ...], k: int, m: int, sparsity: float) -> dict[str, torch.nn.Module]:
    """Those of these layers whose project is installed, with the same weights every time."""
    found = {}
    torch.manual_seed(0)
    for name in names:
        with contextlib.suppress(ImportError):
            found[name] = LAYERS[name].make(k, m, sparsity)
    return found


def steps(names: tuple[str, ...], shape: tuple[int, int, int], sparsity: float) -> dict[str, Callable]:
    return {name: linear_step(*shape, layer) for name, layer in layers(names, *shape[1:], sparsity).items()}


def fan_in(bench, case: dict) -> Callable:
    """The contender of ``bench_sparse_linear`` with as many inputs for every output."""
    from sparsegnn import pattern

    x, dy, *_ = bench.inputs(case)
    m, k = case["m"], case["k"]
    crow, col = pattern.random_pattern(m, k, sparsity=case["sparsity"], kind="fan_in")
    weight, values = (crow, col, *pattern.transpose(crow, col, k)), torch.randn(col.numel())
    forward, backward = torch.ops.sparsegnn.sparse_linear, torch.ops.sparsegnn.sparse_linear_backward
    return lambda: (forward(x, values, None, *weight), backward(dy, x, values, *weight, True, True, False))
