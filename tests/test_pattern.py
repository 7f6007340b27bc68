"""Patterns against numpy and scipy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsegnn import pattern

SHAPES = [(1, 1), (1, 17), (17, 1), (7, 5), (33, 64)]


def dense(crow, col, cols):
    mask = np.zeros((len(crow) - 1, cols), dtype=bool)
    for r in range(len(crow) - 1):
        mask[r, col[crow[r] : crow[r + 1]].numpy()] = True
    return mask


@pytest.mark.parametrize("rows,cols", SHAPES)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.9999])
def test_random_pattern_has_the_exact_count(rows, cols, sparsity):
    crow, col = pattern.random_pattern(rows, cols, sparsity=sparsity)
    pattern.check_pattern(crow, col, rows, cols)
    assert crow.dtype == col.dtype == torch.int32
    assert col.numel() == max(1, round((1 - sparsity) * rows * cols))


def test_uniform_output_layer_keeps_one_weight():
    _, col = pattern.random_pattern(1, 128, sparsity=1 - 0.0078)
    assert col.numel() == 1


def test_random_pattern_is_uniform_and_seeded():
    def draw(seed):
        return pattern.random_pattern(8, 8, nnz=16, generator=torch.Generator().manual_seed(seed))

    assert all(torch.equal(a, b) for a, b in zip(draw(3), draw(3), strict=True))
    hits = sum(torch.from_numpy(dense(*draw(s), 8)).double() for s in range(2000)) / 2000
    assert (hits - 0.25).abs().max() < 0.05  # five standard deviations of a mean of 2000 draws


def test_fan_in_gives_every_row_the_same_count():
    crow, col = pattern.random_pattern(6, 20, sparsity=0.9, kind="fan_in")
    pattern.check_pattern(crow, col, 6, 20)
    assert crow.diff().tolist() == [2] * 6
    crow, col = pattern.random_pattern(6, 5, sparsity=0.99, kind="fan_in")
    assert crow.diff().tolist() == [1] * 6


@pytest.mark.parametrize("rows,cols", SHAPES)
def test_mask_round_trip(rows, cols):
    mask = torch.rand(rows, cols) < 0.3
    crow, col = pattern.from_mask(mask)
    pattern.check_pattern(crow, col, rows, cols)
    assert np.array_equal(dense(crow, col, cols), mask.numpy())
    assert torch.equal(pattern.to_mask(crow, col, cols), mask)


@pytest.mark.parametrize("rows,cols", SHAPES)
def test_transpose_against_scipy(rows, cols):
    sp = pytest.importorskip("scipy.sparse")
    crow, col = pattern.from_mask(torch.rand(rows, cols) < 0.4)
    value = np.arange(1, col.numel() + 1)
    want = sp.csr_matrix((value, col.numpy(), crow.numpy()), shape=(rows, cols)).T.tocsr()
    want.sort_indices()
    ccol, row, perm = pattern.transpose(crow, col, cols)
    assert ccol.dtype == row.dtype == perm.dtype == torch.int32
    assert np.array_equal(ccol, want.indptr) and np.array_equal(row, want.indices)
    assert np.array_equal(value[perm], want.data)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_top_magnitude_with_ties_and_nan(rows, cols, data):
    entries = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, float("nan"), float("-inf")])
    w = data.draw(st.lists(entries, min_size=rows * cols, max_size=rows * cols))
    nnz = data.draw(st.integers(1, rows * cols))
    crow, col = pattern.from_dense_topk(torch.tensor(w).view(rows, cols), nnz)
    order = sorted(range(rows * cols), key=lambda i: (w[i] != w[i], -abs(w[i]) if w[i] == w[i] else 0, i))[:nnz]
    assert np.flatnonzero(dense(crow, col, cols)).tolist() == sorted(order)


def test_top_magnitude_per_row():
    w = torch.randn(5, 9)
    crow, col = pattern.from_dense_topk(w, 15, kind="fan_in")
    want = w.abs().topk(3, dim=1).indices.sort(dim=1).values
    assert torch.equal(col.view(5, 3), want.int())


def test_everything_runs_on_meta():
    for kind in ("unstructured", "fan_in"):
        crow, col = pattern.random_pattern(8, 16, nnz=24, kind=kind, device="meta")
        assert crow.shape == (9,) and col.shape == (24,) and col.is_meta
    assert [t.shape[0] for t in pattern.transpose(crow, col, 16)] == [17, 24, 24]
    pattern.check_pattern(crow, col, 8, 16)
    crow, col = pattern.from_dense_topk(torch.empty(8, 16, device="meta"), 24)
    assert crow.shape == (9,) and col.shape == (24,)


def test_rearrange_zeroes_new_entries():
    moved = pattern.rearrange(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2, -1, 0], dtype=torch.int32))
    assert moved.tolist() == [3.0, 0.0, 1.0]


def i32(*values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    "crow,col,error,text",
    [
        (i32(0, 1, 2).long(), i32(0, 1), TypeError, "crow must be an int32 tensor, got torch.int64"),
        (i32(0, 1, 2), torch.tensor([0.0, 1.0]), TypeError, "col must be an int32 tensor"),
        (i32(0, 2), i32(0, 1), ValueError, r"crow must have shape \[3\], got \[2\]"),
        (i32(1, 1, 2), i32(0, 1), ValueError, "crow must start at 0 and end at 2, got 1 and 2"),
        (i32(0, 1, 3), i32(0, 1), ValueError, "crow must start at 0 and end at 2, got 0 and 3"),
        (i32(0, 5, 2), i32(0, 1), ValueError, "crow must not decrease"),
        (i32(0, 1, 2), i32(0, 3), ValueError, r"col must be in \[0, 3\), got \[0, 3\]"),
        (i32(0, 1, 2), i32(-1, 0), ValueError, r"col must be in \[0, 3\), got \[-1, 0\]"),
        (i32(0, 2, 2), i32(1, 0), ValueError, "col must ascend strictly"),
        (i32(0, 2, 2), i32(1, 1), ValueError, "col must ascend strictly"),
        (i32(0, 2, 2).view(1, 3), i32(0, 1), ValueError, "crow must have one dimension"),
    ],
)
def test_bad_patterns_are_refused(crow, col, error, text):
    with pytest.raises(error, match="layer: " + text):
        pattern.check_pattern(crow, col, 2, 3, "layer")


@pytest.mark.parametrize("sparsity", [1.0, -0.1, float("nan"), 2])
def test_bad_sparsity(sparsity):
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\), got"):
        pattern.random_pattern(2, 3, sparsity=sparsity)


def test_bad_arguments():
    with pytest.raises(TypeError, match="sparsity must be a number"):
        pattern.random_pattern(2, 3, sparsity="much")
    with pytest.raises(ValueError, match="nnz must be in"):
        pattern.random_pattern(2, 3, nnz=7)
    with pytest.raises(ValueError, match="exactly one of nnz and sparsity"):
        pattern.random_pattern(2, 3)
    with pytest.raises(ValueError, match="rows and cols must be positive"):
        pattern.random_pattern(0, 3, nnz=1)
    with pytest.raises(ValueError, match="multiple of 2 rows"):
        pattern.random_pattern(2, 3, nnz=3, kind="fan_in")
    with pytest.raises(ValueError, match="pattern must be one of 'unstructured', 'fan_in'"):
        pattern.random_pattern(2, 3, nnz=3, kind="4:8")


@pytest.mark.parametrize("kind", [k for k, block in pattern.BLOCKS.items() if block != (1, 1)])
def test_blocks(kind):
    height, width = pattern.BLOCKS[kind]
    crow, col = pattern.random_pattern(64, 96, sparsity=0.8, kind=kind)
    pattern.check_pattern(crow, col, 64 // height, 96 // width)
    assert col.numel() * height * width == pattern.count_kept(64, 96, 0.8, kind)
    empty = pattern.random_pattern(64, 96, sparsity=0.8, kind=kind, device="meta")
    assert empty[0].shape == crow.shape and empty[1].shape == col.shape and empty[1].is_meta
    w = torch.randn(64, 96)
    assert torch.equal(pattern.tiles(w, kind).transpose(1, 2).reshape(64, 96), w)
    values = pattern.gather(w, crow, col, kind).view(-1, height, width)
    rows = pattern.rows_of(crow, col)
    for b in range(col.numel()):
        i, j = rows[b] * height, col[b] * width
        assert torch.equal(values[b], w[i : i + height, j : j + width])
    mask = torch.zeros(64, 96)
    mask[17, 40] = 1
    crow, col = pattern.from_mask(mask, kind)
    assert col.tolist() == [40 // width] and crow[17 // height] == 0 and crow[17 // height + 1] == 1


def test_a_mover_moves_several():
    """Blocks of weights as a whole, other types and shapes; what is new starts where it is told to."""
    move = pattern.mover(torch.tensor([2, -1, 0], dtype=torch.int32))
    assert move(torch.tensor([1.0, 2.0, 3.0]), 5).tolist() == [3.0, 5.0, 1.0]
    assert move(torch.arange(6, dtype=torch.float64), torch.tensor(7.0)).tolist() == [4, 5, 7, 7, 0, 1]
    assert move(torch.tensor([[1, 2, 3]])).tolist() == [[3, 0, 1]]
    assert pattern.mover(torch.zeros(0, dtype=torch.int32))(torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize("kind", pattern.BLOCKS)
def test_block_sums(kind):
    height, width = pattern.BLOCKS[kind]
    w = torch.randint(-50, 50, (64, 96)).double()
    blocks = pattern.tiles(w, kind)
    wanted = [[int(blocks[i, j].sum()) for j in range(96 // width)] for i in range(64 // height)]
    for matrix in (w, w.t().contiguous().t()):
        assert pattern.block_sums(matrix, kind).tolist() == wanted


def test_top_mask_is_top_row_by_row():
    """With ties, NaN, infinities, and rows that take none or all."""
    torch.manual_seed(0)
    score = torch.randint(4, (7, 30)).float()
    score[:, ::5], score[2, 3], score[3, :4] = torch.nan, torch.inf, -torch.inf
    count = torch.tensor([0, 30, 5, 26, 1, 17, 12])
    score[3, ::5] = 0.0
    mask = pattern.top_mask(score, count)
    for row, found, k in zip(score, mask, count.tolist(), strict=True):
        want = torch.zeros(30, dtype=torch.bool)
        want[pattern.top(row, k)] = True
        assert torch.equal(found, want)
    assert not pattern.top_mask(score, torch.zeros(7, dtype=torch.int64)).any()
    assert pattern.top_mask(score[:0], count[:0]).shape == (0, 30)
