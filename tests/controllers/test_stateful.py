"""Random histories of a training run: nothing that a user may do between two steps changes what it computes.

Three runs go side by side. `run` suffers everything: checkpoints into fresh objects, copies, pickles, moves, threads,
batches thrown away. `twin` only trains, and must be equal bit by bit. `oracle` is dense training with masks, written
apart (controllers/masked.py): equal masks, close weights and optimizer state after every step, in float64.
"""

import copy
import io
import pickle
import random
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from controllers.masked import Masked, Schedule, block_of
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import nn, optim

from sparsegnn import controllers
from sparsegnn.nn import SparseLinear

WIDTHS = (32, 48, 16)
NAMES = ("0", "2")
SHAPES = [(48, 32), (16, 48)]
OPTIMIZERS = {
    "sgd": partial(optim.SGD, lr=0.2),
    "momentum": partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "nesterov": partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "sgd-fused": partial(optim.SGD, lr=0.1, fused=True),  # its momentum in bfloat16 is uninitialised memory in torch
    "adam": partial(optim.Adam, lr=0.02, foreach=False),
    "amsgrad": partial(optim.Adam, lr=0.02, amsgrad=True, weight_decay=1e-2, foreach=True),
    "adam-fused": partial(optim.Adam, lr=0.02, fused=True),
    "adamw": partial(optim.AdamW, lr=0.02),
    "adamw-fused": partial(optim.AdamW, lr=0.02, fused=True),
    "rmsprop": partial(optim.RMSprop, lr=0.01, momentum=0.9, centered=True),
    "adagrad": partial(optim.Adagrad, lr=0.05, initial_accumulator_value=0.1),
    "adagrad-fused": partial(optim.Adagrad, lr=0.05, fused=True),
    "nadam": partial(optim.NAdam, lr=0.02, foreach=True),
    "adadelta": partial(optim.Adadelta, lr=1.0),
    "adamax": partial(optim.Adamax, lr=0.02),
    "radam": partial(optim.RAdam, lr=0.02),
    "asgd": partial(optim.ASGD, lr=0.1, t0=3),
    "rprop": partial(optim.Rprop, lr=0.01),
}
ROUNDED = ("nadam", "asgd")  # torch casts their single numbers to the parameter's dtype when it loads them
SCHEDULERS = {
    "none": lambda o: None,
    "step": lambda o: optim.lr_scheduler.StepLR(o, 2, 0.7),
    "cosine": lambda o: optim.lr_scheduler.CosineAnnealingLR(o, 10),
    "pauses": lambda o: optim.lr_scheduler.LambdaLR(o, pauses),
    "cycle": lambda o: optim.lr_scheduler.OneCycleLR(o, 0.05, 400, cycle_momentum=False),
}
METHODS = ("RigL", "SET", "GradualMagnitude", "StaticSparse")
PATTERNS = ("unstructured", "fan_in", "grouped:4", "block:16x16", "2:4")
STEPS = st.integers(3, 6)


def pauses(step: int) -> float:
    return 0.0 if step % 4 == 1 else 0.9**step


def config_of(method: str, pattern: str, number: int) -> dict:
    """One of all settings, evenly: hypothesis by itself draws the first ones most of the time."""
    pick = random.Random(f"{method}/{pattern}/{number}")
    return {
        "method": method,
        "pattern": pattern,
        "sparsity": 0.5 if pattern == "2:4" else pick.choice((0.5, 0.75, 0.9)),
        "optimizer": pick.choice(sorted(OPTIMIZERS)),
        "scheduler": pick.choice(sorted(SCHEDULERS)),
        "every": pick.randint(2, 4),
        "stop": pick.randint(8, 40),
        "fraction": pick.choice((0.3, 0.6, 1.0)),
        "seed": number % 1000,
        "dtype": pick.choice((torch.float64, torch.float64, torch.float64, torch.float32, torch.bfloat16)),
    }


class Run:
    """All that a checkpoint holds, made anew."""

    def __init__(self, config: dict, seed: int):
        torch.manual_seed(seed)
        pruning = config["method"] == "GradualMagnitude"
        self.layers = [
            SparseLinear(k, m, sparsity=0.0 if pruning else config["sparsity"], pattern=config["pattern"])
            for m, k in SHAPES
        ]
        self.model = nn.Sequential(self.layers[0], nn.Tanh(), self.layers[1]).to(config["dtype"])
        self.optimizer = OPTIMIZERS[config["optimizer"]](self.model.parameters())
        self.scheduler = SCHEDULERS[config["scheduler"]](self.optimizer)
        own = {"sparsity": config["sparsity"]} if pruning else {"drop_fraction": config["fraction"]}
        make = getattr(controllers, config["method"])
        times = {"update_every": config["every"], "stop_at": config["stop"]}
        self.controller = make(self.model, self.optimizer, seed=seed, **times, **own)

    def backward(self, batches, scale=1.0) -> None:
        for x, y in batches:
            dtype = self.layers[0].values.dtype
            ((self.model(x.to(dtype)) - y.to(dtype)).square().mean() * scale).backward()

    def step(self, batches, set_to_none=True) -> None:
        self.optimizer.zero_grad(set_to_none)
        self.backward(batches)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()

    def parts(self) -> dict:
        found = {k: getattr(self, k) for k in ("model", "optimizer", "scheduler", "controller")}
        return {k: part for k, part in found.items() if part is not None}

    def state(self) -> dict:
        return {k: part.state_dict() for k, part in self.parts().items()}


def differences(a, b, path="") -> list[str]:
    """Where two states differ in a bit."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for k in a for d in differences(a[k], b[k], f"{path}/{k}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{path}/{i}")]
    if torch.is_tensor(a) and torch.is_tensor(b) and a.dtype == b.dtype and a.shape == b.shape:
        return [] if torch.equal(a.nan_to_num(), b.nan_to_num()) else [f"{path}: by {(a - b).abs().max()}"]
    return [] if a is b or a == b else [f"{path}: {a!r} and {b!r}"]


def dense(layer_state: dict, values: torch.Tensor, pattern: str) -> np.ndarray:
    """The matrix [M, K] of numbers held per weight."""
    (m, k), (h, w) = layer_state["shape"].tolist(), block_of(pattern)
    out = np.zeros((m // h, k // w, h, w))
    crow, col = layer_state["crow"].numpy(), layer_state["col"].numpy()
    out[np.repeat(np.arange(m // h), np.diff(crow)), col] = values.double().numpy().reshape(-1, h, w)
    return out.transpose(0, 2, 1, 3).reshape(m, k)


def layer_states(model: nn.Module) -> list[dict]:
    state = model.state_dict()
    return [{k.partition(".")[2]: v for k, v in state.items() if k.startswith(name + ".")} for name in NAMES]


def check_pattern(state: dict, pattern: str) -> None:
    """Offsets from zero to the end, columns ascending and in range, and what the structure promises."""
    (m, k), (h, w), crow, col = state["shape"].tolist(), block_of(pattern), state["crow"], state["col"]
    assert crow.dtype == col.dtype == torch.int32 and crow.shape == (m // h + 1,)
    assert crow[0] == 0 and crow[-1] == len(col) and len(state["values"]) == len(col) * h * w
    rows = [col[a:b].tolist() for a, b in zip(crow.tolist(), crow.tolist()[1:], strict=False)]
    assert all(row == sorted(set(row)) and set(row) <= set(range(k // w)) for row in rows)
    if pattern == "fan_in":
        assert len({len(row) for row in rows}) == 1
    if pattern == "2:4":
        assert all([c // 4 for c in row] == [f // 2 for f in range(k // 2)] for row in rows)


class Training(RuleBasedStateMachine):
    """What is done to a run, each time followed by some steps."""

    method, pattern = "RigL", "unstructured"

    @initialize(number=st.integers(0, 2**32))
    def start(self, number):
        config = config_of(self.method, self.pattern, number)
        note(config)
        self.config, self.steps, self.random = config, 0, random.Random(number)
        self.run, self.twin = Run(config, config["seed"]), Run(config, config["seed"])
        states = layer_states(self.run.model)
        self.counts = [len(s["values"]) for s in states]
        keys = ("method", "every", "stop", "fraction", "sparsity")
        self.schedule = Schedule(*[config[k] for k in keys], SHAPES, config["pattern"])
        self.oracle = None
        if config["dtype"] == torch.float64:
            pattern = config["pattern"]
            weights = [dense(s, s["values"], pattern) for s in states]
            masks = [dense(s, torch.ones_like(s["values"]), pattern) > 0 for s in states]
            biases = [s["bias"].numpy() for s in states]
            make = OPTIMIZERS[config["optimizer"]], SCHEDULERS[config["scheduler"]]
            self.oracle = Masked(weights, biases, masks, NAMES, self.schedule, config["seed"], *make)

    def batches(self, n: int) -> list:
        generator = torch.Generator().manual_seed(1000 * self.config["seed"] + self.steps)
        draw = partial(torch.randn, generator=generator, dtype=torch.float64)
        return [(draw(9, WIDTHS[0]), draw(9, WIDTHS[-1])) for _ in range(n)]

    @rule(steps=STEPS)
    def train(self, steps):
        for _ in range(steps):
            batches = self.batches(self.random.randint(1, 2))
            torch.set_num_threads(self.random.randint(1, 3))
            self.run.step(batches, self.random.random() < 0.5)
            torch.set_num_threads(1)
            self.twin.step(batches)
            self.steps += 1
            if self.oracle is not None:
                self.oracle.step(batches)
                self.compare()

    @rule(steps=STEPS, set_to_none=st.booleans(), scale=st.sampled_from((float("nan"), 1e3)))
    def throw_a_batch_away(self, steps, set_to_none, scale):
        for _ in range(steps):
            self.run.optimizer.zero_grad(set_to_none)
            self.run.backward(self.batches(1), scale)
            self.train(1)

    @rule(steps=STEPS, order=st.permutations(("model", "optimizer", "scheduler", "controller")), used=st.booleans())
    def resume_from_a_checkpoint(self, steps, order, used):
        buffer = io.BytesIO()
        torch.save(self.run.state(), buffer)
        saved = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
        other = Run(self.config, self.config["seed"] + 1)
        other.model.to(self.run.layers[0].values.dtype)
        for step in range(3 * used):
            other.step(self.batches(1), set_to_none=bool(step))
        parts = other.parts()
        for name in order:
            if name in parts:
                parts[name].load_state_dict(saved[name])
        self.run = other
        if self.config["optimizer"] in ROUNDED:
            for optimizer in (self.twin.optimizer, *([self.oracle.optimizer] if self.oracle else [])):
                optimizer.load_state_dict(optimizer.state_dict())
        self.train(steps)

    @rule(steps=STEPS)
    def copy(self, steps):
        self.run = copy.deepcopy(self.run)
        self.train(steps)

    @rule(steps=STEPS)
    def pickle(self, steps):
        self.run = pickle.loads(pickle.dumps(self.run))
        self.train(steps)

    @rule(steps=STEPS, where=st.sampled_from(("cpu", torch.device("cpu"), torch.float64)))
    def move(self, steps, where):
        dtype = self.run.layers[0].values.dtype
        self.run.model.to(dtype if where is torch.float64 else where)
        self.train(steps)

    @rule(steps=STEPS, dtype=st.sampled_from((torch.float64, torch.float32, torch.bfloat16)))
    @precondition(lambda self: self.steps > 15)
    def cast(self, steps, dtype):
        self.oracle = None if dtype != self.run.layers[0].values.dtype else self.oracle
        for run in (self.run, self.twin):
            run.model.to(dtype)
            run.optimizer.load_state_dict(run.optimizer.state_dict())  # the state follows, as torch wants it
        self.run = copy.deepcopy(self.run) if steps % 2 else self.run
        self.train(steps)

    @rule(steps=STEPS)
    def evaluate(self, steps):
        self.run.model.eval()
        with torch.no_grad():
            self.run.model(self.batches(1)[0][0].to(self.run.layers[0].values.dtype))
        self.run.model.train()
        self.train(steps)

    @rule()
    def lose_a_copy_to_meta(self):
        lost = copy.deepcopy(self.run)
        lost.model.to("meta")
        with pytest.raises(RuntimeError, match="is on the meta device, where it has no weights to move"):
            lost.controller.update()

    @invariant()
    def counts_are_those_of_the_schedule(self):
        want = self.schedule.counts(self.counts, self.steps)
        for n, state, layer in zip(want, layer_states(self.run.model), self.run.layers, strict=True):
            assert len(state["values"]) == n
            check_pattern(state, self.config["pattern"])
            slots = [t for t in self.run.optimizer.state.get(layer.values, {}).values() if torch.is_tensor(t)]
            assert all(t.shape in ((), (n,)) for t in slots)

    @invariant()
    def nothing_was_disturbed(self):
        assert self.run.controller.step == self.steps
        assert not differences(self.run.state(), self.twin.state())

    def compare(self):
        """With the oracle: masks are equal; weights, biases and optimizer state close."""
        close = partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-10)
        pattern = self.config["pattern"]
        rows = zip(layer_states(self.run.model), self.run.layers, self.oracle.linears, self.oracle.masks, strict=True)
        for state, layer, linear, mask in rows:
            ones = torch.ones_like(state["values"])
            assert np.array_equal(dense(state, ones, pattern) > 0, mask)
            close(dense(state, state["values"], pattern), linear.weight.detach().numpy())
            close(state["bias"].numpy(), linear.bias.detach().numpy())
            slots = self.run.optimizer.state.get(layer.values, {})
            for key, want in self.oracle.optimizer.state.get(linear.weight, {}).items():
                if want.dim():
                    close(dense(state, slots[key], pattern), want.numpy() * mask)

    def teardown(self):
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def quiet():
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
        yield
    torch.set_num_threads(threads)


CASES = [(m, p) for m in METHODS for p in PATTERNS if (m, p) != ("GradualMagnitude", "2:4")]


def search(method: str, pattern: str, examples: int, steps: int) -> None:
    limits = {"max_examples": examples, "stateful_step_count": steps, "deadline": None, "database": None}
    own = type("Training", (Training,), {"method": method, "pattern": pattern})
    run_state_machine_as_test(own, settings=settings(**limits, derandomize=True, suppress_health_check=HealthCheck))


@pytest.mark.parametrize("method,pattern", CASES)
def test_training(method, pattern):
    search(method, pattern, 2, 5)


@pytest.mark.deep
@pytest.mark.parametrize("method,pattern", CASES)
def test_training_for_long(method, pattern):
    search(method, pattern, 16, 12)
