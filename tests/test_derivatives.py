"""Every op under every way that PyTorch has to differentiate or map it, against the same of a dense float64 formula."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.functional import hessian as old_hessian
from torch.autograd.functional import jacobian as old_jacobian
from torch.autograd.functional import vhp
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import sparsegnn

OPS = torch.ops.sparsegnn


def pattern(rows: int, cols: int, keep) -> tuple[Tensor, ...]:
    """(crow, col, ccol, row, perm), and the one-hot rows and columns of its entries."""
    row, col = torch.tensor([(r, c) for r in range(rows) for c in range(cols) if keep(r, c)]).T
    perm = torch.argsort(col, stable=True)

    def offsets(index, size):
        return torch.cat([torch.zeros(1, dtype=torch.long), index.bincount(minlength=size).cumsum(0)])

    indices = offsets(row, rows), col, offsets(col, cols), row[perm], perm
    one_hot = (torch.nn.functional.one_hot(i, n).double() for i, n in ((row, rows), (col, cols)))
    return *(t.int() for t in indices), *one_hot


*GRAPH, R, C = pattern(4, 5, lambda r, c: r != 2 and (r + 2 * c) % 3 != 1)  # row 2 has no edge
*SQUARE, SR, SC = pattern(4, 4, lambda r, c: (r + c) % 2 == 0)
*WEIGHT, WR, WC = pattern(3, 3, lambda r, c: (r + c) % 3 != 1)
*BLOCKS, BR, BC = pattern(2, 3, lambda r, c: r != c)
E = GRAPH[1].numel()
INDEX = torch.tensor([[0, 2], [1, 2], [0, 1], [0, 2], [1, 2]]).byte()


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + seed), dtype=torch.float64)


ROW, COLUMN = rand(4).abs() + 0.5, rand(5).abs() + 0.5
SEED = torch.tensor([3])


def matrix(val, r=R, c=C):
    return r.T @ (val[:, None] * c)


def full(values, index):
    return torch.zeros(len(values), 3).double().scatter(1, index.long(), values)


def blocks(values):
    each = values.view(-1, 16, 16)
    return torch.einsum("er,ehw,ec->rhcw", BR, each, BC).reshape(32, 48)


def extremum(x, val, how):
    message, crow = (C @ x) * val[:, None], GRAPH[0]
    rows = [message[a:b] for a, b in itertools.pairwise(crow.tolist())]
    return torch.stack([getattr(m, how)(0).values if len(m) else torch.zeros(m.size(1)).double() for m in rows])


def attend(score, x, r=R, c=C):
    """``score`` [E, H], ``x`` [N, H, D]: softmax over the edges of each row, as a dense matrix."""
    dense = torch.einsum("er,eh,ec->rch", r, score.exp(), c)
    alpha = dense / dense.sum(1, keepdim=True).clamp(min=1e-300)
    return torch.einsum("rch,chd->rhd", alpha, x)


def leaky(z):
    return torch.where(z > 0, z, 0.2 * z)


def kept(x, weight):
    """What dropout leaves of a linear layer at this seed."""
    return (OPS.sparse_linear(x, weight, None, *WEIGHT, "none", 0.5, SEED) != 0).double() * 2


*ROWS, XR, XC = pattern(6, 3, lambda r, c: r != 4 and (r + c) % 2 == 0)
X, V = rand(6, 3), rand(WEIGHT[1].numel())
MASK, GIVEN = kept(X, V), rand(ROWS[1].numel())
HALF = OPS.act_dropout(torch.ones_like(X), None, "none", 0.5, SEED)
NOTHING = (None, None, None)

#: name: (op, formula, leaves)
CASES = {
    "spmm sum": (lambda x, v: OPS.spmm(x, *GRAPH[:2], v, ROW, COLUMN, None, *GRAPH[2:], "sum")[0],
                 lambda x, v: (matrix(v) * ROW[:, None] * COLUMN) @ x, (rand(5, 3), rand(E))),
    "spmm diag": (lambda x: OPS.spmm(x, *SQUARE[:2], None, ROW, ROW, ROW, *SQUARE[2:], "sum")[0],
                  lambda x: ((SR.T @ SC + ROW.diag()) * ROW[:, None] * ROW) @ x, (rand(4, 3),)),
    "spmm mean": (lambda x, v: OPS.spmm(x, *GRAPH[:2], v, *NOTHING, *GRAPH[2:], "mean")[0],
                  lambda x, v: matrix(v) / R.sum(0).clamp(min=1)[:, None] @ x, (rand(5, 3), rand(E))),
    "spmm max": (lambda x, v: OPS.spmm(x, *GRAPH[:2], v, *NOTHING, *GRAPH[2:], "max")[0],
                 lambda x, v: extremum(x, v, "max"), (rand(5, 3), rand(E))),
    "spmm min, edges only": (lambda v: OPS.spmm(FIXED, *GRAPH[:2], v, *NOTHING, *NOTHING, "min")[0],
                             lambda v: extremum(FIXED, v, "min"), (rand(E),)),
    "sddmm": (lambda a, b: OPS.sddmm(a, b, *GRAPH), lambda a, b: ((R @ a) * (C @ b)).sum(1), (rand(4, 3), rand(5, 3))),
    "csr_degrees": (lambda v: OPS.csr_degrees(GRAPH[0], v), lambda v: R.T @ v, (rand(E),)),
    "sparse_linear": (lambda x, v, b: OPS.sparse_linear(x, v, b, *WEIGHT),
                      lambda x, v, b: x @ matrix(v, WR, WC).T + b, (X, V, rand(3))),
    "sparse_linear relu": (lambda x, v, b: OPS.sparse_linear(x, v, b, *WEIGHT, "relu"),
                           lambda x, v, b: (x @ matrix(v, WR, WC).T + b).relu(), (X, V, rand(3))),
    "sparse_linear dropout": (lambda x, v: OPS.sparse_linear(x, v, None, *WEIGHT, "none", 0.5, SEED),
                              lambda x, v: x @ matrix(v, WR, WC).T * MASK, (X, V)),
    "probed_linear": (lambda x, v, p: OPS.probed_linear(x, v, None, *WEIGHT, p),
                      lambda x, v, p: x @ (matrix(v, WR, WC) + p).T, (X, V, torch.zeros(3, 3).double())),
    "dense_probe": (lambda x, p: OPS.dense_probe(x, p), lambda x, p: x @ p.T, (X, torch.zeros(2, 3).double())),
    "dense_weight": (lambda v: OPS.dense_weight(v, *WEIGHT[:2], 3), lambda v: matrix(v, WR, WC), (V,)),
    "dense_weight_values": (lambda w: OPS.dense_weight_values(w, *WEIGHT[:2]),
                            lambda w: ((WR @ w) * WC).sum(1), (rand(3, 3),)),
    "block_linear": (lambda x, s, b: OPS.block_linear(x, s * BLOCK, b, *BLOCKS, 16, 16),
                     lambda x, s, b: x @ blocks(s * BLOCK).T + b, (rand(2, 48), rand(), rand(32))),
    "features_linear": (lambda v, b: OPS.features_linear(v, b, *ROWS[:2], GIVEN, *NOTHING, *WEIGHT[2:], 1, 1, 3),
                        lambda v, b: matrix(GIVEN, XR, XC) @ matrix(v, WR, WC).T + b, (V, rand(3))),
    "act_dropout": (lambda x, b: OPS.act_dropout(x, b), lambda x, b: x + b, (X, rand(3))),
    "act_dropout relu": (lambda x, b: OPS.act_dropout(x, b, "relu", 0.5, SEED),
                         lambda x, b: (x + b).relu() * HALF, (X, rand(3))),
    "act_dropout elu": (lambda x, b: OPS.act_dropout(x, b, "elu", 0.5, SEED),
                        lambda x, b: torch.where(x + b > 0, x + b, (x + b).exp() - 1) * HALF, (X, rand(3))),
    "maxk": (lambda x: OPS.maxk(x, 2, 0)[0],
             lambda x: x.gather(1, x.topk(2).indices.sort().values), (rand(5, 3),)),
    "maxk_expand": (lambda v: OPS.maxk_expand(v, INDEX, 3), lambda v: full(v, INDEX), (rand(5, 2),)),
    "maxk_gather": (lambda x: OPS.maxk_gather(x, INDEX), lambda x: x.gather(1, INDEX.long()), (rand(5, 3),)),
    "maxk_spmm": (lambda v, e: OPS.maxk_spmm(v, INDEX, 3, *GRAPH[:2], e, ROW, COLUMN, None, *GRAPH[2:], "mean"),
                  lambda v, e: (matrix(e) * ROW[:, None] * COLUMN) / R.sum(0).clamp(min=1)[:, None] @ full(v, INDEX),
                  (rand(5, 2), rand(E))),
    "spmm_linear": (
        lambda x, v, b: OPS.spmm_linear(x, *GRAPH[:2], None, ROW, COLUMN, None, *GRAPH[2:], v, b, *WEIGHT, "relu"),
        lambda x, v, b: ((R.T @ C * ROW[:, None] * COLUMN) @ x @ matrix(v, WR, WC).T + b).relu(),
        (rand(5, 3), V, rand(3))),
    "gat": (lambda x, s, d, e, b: OPS.gat(x, s, d, e, *GRAPH, 0.2, 0.0, None, True, b)[0],
            lambda x, s, d, e, b: attend(leaky(C @ s + R @ d + e), x) + b.view(2, 2),
            (rand(5, 2, 2), rand(5, 2), rand(4, 2), rand(E, 2), rand(4))),
    "gat of features": (lambda x, s, d: OPS.gat(x, s, d, None, *SQUARE, 0.2, 0.0, None, True)[0],
                        lambda x, s, d: attend(leaky(SC @ (x * s).sum(-1) + SR @ (x * d).sum(-1)), x, SR, SC),
                        (rand(4, 2, 2), rand(1, 2, 2), rand(1, 2, 2, seed=1))),
    "gatv2": (lambda s, d, a, e: OPS.gatv2(s, d, a, e, *GRAPH, 0.2, 0.0, None, True)[0],
              lambda s, d, a, e: attend((leaky(torch.einsum("en,nhc->ehc", C, s) + torch.einsum("em,mhc->ehc", R, d)
                                               + e) * a).sum(-1), s),
              (rand(5, 2, 2), rand(4, 2, 2), rand(2, 2), rand(E, 2, 2))),
}  # fmt: skip
FIXED, BLOCK = rand(5, 3), rand(BLOCKS[1].numel() * 256)


def loss(f, *leaves):
    y = f(*leaves)
    flow = torch.arange(y.numel(), dtype=torch.float64).cos().view(y.shape)  # vmap lets nobody draw numbers
    return (y * flow).sum() + (y * y).sum() / 2


def every(leaves):
    return tuple(range(len(leaves)))


def batch(leaves):
    return tuple(torch.stack([t, 0.5 * t + 0.1 * (t != 0), -t]) for t in leaves)  # a probe stays 0


def flows(leaves):
    return tuple(rand(*t.shape, seed=11) for t in leaves)


def double_backward(f, leaves):
    leaves = [t.clone().requires_grad_() for t in leaves]
    first = torch.autograd.grad(loss(f, *leaves), leaves, create_graph=True)
    second = torch.autograd.grad(sum((g * g).sum() for g in first), leaves, allow_unused=True, materialize_grads=True)
    return *first, *second


def forward_mode(f, leaves):
    with forward_ad.dual_level():
        out = f(*(forward_ad.make_dual(t, d) for t, d in zip(leaves, flows(leaves), strict=True)))
        return forward_ad.unpack_dual(out)


def forward_over_reverse(f, leaves):
    with forward_ad.dual_level():
        leaves = [t.clone().requires_grad_() for t in leaves]
        duals = [forward_ad.make_dual(t, d) for t, d in zip(leaves, flows(leaves), strict=True)]
        grads = torch.autograd.grad(loss(f, *duals), leaves)
        return [forward_ad.unpack_dual(g).tangent for g in grads]


def forward_over_backward(f, leaves):
    """The graph is made before the level: only the backward pass is inside."""
    leaves = [t.clone().requires_grad_() for t in leaves]
    y = f(*leaves)
    with forward_ad.dual_level():
        flow = forward_ad.make_dual(rand(*y.shape), rand(*y.shape, seed=3))
        grads = torch.autograd.grad(y, leaves, flow, allow_unused=True, materialize_grads=True)
        tangents = [forward_ad.unpack_dual(g).tangent for g in grads]
        return [torch.zeros_like(t) if d is None else d for t, d in zip(leaves, tangents, strict=True)]


def mapped_one_by_one(f, leaves):
    dims = ([0 if i == j else None for j in every(leaves)] for i in every(leaves))
    return [vmap(f, in_dims=tuple(d))(*(b if s == 0 else t for b, t, s in zip(batch(leaves), leaves, d, strict=True)))
            for d in dims]  # fmt: skip


def backward_of_a_batch(f, leaves):
    leaves = [t.clone().requires_grad_() for t in leaves]
    y = f(*leaves)
    flow = torch.stack([y.detach(), rand(*y.shape)])
    grads = torch.autograd.grad(y, leaves, flow, is_grads_batched=True, materialize_grads=True, allow_unused=True)
    return [g.expand(2, *t.shape) for g, t in zip(grads, leaves, strict=True)]  # what is not used has no batch


WAYS = {
    "grad": lambda f, t: grad(lambda *a: loss(f, *a), every(t))(*t),
    "jacrev": lambda f, t: jacrev(f, every(t))(*t),
    "jacfwd": lambda f, t: jacfwd(f, every(t))(*t),
    "jvp": lambda f, t: jvp(f, t, flows(t)),
    "jvp of grad": lambda f, t: jvp(grad(lambda *a: loss(f, *a), every(t)), t, flows(t)),
    "jacrev of grad": lambda f, t: jacrev(grad(lambda *a: loss(f, *a), every(t)), every(t))(*t),
    "hessian": lambda f, t: hessian(lambda *a: loss(f, *a), every(t))(*t),
    "vmap": lambda f, t: vmap(f)(*batch(t)),
    "vmap of each": mapped_one_by_one,
    "vmap in the last": lambda f, t: vmap(f, -1, -1)(*(b.movedim(0, -1) for b in batch(t))),
    "vmap of grad": lambda f, t: vmap(grad(lambda *a: loss(f, *a), every(t)))(*batch(t)),
    "grad of vmap": lambda f, t: grad(lambda *a: vmap(lambda *b: loss(f, *b))(*a).sum(), every(t))(*batch(t)),
    "functional.jacobian, vectorized": lambda f, t: old_jacobian(f, t, vectorize=True),
    "functional.jacobian, forward": lambda f, t: old_jacobian(f, t, vectorize=True, strategy="forward-mode"),
    "functional.hessian": lambda f, t: old_hessian(lambda *a: loss(f, *a), t),
    "functional.vhp": lambda f, t: vhp(lambda *a: loss(f, *a), t, flows(t)),
    "functional.jvp": lambda f, t: torch.autograd.functional.jvp(f, t, flows(t)),
    "create_graph": double_backward,
    "dual_level": forward_mode,
    "forward over reverse": forward_over_reverse,
    "forward over backward": forward_over_backward,
    "is_grads_batched": backward_of_a_batch,
}


def assert_close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_every_way(name, way):
    op, formula, leaves = CASES[name]
    assert_close(WAYS[way](op, leaves), WAYS[way](formula, leaves))


def test_every_differentiable_op_is_here():
    named = {name.partition(" ")[0].rstrip(",") for name in CASES}
    differentiable = {op for op in sparsegnn.ops._library.REFERENCES if not op.endswith(("backward", "_out", "_"))}
    assert differentiable - named == {"csr_from_edges", "csr_transpose"}


@pytest.mark.parametrize("way", ["grad", "jvp", "vmap of grad"])
@pytest.mark.parametrize("name", ["spmm sum", "gatv2"])
def test_in_a_compiled_function(name, way):
    """The graph runs the transform, which enters its level without Python, and calls our kernels from inside."""
    torch._dynamo.reset()
    op, formula, leaves = CASES[name]
    compiled = torch.compile(lambda *t: WAYS[way](op, t), backend="eager")
    assert_close(compiled(*leaves), WAYS[way](formula, leaves))
