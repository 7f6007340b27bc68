"""Sparse features through SparseLinear and GCNConv, against dense features in fp64."""

import gc

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sparsegnn import CSRGraph, use_kernel
from sparsegnn.nn import GCNConv, SparseLinear
from sparsegnn.nn import feature_structure as module
from sparsegnn.nn.inner import Linear
from sparsegnn.pattern import gather


def matrix(n, k, dtype=torch.float64, seed=0):
    """About 5 % dense, with empty rows and columns."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, k, generator=g, dtype=dtype) * (torch.rand(n, k, generator=g) < 0.05)
    x[: n // 7], x[:, : k // 5] = 0, 0
    return x


FORMS = {
    "csr": torch.Tensor.to_sparse_csr,
    "csr int32": lambda x: torch.sparse_csr_tensor(
        *(t.int() for t in (x.to_sparse_csr().crow_indices(), x.to_sparse_csr().col_indices())),
        x.to_sparse_csr().values(),
        x.shape,
    ),
    "coo": torch.Tensor.to_sparse,
    "uncoalesced": lambda x: torch.sparse_coo_tensor(
        x.nonzero().flip(0).repeat(2, 1).T, x[tuple(x.nonzero().flip(0).T)].repeat(2) / 2, x.shape
    ),
}


def layer(kind, k, m, bias):
    torch.manual_seed(1)
    if kind == "dense":
        return Linear(k, m, bias=False).double()
    return SparseLinear(k, m, bias=bias, sparsity=0.7 if kind == "sparse" else 0.0).double()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["dense", "sparse", "all weights"])
@pytest.mark.parametrize("shape", [(50, 37, 5), (50, 37, 16), (300, 700, 40), (9, 3, 1), (40, 20, 33)], ids=str)
def test_values_and_gradients(shape, kind, form):
    n, k, m = shape
    dense = matrix(n, k)
    x, linear = FORMS[form](dense), layer(kind, k, m, bias=True)
    dy = torch.randn(n, m, dtype=torch.float64)
    wanted = linear(dense)
    for _ in range(2):  # the second time with what was kept
        y = linear(x)
        torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)
        got = torch.autograd.grad(y, list(linear.parameters()), dy)
        for a, b in zip(
            got, torch.autograd.grad(wanted, list(linear.parameters()), dy, retain_graph=True), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", ["sparse", "dense", "auto"])
@pytest.mark.parametrize("pattern", ["unstructured", "fan_in", "grouped:4", "grouped:8", "grouped:16", "block:16x16",
                                     "block:32x32"])  # fmt: skip
def test_every_pattern_on_both_kernels_and_with_a_probe(pattern, kernel):
    """y, the gradients, and that of the dense weight, against dense features times the weight as a matrix."""
    dense = matrix(70, 96, seed=2)
    x, dy = dense.to_sparse_csr(), torch.randn(70, 64, dtype=torch.float64)
    torch.manual_seed(3)
    linear = SparseLinear(96, 64, sparsity=0.8, pattern=pattern).double()
    weight = linear.dense_weight().detach().requires_grad_()
    bias = linear.bias.detach().requires_grad_()
    wanted = dense @ weight.T + bias
    wanted.backward(dy)
    for probe in (None, torch.zeros(64, 96, dtype=torch.float64, requires_grad=True)):
        linear.zero_grad()
        linear.probe = probe
        with use_kernel(kernel):
            y = linear(x)
        y.backward(dy)
        torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(linear.bias.grad, bias.grad, rtol=1e-12, atol=1e-12)
        there = SparseLinear.from_dense(linear.to_dense(), weight.detach() != 0, pattern=pattern)
        there.values.data.fill_(1)
        mine = SparseLinear.from_dense(linear.to_dense(), weight.detach() != 0, pattern=pattern)
        mine.values.data.copy_(linear.values.grad)
        torch.testing.assert_close(mine.dense_weight(), weight.grad * there.dense_weight(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(probe.grad, weight.grad, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        linear.probe = None
        torch.testing.assert_close(linear(x), wanted.detach(), rtol=1e-12, atol=1e-12)
        linear.values.requires_grad_(False)  # a frozen layer
        torch.testing.assert_close(linear(x), wanted.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("change", [torch.relu_, lambda y: y.add_(y.detach()), lambda y: torch.dropout_(y, 0.0, True)])
@pytest.mark.parametrize("probed", [False, True])
@pytest.mark.parametrize("kernel", ["sparse", "dense"])
@pytest.mark.parametrize("features", ["dense", "csr"])
@pytest.mark.parametrize("pattern", ["unstructured", "grouped:8", "block:16x16", "2:4"])
def test_outputs_may_be_changed_in_place(pattern, features, kernel, probed, change):
    """As those of nn.Linear; also in the steps in which a method collects the gradient of the dense weight."""
    x = matrix(70, 96, torch.float32, seed=2)
    torch.manual_seed(3)
    linear = SparseLinear(96, 64, sparsity=0.5, pattern=pattern)
    weight, bias = linear.to_dense().weight.detach().requires_grad_(), linear.bias.detach().clone().requires_grad_()
    wanted = change(torch.nn.functional.linear(x, weight, bias))
    wanted.square().sum().backward()
    linear.probe = torch.zeros(64, 96, requires_grad=True) if probed else None
    with use_kernel(kernel):
        y = change(linear(x if features == "dense" else x.to_sparse_csr()))
        y.square().sum().backward()
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(linear.bias.grad, bias.grad)
    if probed:
        torch.testing.assert_close(linear.probe.grad, weight.grad)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("outputs", [7, 16, 32, 64])
def test_precision(dtype, tolerance, outputs):
    x = matrix(200, 90).to(dtype)
    linear = Linear(90, outputs, bias=False).to(dtype)
    y = linear(x.to_sparse_csr())
    wanted = x.double() @ linear.weight.double().T
    assert y.dtype == dtype and (y - wanted).norm() <= tolerance * wanted.norm()


@pytest.mark.parametrize("sparsity", [0.0, 0.7])
@pytest.mark.parametrize("sizes", [(30, 6), (6, 30)])
@pytest.mark.parametrize("options", [{}, dict(act="relu"), dict(cached=True), dict(aggr="max")], ids=str)
def test_gcn(sizes, sparsity, options):
    g = torch.Generator().manual_seed(0)
    graph = CSRGraph.from_edge_index(torch.randint(40, (2, 160), generator=g), 40)
    conv, x = GCNConv(*sizes, sparsity=sparsity, **options).double(), matrix(40, sizes[0])
    flow = torch.randn(40, sizes[1], dtype=torch.float64)
    wanted = torch.autograd.grad((conv(x, graph) * flow).sum(), list(conv.parameters()))
    sparse = x.to_sparse_csr()
    for _ in range(3):
        y = conv(sparse, graph)
        torch.testing.assert_close(y, conv(x, graph))
        for a, b in zip(torch.autograd.grad((y * flow).sum(), list(conv.parameters())), wanted, strict=True):
            torch.testing.assert_close(a, b)
    lazy = GCNConv(-1, 4)
    assert lazy(sparse.float(), graph).shape == (40, 4) and lazy.lin.weight.shape == (4, sizes[0])


def test_values_may_change_and_indices_are_noticed():
    dense, linear = matrix(50, 37), Linear(37, 5, bias=False).double()
    x = dense.to_sparse_csr()
    linear(x)
    x.values().mul_(2)
    torch.testing.assert_close(linear(x), linear(2 * dense))
    grad = torch.autograd.grad(linear(x).sum(), linear.weight)[0]
    torch.testing.assert_close(grad, 2 * dense.sum(0).expand(5, 37))
    x.col_indices().copy_(x.col_indices().clone().sub_(1))
    shifted = torch.sparse_csr_tensor(x.crow_indices(), x.col_indices(), x.values(), x.shape).to_dense()
    torch.testing.assert_close(linear(x), linear(shifted))
    grad = torch.autograd.grad(linear(x).sum(), linear.weight)[0]
    torch.testing.assert_close(grad, shifted.sum(0).expand(5, 37))
    coo = dense.to_sparse()
    linear(coo)
    coo.mul_(3)
    torch.testing.assert_close(linear(coo), linear(3 * dense))


def test_structure_goes_with_its_matrix():
    before = len(module._structures)
    x = matrix(50, 37).to_sparse_csr()
    Linear(37, 5, bias=False).double()(x)
    assert len(module._structures) == before + 1
    del x
    gc.collect()
    assert len(module._structures) <= before


def test_probe_and_autocast():
    dense = matrix(50, 37, torch.float32)
    linear = SparseLinear(37, 5, sparsity=0.7)
    linear.probe = torch.zeros(5, 37, requires_grad=True)
    y = linear(dense.to_sparse_csr())
    torch.testing.assert_close(y, linear(dense))
    flow = torch.randn(50, 5)
    torch.testing.assert_close(torch.autograd.grad(y, linear.probe, flow)[0], flow.T @ dense)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(dense.to_sparse_csr()).dtype == torch.bfloat16


def test_errors():
    x, linear = matrix(50, 37, torch.float32).to_sparse_csr(), SparseLinear(37, 5)
    with pytest.raises(ValueError, match=r"SparseLinear: x must have shape \[N, 36\] when sparse, got \[50, 37\]"):
        SparseLinear(36, 5)(x)
    with pytest.raises(ValueError, match="SparseLinear: x must not require a gradient when sparse"):
        linear(x.detach().requires_grad_())
    with pytest.raises(TypeError, match="SparseLinear: x must have the dtype of the weight"):
        linear(x.double())
    bad = torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([40]), torch.ones(1), (1, 37))
    with pytest.raises(ValueError, match=r"col must be in \[0, 37\)"):
        linear(bad)


@pytest.mark.parametrize("kernel", ["sparse", "dense"])
@pytest.mark.parametrize("pattern", ["unstructured", "grouped:8", "block:16x16"])
def test_a_step_with_a_probe_makes_one_product_for_both_gradients(pattern, kernel):
    """Counted by hand: forward what meets or all outputs of a nonzero, backward all outputs of a nonzero."""
    x = matrix(70, 96, seed=2)
    linear = SparseLinear(96, 64, sparsity=0.8, pattern=pattern).double()
    linear.probe = torch.zeros((), dtype=torch.float64).expand(64, 96).requires_grad_()
    kept, nonzeros = linear.dense_weight().detach() != 0, x != 0
    forward = int((nonzeros.sum(0) * kept.sum(0)).sum()) if kernel == "sparse" else 64 * int(nonzeros.sum())
    with use_kernel(kernel), FlopCounterMode(display=False) as counter:
        linear(x.to_sparse_csr()).sum().backward()
    assert counter.get_total_flops() == 2 * forward + 2 * 64 * int(nonzeros.sum())
    wanted = torch.ones(64, 70, dtype=torch.float64) @ x
    torch.testing.assert_close(linear.probe.grad, wanted, rtol=1e-12, atol=1e-12)
    assert linear.probe.grad.is_contiguous()
    torch.testing.assert_close(linear.values.grad, gather(wanted, *linear.pattern(), pattern), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", ["sparse", "dense"])
@pytest.mark.parametrize("probed", [False, True])
def test_gradients_of_gradients(probed, kernel):
    """Of a penalty on the gradient, in a step with a dense gradient too."""
    x = matrix(50, 37)
    torch.manual_seed(4)
    linear = SparseLinear(37, 16, sparsity=0.7).double()
    at = gather(torch.arange(16 * 37.0).view(16, 37), *linear.pattern(), "unstructured").long()
    values, bias = (p.detach().clone().requires_grad_() for p in (linear.values, linear.bias))
    linear.probe = torch.zeros(16, 37, dtype=torch.float64, requires_grad=True) if probed else None

    def penalised(y, leaves):
        first = torch.autograd.grad(y.tanh().square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    weight = torch.zeros(16 * 37, dtype=torch.float64).index_put((at,), values).view(16, 37)
    wanted = penalised(torch.nn.functional.linear(x, weight, bias), (values, bias))
    with use_kernel(kernel):
        got = penalised(linear(x.to_sparse_csr()), (linear.values, linear.bias))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
