"""topology_ against sorting by Python tuples."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.harness import DTYPES, devices

from sparsegnn import ops, pattern
from sparsegnn.ops import topology

OP = torch.ops.sparsegnn.topology_


def RAW(crow, col, drop, grow, n, op=OP):
    return op(crow, col, drop, grow, torch.tensor(n, device=crow.device))


def reference(*args):
    return RAW(*args, op=topology.reference)


def lowest_nan(value):
    return (math.isnan(value), 0.0 if math.isnan(value) else -value)  # sorts the highest first, NaN last


def oracle(mask, drop, grow, n):
    """(new mask, source): the definition, position by position."""
    active = [tuple(p) for p in np.argwhere(mask)]
    slot = {p: i for i, p in enumerate(active)}
    kept = sorted(active, key=lambda p: (*lowest_nan(drop[slot[p]]), p))[: len(active) - n]
    free = sorted(set(np.ndindex(*mask.shape)) - set(kept), key=lambda p: (*lowest_nan(grow[p]), p))
    new = sorted([*kept, *free[:n]])
    out = np.zeros_like(mask)
    for p in new:
        out[p] = True
    return out, [slot.get(p, -1) for p in new]


def run(mask, drop, grow, n, op=RAW):
    crow, col = pattern.from_mask(mask)
    where = crow.data_ptr(), col.data_ptr()
    source = op(crow, col, drop, grow, n)
    assert where == (crow.data_ptr(), col.data_ptr())
    pattern.check_pattern(crow, col, *mask.shape)
    assert source.dtype == torch.int32 and source.shape == col.shape
    return pattern.to_mask(crow, col, mask.shape[1]), source


def check(mask, drop, grow, n, op=RAW):
    got, source = run(mask, drop, grow, n, op)
    want, want_source = oracle(mask.cpu().numpy(), drop.tolist(), grow.cpu().double().numpy(), n)
    assert np.array_equal(got.cpu().numpy(), want)
    assert source.tolist() == want_source


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 67), (67, 1), (9, 33), (40, 64), (3, 200)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_values(shape, dtype, share, device):
    g = torch.Generator().manual_seed(0)
    mask = torch.rand(shape, generator=g) < 0.4
    mask.view(-1)[0] = True
    nnz = int(mask.sum())
    drop, grow = torch.randn(nnz, generator=g), torch.randn(shape, generator=g)
    check(mask.to(device), drop.to(device, dtype), grow.to(device, dtype), int(share * nnz))


VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-40, -1e-40, math.inf, -math.inf, math.nan, -math.nan])


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 5), st.integers(1, 7), st.sampled_from([torch.float32, torch.float64]), st.data())
def test_ties_and_nan(rows, cols, dtype, data):
    size = rows * cols
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size))).view(rows, cols)
    nnz = int(mask.sum())
    drop = torch.tensor(data.draw(st.lists(VALUES, min_size=nnz, max_size=nnz)), dtype=dtype)
    grow = torch.tensor(data.draw(st.lists(VALUES, min_size=size, max_size=size)), dtype=dtype).view(rows, cols)
    n = data.draw(st.integers(0, nnz))
    check(mask, drop, grow, n)
    check(mask, drop, grow, n, ops.topology_)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 2**32), st.floats(0, 1), st.floats(0, 1))
def test_invariants(rows, cols, seed, filled, share):
    g = torch.Generator().manual_seed(seed)
    crow, col = pattern.random_pattern(rows, cols, nnz=max(1, int(filled * rows * cols)), generator=g)
    before = pattern.to_mask(crow, col, cols)
    nnz, old = col.numel(), col.clone()
    drop, grow, n = torch.rand(nnz, generator=g), torch.rand(rows, cols, generator=g), int(share * nnz)
    source = RAW(crow, col, drop, grow, n)
    pattern.check_pattern(crow, col, rows, cols)  # sorted, in range, and as many as before
    kept = source[source >= 0]
    assert col.numel() == nnz and kept.unique().numel() == kept.numel() >= nnz - n
    assert torch.equal(old[kept.long()], col[source >= 0])
    assert not before[pattern.rows_of(crow, col)[source < 0], col[source < 0].long()].any()
    if kept.numel() < nnz:  # nothing that stayed out beats what came in
        out = grow.clone()
        out[pattern.rows_of(crow, col), col.long()] = -1
        assert grow[pattern.rows_of(crow, col)[source < 0], col[source < 0].long()].min() >= out.max()


def test_n_larger_than_the_free_positions():
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1, 2] = False
    drop, grow = torch.arange(11.0), torch.zeros(3, 4)
    for n in range(12):
        check(mask, drop, grow, n)
    check(torch.ones(3, 4, dtype=torch.bool), torch.randn(12), torch.randn(3, 4), 7)


def test_mixed_dtypes_and_layouts():
    mask = torch.rand(20, 30) < 0.3
    drop = torch.randn(int(mask.sum()) * 2, dtype=torch.bfloat16)[::2]
    check(mask, drop, torch.randn(30, 20, dtype=torch.float64).T, 50)
    check(mask, drop, torch.randn(20, 1).expand(20, 30), 50)


def test_no_entries_and_no_columns():
    for shape in ((3, 4), (0, 4), (3, 0)):
        mask = torch.zeros(shape, dtype=torch.bool)
        got, source = run(mask, torch.zeros(0), torch.zeros(shape), 0)
        assert got.shape == shape and not got.any() and source.numel() == 0


def test_large_and_the_same_for_every_thread_count():
    g = torch.Generator().manual_seed(1)
    crow, col = pattern.random_pattern(700, 900, sparsity=0.9, generator=g)
    drop = torch.randn(col.numel(), generator=g).abs()
    grow = torch.randn(700, 900, generator=g).mul(8).round()  # many ties, over many chunks
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            a, b = crow.clone(), col.clone()
            results.append((RAW(a, b, drop, grow, 20_000), a, b))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))
    got = results[0]
    want = reference(a := crow.clone(), b := col.clone(), drop, grow, 20_000)
    assert all(torch.equal(x, y) for x, y in zip(got, (want, a, b), strict=True))


def test_opcheck():
    crow, col = pattern.random_pattern(6, 9, nnz=20)
    torch.library.opcheck(OP.default, (crow, col, torch.randn(20), torch.randn(6, 9), torch.tensor(5)))


def test_compiles():
    def update(crow, col, drop, grow):
        source = RAW(crow, col, drop.abs(), grow.abs(), 5)
        return pattern.rearrange(drop, source)

    crow, col = pattern.random_pattern(6, 9, nnz=20)
    drop, grow = torch.randn(20), torch.randn(6, 9)
    a, b, c, d = crow.clone(), col.clone(), crow.clone(), col.clone()
    want = update(a, b, drop, grow)
    torch._dynamo.reset()
    got = torch.compile(update, fullgraph=True, dynamic=True)(c, d, drop, grow)
    assert torch.equal(want, got) and torch.equal(a, c) and torch.equal(b, d)


def test_no_size_depends_on_n():
    """The same call, traced once with fake tensors, whose n holds no number."""
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        crow, col = torch.empty(4, dtype=torch.int32), torch.empty(5, dtype=torch.int32)
        args = torch.randn(5), torch.randn(3, 7), torch.empty((), dtype=torch.int64)
        assert topology.reference(crow, col, *args).shape == (5,)
        assert pattern.rewire_rows_(torch.empty(6, dtype=torch.int32), torch.randn(6), *args[1:]).shape == (6,)


def test_fallback():
    mask = torch.rand(9, 14) < 0.4
    drop = torch.randn(int(mask.sum())).round()
    drop[::5] = math.nan
    for n in (0, 7, drop.numel()):
        check(mask, drop, torch.randn(9, 14).round(), n, reference)


def i32(*values):
    return torch.tensor(values, dtype=torch.int32)


def test_refused():
    crow, col, drop, grow = i32(0, 1, 2), i32(0, 1), torch.zeros(2), torch.zeros(2, 3)
    for args, error, text in [
        (([0, 1, 2], col, drop, grow, 1), TypeError, "crow must be a Tensor"),
        ((crow.long(), col, drop, grow, 1), TypeError, "crow must be an int32 tensor"),
        ((crow, col, torch.zeros(3), grow, 1), ValueError, r"drop_score must have shape \[2\], got \[3\]"),
        ((crow, col, drop, torch.zeros(3, 3), 1), ValueError, r"grow_score must have shape \[2, K\], got \[3, 3\]"),
        ((crow, col, drop.long(), grow, 1), TypeError, "drop_score must be floating point, got torch.int64"),
        ((crow, col, drop, grow, 3), ValueError, r"n must be in \[0, 2\], got 3"),
        ((crow, col, drop, grow, -1), ValueError, r"n must be in \[0, 2\], got -1"),
        ((crow, col, drop, grow, torch.tensor(1.0)), TypeError, "n must be an int64 tensor of one element on cpu, got"),
        ((crow, col, drop, grow, torch.tensor([1, 1])), TypeError, r"n must be .*, got torch.int64 \[2\] on cpu"),
        ((crow, i32(0, 3), drop, grow, 1), ValueError, r"col must be in \[0, 3\)"),
        ((i32(0, 5, 2), col, drop, grow, 1), ValueError, "crow must not decrease"),
    ]:
        with pytest.raises(error, match="topology_: " + text):
            ops.topology_(*args)


@pytest.mark.parametrize("n", [-1, 3, torch.tensor(3), torch.tensor(-1)])
def test_the_kernel_refuses_counts_that_are_too_large(n):
    crow, col = i32(0, 1, 2), i32(0, 1)
    with pytest.raises(RuntimeError if torch.is_tensor(n) else ValueError, match=r"topology_: n must be in \[0, 2\]"):
        ops.topology_(crow, col, torch.zeros(2), torch.zeros(2, 3), n)
    assert crow.tolist() == [0, 1, 2] and col.tolist() == [0, 1]


@pytest.mark.parametrize("crow,col", [(i32(0, 5, 2), i32(0, 1)), (i32(0, -3, 2), i32(0, 1)), (i32(0, 1, 9), i32(0, 1)),
                                      (i32(0, 1, 2), i32(0, 3)), (i32(0, 2, 2), i32(1, 0))])  # fmt: skip
def test_the_kernel_refuses_broken_patterns_too(crow, col):
    with pytest.raises(RuntimeError, match="topology_: "):
        RAW(crow, col, torch.zeros(2), torch.zeros(2, 3), 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ties", [False, True])
def test_few_of_many(dtype, ties):
    """One in a hundred of the positions of several chunks grows; with ties at the threshold, within and across rows."""
    g = torch.Generator().manual_seed(2)
    crow, col = pattern.random_pattern(300, 700, sparsity=0.95, generator=g)
    drop, grow = torch.randn(col.numel(), generator=g).to(dtype), torch.randn(300, 700, generator=g).abs()
    grow = (grow.mul(4).round() if ties else grow).to(dtype)
    grow[:, ::50] = math.nan
    a, b, c, d = crow.clone(), col.clone(), crow.clone(), col.clone()
    source, wanted = RAW(a, b, drop, grow, 2_000), reference(c, d, drop, grow, 2_000)
    assert torch.equal(a, c) and torch.equal(b, d) and torch.equal(source, wanted)
    assert 1_500 < int((source < 0).sum()) <= 2_000
