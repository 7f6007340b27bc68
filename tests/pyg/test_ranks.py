"""Accelerated models in DistributedDataParallel: two ranks train the model that one process with both parts trains."""

import faulthandler
import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
import torch_geometric.nn as pyg

import sparsegnn

N, STEPS = 40, 4
MODELS = {
    "gcn": lambda: pyg.GCN(6, 8, 2, 3), "sage": lambda: pyg.GraphSAGE(6, 8, 2, 3), "gat": lambda: pyg.GAT(6, 8, 2, 3),
}  # fmt: skip


def train(name, rank, ranks, sparsity):
    torch.manual_seed(0)
    model = MODELS[name]().double()
    sparsegnn.accelerate(model) if sparsity is None else sparsegnn.sparsify(model, sparsity)
    wrapped = model if ranks == 1 else torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(STEPS):
        g = torch.Generator().manual_seed(step)
        edges, x = torch.randint(N, (2, 2, 160), generator=g), torch.randn(2, N, 6, generator=g).double()
        optimizer.zero_grad()
        for part in range(2) if ranks == 1 else (rank,):
            (wrapped(x[part], edges[part]).square().mean() / (2 if ranks == 1 else 1)).backward()
        optimizer.step()
    paths = {row["kernel"].partition("/")[0] for row in sparsegnn.summary(model, show=False) if "Conv" in row["type"]}
    return model.state_dict(), paths


def worker(rank, folder):
    torch.set_num_threads(1)  # the threads of OpenMP do not survive a fork: a second one waits for them without end
    faulthandler.register(signal.SIGUSR1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {(name, s): train(name, rank, 2, s) for name in MODELS for s in (None, 0.5)}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def run(folder, seconds=100):
    """Both ranks; where they wait for each other without end, an error, behind what they wait at."""
    context = torch.multiprocessing.start_processes(worker, (folder,), nprocs=2, join=False, start_method="fork")
    end = time.monotonic() + seconds
    while not context.join(timeout=1):
        if time.monotonic() > end:
            for process in context.processes:
                os.kill(process.pid, signal.SIGUSR1)
            time.sleep(1)
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"the ranks are not done after {seconds} s: see where they are above")


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo")
def test_two_ranks_train_as_one(tmp_path):
    run(str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for (name, sparsity), (state, paths) in first.items():
        wanted, _ = train(name, 0, 1, sparsity)
        assert paths == {"cpu"}
        for key, want in wanted.items():
            torch.testing.assert_close(state[key], want, rtol=1e-9, atol=1e-11, msg=f"{name} {sparsity} {key}")
            assert torch.equal(state[key], second[name, sparsity][0][key])
