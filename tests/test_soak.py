"""Long training keeps its size: 10^5 steps of many short lives, and memory, threads, files and objects stay flat.

Each life trains a tiny model under one controller while everything around it changes. SPARSEGNN_SOAK_STEPS sets the
number of steps. Run on its own with ``pytest --deep tests/test_soak.py -s``, which prints what was measured.
"""

import copy
import gc
import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sparsegnn
from sparsegnn import controllers
from sparsegnn.nn import GATConv, GCNConv, SparseLinear

from .test_leaks import heap_in_use

STEPS = int(os.environ.get("SPARSEGNN_SOAK_STEPS", 100_000))
LIVES = 50
NODES, WIDTH = 60, 16
METHODS = ("RigL", "SET", "GradualMagnitude", "StaticSparse")
OPTIMIZERS = (
    lambda p: torch.optim.Adam(p, lr=1e-3),
    lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
)
#: The heap in use has no noise but the last lives' caches: 48 bytes lost at every tenth step would show. RSS too
#: moves by what the allocator's arenas were seen to differ by between equal lives.
HEAP_PER_STEP, RSS_PER_STEP, RSS_NOISE = 4, 30, 3 << 20
OBJECTS = 200  # Python objects, over all lives after the warm-up; one per graph or copy would be thousands


class Model(nn.Module):
    def __init__(self, sparsity: float):
        super().__init__()
        self.first = GCNConv(WIDTH, WIDTH, act="relu", sparsity=sparsity)
        self.second = GATConv(WIDTH, WIDTH, sparsity=sparsity)
        self.head = SparseLinear(WIDTH, 4, sparsity=sparsity)

    def forward(self, x, graph):
        return self.head(self.second(self.first(x, graph), graph))

    def counts(self) -> list[int]:
        return [m.values.numel() for m in self.modules() if isinstance(m, SparseLinear)]


@dataclass
class Use:
    """What this process holds."""

    rss: int
    heap: int
    objects: int
    threads: int
    files: int

    @classmethod
    def now(cls):
        gc.collect()
        sparsegnn.empty_cache()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        threads, files = (len(os.listdir(f"/proc/self/{what}")) for what in ("task", "fd"))
        return cls(pages * os.sysconf("SC_PAGESIZE"), heap_in_use(), len(gc.get_objects()), threads, files)


class Life:
    """One training run and its troubles."""

    def __init__(self, number: int, steps: int):
        torch.manual_seed(number)
        self.method = METHODS[number % len(METHODS)]
        self.number, self.steps = number, steps
        self.make()
        self.start = self.model.counts()
        self.x, self.y = torch.randn(NODES, WIDTH), torch.randint(0, 4, (NODES,))

    def make(self) -> None:
        pruning = self.method == "GradualMagnitude"
        self.model = Model(1e-6 if pruning else 0.8)  # at 0 the convolutions would be dense layers
        self.optimizer = OPTIMIZERS[self.number % len(OPTIMIZERS)](self.model.parameters())
        settings = {"update_every": 10, "stop_at": max(self.steps - 5, 0), **({"sparsity": 0.8} if pruning else {})}
        self.controller = getattr(controllers, self.method)(self.model, self.optimizer, **settings)

    def parts(self) -> tuple:
        return self.model, self.optimizer, self.controller

    def live(self) -> None:
        for step in range(self.steps):
            if step % 20 == 0:
                edges = torch.randint(0, NODES, (2, int(torch.randint(1, 400, ()))))
                self.graph = sparsegnn.CSRGraph.from_edge_index(edges, NODES)
            if step % 20 == 10:
                self.graph = self.graph.weighted(torch.rand(self.graph.num_edges)).remove_self_loops()
            if step % 50 == 0:
                torch.set_num_threads(1 + step // 50 % 3)
            if step % 100 == 30:
                sparsegnn.empty_cache()
            if step % 100 == 60:
                self.model, self.optimizer, self.controller = copy.deepcopy(self.parts())
            if step % 100 == 90:
                self.resume()
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(self.x, self.graph), self.y).backward()
            self.optimizer.step()

    def resume(self) -> None:
        buffer = io.BytesIO()
        torch.save([part.state_dict() for part in self.parts()], buffer)
        self.make()
        saved = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
        for part, state in zip(self.parts(), saved, strict=True):
            part.load_state_dict(state)

    def check(self) -> None:
        assert self.controller.step == self.steps
        want = self.start
        if self.method == "GradualMagnitude" and self.steps > 5:  # Erdos-Renyi: kept in proportion to in + out
            shapes = [(WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, 4)]
            share = 0.2 * sum(m * k for m, k in shapes) / sum(m + k for m, k in shapes)
            want = [round(share * (m + k)) for m, k in shapes]
        assert self.model.counts() == want
        assert all(p.isfinite().all() for p in self.model.parameters())


@pytest.mark.deep
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads /proc")
def test_soak():
    threads, uses, each = torch.get_num_threads(), [], max(1, STEPS // LIVES)
    try:
        for number in range(LIVES):
            life = Life(number, each)
            life.live()
            life.check()
            del life
            uses.append(Use.now())
    finally:
        torch.set_num_threads(threads)
    uses = uses[LIVES // 5 :]  # each method and each number of threads has been there twice
    steps = each * np.arange(len(uses))
    slope, heap = (np.polyfit(steps, [getattr(u, name) for u in uses], 1)[0] for name in ("rss", "heap"))
    first, last = (np.median([u.rss for u in part]) for part in (uses[:10], uses[-10:]))
    grown = f"RSS {slope:.1f} and heap {heap:.2f} bytes a step, medians of RSS {int(last - first) >> 10} KiB off"
    print(f"\nsoak: {each * LIVES} steps, {grown}\n{uses[0]} to {uses[-1]}")
    assert heap < HEAP_PER_STEP
    assert last - first < RSS_NOISE + RSS_PER_STEP * steps[-1]
    assert max(u.objects for u in uses[-10:]) - min(u.objects for u in uses[:10]) < OBJECTS
    assert max(u.threads for u in uses) <= uses[0].threads
    assert max(u.files for u in uses) <= uses[0].files
