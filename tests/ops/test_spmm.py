import numpy as np
import pytest
import torch
from ops.harness import Case, Op, cases, check_contract, check_op, csr_of, relative_error
from torch.utils.flop_counter import FlopCounterMode

import sparsegnn
from sparsegnn import ops
from sparsegnn.ops._random import dropout_factor


def oracle(x, crow, col, val, row_scale, col_scale, diag, ccol, row, perm, reduce):
    """Sums and means with a dense matrix; extrema of all rows of one length, with numpy's first-occurrence argmax."""
    m, n, val = crow.numel() - 1, x.size(0), torch.ones(col.numel(), dtype=x.dtype) if val is None else val
    target = torch.from_numpy(np.repeat(np.arange(m), np.diff(crow.numpy())))
    if reduce in ("max", "min"):
        y, args, lengths = x.new_zeros(m, x.size(1)), torch.full((m, x.size(1)), -1), crow.diff()
        for length in set(lengths.tolist()) - {0}:
            rows = (lengths == length).nonzero()[:, 0]
            edges = crow[rows, None].long() + torch.arange(length)
            message = x[col[edges].long()] * val[edges][..., None]
            first = torch.from_numpy(getattr(np, "arg" + reduce)(message.detach().numpy(), 1))
            y = y.index_put((rows,), message.gather(1, first[:, None])[:, 0])
            args[rows] = first + edges[:, :1]
        return y, args
    a = x.new_zeros(m, n).index_put((target, col.long()), val, accumulate=True)
    a = a if col_scale is None else a * col_scale
    a = a if diag is None else a + torch.diag(diag * (1 if col_scale is None else col_scale))
    y = a @ x if reduce == "sum" else a @ x / crow.diff().clamp(min=1)[:, None]
    return y if row_scale is None else y * row_scale[:, None], torch.zeros(0, 0)


def inputs(case: Case) -> dict:
    crow, col, ccol, row, perm, (m, n) = case.csr()
    reduce, _, extras = (case.variant or "sum").partition("+")
    scale = dict(dtype=torch.float64 if case.dtype == torch.float64 else torch.float32, low=0.2)
    return dict(
        x=case.tensor(n, case.width),
        crow=crow,
        col=col,
        val=case.tensor(col.numel()) if "val" in extras else None,
        row_scale=case.tensor(m, **scale) if "scales" in extras else None,
        col_scale=case.tensor(n, **scale) if "scales" in extras else None,
        diag=case.tensor(m, **scale) if "diag" in extras and m == n else None,
        ccol=ccol,
        row=row,
        perm=perm,
        reduce=reduce,
    )


def call(x, crow, col, val, row_scale, col_scale, diag, ccol, row, perm, reduce):
    op = torch.ops.sparsegnn.spmm
    return op(x, crow, col, val, row_scale, col_scale, diag, ccol, row, perm, reduce)


SPMM = Op(
    call,
    oracle,
    inputs,
    grad=("x", "val"),
    autocast=("x", "val"),
    raw=torch.ops.sparsegnn.spmm.default,
    exact_outputs=(1,),
)
SUMS = ("sum", "sum+val", "sum+scales+diag", "sum+val+scales+diag", "mean", "mean+val", "mean+val+scales")
VARIANTS = (*SUMS, "max", "max+val", "min+val")


@pytest.mark.parametrize("case", cases(VARIANTS))
def test_values(case):
    if "expanded" in case.layout and ("max" in case.variant or "min" in case.variant):
        pytest.skip("all columns equal: the fp64 oracle may break 16-bit ties differently")
    check_op(SPMM, case)


@pytest.mark.parametrize("variant", ["sum+val+scales+diag", "mean+val", "max+val"])
def test_contract(variant):
    check_contract(SPMM, Case(width=5, variant=variant))


def star(edges: int, hubs: int = 1) -> sparsegnn.CSRGraph:
    """Rows 1, 3, ... have `edges` edges each, the rows between them three."""
    g = torch.Generator().manual_seed(4)
    counts = torch.tensor([3, edges] * hubs + [0, 2])
    target = torch.repeat_interleave(torch.arange(counts.numel()), counts)
    source = torch.randint(1000, (target.numel(),), generator=g)
    return sparsegnn.CSRGraph.from_edge_index(torch.stack([source, target]), (counts.numel(), 1000))


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_hubs_are_split_deterministically(reduce, dtype):
    graph = star(100_000, hubs=2)
    x = torch.randn(1000, 19, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)
    val = torch.rand(graph.num_edges, generator=torch.Generator().manual_seed(6), dtype=torch.float64).to(dtype)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        a, w = x.clone().requires_grad_(), val.clone().requires_grad_()
        y = ops.spmm(graph, a, reduce, w)
        y.sum().backward()
        results.append((y.detach(), a.grad, w.grad, ops.spmm(graph, x, reduce, val)))
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))
    empty = (None,) * 6
    expected, arg = oracle(x.double(), graph.crow, graph.col, val.double(), *empty, reduce)
    y, dx, _, inference = results[0]
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
    assert torch.equal(y, inference)
    assert (y - expected).norm() <= tolerance * expected.norm()
    if dtype == torch.float64:  # one edge each: the gradient is its weight
        rows = torch.repeat_interleave(torch.arange(graph.num_rows), graph.crow.diff().long())
        share = val / (graph.crow.diff()[rows] if reduce == "mean" else 1)
        want = torch.zeros_like(x).index_add(0, graph.col.long(), share[:, None].expand(-1, 19))
        if reduce in ("max", "min"):
            flat, found = arg.clamp(min=0).long(), arg >= 0
            want = torch.zeros_like(x)
            want.index_put_((graph.col.long()[flat], torch.arange(19).expand_as(flat)), val[flat] * found, True)
        assert torch.allclose(dx, want)


def test_hub_of_nan_and_infinity():
    graph = star(70_000)
    x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(7))
    x[graph.col[50_000].long(), 0] = float("nan")
    x[graph.col[60_000].long(), 1] = float("inf")
    y, arg = call(x, graph.crow, graph.col, *[None] * 7, "max")
    first = (graph.col == graph.col[50_000]).nonzero().view(-1)
    hub = slice(int(graph.crow[1]), int(graph.crow[2]))
    assert y[1, 0].isnan() and y[1, 1] == float("inf")
    assert arg[1, 0] == first[first >= hub.start][0]
    assert ops.spmm(graph, x)[1, :2].isnan().tolist() == [True, False]


def graph_and_x(width: int = 5):
    graph = sparsegnn.CSRGraph.from_edge_index(torch.tensor([[0, 1, 2, 2], [1, 1, 0, 3]]), 4)
    return graph, torch.randn(4, width, generator=torch.Generator().manual_seed(8))


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
@pytest.mark.parametrize("width", [1, 5, 64, 200])
def test_out(reduce, width):
    graph, x = graph_and_x(width)
    out = torch.full((4, width), 7.0)
    assert ops.spmm(graph, x, reduce, out=out) is out
    assert torch.equal(out, ops.spmm(graph, x, reduce))
    expanded = x[:, :1].expand(4, width)
    assert torch.equal(ops.spmm(graph, expanded, reduce, out=out), ops.spmm(graph, expanded.contiguous(), reduce))


@pytest.mark.parametrize("begin", [0, 3])  # in elements: at a cache line, and beside one
@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_large_outputs(reduce, begin):
    """From 12 MB on they are stored past the caches, which asks for whole cache lines."""
    n, width = 14001, 256
    node = torch.arange(n)
    edges = torch.stack([torch.cat([node.roll(1), node.roll(-1)]), node.repeat(2)])
    ring = sparsegnn.CSRGraph.from_edge_index(edges, n)
    x = torch.randn(n, width)
    out = torch.full((n * width + 3,), torch.nan)[begin : begin + n * width].view(n, width)
    ops.spmm(ring, x, reduce, out=out)
    before, after = x.roll(1, 0), x.roll(-1, 0)
    assert torch.equal(out, before + after if reduce == "sum" else torch.maximum(before, after))
    assert torch.equal(ops.spmm(ring, x, reduce), out)


def test_out_beside_x_in_one_storage():
    graph, x = graph_and_x()
    both = torch.cat([x, torch.zeros_like(x)])
    assert torch.equal(ops.spmm(graph, both[:4], out=both[4:]), ops.spmm(graph, x))
    wide = torch.zeros(55)
    columns = wide[:40].view(4, 10)[:, :5].copy_(x)  # ends in the middle of the last row, and there `out` begins
    assert torch.equal(ops.spmm(graph, columns, out=wide[35:].view(4, 5)), ops.spmm(graph, x))
    with pytest.raises(ValueError, match="out must not share memory with x"):
        ops.spmm(graph, columns, out=wide[34:54].view(4, 5))
    torch.library.opcheck(torch.ops.sparsegnn.spmm_out.default,
                          (torch.empty(4, 5), x, graph.crow, graph.col, None, None, None, None, "max"))  # fmt: skip


@pytest.mark.parametrize("bad", ["shape", "type", "dtype", "strides", "overlap", "x needs grad", "out needs grad"])
def test_bad_out(bad):
    graph, x = graph_and_x()
    out = {
        "shape": torch.empty(5, 5),
        "type": [1.0],
        "dtype": torch.empty(4, 5, dtype=torch.float64),
        "strides": torch.empty(5, 4).t(),
        "overlap": torch.cat([x, x])[2:6],
        "out needs grad": torch.empty(4, 5, requires_grad=True),
    }.get(bad, torch.empty(4, 5))
    if bad == "overlap":
        both = torch.cat([x, x])
        x, out = both[:4], both[3:7]
    x.requires_grad_(bad == "x needs grad")
    with pytest.raises((TypeError, ValueError), match="spmm: out must"):
        ops.spmm(graph, x, out=out)


def test_features_are_kept_for_the_gradient_of_weights_alone():
    """Of several hops, the features of all would stay until the backward pass."""
    graph, x = sparsegnn.CSRGraph.from_edge_index(torch.randint(9, (2, 30)), 9), torch.randn(9, 4, requires_grad=True)
    weight = torch.rand(30)
    for reduce, w, kept in (
        ("sum", None, False), ("mean", weight, False), ("sum", weight.clone().requires_grad_(), True),
        ("max", None, True),
    ):  # fmt: skip
        y = ops.spmm(graph, x, reduce, w)
        assert (y.grad_fn.saved_tensors[0] is not None) == kept


def test_extrema_without_arg():
    graph, x = graph_and_x(33)
    y, arg = torch.ops.sparsegnn.spmm(x, graph.crow, graph.col, *[None] * 7, "max", False)
    assert torch.equal(y, call(x, graph.crow, graph.col, *[None] * 7, "max")[0]) and arg.shape == (0, 0)


# --- spmm_linear: a sparse linear layer behind the aggregation

WEIGHT = ("w_crow", "w_col", "w_ccol", "w_row", "w_perm")


def linear_oracle(x, crow, col, val, row_scale, col_scale, diag, ccol, row, perm, values, bias, w_crow, w_col, w_ccol,
                  w_row, w_perm, act="none", dropout=0.0, seed=None):  # fmt: skip
    """Both products with dense matrices; what is dropped as the generator's own plain form says."""
    ax = oracle(x, crow, col, val, row_scale, col_scale, diag, ccol, row, perm, "sum")[0]
    rows = torch.arange(w_crow.numel() - 1).repeat_interleave(w_crow.diff().long())
    weight = values.new_zeros(w_crow.numel() - 1, x.size(1)).index_put((rows, w_col.long()), values, accumulate=True)
    y = torch.nn.functional.linear(ax, weight, bias)
    y = y.relu() if act == "relu" else y
    if dropout == 0:
        return y
    return y * dropout_factor(seed, torch.arange(len(y)), y.size(1), dropout, y.dtype)


def linear_inputs(case: Case) -> dict:
    parts = (case.variant or "").split("+")
    graph = inputs(Case(**{**case.__dict__, "variant": "+".join(("sum", *parts))}))
    del graph["reduce"]
    outputs, g = 2 * case.width % 37 + 3, case.generator()
    flat = (torch.rand(outputs * case.width, generator=g) < 0.4).nonzero().view(-1)
    if "empty" in parts:
        flat = flat[:0]
    weight = csr_of(flat // case.width, flat % case.width, outputs, case.width)
    dropout = 0.3 if "dropout" in parts else 0.0
    given = graph | dict(
        values=case.tensor(flat.numel()),
        bias=case.tensor(outputs) if "bias" in parts else None,
        **dict(zip(WEIGHT, weight, strict=True)),
        act="relu" if "relu" in parts else "none",
        dropout=dropout,
        seed=torch.tensor([11]) if dropout else None,
    )
    return {n: t.to(case.device) if isinstance(t, torch.Tensor) else t for n, t in given.items()}


def linear_call(**given):
    return torch.ops.sparsegnn.spmm_linear(*given.values())


LINEAR = Op(
    linear_call,
    linear_oracle,
    linear_inputs,
    grad=("x", "values", "bias"),
    autocast=("x", "val", "values", "bias"),
    raw=torch.ops.sparsegnn.spmm_linear.default,
    # L^T dy is rounded before it is multiplied by W: a hub's gradient is then one sum of few terms, which may cancel
    grad_tolerance={torch.bfloat16: 2e-2, torch.float16: 4e-3},
)
SIZES = dict(widths=(1, 3, 16, 33, 64))


@pytest.mark.parametrize("case", cases(("", "val+bias", "val+scales+diag+bias+dropout", "empty+bias"), **SIZES))
def test_linear_values(case):
    check_op(LINEAR, case)


# In 16 bits an output within rounding of zero may be on either side of it.
WIDE = (torch.float32, torch.float64)


@pytest.mark.parametrize("case", cases(("scales+diag+bias+relu", "relu+dropout"), dtypes=WIDE, **SIZES))
def test_linear_values_with_relu(case):
    check_op(LINEAR, case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", ["scales+diag+bias+relu", "val+relu+dropout"])
def test_linear_gradients_with_relu_in_16_bits(variant, dtype):
    """The side of zero on which the op's own output is decides."""
    given = linear_inputs(Case(width=33, dtype=dtype, variant=variant))
    names = [n for n in ("x", "values", "bias") if given[n] is not None]
    leaves = {n: given[n].clone().requires_grad_() for n in names}
    y = linear_call(**given | leaves)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    got = torch.autograd.grad(y, list(leaves.values()), dy)
    double = {n: t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for n, t in given.items()}
    leaves = {n: double[n].requires_grad_() for n in names}
    plain = linear_oracle(**double | leaves | dict(act="none", dropout=0.0))
    masked = dy.double() * (y > 0) / (1 - given["dropout"])
    for name, g, want in zip(names, got, torch.autograd.grad(plain, list(leaves.values()), masked), strict=True):
        assert relative_error(g, want) <= 1e-2, name


@pytest.mark.parametrize("variant", ["val+scales+diag+bias", "scales+bias+dropout"])
def test_linear_contract(variant):
    check_contract(LINEAR, Case(width=5, variant=variant))


def test_linear_flops():
    given = linear_inputs(Case(width=16, variant="bias"))
    with FlopCounterMode(display=False) as counter:
        given["x"].requires_grad_(), given["values"].requires_grad_()
        linear_call(**given).sum().backward()
    n, edges, nnz, outputs = 23, given["col"].numel(), given["values"].numel(), given["w_crow"].numel() - 1
    assert counter.get_total_flops() == 2 * edges * (16 + outputs) + 6 * n * nnz


def test_linear_refuses_what_it_cannot_differentiate():
    given = linear_inputs(Case(width=4, variant="val"))
    given["values"].requires_grad_()
    with pytest.raises(NotImplementedError, match="spmm_linear: val, scales and diag are constants"):
        linear_call(**given | dict(val=given["val"].requires_grad_())).sum().backward()
    given = linear_inputs(Case(width=4)) | dict(ccol=None, row=None, perm=None)
    with pytest.raises(ValueError, match="spmm_linear: ccol, row and perm must be given for a gradient"):
        linear_call(**given | dict(values=given["values"].requires_grad_())).sum().backward()
