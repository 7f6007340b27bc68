"""csr_from_edges, csr_transpose and csr_degrees against numpy and scipy."""

import numpy as np
import pytest
import scipy.sparse
import torch
from ops.harness import DTYPES, GRAPHS, Case, Op, cases, check_contract, check_op, devices

from sparsegnn.ops import csr as reference

ops = torch.ops.sparsegnn
BIG = dict(m=5_000, n=3_000, e=400_000)  # several chunks and buckets


def edges(m, n, e, dtype=torch.int64, device="cpu", seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = (torch.randint(max(size, 1), (e,), generator=g, dtype=dtype).to(device) for size in (m, n))
    return *draw, m, n


def stable_csr(target, source, m, n):
    """numpy's stable sort: the oracle."""
    target, source = target.cpu().numpy(), source.cpu().numpy()
    perm = np.lexsort((source, target))
    crow = np.concatenate([[0], np.cumsum(np.bincount(target, minlength=m))])
    return crow, source[perm], perm


def assert_equal(got, wanted):
    for g, w in zip(got, wanted, strict=True):
        assert g.dtype == torch.int32 and g.is_contiguous()
        np.testing.assert_array_equal(g.cpu().numpy(), w)


SIZES = {
    "none": dict(m=0, n=0, e=0),
    "no_edges": dict(m=7, n=3, e=0),
    "one": dict(m=1, n=1, e=1),
    "one_row": dict(m=1, n=70_000, e=300),
    "one_column": dict(m=70_000, n=1, e=300),
    "duplicates": dict(m=4, n=4, e=500),
    "long_rows": dict(m=3, n=100_000, e=5_000),  # rows sorted by digits, three passes
    "big": BIG,
    "tall": dict(m=300_000, n=50, e=200_000),
}


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("size", SIZES)
def test_from_edges_values(size, dtype, device):
    given = edges(**SIZES[size], dtype=dtype, device=device)
    assert_equal(ops.csr_from_edges(*given), stable_csr(*given))


@pytest.mark.parametrize("size", SIZES)
def test_references(size):
    """What runs where nothing is compiled."""
    given = edges(**SIZES[size])
    wanted = stable_csr(*given)
    assert_equal(reference.from_edges_reference(*given), wanted)
    crow, col, _ = (torch.from_numpy(t).int() for t in wanted)
    assert_equal(reference.transpose_reference(crow, col, given[3]), ops.csr_transpose(crow, col, given[3]))
    val = torch.rand(col.numel(), dtype=torch.float64)
    torch.testing.assert_close(reference.degrees_reference(crow, val), ops.csr_degrees(crow, val))
    assert torch.equal(reference.degrees_reference(crow, None), ops.csr_degrees(crow, None))
    with pytest.raises(RuntimeError, match="csr_from_edges: indices must be in"):
        reference.from_edges_reference(torch.tensor([7]), torch.tensor([0]), 5, 5)


def test_from_edges_of_sorted_reversed_and_strided_input():
    target, source, m, n = edges(**BIG)
    by_target = np.lexsort((source, target))
    for order in (by_target, by_target[::-1].copy(), np.lexsort((target, source))):
        given = target[order], source[order], m, n
        assert_equal(ops.csr_from_edges(*given), stable_csr(*given))
    pair = torch.stack([target, source], 1)
    assert_equal(ops.csr_from_edges(pair[:, 0], pair[:, 1], m, n), stable_csr(target, source, m, n))


def test_from_edges_values_with_a_hub():
    target, source, m, n = edges(**BIG)
    target[::2] = 17
    assert_equal(ops.csr_from_edges(target, source, m, n), stable_csr(target, source, m, n))


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("graph", GRAPHS)
def test_transpose_values(graph, device):
    crow, col, *transpose, (m, n) = Case(graph).csr()
    got = ops.csr_transpose(crow.to(device), col.to(device), n)
    assert_equal(got, [t.numpy() for t in transpose])
    back = ops.csr_transpose(got[0], got[1], m)
    assert_equal(back[:2], (crow, col))


@pytest.mark.parametrize("threads", [1, 2])
def test_transpose_of_many_edges(threads):
    crow, col, _ = ops.csr_from_edges(*edges(**BIG))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        got = ops.csr_transpose(crow, col, BIG["n"])
    finally:
        torch.set_num_threads(before)
    wanted = scipy.sparse.csr_matrix((np.arange(col.numel()), col, crow), shape=(BIG["m"], BIG["n"])).tocsc()
    assert_equal(got, (wanted.indptr, wanted.indices, wanted.data))


def call_degrees(crow, val):
    y = ops.csr_degrees(crow, val)
    assert y.dtype == (torch.float64 if val is not None and val.dtype == torch.float64 else torch.float32)
    return y if val is None else y.to(val.dtype)


def degrees_of_coo(crow, val):
    """Row sums with the row of every entry, so that autograd can follow val."""
    target = np.repeat(np.arange(crow.numel() - 1), np.diff(crow.numpy()))
    return val.new_zeros(crow.numel() - 1).index_add(0, torch.from_numpy(target), val)


def degrees_inputs(case):
    crow, col, *_ = case.csr()
    return dict(crow=crow.to(case.device), val=case.tensor(col.numel(), low=0.1))


DEGREES = Op(call_degrees, degrees_of_coo, degrees_inputs, grad=("val",), raw=ops.csr_degrees.default)


@pytest.mark.parametrize("case", cases(graphs=[g for g in GRAPHS if g != "hub"], widths=(1,), layouts=("contiguous",)))
def test_degrees_values(case):
    check_op(DEGREES, case)


def test_degrees_contract():
    check_contract(DEGREES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", devices())
def test_degrees_values_of_a_hub(dtype, device):
    crow, col, *_ = Case("hub").csr()
    val = Case("hub", dtype=dtype).tensor(col.numel(), low=0.1)
    wanted = np.add.reduceat(np.append(val.double().numpy(), 0), crow[:-1].numpy())
    wanted[np.diff(crow.numpy()) == 0] = 0
    got = ops.csr_degrees(crow.to(device), val.to(device)).cpu().double().numpy()
    np.testing.assert_allclose(got, wanted, rtol=1e-12 if dtype == torch.float64 else 2e-6)
    np.testing.assert_array_equal(ops.csr_degrees(crow.to(device), None).cpu(), np.diff(crow.numpy()))


def test_opcheck_and_compile():
    target, source, m, n = edges(20, 30, 90)
    crow, col, _ = ops.csr_from_edges(target, source, m, n)
    torch.library.opcheck(ops.csr_from_edges.default, (target, source, m, n))
    torch.library.opcheck(ops.csr_transpose.default, (crow, col, n))

    @torch.compile(fullgraph=True, dynamic=True)
    def both_ways(target, source, m, n):
        crow, col, perm = ops.csr_from_edges(target, source, m, n)
        return crow, col, perm, *ops.csr_transpose(crow, col, n)

    for e in (90, 140):
        given = edges(20, 30, e, seed=e)
        crow, col, perm = stable_csr(*given)
        back = np.lexsort((np.arange(e), col))
        row = np.repeat(np.arange(20), np.diff(crow))[back]
        ccol = np.concatenate([[0], np.cumsum(np.bincount(col, minlength=30))])
        assert_equal(both_ways(*given), (crow, col, perm, ccol, row, back))


@pytest.mark.parametrize("target, source", [([0, 5], [0, 0]), ([0, -1], [0, 0]), ([0, 1], [0, 3]), ([0, 1], [-7, 0])])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_index_out_of_range(target, source, dtype):
    with pytest.raises(RuntimeError, match=r"csr_from_edges: indices must be in \[0, 5\) and \[0, 3\)"):
        ops.csr_from_edges(torch.tensor(target, dtype=dtype), torch.tensor(source, dtype=dtype), 5, 3)


def test_index_beyond_int32_does_not_wrap():
    with pytest.raises(RuntimeError, match="indices must be in"):
        ops.csr_from_edges(torch.tensor([2**32]), torch.tensor([0]), 5, 5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: ops.csr_from_edges(torch.zeros(2), torch.zeros(2), 1, 1), "target must be int32 or int64"),
        (lambda: ops.csr_from_edges(torch.zeros(2).long(), torch.zeros(2).int(), 1, 1), "dtype of target"),
        (lambda: ops.csr_from_edges(torch.zeros(2).long(), torch.zeros(3).long(), 1, 1), "the same size"),
        (lambda: ops.csr_from_edges(torch.zeros(0).long(), torch.zeros(0).long(), 2**31, 1), "below 2\\^31 - 1"),
        (lambda: ops.csr_transpose(torch.tensor([0, 9]).int(), torch.zeros(2).int(), 1), "crow must rise"),
        (lambda: ops.csr_transpose(torch.tensor([0, 2, 1, 2]).int(), torch.zeros(2).int(), 1), "crow must rise"),
        (lambda: ops.csr_transpose(torch.tensor([0, 2]).int(), torch.tensor([0, 4]).int(), 4), "indices must be in"),
        (lambda: ops.csr_transpose(torch.tensor([0, 2]), torch.zeros(2).int(), 1), "crow must be a contiguous int32"),
        (lambda: ops.csr_degrees(torch.tensor([0, 9]).int(), torch.zeros(2)), "crow must rise"),
        (lambda: ops.csr_degrees(torch.tensor([0, 2]).int(), torch.zeros(2).int()), "must be float32"),
    ],
)
def test_second_net(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()
