"""The pool of large CPU outputs: memory is reused, never shared, bounded by what was in use, and given back."""

import os
import threading

import fresh
import pytest
import torch

import sparsegnn
from sparsegnn import _native
from sparsegnn.ops import spmm

MIB = 1 << 20
pytestmark = pytest.mark.skipif(
    torch.__version__ < "2.11" or os.environ.get("SPARSEGNN_POOL") == "0", reason="needs the pool"
)


@pytest.fixture
def graph():
    n = 20_000
    index = torch.arange(n)
    return sparsegnn.CSRGraph.from_edge_index(torch.stack([index, index]), n)  # y = x


@pytest.fixture(autouse=True)
def empty():
    sparsegnn.empty_cache()
    yield
    sparsegnn.empty_cache()


def test_memory_of_a_freed_output_is_used_again(graph):
    x = torch.rand(20_000, 64)
    y = spmm(graph, x)
    where = y.data_ptr()
    assert _native.kept_memory()[0] >= y.nbytes
    del y
    live, kept = _native.kept_memory()
    assert kept >= x.nbytes
    y = spmm(graph, x)
    assert y.data_ptr() == where and torch.equal(y, x)
    assert _native.kept_memory() == (live + kept, 0)


def test_live_outputs_do_not_share_memory(graph):
    xs = [torch.full((20_000, 64), float(i)) for i in range(5)]
    ys = [spmm(graph, x) for x in xs]
    view = ys[1][5:]
    del ys[1]  # its memory lives on in the view
    ys.append(spmm(graph, xs[4]))
    assert torch.equal(view, xs[1][5:])
    for y, x in zip(ys, [xs[0], xs[2], xs[3], xs[4], xs[4]], strict=True):
        assert torch.equal(y, x)


def test_kept_memory_is_bounded_by_what_was_in_use(graph):
    for _ in range(600):  # forgets the peak of earlier tests
        spmm(graph, torch.zeros(20_000, 53))
    sparsegnn.empty_cache()
    sizes = [64, 96, 128, 80, 112, 64, 128]
    peak = 0
    for width in sizes:  # one at a time: never more than the largest stays
        y = spmm(graph, torch.rand(20_000, width))
        live, kept = _native.kept_memory()
        peak = max(peak, live)
        assert live + kept <= peak
        del y
    assert sum(_native.kept_memory()) <= peak


def test_memory_no_longer_used_is_given_back(graph):
    ys = [spmm(graph, torch.rand(20_000, 256)) for _ in range(4)]
    del ys
    assert _native.kept_memory()[1] >= 4 * 18 * MIB
    x = torch.rand(20_000, 64)
    for _ in range(600):
        spmm(graph, x)
    assert _native.kept_memory()[1] <= 2 * x.nbytes


def test_empty_cache_leaves_live_tensors_alone(graph):
    x = torch.rand(20_000, 64)
    y = spmm(graph, x)
    spmm(graph, x)
    sparsegnn.empty_cache()
    assert _native.kept_memory()[1] == 0
    assert torch.equal(y, x)


def test_threads_get_memory_of_their_own(graph):
    wrong = []

    def work(i):
        x = torch.full((20_000, 64), float(i))
        for _ in range(20):
            if not torch.equal(spmm(graph, x), x):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_pooled_outputs_are_ordinary_tensors(graph, tmp_path):
    x = torch.rand(20_000, 64)
    y = spmm(graph, x)
    torch.save(y, tmp_path / "y.pt")
    assert torch.equal(torch.load(tmp_path / "y.pt"), x)
    y.add_(1).clamp_(max=1)
    assert torch.equal(y.share_memory_(), torch.ones_like(x))
    with torch.inference_mode():
        assert spmm(graph, x).is_inference()


def test_the_pool_can_be_switched_off():
    code = """
import torch, sparsegnn
from sparsegnn import _native
i = torch.arange(20_000)
x = torch.rand(20_000, 64)
assert torch.equal(sparsegnn.ops.spmm(sparsegnn.CSRGraph.from_edge_index(torch.stack([i, i])), x), x)
assert _native.kept_memory() == (0, 0)
"""
    fresh.output(code, SPARSEGNN_POOL="0")


def test_outputs_may_shrink_and_change_their_memory_but_not_grow(graph):
    """Memory of the pool has no allocator that torch knows: it says so, and a clone has one."""
    x = torch.rand(20_000, 64)
    y = spmm(graph, x)
    y.resize_(10_000, 64)
    assert torch.equal(y, x[:10_000])
    with pytest.raises(RuntimeError, match="not resizable"):
        y.resize_(30_000, 64)
    with pytest.raises(RuntimeError, match="not resizable"):
        torch.cat([x, x], out=spmm(graph, x).resize_(0))
    z = spmm(graph, x)
    assert torch.equal(z.clone().resize_(30_000, 64)[:20_000], x)
    assert torch.equal(torch.add(z, 1, out=z), x + 1) and z.share_memory_().is_shared()
    z.set_(x)
    assert z.data_ptr() == x.data_ptr()
