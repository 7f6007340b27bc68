"""Graphs, models and kernels in other processes, and in one that is forked or interrupted while kernels run."""

import os
import signal
import threading
import time

import fresh
import pytest
import torch
from other_process import Products, answer, ring
from torch.utils.data import DataLoader

from sparsegnn import RigL
from sparsegnn.controllers.interrupt import uninterrupted
from sparsegnn.nn import GCNConv, SparseLinear
from sparsegnn.ops import spmm

FORKS = """
import os, signal, sys, threading
import torch
import sparsegnn
from sparsegnn.ops import spmm

torch.set_num_threads(2)
i = torch.arange(40_000)
graph, stop = sparsegnn.CSRGraph.from_edge_index(torch.stack([i, i])), threading.Event()

def work(width):
    x = torch.rand(40_000, width)
    while not stop.is_set():
        spmm(graph, x)
        sparsegnn.empty_cache()  # maps, and gives back, at every call: the pool is locked most of the time

threads = [threading.Thread(target=work, args=(w,), daemon=True) for w in (64, 96)]
for t in threads:
    t.start()
x = torch.rand(40_000, 32)
for _ in range(10):
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        sparsegnn.empty_cache()
        y = spmm(graph, x)
        torch.set_num_threads(1)  # torch's own kernels wait for OpenMP's threads, which the child has not
        right = torch.equal(y, x) and torch.ops.sparsegnn.isa()
        os._exit(0 if right else 3)
    _, status = os.waitpid(child, 0)
    assert status == 0, f"a child ended with {status}"
stop.set()
for t in threads:
    t.join()
"""


def test_a_child_forked_while_kernels_run_is_usable():
    fresh.output(FORKS)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.deep)])
def test_workers_of_a_loader(method):
    data = Products()
    spmm(data.graph, torch.rand(50, 8))
    loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context=method)
    for i, (y, z) in enumerate(loader):
        want, want_z = data[i]
        assert torch.equal(y, want) and torch.equal(z, want_z)


@pytest.mark.parametrize("method", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.deep)])
def test_graphs_and_models_travel_between_processes(method):
    graph, model, x = ring(), GCNConv(8, 16, sparsity=0.5), torch.rand(50, 8)
    graph.transpose(), graph.gcn_norm()
    context = torch.multiprocessing.get_context(method)
    queue, received = context.Queue(), context.Event()
    process = context.Process(target=answer, args=(queue, received, graph, model, x))
    process.start()
    other, copy, y = queue.get(timeout=120)
    received.set()
    assert torch.equal(y, model(x, graph)) and torch.equal(copy(x, other), y)
    assert other.shape == graph.shape and torch.equal(other.transpose()[2], graph.transpose()[2])
    queue.close()
    process.join(60)
    assert process.exitcode == 0


# --- signals ---------------------------------------------------------------------------------------------------------


def test_a_long_kernel_is_interrupted_when_it_is_done():
    graph, x = ring(200_000), torch.rand(200_000, 64)
    want = x.roll(1, 0)
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            spmm(graph, x)
    assert torch.equal(spmm(graph, x), want)


class Interrupted(RigL):
    """Ctrl-C comes in the middle of an update, between two layers."""

    def grow_scores(self, name, layer):
        if name == "1":
            signal.raise_signal(signal.SIGINT)
        return super().grow_scores(name, layer)


def trained(kind):
    torch.manual_seed(0)
    model = torch.nn.Sequential(SparseLinear(32, 32), SparseLinear(32, 32), SparseLinear(32, 32))
    optimizer = torch.optim.Adam(model.parameters())
    controller, interrupts = kind(model, optimizer, update_every=2, stop_at=9), 0
    for step in range(6):
        optimizer.zero_grad()
        model(torch.randn(8, 32, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        try:
            optimizer.step()
        except KeyboardInterrupt:
            interrupts += 1
    slots = [t for layer in model for t in optimizer.state[layer.values].values()]
    return [*model.state_dict().values(), *slots], controller.state_dict(), interrupts


def test_an_update_is_never_left_half_done():
    tensors, state, interrupts = trained(Interrupted)
    wanted, wanted_state, none = trained(RigL)
    assert (interrupts, none) == (3, 0)
    assert all(torch.equal(a, b) for a, b in zip(tensors, wanted, strict=True))
    assert {**state, "controller": "RigL"} == wanted_state


def test_handlers_come_back_and_other_threads_need_none():
    seen, before = [], signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    mine = signal.getsignal(signal.SIGTERM)
    try:
        assert uninterrupted(lambda: (signal.raise_signal(signal.SIGTERM), list(seen)))()[1] == []
        assert seen == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) is mine
        with pytest.raises(ZeroDivisionError):
            uninterrupted(lambda: 1 / 0)()
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
    found = []
    thread = threading.Thread(target=lambda: found.append(uninterrupted(lambda x: x + 1)(1)))
    thread.start(), thread.join()
    assert found == [2]
