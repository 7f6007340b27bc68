"""Two ranks move the same weights, those that one process with both batches would move; what they cannot is refused."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn

from sparsegnn.controllers import DSTEE, MEST, SET, GradualMagnitude, RigL, StaticSparse
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


needs_gloo = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo")


@needs_gloo
@pytest.mark.parametrize("cls", [RigL, SET, partial(DSTEE, c=0.05), partial(MEST, lam=3.0)])
def test_ranks_agree(cls, tmp_path):
    torch.multiprocessing.start_processes(worker, (cls, str(tmp_path)), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = train(cls, 0, 1)
    for key, want in alone.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], want, rtol=1e-9, atol=1e-11)


CASES = {  # name: (model's seed of rank 1, what DDP gets, arguments of rank 1's controller, what is refused)
    "positions": (1, {"broadcast_buffers": False}, {}, "the positions of layer '0', the positions of layer '2'"),
    "positions, broadcast": (1, {}, {}, None),
    "seeds": (0, {}, {"seed": 3}, "others of seed;"),
    "intervals": (0, {}, {"update_every": 3}, "others of update_every;"),
    "ends": (0, {"broadcast_buffers": False}, {"stop_at": 8}, "others of stop_at;"),
}
TRIED = [(SET, case) for case in CASES] + [(RigL, "positions"), (StaticSparse, "positions")]


def try_case(cls, rank, case):
    seed, settings, arguments, _ = CASES[case]
    torch.manual_seed(seed * rank)
    model = nn.Sequential(SparseLinear(20, 16, sparsity=0.8), nn.Tanh(), SparseLinear(16, 6, sparsity=0.5))
    wrapped = nn.parallel.DistributedDataParallel(model, **settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    cls(model, optimizer, **{"update_every": 2, "stop_at": 9, **(arguments if rank else {})})
    try:
        for _ in range(3):
            optimizer.zero_grad()
            wrapped(torch.randn(8, 20)).square().mean().backward()
            optimizer.step()
    except RuntimeError as problem:
        return str(problem)
    return model.state_dict()


def try_cases(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {(cls.__name__, case): try_case(cls, rank, case) for cls, case in TRIED}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@needs_gloo
def test_ranks_that_would_differ_are_refused(tmp_path):
    torch.multiprocessing.start_processes(try_cases, (str(tmp_path),), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for (cls, case), got in first.items():
        if (wrong := CASES[case][3]) is None:
            assert all(torch.equal(t, second[cls, case][k]) for k, t in got.items()), (cls, case)
        else:
            assert got == second[cls, case] and got.startswith(f"{cls}: all processes must have the same"), (cls, case)
            assert wrong in got and "torch.manual_seed()" in got


@pytest.fixture
def process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def fit(model, call, optimizer, steps=5):
    for _ in range(steps):
        optimizer.zero_grad()
        call(torch.randn(8, 20)).square().mean().backward()
        optimizer.step()


def sparse(sparsity=0.8):
    return nn.Sequential(SparseLinear(20, 16, sparsity=sparsity), nn.Tanh(), SparseLinear(16, 6, sparsity=sparsity))


@needs_gloo
@pytest.mark.parametrize("wrap", ["before", "between"])
def test_gradual_pruning_in_ddp_is_refused(process, wrap):
    model = sparse(0.0)
    call, prune = model, {"sparsity": 0.8, "update_every": 2, "stop_at": 6}
    with pytest.raises(RuntimeError, match="GradualMagnitude: model must not be in a DistributedDataParallel"):
        if wrap == "before":
            call = nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.Adam(model.parameters())
        GradualMagnitude(model, optimizer, **prune)
        if wrap == "between":
            fit(model, call, optimizer, 1)
            call = nn.parallel.DistributedDataParallel(model)
        fit(model, call, optimizer)


@needs_gloo
def test_gradual_pruning_beside_processes(process):
    model = sparse(0.0)
    optimizer = torch.optim.Adam(model.parameters())
    GradualMagnitude(model, optimizer, sparsity=0.8, update_every=3, stop_at=3)
    fit(model, model, optimizer, 4)
    assert model[0].values.numel() < 320


@needs_gloo
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("cls", [RigL, SET, GradualMagnitude, StaticSparse])
def test_sharded_weights_are_refused(process, cls, when):
    from torch.distributed.fsdp import fully_shard

    model = sparse(0.0 if cls is GradualMagnitude else 0.8)
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    message = (
        "must have its values in one plain tensor, got DTensor" if when == "after" else "no longer holds the values"
    )
    with pytest.raises((TypeError, RuntimeError), match=f"{cls.__name__}: .*{message}"):
        if when == "after":
            fully_shard(model, mesh=mesh)
        optimizer = torch.optim.Adam(model.parameters())
        cls(model, optimizer, update_every=2, **({} if cls is GradualMagnitude else {"stop_at": 9}))
        if when == "before":
            fully_shard(model, mesh=mesh)
        fit(model, model, optimizer)


@needs_gloo
def test_sharded_state_is_refused(process):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = sparse()
    with pytest.raises(TypeError, match="RigL: .* got ZeroRedundancyOptimizer"):
        RigL(model, ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=0.01))
