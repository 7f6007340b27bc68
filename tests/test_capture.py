"""Captured steps against the plain loop, bit for bit: on a GPU with CUDA graphs, here on a tape of operators."""

import copy
import io

import pytest
import torch
from tape import TapeGraphs
from torch.nn import functional as F

import sparsegnn
from sparsegnn import data as graphs
from sparsegnn.capture import CapturedStep
from sparsegnn.controllers import SET, GradualMagnitude, Rewiring, RigL, StaticSparse
from sparsegnn.experiments.config import TrainConfig
from sparsegnn.experiments.models import build, prepare
from sparsegnn.nn import SparseLinear

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
PLACES = ["cpu", pytest.param("cuda", marks=needs_cuda)]
KINDS = {"static": StaticSparse, "set": SET, "rigl": RigL, "gmp": GradualMagnitude}


class Run:
    """A model, its optimizer and controller, and a training step; the same for the same arguments."""

    def __init__(self, place, method="rigl", model="gcn", pattern=None, **options):
        torch.manual_seed(0)
        self.place, self.calls = torch.device(place), 0
        if pattern is None:
            self.graph_model(model, method)
            self.inputs = lambda i: ()
        else:
            self.model = torch.nn.Sequential(
                SparseLinear(96, 64, sparsity=0.5 if pattern == "2:4" else 0.75, pattern=pattern),
                torch.nn.Dropout(0.3),
                SparseLinear(64, 32),
            ).to(place)
            self.inputs = self.batch
        self.optimizer = self.make_optimizer(**options.pop("adam", {}))
        clock = {"update_every": 3, "stop_at": 20, **options}
        make = KINDS.get(method)
        self.controller = make and make(self.model, self.optimizer, **({} if method == "static" else clock))

    def graph_model(self, model, method):
        data = graphs.skewed(200, 6, 4, 24, signal=1.0, seed=3).to(self.place)
        config = TrainConfig(data="skewed", model=model, method=method, hidden=16, heads=2)
        self.model, graph = build(config, data).to(self.place), prepare("sparsegnn", data)
        self.loss = lambda: F.cross_entropy(self.model(data.x, graph), data.y)

    def make_optimizer(self, **options):
        options = {"lr": 0.01, "capturable": self.place.type == "cuda", **options}
        return torch.optim.Adam(self.model.parameters(), fused=True, **options)

    def batch(self, i):
        g = torch.Generator().manual_seed(i)
        return torch.randn(40, 96, generator=g).to(self.place), torch.randn(40, 32, generator=g).to(self.place)

    def step(self, *inputs):
        self.calls += 1
        self.optimizer.zero_grad()
        loss = F.mse_loss(self.model(inputs[0]), inputs[1]) if inputs else self.loss()
        loss.backward()
        self.optimizer.step()
        return loss

    def capture(self):
        return CapturedStep(self.step, self.optimizer, graphs=TapeGraphs() if self.place.type == "cpu" else None)

    def parts(self):
        parts = {"model": self.model, "optimizer": self.optimizer, "controller": self.controller}
        return {k: v for k, v in parts.items() if v is not None}

    def state(self):
        buffer = io.BytesIO()
        torch.save({k: v.state_dict() for k, v in self.parts().items()}, buffer)
        return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


def leaves(tree):
    return torch.utils._pytree.tree_flatten_with_path(tree)[0]


def assert_same(a, b):
    a, b = leaves(a), leaves(b)
    assert [k for k, _ in a] == [k for k, _ in b]
    for (name, x), (_, y) in zip(a, b, strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, name


def plain(run, steps, first=0):
    return [run.step(*run.inputs(i)).item() for i in range(first, first + steps)]


def captured(run, step, steps, first=0):
    return [step(*run.inputs(i)).item() for i in range(first, first + steps)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("model", ["gcn", "gat"])
@pytest.mark.parametrize("method", ["dense", "static", "set", "rigl", "gmp"])
def test_cuda_graph_gives_the_losses_of_the_plain_loop(place, model, method):
    """With dropout, and with updates of a decreasing number of weights: at every step, and the state at the end."""
    mine, other = Run(place, method, model), Run(place, method, model)
    torch.manual_seed(1)
    want = plain(mine, 24)
    torch.manual_seed(1)
    step = other.capture()
    got = captured(other, step, 24)
    assert got == want and len(set(want)) == 24
    assert_same(other.state(), mine.state())
    # Python runs in the first three steps, one of which has an update, and in one of each kind that is recorded
    calls = {"dense": 4, "static": 4, "set": 5, "rigl": 5}
    if method == "gmp":
        assert mine.controller.updates == 7 and 0 < other.controller.layers["convs.0.lin"].sparsity
        assert other.calls < 24  # recorded again after each update
    else:
        assert other.calls == calls[method]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("method", ["set", "rigl"])
@pytest.mark.parametrize("pattern", ["unstructured", "fan_in", "2:4", "grouped:8", "block:16x16"])
def test_cuda_graph_takes_new_inputs_and_every_pattern(place, method, pattern):
    mine, other = (Run(place, method, pattern=pattern, update_every=2, drop_fraction=0.6) for _ in range(2))
    torch.manual_seed(1)
    want = plain(mine, 22)
    torch.manual_seed(1)
    assert captured(other, other.capture(), 22) == want
    assert_same(other.state(), mine.state())
    assert mine.controller.updates == 9 and all(n > 0 for n in mine.controller.grown.values())


@pytest.mark.parametrize("place", PLACES)
def test_updates_at_every_step_cuda(place):
    mine, other = (Run(place, "rigl", pattern="unstructured", update_every=1, stop_at=9) for _ in range(2))
    torch.manual_seed(1)
    want = plain(mine, 14)
    torch.manual_seed(1)
    assert captured(other, other.capture(), 14) == want
    assert_same(other.state(), mine.state())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("method", ["set", "rigl", "gmp"])
@pytest.mark.parametrize("at", [8, 12])
def test_resume_with_cuda_graphs(place, method, at):
    """A checkpoint of captured steps is that of the plain loop, and both go on from it alike; into used graphs, too."""
    mine, other = Run(place, method, "gcn"), Run(place, method, "gcn")
    torch.manual_seed(1)
    plain(mine, at)
    torch.manual_seed(1)
    step = other.capture()
    captured(other, step, at)
    saved = other.state()
    assert_same(saved, mine.state())
    torch.manual_seed(2)
    want = plain(mine, 10, at)
    fresh = Run(place, method, "gcn")
    captured(other, step, 3, at)  # and then back
    for run, again in ((fresh, None), (other, step)):
        for name, part in run.parts().items():
            part.load_state_dict(copy.deepcopy(saved[name]))
        torch.manual_seed(2)
        assert captured(run, again or run.capture(), 10, at) == want
        assert_same(run.state(), mine.state())


@pytest.mark.parametrize("place", PLACES)
def test_plain_and_captured_steps_may_alternate_cuda(place):
    mine, other = Run(place, "rigl", "gat"), Run(place, "rigl", "gat")
    torch.manual_seed(1)
    want = plain(mine, 21)
    torch.manual_seed(1)
    step, got = other.capture(), []
    for first in range(0, 21, 7):
        got += captured(other, step, 5, first) + plain(other, 2, first + 5)
    assert got == want
    assert_same(other.state(), mine.state())


@pytest.mark.parametrize("place", PLACES)
def test_changed_numbers_are_recorded_anew_cuda(place):
    mine, other = Run(place, "set", "gcn"), Run(place, "set", "gcn")
    step, results = other.capture(), []
    for run, make in ((mine, plain), (other, lambda run, *args: captured(run, step, *args))):
        torch.manual_seed(1)
        losses = make(run, 6, 0)
        run.optimizer.param_groups[0]["lr"] = 0.05
        losses += make(run, 6, 6)
        results.append(losses)
    assert results[0] == results[1]
    assert_same(other.state(), mine.state())


def test_a_learning_rate_in_a_tensor_changes_in_place():
    run = Run("cpu", "static", "gcn")
    for group in run.optimizer.param_groups:
        group["lr"] = torch.tensor(0.01)
    step = run.capture()
    captured(run, step, 6)
    before = [p.detach().clone() for p in run.model.parameters()]
    run.optimizer.param_groups[0]["lr"].zero_()
    captured(run, step, 2)
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
    assert step.graphs.recorded == 1 and step.graphs.replayed == 5


def test_losses_are_copies():
    run = Run("cpu", "static", "gcn")
    step = run.capture()
    losses = [step() for _ in range(6)]
    assert len({loss.item() for loss in losses}) == 6 and not any(loss.requires_grad for loss in losses)


def test_own_scores_and_schedules():
    """drop_fraction is read before every update, random_scores drawn; a fraction of 0 moves nothing."""

    class Mixed(Rewiring):
        needs_dense_gradient = True

        def grow_scores(self, name, layer):
            return self.dense_gradient(layer).abs() * self.random_scores(name, layer)

    results = []
    for capture in (False, True):
        run = Run("cpu", "none", pattern="unstructured")
        run.controller = Mixed(run.model, run.optimizer, update_every=2, stop_at=30, seed=5,
                               drop_fraction=lambda step: 0.0 if step in (8, 12) else 1 / step)  # fmt: skip
        torch.manual_seed(1)
        losses = captured(run, run.capture(), 16) if capture else plain(run, 16)
        results.append([losses, run.state()])
    assert_same(*results)


# --- what a step must not do -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [lambda loss: loss.item(), lambda loss: loss[loss > 0], lambda loss: loss.nonzero(),
                                  lambda loss: torch.rand(3, generator=torch.Generator())])  # fmt: skip
def test_waiting_is_an_error_that_names_it_and_leaves_the_counters(wait):
    run = Run("cpu", "set", "gcn", update_every=2)

    def step():
        loss = run.step()
        wait(loss.detach().view(1))
        return loss

    captured_step = CapturedStep(step, run.optimizer, graphs=TapeGraphs())
    for _ in range(3):
        captured_step()
    assert run.controller.step == 3 and run.controller.updates == 1
    with pytest.raises(RuntimeError, match=r"CapturedStep: step must not wait for the GPU \(.item\(\), nonzero"):
        captured_step()
    assert run.controller.step == 3 and run.controller.updates == 1


def test_an_update_that_cannot_be_recorded_moves_nobody():
    run = Run("cpu", "set", "gcn", update_every=2)
    captured_step = CapturedStep(run.step, run.optimizer, graphs=TapeGraphs())
    for _ in range(3):
        captured_step()
    scores, last = run.controller.grow_scores, list(run.controller.layers)[-1]

    def waiting(name, layer):
        if name == last:
            layer.values.sum().item()
        return scores(name, layer)

    run.controller.grow_scores = waiting
    with pytest.raises(RuntimeError, match="must not wait"):
        captured_step()
    assert not run.controller._moved


def test_grad_scalers_are_refused():
    run = Run("cpu", "set", pattern="unstructured")
    scaler = torch.amp.GradScaler("cpu")

    def step(x, y):
        run.optimizer.zero_grad()
        loss = F.mse_loss(run.model(x), y)
        scaler.scale(loss).backward()
        scaler.step(run.optimizer)
        scaler.update()
        return loss

    with pytest.raises(RuntimeError, match="SET: a captured step must be without a GradScaler.*bfloat16"):
        CapturedStep(step, run.optimizer, graphs=TapeGraphs())(*run.batch(0))


def test_refused_arguments():
    run = Run("cpu", "set", pattern="unstructured")
    for step, optimizer, options, error, text in [
        (3, run.optimizer, {}, TypeError, "step must be callable, got int"),
        (run.step, run.model, {}, TypeError, "optimizer must be a torch.optim.Optimizer, got Sequential"),
        (run.step, run.optimizer, {"warm_up": 0}, ValueError, "warm_up must be at least 1, got 0"),
        (run.step, run.optimizer, {}, ValueError, "parameters on one GPU, got cpu; .* call the step itself"),
    ]:
        with pytest.raises(error, match="CapturedStep: .*" + text):
            CapturedStep(step, optimizer, **options)
    step = run.capture()
    with pytest.raises(TypeError, match="inputs must be Tensors, got list"):
        step([1.0])
    x, y = run.batch(0)
    step(x, y)
    for bad in ((x, y[:3]), (x.double(), y), (x,)):
        with pytest.raises(ValueError, match="inputs must be as in the first call"):
            step(*bad)
    with pytest.raises(TypeError, match="step must return the loss, a Tensor, got float"):
        CapturedStep(lambda: 1.0, run.optimizer, graphs=TapeGraphs())()
    run.optimizer.register_step_pre_hook(lambda *args: None)
    with pytest.raises(ValueError, match="no step hooks but those of controllers, got <function"):
        run.capture()


@needs_cuda
def test_optimizers_that_count_on_the_host_are_refused_cuda():
    weight = [torch.nn.Parameter(torch.zeros(3, device="cuda"))]
    for optimizer in (torch.optim.Adam(weight), torch.optim.Adagrad(weight)):
        with pytest.raises(ValueError, match="optimizer must be SGD or have capturable=True, got Ada"):
            CapturedStep(lambda: None, optimizer)
    assert "0 graphs" in repr(sparsegnn.CapturedStep(lambda: None, torch.optim.SGD(weight, lr=0.1)))
