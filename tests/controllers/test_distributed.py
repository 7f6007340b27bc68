"""Two ranks move the same weights, those that one process with both batches would move."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from sparsegnn.controllers import SET, RigL
from sparsegnn.nn import SparseLinear


def train(cls, rank, ranks):
    torch.manual_seed(0)
    model = nn.Sequential(SparseLinear(20, 16, sparsity=0.8), nn.Tanh(), SparseLinear(16, 6, sparsity=0.5)).double()
    wrapped = model
    if ranks > 1:
        wrapped = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    cls(model, optimizer, update_every=2, stop_at=9)
    for step in range(10):
        g = torch.Generator().manual_seed(step)
        x, y = torch.randn(32, 20, generator=g).double(), torch.randn(32, 6, generator=g).double()
        share = slice(rank * 32 // ranks, (rank + 1) * 32 // ranks)
        optimizer.zero_grad()
        (wrapped(x[share]) - y[share]).square().mean().backward()
        optimizer.step()
    return model.state_dict()


def worker(rank, cls, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(train(cls, rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo")
@pytest.mark.parametrize("cls", [RigL, SET])
def test_ranks_agree(cls, tmp_path):
    torch.multiprocessing.start_processes(worker, (cls, str(tmp_path)), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = train(cls, 0, 1)
    for key, want in alone.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], want, rtol=1e-9, atol=1e-11)
