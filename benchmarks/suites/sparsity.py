"""Speed against sparsity, 0 to 99 %, of every way to multiply by a sparse weight: what `publish/figure.py` draws.

Forward of every peer, and forward + dx + dW at the nonzeros of ours, of SparseProp and of sparselab, against dense
``torch.mm(out=)`` of the same products. Peers as strong as they come: int32 indices where they take them, patterns
converted before.
"""

from __future__ import annotations

from collections.abc import Callable

import scipy.sparse
import torch
from harness import runner
from harness.suite import Group, Row
from suites import peers

SHAPES = ((4096, 256, 256), (16384, 512, 512), (65536, 256, 256), (8192, 1024, 1024))
SPARSITIES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
FORWARD, ALL = "forward", "forward + backward"
PEERS = ("torch CSR", "torch_sparse", "scipy")


def groups(quick: bool) -> list[Group]:
    shapes = ((128, 64, 64),) if quick else SHAPES
    return [at(shape, sparsity) for shape in shapes for sparsity in ((0.9,) if quick else SPARSITIES)]


def at(shape: tuple[int, int, int], sparsity: float) -> Group:
    bench = runner.load("sparse_linear")
    case = dict(zip("nkm", shape, strict=True)) | dict(sparsity=sparsity)
    forward, both = case | dict(step="forward"), case | dict(step="all")

    def make() -> dict[str, Callable]:
        found = {
            f"dense, {FORWARD}": bench.baselines(forward)["torch.mm(out=)"],
            f"dense, {ALL}": bench.baselines(both)["torch.mm(out=)"],
            f"sparsegnn, {FORWARD}": bench.ours(forward),
            f"sparsegnn, {ALL}": bench.ours(both),
        }
        if sparsity >= 0.5:  # below, the peers are many times slower than dense
            found |= others(bench, forward)
            found |= {f"{name}, {ALL}": step for name, step in peers.steps(peers.SPARSE, shape, sparsity).items()}
        return found

    name = f"{','.join(map(str, shape))} {100 * sparsity:g} %"
    names = [f"sparsegnn, {FORWARD}", f"sparsegnn, {ALL}"]
    if sparsity >= 0.5:
        names += [f"{peer}, {FORWARD}" for peer in PEERS] + [f"{peer}, {ALL}" for peer in peers.SPARSE]
    rows = tuple(Row(f"{name}: {n}", n, (f"dense, {n.partition(', ')[2]}",)) for n in names)
    return Group(name, dict(shape=shape, sparsity=sparsity), rows, make, regimes=("default",), seconds=4)


def others(bench, case: dict) -> dict[str, Callable]:
    """Forward of the peers: the weight times the transposed input, or the other way round, whatever they offer."""
    x, _, values, (crow, col, *_) = bench.inputs(case)
    m, k = case["m"], case["k"]
    csr = torch.sparse_csr_tensor(crow, col, values, (m, k))
    weight, plain = scipy.sparse.csr_matrix((values.numpy(), col.numpy(), crow.numpy()), shape=(m, k)), x.numpy()
    found = {
        f"torch CSR, {FORWARD}": lambda: torch.sparse.mm(csr, x.T),
        f"scipy, {FORWARD}": lambda: weight @ plain.T,
    }
    try:
        from torch_sparse import SparseTensor, matmul
    except ImportError:
        return found
    tensor = SparseTensor(rowptr=crow.long(), col=col.long(), value=values, sparse_sizes=(m, k))
    xt = x.T.contiguous()  # once: it takes no other layout
    return found | {f"torch_sparse, {FORWARD}": lambda: matmul(tensor, xt)}
