"""State moves with the weights that it is of, in every optimizer of torch; unknown kinds are refused at once."""

import inspect
from functools import partial

import pytest
import torch
from controllers.simulation import masks, sparse_model, train
from torch import nn, optim

from sparsegnn import SET, GradualMagnitude, RigL, StaticSparse
from sparsegnn.controllers import register_state

METHODS = (SET, RigL, GradualMagnitude)
KINDS = {
    "sgd": partial(optim.SGD, lr=0.1),
    "momentum": partial(optim.SGD, lr=0.1, momentum=0.9),
    "adam": partial(optim.Adam, lr=0.02),
    "amsgrad": partial(optim.AdamW, lr=0.02, amsgrad=True),
    "adamax": partial(optim.Adamax, lr=0.02),
    "nadam": partial(optim.NAdam, lr=0.02),
    "radam": partial(optim.RAdam, lr=0.02),
    "adadelta": partial(optim.Adadelta, lr=1.0),
    "adagrad": partial(optim.Adagrad, lr=0.05, initial_accumulator_value=0.25),
    "asgd": partial(optim.ASGD, lr=0.1, t0=1),
    "rmsprop": partial(optim.RMSprop, lr=0.01, momentum=0.9, centered=True),
    "rprop": partial(optim.Rprop, lr=0.01),
    "adafactor": partial(optim.Adafactor, lr=0.01),
}
START = {"sum": 0.25, "step_size": 0.01}  # of a new weight; else 0
REFUSED = ("LBFGS", "Muon", "SparseAdam")


def at_places(layer, slot):
    """What is held for each weight, by its position."""
    rows = torch.repeat_interleave(torch.arange(layer.out_features), layer.crow.diff().long())
    return dict(zip((rows * layer.in_features + layer.col).tolist(), slot.tolist(), strict=True))


def setup(cls, make, **kwargs):
    model = sparse_model(sparsity=0.0 if cls is GradualMagnitude else 0.8)
    optimizer = make(model.parameters())
    return model, optimizer, cls(model, optimizer, **{"update_every": 3, "stop_at": 20, **kwargs})


def test_every_optimizer_of_torch_is_in_the_table():
    classes = {n for n, c in vars(optim).items() if inspect.isclass(c) and issubclass(c, optim.Optimizer)}
    tried = {make.func.__name__ for make in KINDS.values()}
    assert tried | set(REFUSED) | {"Optimizer"} == classes


@pytest.mark.parametrize("cls", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_state_moves_with_its_weight(kind, cls):
    model, optimizer, controller = setup(cls, KINDS[kind])
    layer, before = model[0], {}
    update = controller.update

    def watched():
        before.update({k: at_places(layer, t) for k, t in optimizer.state[layer.values].items() if t.dim()})
        update()

    controller.update = watched
    train(model, optimizer, 3)
    assert controller.updates == 1
    after = {k: at_places(layer, t) for k, t in optimizer.state[layer.values].items() if t.dim()}
    assert after.keys() == before.keys() and bool(after) == (kind != "sgd")
    for key, slot in after.items():
        assert slot == {place: before[key].get(place, START.get(key, 0.0)) for place in slot}, key
        assert cls is GradualMagnitude or slot.keys() - before[key].keys()
        assert any(slot.values()) or key == "max"


@pytest.mark.parametrize("cls", METHODS)
@pytest.mark.parametrize("name", REFUSED)
def test_other_optimizers_of_torch_are_refused(name, cls):
    model = sparse_model(sparsity=0.0 if cls is GradualMagnitude else 0.8)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    optimizer.__class__ = getattr(optim, name)  # Muon takes matrices only
    with pytest.raises(TypeError, match=f"{cls.__name__}: optimizer must be one whose state .* Adam, .* got {name}"):
        cls(model, optimizer)
    StaticSparse(model, optimizer)


class Lion(optim.Optimizer):
    def __init__(self, params, lr=0.01):
        super().__init__(params, {"lr": lr, "start": 0.5})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["exp_avg"], state["scale"] = torch.zeros_like(p), torch.full_like(p, group["start"])
                p.sub_(state["exp_avg"].lerp(p.grad, 0.1).sign_() * state["scale"], alpha=group["lr"])
                state["exp_avg"].lerp_(p.grad, 0.01)


class Registered(Lion):
    pass


register_state(Registered, {"exp_avg": 0, "scale": "start"})


class Heir(Registered):
    pass


@pytest.mark.parametrize("cls", METHODS)
def test_unknown_optimizers_are_refused_at_once(cls):
    with pytest.raises(TypeError, match=rf"{cls.__name__}: .* SGD or a subclass, got Lion; .*register_state\(L"):
        setup(cls, Lion)
    for kind in (Registered, Heir):
        model, optimizer, controller = setup(cls, kind)
        train(model, optimizer, 3)
        state = optimizer.state[model[0].values]
        assert controller.updates == 1 and state["scale"].eq(0.5).all()
        assert state["exp_avg"].eq(0).any() == (cls is not GradualMagnitude)


def test_registrations_that_say_nothing_are_refused():
    for bad, message in (
        ((optim.Adam([torch.zeros(1)]), {}), "optimizer must be a class of torch.optim.Optimizer, got Adam"),
        ((nn.Linear, {}), "optimizer must be a class"),
        ((Lion, ["exp_avg"]), r"state must be a dict of names, got \['exp_avg'\]"),
        ((Lion, {1: 0.0}), "state must be a dict of names"),
        (
            (Lion, {"exp_avg": torch.zeros(2)}),
            r"state must hold numbers .* got another kind for \['exp_avg'\]",
        ),
        ((Lion, {"exp_avg": True}), "state must hold numbers"),
    ):
        with pytest.raises(TypeError, match=f"register_state: {message}"):
            register_state(*bad)


class Codes(torch.Tensor):
    """torchao's OptimState8bit: has the shape of the parameter, and is something else."""


def keeping(make):
    class Keeps(optim.Adam):
        """An Adam whose moments are not numbers for each weight: bitsandbytes, torchao, Adafactor of matrices."""

        @torch.no_grad()
        def step(self, closure=None):
            super().step()
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p].update(make(p))

    return partial(Keeps, lr=0.01)


STRANGE = {
    "codes": lambda p: {"exp_avg_sq": torch.zeros(p.shape, dtype=torch.uint8)},
    "signed codes": lambda p: {"exp_avg": torch.zeros(p.shape, dtype=torch.int8)},
    "halves of a number": lambda p: {"exp_avg": torch.zeros(p.shape, dtype=torch.int16)},
    "flags": lambda p: {"exp_avg": torch.zeros(p.shape, dtype=torch.bool)},
    "complex": lambda p: {"exp_avg": torch.zeros(p.shape, dtype=torch.complex64)},
    "a kind of tensor": lambda p: {"exp_avg": torch.zeros(p.shape).as_subclass(Codes)},
    "scales of blocks": lambda p: {"absmax1": torch.zeros(2)},
    "numbers of unknown meaning": lambda p: {"order": torch.zeros_like(p)},
    "a copy of the weights": lambda p: {"slow_buffer": p.detach().clone()},
    "factors": lambda p: {"row_var": torch.zeros(2, 1), "col_var": torch.zeros(1, 2)},
    "a list": lambda p: {"history": [torch.zeros_like(p)]},
}


@pytest.mark.parametrize("cls", METHODS)
@pytest.mark.parametrize("kind", STRANGE)
def test_state_that_is_no_moment_is_refused_at_the_first_step(kind, cls):
    model, optimizer, controller = setup(cls, keeping(STRANGE[kind]))
    before = masks(model)
    message = f"{cls.__name__}: optimizer must keep its state per weight, .* known .exp_avg, .*Keeps, .*register_state"
    with pytest.raises(TypeError, match=message):
        train(model, optimizer, 1)
    assert controller.step == 0 and all((a == b).all() for a, b in zip(before, masks(model), strict=True))
    with pytest.raises(TypeError, match=message):  # the state is there already
        cls(model, optimizer, update_every=3)


# --- optimizers around optimizers ------------------------------------------------------------------------------------


class Accelerated(optim.Optimizer):
    """accelerate's AcceleratedOptimizer: an Optimizer by name."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    state = property(lambda self: self.optimizer.state)
    param_groups = property(lambda self: self.optimizer.param_groups)
    defaults = property(lambda self: self.optimizer.defaults)

    def zero_grad(self, set_to_none=None):
        self.optimizer.zero_grad()

    def step(self, closure=None):
        self.optimizer.step(closure)


class Lightning:
    """Lightning's LightningOptimizer: takes the attributes and the class of what it steps."""

    def __init__(self, optimizer):
        self._optimizer = optimizer
        self.__dict__.update(optimizer.__dict__)
        self.__class__ = type("LightningAdam", (Lightning, type(optimizer)), {})

    def step(self, closure=None):
        return self._optimizer.step(closure)


class Twice(optim.Adam):
    def step(self, closure=None):
        return super().step(closure)


class Thrice(Twice):
    def step(self, closure=None):
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1e9)
        return super().step(closure)


AROUND = {
    "accelerate": lambda p: Accelerated(optim.Adam(p, lr=0.02)),
    "twice": lambda p: Accelerated(Accelerated(optim.Adam(p, lr=0.02))),
    "lightning": lambda p: Lightning(optim.Adam(p, lr=0.02)),
    "super().step()": partial(Twice, lr=0.02),
    "super().super().step()": partial(Thrice, lr=0.02),
}


@pytest.mark.parametrize("cls", [*METHODS, StaticSparse])
@pytest.mark.parametrize("kind", AROUND)
def test_wrapped_optimizers_train_alike(kind, cls):
    runs = []
    for make in (partial(optim.Adam, lr=0.02), AROUND[kind]):
        model, optimizer, controller = setup(cls, make)
        train(model, optimizer, 7)
        assert controller.step == 7 and controller.updates == (0 if cls is StaticSparse else 2)
        runs.append(model.state_dict())
    assert all(torch.equal(t, runs[1][k]) for k, t in runs[0].items())


class SAM(optim.Optimizer):
    """Foret et al.: the weights go to the worst place nearby, and the inner optimizer steps with the gradient there."""

    def __init__(self, params, base, **kwargs):
        super().__init__(params, {"rho": 0.05, **kwargs})
        self.base_optimizer = base(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def step(self, closure):
        params = [p for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for p in params]).norm()
        for p in params:
            self.state[p]["old"] = p.clone()
            p.add_(p.grad, alpha=float(0.05 / norm))
        self.zero_grad()
        with torch.enable_grad():
            closure()
        for p in params:
            p.data = self.state[p]["old"]
        self.base_optimizer.step()


def test_an_optimizer_with_state_around_another_is_refused():
    model = sparse_model()
    outer = SAM(model.parameters(), optim.SGD, lr=0.1, momentum=0.9)
    with pytest.raises(TypeError, match="got SAM; .* Or pass the optimizer inside, .base_optimizer, if SAM keeps noth"):
        RigL(model, outer)
    controller = RigL(model, outer.base_optimizer, update_every=2, stop_at=9)
    before = masks(model)
    for _ in range(6):
        x = torch.randn(8, 20, dtype=torch.float64)

        def closure(x=x):
            loss = model(x).square().mean()
            loss.backward()
            return loss

        closure()
        outer.step(closure)
        outer.zero_grad()
    assert (controller.step, controller.updates) == (6, 3)
    assert all((a != b).any() for a, b in zip(before, masks(model), strict=True))


@pytest.mark.parametrize("cls", METHODS)
def test_steps_within_the_backward_pass_are_refused(cls):
    model, optimizer, controller = setup(cls, partial(optim.SGD, lr=0.1), update_every=1)
    model[0].values.register_post_accumulate_grad_hook(lambda p: optimizer.step())
    with pytest.raises(RuntimeError, match=f"{cls.__name__}: optimizer must step after the backward pass"):
        model(torch.randn(3, 20, dtype=torch.float64)).sum().backward()
    assert controller.updates == 0
