"""Memory that ops share with others: `out=` and updates in place, inputs and outputs that are written to before the
backward pass, and every other situation that a tensor of PyTorch may be in."""

import copy

import fresh
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, vmap

import sparsegnn
from sparsegnn import CSRGraph, ops

SPARSE = torch.ops.sparsegnn
EDGES = torch.tensor([[0, 1, 2, 3, 3, 1], [1, 2, 0, 2, 3, 0]])
DENSE = torch.zeros(4, 4).index_put((EDGES[1], EDGES[0]), torch.ones(6))  # A[target, source]


def graph() -> CSRGraph:
    return CSRGraph.from_edge_index(EDGES, 4)


def pattern(rows: int = 4, cols: int = 4):
    """(crow, col, ccol, row, perm) of a weight, by hand."""
    keep = (torch.arange(rows)[:, None] + torch.arange(cols)) % 3 != 1
    row, col = keep.nonzero().T
    perm = torch.argsort(col, stable=True)
    crow, ccol = (torch.cat([torch.zeros(1), k.sum(1).cumsum(0)]) for k in (keep, keep.T))
    return tuple(t.int() for t in (crow, col, ccol, row[perm], perm))


# --- out=: apart from every input


def view_of(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A tensor like ``like`` that begins in the memory of ``t``'s last element."""
    storage = torch.empty(t.numel() * t.element_size() + like.nbytes + 8, dtype=torch.uint8)
    begin = (t.numel() - 1) * t.element_size()
    begin -= begin % like.element_size()
    moved = storage[: t.nbytes].view(t.dtype).view(t.shape).copy_(t)
    return moved, storage[begin : begin + like.nbytes].view(like.dtype).view(like.shape)


def spmm_call(**given):
    g, x, out = graph(), torch.randn(4, 4), given.pop("out", None)
    arrays = {"crow": g.crow, "col": g.col} | {k: v for k, v in given.items() if k in ("crow", "col")}
    made = CSRGraph(arrays["crow"], arrays["col"], None, 4)
    return ops.spmm(made, given.get("x", x), "sum", given.get("edge_weight"), out=out)


def linear_call(**given):
    names = ("crow", "col", "ccol", "row", "perm")
    seed = given.get("seed", torch.tensor([3]))
    indices = [given.get(n, t) for n, t in zip(names, pattern(), strict=True)]
    values = given.get("values", torch.randn(indices[1].numel()))
    return ops.sparse_linear(given.get("x", torch.randn(4, 4)), values, given.get("bias"), *indices, dropout=0.5,
                             seed=seed, out=given.get("out"))  # fmt: skip


def topology_call(**given):
    crow, col, *_ = pattern()
    out = given.pop("out", None)
    crow, col = given.get("crow", crow), given.get("col", col)
    col = out if out is not None else col
    scores = given.get("drop_score", torch.rand(col.numel())), given.get("grow_score", torch.rand(4, 4))
    return ops.topology_(crow, col, *scores, given.get("n", torch.tensor(2)))


INPUTS = {
    "spmm": (spmm_call, torch.empty(4, 4), dict(x=torch.randn(4, 4), edge_weight=torch.randn(6), crow=graph().crow,
                                                col=graph().col)),
    "sparse_linear": (linear_call, torch.empty(4, 4), dict(
        x=torch.randn(4, 4), values=torch.randn(pattern()[1].numel()), bias=torch.randn(4), crow=pattern()[0],
        col=pattern()[1], ccol=pattern()[2], seed=torch.tensor([3]))),
    "topology_": (topology_call, pattern()[1], dict(
        crow=pattern()[0], drop_score=torch.rand(pattern()[1].numel()), grow_score=torch.rand(4, 4),
        n=torch.tensor(2))),
}  # fmt: skip


@pytest.mark.parametrize("op, name", [(op, name) for op, (_, _, inputs) in INPUTS.items() for name in inputs])
def test_written_memory_is_apart_from_every_input(op, name):
    call, out, inputs = INPUTS[op]
    moved, over = view_of(inputs[name], out)
    if op == "topology_":
        over.copy_(out)
        moved.copy_(inputs[name])
    with pytest.raises(ValueError, match=rf"{op}: \w+ must not share memory with \w+"):
        call(**{name: moved, "out": over})
    call(**{name: inputs[name].clone(), "out": out.clone()})


@pytest.mark.parametrize("op", ["spmm_out", "sparse_linear_out", "topology_"])
def test_a_backward_pass_that_needs_what_was_overwritten_raises(op):
    indices, x = pattern(), torch.randn(4, 4)
    w = torch.randn(4, 4, requires_grad=True)
    values = torch.randn(indices[1].numel(), requires_grad=True)
    if op == "topology_":
        y = ops.sparse_linear(x, values, None, *indices)
        ops.topology_(*indices[:2], torch.rand(values.numel()), torch.rand(4, 4), 2)
    else:
        out = torch.randn(4, 4)
        y = w * out
        if op == "spmm_out":
            ops.spmm(graph(), x, out=out)
        else:
            ops.sparse_linear(x, values.detach(), None, *indices, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("raw", ["spmm_out", "sparse_linear_out"])
def test_the_raw_ops_count_what_they_write(raw):
    g, x, out, indices = graph(), torch.randn(4, 4), torch.empty(4, 4), pattern()
    if raw == "spmm_out":
        SPARSE.spmm_out(out, x, g.crow, g.col, None, None, None, None, "sum")
    else:
        SPARSE.sparse_linear_out(out, x, torch.randn(indices[1].numel()), None, *indices[:3])
    assert out._version == 1


# --- every op, inputs and outputs written to before backward


def op_calls() -> dict:
    g, indices, index = graph(), pattern(), torch.tensor([[0, 2], [1, 3], [0, 1], [2, 3]]).byte()
    transpose, seed, none = g.transpose(), torch.tensor([5]), (None, None, None)
    n, blocks, rand = indices[1].numel(), pattern(2, 3), torch.randn
    return {
        "spmm sum": (lambda x, v: ops.spmm(g, x, "sum", v), (rand(4, 3), rand(6))),
        "spmm mean": (lambda x, v: ops.spmm(g, x, "mean", v), (rand(4, 3), rand(6))),
        "spmm max": (lambda x, v: ops.spmm(g, x, "max", v), (rand(4, 3), rand(6))),
        "spmm plain": (lambda x: ops.spmm(g, x), (rand(4, 3),)),
        "sddmm": (lambda a, b: ops.sddmm(g, a, b), (rand(4, 3), rand(4, 3))),
        "csr_degrees": (lambda v: SPARSE.csr_degrees(g.crow, v), (rand(6),)),
        "gat": (lambda x, s, d, e, b: ops.gat(g, x, s, d, e, bias=b),
                (rand(4, 2, 3), rand(4, 2), rand(4, 2), rand(6, 2), rand(6))),
        "gat of features": (lambda x, s, d: ops.gat(g, x, s, d), (rand(4, 2, 3), rand(1, 2, 3), rand(1, 2, 3))),
        "gatv2": (lambda s, d, a, e: ops.gatv2(g, s, d, a, e),
                  (rand(4, 2, 3), rand(4, 2, 3), rand(2, 3), rand(6, 2, 3))),
        "sparse_linear": (lambda x, v, b: ops.sparse_linear(x, v, b, *indices), (rand(5, 4), rand(n), rand(4))),
        "sparse_linear relu": (lambda x, v, b: ops.sparse_linear(x, v, b, *indices, "relu", 0.3, seed),
                               (rand(5, 4), rand(n), rand(4))),
        "sparse_linear 3-d": (lambda x, v, b: ops.sparse_linear(x, v, b, *indices), (rand(2, 5, 4), rand(n), rand(4))),
        "probed_linear": (lambda x, v, p: SPARSE.probed_linear(x, v, None, *indices, p),
                          (rand(5, 4), rand(n), torch.zeros(4, 4))),
        "block_linear": (lambda x, v, b: ops.block_linear(x, v, b, *blocks, 16, 16),
                         (rand(5, 48), rand(256 * blocks[1].numel()), rand(32))),
        "dense_weight": (lambda v: ops.dense_weight(v, *indices[:2], 4), (rand(n),)),
        "act_dropout": (lambda x, b: ops.act_dropout(x, b, "none", 0.3, seed), (rand(4, 4), rand(4))),
        "act_dropout elu": (lambda x, b: ops.act_dropout(x, b, "elu", 0.3, seed), (rand(4, 4), rand(4))),
        "maxk": (lambda x: ops.maxk(x, 2)[0], (rand(4, 4),)),
        "maxk_expand": (lambda v: SPARSE.maxk_expand(v, index, 4), (rand(4, 2),)),
        "maxk_gather": (lambda x: SPARSE.maxk_gather(x, index), (rand(4, 4),)),
        "maxk_spmm": (lambda v, e: ops.maxk_spmm(g, v, index, 4, edge_weight=e), (rand(4, 2), rand(6))),
        "spmm_linear": (lambda x, v, b: SPARSE.spmm_linear(x, g.crow, g.col, *none, None, *transpose, v, b, *indices,
                                                           "relu"), (rand(4, 4), rand(n), rand(4))),
        "gcn": (lambda x, v, b: ops.gcn(g, x, v, b, pattern=indices), (rand(4, 4), rand(n), rand(4))),
    }  # fmt: skip


CALLS = op_calls()


def gradients(f, leaves, before_backward=lambda y, leaves: y):
    leaves = [t.clone().requires_grad_() for t in leaves]
    inner = [t * 1 for t in leaves]  # may be written to
    y = before_backward(f(*inner), inner)
    flow = torch.arange(y.numel(), dtype=y.dtype).cos().view(y.shape)
    return torch.autograd.grad((y * flow).sum(), leaves, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("write", ["relu_", "mul_", "zero_", "elu_"])
@pytest.mark.parametrize("name", CALLS)
def test_output_written_to_before_backward(name, write):
    """Right, or an error of autograd."""
    f, leaves = CALLS[name]
    out_of_place = {"relu_": torch.relu, "mul_": lambda y: y * 2, "zero_": lambda y: y * 0, "elu_": nn.functional.elu}
    in_place = {"relu_": torch.relu_, "mul_": lambda y: y.mul_(2), "zero_": torch.zero_, "elu_": nn.functional.elu_}
    want = gradients(lambda *a: out_of_place[write](f(*a)), leaves)
    try:
        got = gradients(lambda *a: in_place[write](f(*a)), leaves)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name, place", [(n, i) for n, (_, leaves) in CALLS.items() for i in range(len(leaves))])
def test_input_written_to_before_backward(name, place):
    """Right, as what is not needed may change, or an error of autograd."""
    f, leaves = CALLS[name]

    def write(y, inputs):
        with torch.no_grad():
            inputs[place].mul_(3)
        return y

    try:
        got = gradients(f, leaves, write)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        torch.testing.assert_close(got, gradients(f, leaves))


# --- tensors of every kind


def strided(t):
    return torch.stack([t, t], -1)[..., 0]


def negated(t):
    return torch._neg_view(-t)


def of_conjugate(t):
    return torch.complex(torch.zeros_like(t), -t).conj().imag  # neg bit, and a stride of 2


class Tagged(torch.Tensor):
    pass


KINDS = {
    "strided": strided,
    "neg bit": negated,
    "imaginary part of a conjugate": of_conjugate,
    "transposed": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "Parameter": nn.Parameter,
    "subclass": lambda t: t.as_subclass(Tagged),
    "inference": None,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CALLS)
def test_kinds_of_tensors(name, kind):
    f, leaves = CALLS[name]
    want_y, want = f(*leaves), gradients(f, leaves)
    if kind == "inference":
        with torch.inference_mode():
            made = [t.clone() for t in leaves]
            torch.testing.assert_close(f(*made), want_y)
        torch.testing.assert_close(f(*made), want_y)
        try:
            got = gradients(lambda last: f(*made[:-1], last), leaves[-1:])
        except RuntimeError as error:
            assert "Inference tensors cannot be saved" in str(error)
        else:
            torch.testing.assert_close(got, want[-1:])
        return
    made = [KINDS[kind](t.clone()) for t in leaves]
    torch.testing.assert_close(torch.Tensor(f(*made)) if kind == "subclass" else f(*made), want_y)
    got = gradients(lambda *a: f(*(KINDS[kind](t) if kind not in ("Parameter",) else t for t in a)), leaves)
    torch.testing.assert_close([g.as_subclass(torch.Tensor) for g in got], list(want))


@pytest.mark.parametrize("name", CALLS)
def test_saved_tensors_go_through_hooks(name):
    """So that activations can be packed, moved to the host, or counted."""
    f, leaves = CALLS[name]
    want, packed = gradients(f, leaves), []

    def pack(t):
        packed.append(t)
        return t.detach().clone()

    def overwrite(y, inputs):
        with torch.no_grad():
            for t in inputs:
                t.zero_()  # the copies count
        return y

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        got = gradients(f, leaves, overwrite)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("name", CALLS)
def test_fake_and_meta_tensors_have_the_shapes(name):
    f, leaves = CALLS[name]
    want = f(*leaves)
    if name.startswith(("gcn", "maxk_spmm")):
        pytest.skip("look at the numbers of their graph")
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        y = f(*(mode.from_tensor(t) for t in leaves))
    assert y.shape == want.shape and y.dtype == want.dtype


# --- wrong transposes


def wrong(what: str):
    crow, col, ccol, row, perm = pattern(6, 5)
    other = pattern(6, 5)[4].flip(0)
    return {
        "rolled": (crow, col, ccol, row, perm.roll(1)),
        "repeated": (crow, col, ccol, row, torch.zeros_like(perm)),
        "reversed": (crow, col, ccol, row, other),
        "identity": (crow, col, ccol, row, torch.arange(len(perm)).int()),
        "out of range": (crow, col, ccol, row, perm + 100),
        "negative": (crow, col, ccol, row, perm - 1),
        "short": (crow, col, ccol, row, perm[:-1]),
        "rows": (crow, col, ccol, torch.arange(6).int().repeat(9)[: len(row)].sort().values, perm),
        "columns": (crow, col, ccol + (torch.arange(len(ccol)) == 1).int(), row, perm),
    }[what]


@pytest.mark.parametrize("need", [(True, True, True), (True, False, False), (False, True, False), (False, False, True)])
@pytest.mark.parametrize("what", ["rolled", "repeated", "reversed", "identity", "out of range", "negative", "short",
                                  "rows", "columns"])  # fmt: skip
def test_a_wrong_transpose_of_a_weight_is_refused(what, need):
    indices = wrong(what)
    for samples in (2, 40):
        x, values = torch.randn(samples, 5), torch.randn(indices[1].numel())
        with pytest.raises(RuntimeError, match="sparse_linear: "):
            SPARSE.sparse_linear_backward(torch.randn(samples, 6), x, values, *indices, *need)


@pytest.mark.parametrize("what", ["repeated", "identity"])
def test_no_gradient_is_uninitialised_memory(what):
    """With a transpose that names an edge twice and another never, that one's gradient is 0."""
    crow, col, ccol, row, perm = wrong(what)
    e = col.numel()
    torch.full((4 * e,), 7e30)  # what new memory may hold
    x, a_src, a_dst, a_edge = torch.randn(5, 2, 3), torch.randn(5, 2), torch.randn(6, 2), torch.randn(e, 2)
    leaves = [t.requires_grad_() for t in (x, a_src, a_dst, a_edge)]
    y = SPARSE.gat(*leaves, crow, col, ccol, row, perm, 0.2, 0.0, None, True)[0]
    grads = torch.autograd.grad(y.sum(), leaves)
    assert all(g.isfinite().all() for g in grads)
    if what == "repeated":
        assert not grads[3][1:].any()


# --- ordinary programs


def test_maxima_with_gradients_of_edge_weights_alone():
    g, x = graph(), torch.randn(4, 3)
    for reduce, best in (("max", torch.amax), ("min", torch.amin)):
        val = torch.randn(6, requires_grad=True)
        y = ops.spmm(g, x, reduce, val)
        (got,) = torch.autograd.grad(y.square().sum(), val)
        rows = torch.repeat_interleave(torch.arange(4), g.crow.diff().long())
        message = x[g.col.long()] * val[:, None]
        want = torch.stack([best(message[rows == r], 0) for r in range(4)])
        torch.testing.assert_close(y, want)
        torch.testing.assert_close(got, torch.autograd.grad(want.square().sum(), val)[0])


def test_import_loads_no_compiler():
    code = (
        "import sys, sparsegnn; print('torch._dynamo.convert_frame' in sys.modules or 'torch._inductor' in sys.modules)"
    )
    assert fresh.output(code).strip() == "False"


def test_layers_under_transforms():
    """Gradients of single samples and Hessians through layers with the sparse kernel."""
    layer = sparsegnn.nn.SparseLinear(6, 3, sparsity=0.5, dtype=torch.float64)
    dense = layer.to_dense()
    x = torch.randn(4, 6, dtype=torch.float64)
    with sparsegnn.use_kernel("sparse"):
        each = vmap(grad(lambda p, s: functional_call(layer, p, (s[None],)).square().sum()), in_dims=(None, 0))(
            dict(layer.named_parameters()), x)  # fmt: skip
        curved = hessian(lambda b: functional_call(layer, {"bias": b}, (x,)).square().sum())(layer.bias.detach())
    want = vmap(grad(lambda p, s: functional_call(dense, p, (s[None],)).square().sum()), in_dims=(None, 0))(
        dict(dense.named_parameters()), x)  # fmt: skip
    torch.testing.assert_close(each["bias"], want["bias"])
    kept = layer.dense_weight() != 0
    torch.testing.assert_close(each["values"], want["weight"][:, kept])
    torch.testing.assert_close(curved, 2 * len(x) * torch.eye(3, dtype=torch.float64))
    assert copy.deepcopy(layer)(x).shape == (4, 3)


@pytest.mark.parametrize("layout", ["coo", "csr", "mkldnn"])
def test_other_layouts_are_refused(layout):
    x = torch.randn(4, 4)
    x = {"coo": x.to_sparse, "csr": x.to_sparse_csr, "mkldnn": x.to_mkldnn}[layout]()
    indices = pattern()
    for call in (
        lambda: ops.spmm(graph(), x),
        lambda: ops.sddmm(graph(), x, x),
        lambda: ops.maxk(x, 2),
        lambda: ops.sparse_linear(x, torch.randn(indices[1].numel()), None, *indices),
    ):
        with pytest.raises(TypeError, match="must be dense, got layout"):
            call()
