"""Memory runs out at every place of an update in turn: each layer is as it was or has moved, and a retry completes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparsegnn import SET, GradualMagnitude, Rewiring, RigL, pattern, use_kernel
from sparsegnn.controllers import DSTEE, MEST
from sparsegnn.nn import SparseLinear


class OutOfMemoryAt(TorchDispatchMode):
    """The n-th operator that returns new memory fails before it has run."""

    def __init__(self, n: int):
        super().__init__()
        self.left = n

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        returns = func._schema.returns
        if returns and all(r.alias_info is None for r in returns) and "Tensor" in str(returns[0].type):
            self.left -= 1
            if self.left < 0:
                raise torch.OutOfMemoryError("out of memory")
        return func(*args, **(kwargs or {}))


METHODS = {
    "RigL": lambda m, o: RigL(m, o, update_every=2, stop_at=9),
    "SET": lambda m, o: SET(m, o, update_every=2, stop_at=9),
    "gmp": lambda m, o: GradualMagnitude(m, o, sparsity=0.7, update_every=2, stop_at=8),
    "dst-ee": lambda m, o: DSTEE(m, o, update_every=2, stop_at=9),
    "mest-soft": lambda m, o: MEST(m, o, update_every=2, stop_at=9, soft=True),
}
DEEP = [pytest.param(name, marks=pytest.mark.deep) if i > 2 else name for i, name in enumerate(METHODS)]


class Run:
    """A model of all patterns, about to make its first update at the second step."""

    def __init__(self, method: str, kernel: str):
        torch.manual_seed(0)
        sparsity = 0.0 if method == "gmp" else 0.5
        kinds = "unstructured", "fan_in", "block:16x16"
        self.layers = [SparseLinear(64, 64, sparsity=sparsity, pattern=kind) for kind in kinds]
        self.model = nn.Sequential(*self.layers)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.controller = METHODS[method](self.model, self.optimizer)
        self.x, self.kernel = torch.randn(20, 64), kernel
        self.step()
        self.forward()

    def forward(self):
        self.optimizer.zero_grad()
        with use_kernel(self.kernel):
            self.model(self.x).square().mean().backward()

    def step(self):
        self.forward()
        self.optimizer.step()

    def state(self, layer) -> list:
        slots = self.optimizer.state[layer.values]
        tensors = [layer.values, layer.crow, layer.col, layer.ccol, layer.row, layer.perm, *slots.values()]
        return [t.detach().clone() for t in tensors]

    def states(self) -> list:
        return [self.state(layer) for layer in self.layers]


def same(a: list, b: list) -> bool:
    return all(p.shape == q.shape and torch.equal(p, q) for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.deep)])
@pytest.mark.parametrize("kernel", ["sparse", "dense"])
@pytest.mark.parametrize("method", DEEP)
def test_an_update_can_be_repeated(method, kernel, stride):
    reference = Run(method, kernel)
    reference.controller._handle.remove()
    reference.optimizer.step()
    reference.controller.step = 2
    before = reference.states()
    reference.controller.update()
    after, failures = reference.states(), 0
    moved = [not same(a, b) for a, b in zip(before, after, strict=True)]
    assert moved[0] and moved[1]  # of few blocks the dropped ones may return
    for n in range(0, 1000, stride):
        trial = Run(method, kernel)
        trial.controller._handle.remove()
        trial.optimizer.step()
        trial.controller.step = 2
        try:
            with OutOfMemoryAt(n):
                trial.controller.update()
            break
        except torch.OutOfMemoryError:
            failures += 1
        for layer, old, new in zip(trial.layers, before, after, strict=True):
            state = trial.state(layer)
            assert same(state, old) or same(state, new), (n, layer)
            pattern.check_pattern(*layer.pattern(), *layer.grid)
            with use_kernel("dense"):
                torch.testing.assert_close(layer(trial.x), layer.to_dense()(trial.x))
        trial.controller.update()
        counted = getattr(trial.controller, "grown", {})  # a layer that had moved has not moved again
        assert all(n_grown <= reference.controller.grown[name] for name, n_grown in counted.items())
        for state, new in zip(trial.states(), after, strict=True):
            assert same(state, new), n
    assert failures > 10


@pytest.mark.parametrize("method", METHODS)
def test_the_next_step_makes_up_for_an_update_that_failed(monkeypatch, method):
    trial = Run(method, "sparse")
    update, kind = trial.controller.update, type(trial.controller)

    def fail(self):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(kind, "update", fail)
    with pytest.raises(torch.OutOfMemoryError):
        trial.optimizer.step()
    assert (trial.controller.step, trial.controller.updates) == (1, 0)
    monkeypatch.undo()
    before = trial.states()
    trial.step()
    assert (trial.controller.step, trial.controller.updates) == (2, 1) and update is not None
    assert not any(same(a[1:3], b[1:3]) for a, b in zip(before, trial.states(), strict=True) if method == "gmp")
    if method == "RigL":  # with the gradient of this step alone
        assert all(layer.probe is None for layer in trial.layers)


@pytest.mark.parametrize("kernel", ["sparse", "dense"])
def test_forward_and_backward_change_nothing(kernel):
    trial = Run("SET", kernel)
    before, failures = trial.states(), 0
    wanted = [p.grad.clone() for p in trial.model.parameters()]
    for n in range(1000):
        trial.optimizer.zero_grad()
        try:
            with OutOfMemoryAt(n):
                trial.forward()
            break
        except torch.OutOfMemoryError:
            failures += 1
        assert all(same(a, b) for a, b in zip(trial.states(), before, strict=True))
    assert failures > 5
    assert same([p.grad for p in trial.model.parameters()], wanted)


@pytest.mark.parametrize("method", METHODS)
def test_an_optimizer_that_fails_moves_no_weight(method):
    """Whatever it did to their values: they are as many as before, and the next step makes up for the update."""
    failures = 0
    for n in range(0, 1000, 4):
        trial = Run(method, "sparse")
        try:
            with OutOfMemoryAt(n):
                trial.optimizer.step()
            break
        except torch.OutOfMemoryError:
            failures += 1
        assert (trial.controller.step, trial.controller.updates) == (1, 0)
        for layer in trial.layers:
            pattern.check_pattern(*layer.pattern(), *layer.grid)
            assert layer.values.numel() == layer.col.numel() * layer.block[0] * layer.block[1]
        trial.forward()
        trial.optimizer.step()
        assert (trial.controller.step, trial.controller.updates) == (2, 1)
    assert failures > 5


LIMITED = """
import resource
import torch
from torch import nn
from sparsegnn import RigL, pattern
from sparsegnn.nn import SparseLinear

MIB = 1 << 20
x = torch.randn(8192, 256)  # outputs of 8 MiB: from the pool

class Run:
    def __init__(self):
        torch.manual_seed(0)
        self.layers = [SparseLinear(256, 256, sparsity=0.5) for _ in range(2)]
        self.model = nn.Sequential(*self.layers)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.controller = RigL(self.model, self.optimizer, update_every=1, stop_at=9)
        self.forward()
        self.controller._handle.remove()
        self.optimizer.step()
        self.controller.step = 1

    def forward(self):
        self.optimizer.zero_grad()
        self.model(x).square().mean().backward()

    def state(self):
        return [*self.model.state_dict().values(), *(p.grad for p in self.model.parameters())]

def size():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[0]) * resource.getpagesize()

def limited(action, room):
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size() + room, most))
    try:
        action()
        return False
    except (RuntimeError, MemoryError):
        return True
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

torch.ops.sparsegnn.isa()
for name in ("update", "forward"):
    reference = Run()
    getattr(reference.controller if name == "update" else reference, name)()
    failed = 0
    for room in range(MIB // 4, 64 * MIB, MIB // 2 if name == "update" else 4 * MIB):
        trial = Run()
        import sparsegnn
        sparsegnn.empty_cache()
        action = getattr(trial.controller if name == "update" else trial, name)
        if not limited(action, room):
            break
        failed += 1
        for layer in trial.layers:
            pattern.check_pattern(*layer.pattern(), *layer.grid)
        action()
        for a, b in zip(trial.state(), reference.state(), strict=True):
            assert torch.equal(a, b), (name, room)
    assert failed > 2, (name, failed)
print("right")
"""


@pytest.mark.deep
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space of a process")
def test_a_process_that_has_no_more_memory():
    """Allocations fail inside of the kernels too, and in the pool: an error, and then all as if it had not been."""
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], env=env, capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert done.stdout == "right\n", done.stderr[-2000:]


def test_a_retry_leaves_alone_what_has_moved():
    """Scores need not be the same at the second try."""
    calls = []

    class Restless(Rewiring):
        def grow_scores(self, name, layer):
            calls.append(name)
            if len(calls) == 2:
                raise torch.OutOfMemoryError("planted")
            return torch.rand(layer.out_features, layer.in_features)

    model = nn.Sequential(SparseLinear(8, 8, sparsity=0.5), SparseLinear(8, 8, sparsity=0.5))
    controller = Restless(model, torch.optim.SGD(model.parameters(), lr=0.1), drop_fraction=lambda step: 0.5)
    with pytest.raises(torch.OutOfMemoryError):
        controller.update()
    controller.update()
    assert calls == ["0", "1", "1"]
