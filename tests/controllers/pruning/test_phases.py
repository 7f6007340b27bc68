"""Methods in phases: counts and kernels of each, resume in the middle of every one, refusals."""

import copy
import io

import pytest
import torch
from controllers.simulation import batch, sparse_model, train

from sparsegnn import pattern
from sparsegnn.controllers import ACDC, ADMM, SLR, GaP, OneShot, ThresholdRamp
from sparsegnn.controllers.distributions import allocate
from sparsegnn.controllers.registry import METHODS, make
from sparsegnn.nn import SparseLinear

SHAPES = {"0": (16, 20), "2": (6, 16)}
COUNTS = allocate(SHAPES, 0.8)
FINAL, FIRST, SECOND = sum(COUNTS.values()), 320 + COUNTS["2"], COUNTS["0"] + 96  # one of the layers dense, or none
#: method -> settings, and weights that exist after each step
RUNS = {
    "slr": (SLR, {"start_at": 2, "update_every": 2, "stop_at": 8}, [416] * 7 + [FINAL] * 3),
    "slr-global": (SLR, {"distribution": "global", "update_every": 1, "stop_at": 6}, [416] * 5 + [83] * 3),
    "admm": (ADMM, {"start_at": 2, "update_every": 2, "stop_at": 8}, [416] * 7 + [FINAL] * 3),
    "oneshot": (OneShot, {"start_at": 3}, [416] * 2 + [FINAL] * 3),
    "ac-dc": (ACDC, {"start_at": 2, "update_every": 2, "stop_at": 9}, [416] + [FINAL] * 2 + [416] * 5 + [FINAL] * 3),
    "gap": (
        GaP,
        {"start_at": 2, "update_every": 2, "stop_at": 9},
        [FINAL] + [FIRST] * 2 + [SECOND] * 2 + [FIRST] * 3 + [FINAL] * 3,
    ),
    "narang": (ThresholdRamp, {"start_at": 2, "update_every": 2, "stop_at": 9}, None),
}
OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
}


def setup(name, optimizer="adam", **kwargs):
    cls, settings, _ = RUNS[name]
    model = sparse_model(sparsity=0.0)
    if cls is GaP:
        for layer, n in zip((model[0], model[2]), COUNTS.values(), strict=True):
            crow, col = pattern.random_pattern(layer.out_features, layer.in_features, nnz=n)
            layer.set_pattern_(crow, col, torch.full((n,), 0.1, dtype=torch.float64))
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    sparsity = {} if cls is GaP else {"sparsity": 0.8}
    return model, optimizer, cls(model, optimizer, **{**sparsity, **settings, **kwargs})


def exist(model):
    return sum(layer.values.numel() for layer in (model[0], model[2]))


def state(model, optimizer, controller):
    return copy.deepcopy([model.state_dict(), optimizer.state_dict(), controller.state_dict()])


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("name", [n for n in RUNS if RUNS[n][2]])
def test_weights_that_exist_after_each_step(name):
    model, optimizer, controller = setup(name)
    got, phases = [], []
    for step in range(len(RUNS[name][2])):
        train(model, optimizer, 1, first=step)
        got.append(exist(model))
        phases.append(controller.phase)
    assert got == RUNS[name][2]
    assert phases == ["dense" if n == 416 else "sparse" for n in got]
    assert controller.settled_at == RUNS[name][1].get("stop_at", RUNS[name][1].get("start_at"))


@pytest.mark.parametrize("name, optimizer", [*((n, "adam") for n in RUNS), ("slr", "momentum"), ("ac-dc", "momentum")])
def test_resume_is_bitwise_in_every_phase(name, optimizer):
    run, files, after = setup(name, optimizer), [], []
    for step in range(12):
        torch.save(state(*run), file := io.BytesIO())
        files.append(file.getvalue())
        train(*run[:2], 1, first=step)
        after.append(state(*run))
    for step in (1, 3, 5, 6, 9) if optimizer == "adam" else (4,):
        resumed = setup(name, optimizer)
        parts = list(zip(resumed, torch.load(io.BytesIO(files[step])), strict=True))
        for part, held in reversed(parts) if step % 2 else parts:
            part.load_state_dict(held)
        assert equal(state(*resumed), after[step - 1])
        train(*resumed[:2], 2, first=step)
        assert equal(state(*resumed), after[step + 1]), f"resumed at {step}"


@pytest.mark.parametrize("name", RUNS)
def test_a_finished_model_is_sparse_and_of_the_same_function(name):
    model, optimizer, controller = setup(name)
    train(model, optimizer, 10)
    x = torch.randn(7, 20, dtype=torch.float64)
    before = model(x)
    assert controller.finalize() is model and torch.equal(model(x), before) and not controller.attached
    moments = [t for layer in (model[0], model[2]) for t in optimizer.state[layer.values].values() if t.dim()]
    assert sum(t.numel() for t in moments) == 2 * exist(model)
    train(model, optimizer, 2, first=10)
    assert exist(model) == sum(t.numel() for t in moments) // 2 < 416


@pytest.mark.parametrize("name", ["slr", "admm", "oneshot", "ac-dc", "gap", "narang"])
@pytest.mark.parametrize("steps", [5, 10, 40, 200])
def test_recipes_end_within_the_run(name, steps):
    model = sparse_model(sparsity=METHODS[name].start_sparsity(0.8))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    controller = make(METHODS[name], model, optimizer, steps=steps, common={"sparsity": 0.8})
    assert controller.settled_at <= steps
    if steps < 200:
        train(model, optimizer, steps)
        assert controller.phase == "sparse" and controller.updates > 0


@pytest.mark.parametrize(
    "name, bad, text",
    [
        ("slr", {"rho": 0.0}, "SLR: rho must be finite and above 0, got 0.0"),
        ("slr", {"s0": -1.0}, r"SLR: s0 must be in \[0, inf\], got -1.0"),
        ("slr", {"M": 0.5}, r"SLR: M must be in \[1, 1e\+30\], got 0.5"),
        ("slr", {"r": float("nan")}, r"SLR: r must be in \[0, inf\], got nan"),
        ("slr", {"stop_at": 4}, r"SLR: stop_at must be at least start_at \+ update_every \+ 1 = 5, or the multipliers"),
        ("slr", {"stop_at": 1}, "SLR: stop_at must be at least 2, got 1"),
        ("slr", {"sparsity": 1.0}, r"SLR: sparsity must be in \[0, 1\), got 1.0"),
        ("admm", {"rho": float("inf")}, "ADMM: rho must be finite and above 0, got inf"),
        ("admm", {"distribution": "even"}, "ADMM: distribution must be 'erk'"),
        ("oneshot", {"start_at": 0}, "OneShot: start_at must be at least 1, got 0"),
        ("ac-dc", {"stop_at": 5}, r"ACDC: stop_at must be at least start_at \+ 2 update_every = 6, a sparse and a"),
        ("ac-dc", {"start_at": 0}, "ACDC: start_at must be at least 1, got 0"),
        ("gap", {"partitions": 3}, "GaP: partitions must be at most the number of layers, 2, got 3"),
        ("gap", {"partitions": 0}, "GaP: partitions must be at least 1, got 0"),
        ("gap", {"stop_at": 5}, r"GaP: stop_at must be at least start_at \+ partitions \* update_every = 6, a turn of"),
        ("gap", {"start_at": 0}, "GaP: start_at must be at least 1, got 0"),
        ("narang", {"ramp_at": 10}, "ThresholdRamp: ramp_at must be at most stop_at = 9, got 10"),
        ("narang", {"ramp_at": 1}, "ThresholdRamp: ramp_at must be at least 2, got 1"),
        ("narang", {"stop_at": 2}, "ThresholdRamp: stop_at must be above start_at, got 2 for both"),
        ("narang", {"q": {"0": 0.1}}, r"ThresholdRamp: q must be of the layers \['0', '2'\], got \['0'\]"),
        ("narang", {"q": 0.0}, r"ThresholdRamp: q\['0'\] must be finite and above 0, got 0.0"),
    ],
)
def test_refused(name, bad, text):
    with pytest.raises(ValueError, match=text):
        setup(name, **bad)


@pytest.mark.parametrize(
    "name, bad", [("ac-dc", {"reset_state": 1}), ("slr", {"rho": "1"}), ("gap", {"partitions": 2.0})]
)
def test_refused_types(name, bad):
    with pytest.raises(TypeError, match=f"{next(iter(bad))} must be "):
        setup(name, **bad)


@pytest.mark.parametrize("name", ["slr", "ac-dc", "gap"])
def test_refuses_the_pattern_that_cannot_change_its_sparsity(name):
    layer = SparseLinear(16, 8, sparsity=0.5, pattern="2:4")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="model must have no layer of pattern '2:4'"):
        RUNS[name][0](layer, optimizer)


@pytest.mark.parametrize(
    "name, key, value, text",
    [
        ("slr", "rounds", -1, "rounds must be at least 0"),
        ("slr", "k", 0, "k must be at least 1"),
        ("slr", "targets", {"0": torch.zeros(3)}, "state\\['targets'\\]\\['0'\\] must be \\[320\\] torch.float64"),
        ("slr", "multipliers", {"other": torch.zeros(320)}, "state\\['multipliers'\\] must be of the layers"),
        ("slr", "loss_change", {}, "state\\['loss_change'\\] must be of the layers"),
        ("gap", "kept", {"0": 3}, "state\\['kept'\\] must be of the layers"),
        ("narang", "least", {"0": 0, "2": 3}, "least\\['0'\\] must be at least 1"),
    ],
)
def test_refused_states_change_nothing(name, key, value, text):
    model, optimizer, controller = setup(name)
    train(model, optimizer, 4)
    before = copy.deepcopy(controller.state_dict())
    with pytest.raises(ValueError, match=text):
        controller.load_state_dict({**before, key: value})
    assert equal(controller.state_dict(), before)


@pytest.mark.parametrize("name", ["slr", "admm"])
def test_closures_and_copies_in_the_middle(name):
    """A closure makes the gradients within the step; a copy goes on as its original, and leaves that alone."""
    plain, run = setup(name), setup(name)
    for step in range(12):
        model, optimizer, _ = run

        def closure(step=step, model=model, optimizer=optimizer):
            x, y = batch(step, model)
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        train(*plain[:2], 1, first=step)
        if step == 4:
            before, run = state(*run), copy.deepcopy(original := run)
    assert equal(state(*run), state(*plain)) and equal(state(*original), before)
