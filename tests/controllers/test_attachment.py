"""What ties a controller to its layers: copies stay tied, gradients begin anew, what cannot move is refused."""

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from controllers.simulation import batch, masks, sparse_model, train
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sparsegnn import SET, GradualMagnitude, RigL, StaticSparse
from sparsegnn.controllers import register_state
from sparsegnn.nn import SparseLinear

METHODS = (RigL, SET, GradualMagnitude)


def setup(cls=RigL, make=torch.optim.Adam, **kwargs):
    model = sparse_model(sparsity=0.0 if cls is GradualMagnitude else 0.8)
    optimizer = make(model.parameters(), lr=0.02)
    return model, optimizer, cls(model, optimizer, **{"update_every": 3, "stop_at": 20, **kwargs})


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda parts: pickle.loads(pickle.dumps(parts))])
@pytest.mark.parametrize("cls", [*METHODS, StaticSparse])
def test_copies_made_together_go_on_together(cls, duplicate):
    parts = setup(cls)
    train(*parts[:2], 2)  # the next step updates
    other = duplicate(parts)
    train(*parts[:2], 5, first=2)
    assert other[2].step == 2 and other[2].optimizer is other[1] and other[2].layers["0"] is other[0][0]
    train(*other[:2], 5, first=2)
    assert other[2].step == 7 and other[2].updates == parts[2].updates
    assert all(torch.equal(a, b) for a, b in zip(parts[0].state_dict().values(), other[0].state_dict().values()))  # noqa: B905
    other[2].detach()
    assert not duplicate(other)[1]._optimizer_step_post_hooks


def test_a_model_copied_alone_computes_no_dense_gradient():
    model, optimizer, _ = setup(update_every=1)
    assert model[0].probe is not None
    assert copy.deepcopy(model)[0].probe is None and pickle.loads(pickle.dumps(model))[0].probe is None


@pytest.mark.parametrize("clear", ["none", "zero", "model", "scaler"])
def test_what_zero_grad_threw_away_is_not_in_the_dense_gradient(clear):
    model, optimizer, _ = setup(update_every=1)
    dense, (x, y) = nn.Sequential(*(m.to_dense() if hasattr(m, "crow") else m for m in model)), batch(0, model)
    for _ in range(2):  # the second batch of micro-batches counts
        for bad in (float("nan"), 7.0):
            (model(x) * bad).square().mean().backward()
        if clear == "scaler":
            scaler = torch.amp.GradScaler("cpu")
            scaler.scale(torch.zeros(()))
            scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=False) if clear == "zero" else (
            model if clear == "model" else optimizer
        ).zero_grad()
    for part in (slice(0, 16), slice(16, 32)):
        for m in (model, dense):
            (m(x[part]) - y[part]).square().mean().backward()
    for layer, twin in ((model[0], dense[0]), (model[2], dense[2])):
        torch.testing.assert_close(layer.probe.grad, twin.weight.grad)


def test_clipping_between_micro_batches_keeps_the_dense_gradient():
    model, _, _ = setup(update_every=1)
    x, _ = batch(0, model)
    model(x).sum().backward()
    before = model[0].probe.grad.clone()
    model[0].values.grad.mul_(0.5)
    model(x).sum().backward()
    torch.testing.assert_close(model[0].probe.grad, 2 * before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dense_gradient_follows_the_dtype_of_the_model(dtype):
    model, optimizer, controller = setup(make=torch.optim.SGD, update_every=1)
    x, _ = batch(0, model)
    model(x).sum().backward()
    model.to(dtype)
    model(x.to(dtype)).sum().backward()
    assert model[0].probe.dtype == model[0].probe.grad.dtype == model[0].values.grad.dtype == dtype
    optimizer.step()
    assert controller.updates == 1


@pytest.mark.parametrize("first", [*METHODS, StaticSparse])
@pytest.mark.parametrize("second", [*METHODS, StaticSparse])
def test_a_layer_has_one_controller(first, second):
    model, optimizer, one = setup(first)
    with pytest.raises(ValueError, match=rf"{second.__name__}: model must have no layer that another .* got \['2'\]"):
        second(nn.ModuleDict({"2": model[2], "new": nn.Linear(2, 2)}), optimizer)
    with pytest.raises(ValueError, match="must have no layer that another controller"):
        copy.copy(one)
    one.detach()
    two = second(model, optimizer)
    train(model, optimizer, 1)
    assert (one.step, two.step) == (0, 1)


def test_controllers_of_different_layers():
    model, optimizer, _ = setup()
    optimizer._optimizer_step_post_hooks.clear()
    rigl = RigL(model[0], optimizer, update_every=2, stop_at=9)
    prune = SET(model[2:], optimizer, update_every=3, stop_at=9)
    before = masks(model)
    train(model, optimizer, 2)
    after = masks(model)
    assert (before[0] != after[0]).any() and (before[1] == after[1]).all()
    train(model, optimizer, 5, first=2)
    assert (rigl.updates, prune.updates) == (3, 2) and (after[1] != masks(model)[1]).any()


@pytest.mark.parametrize("cls", METHODS)
def test_frozen_layers_rest(cls):
    model, optimizer, _ = setup(cls)
    train(model, optimizer, 2)
    model[0].values.requires_grad_(False)
    before, values, count = masks(model), model[0].values.clone(), model[2].values.numel()
    train(model, optimizer, 4, first=2)
    after = masks(model)
    assert (before[0] == after[0]).all() and torch.equal(values, model[0].values) and (before[1] != after[1]).any()
    model[0].values.requires_grad_(True)
    train(model, optimizer, 6, first=6)
    assert (before[0] != masks(model)[0]).any() and model[2].values.numel() <= count


class Odd(torch.optim.Optimizer):
    """Keeps something for each parameter that may not be per weight."""

    def __init__(self, params, lr, made):
        super().__init__(params, {"lr": lr})
        self.made = made

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            self.state[p]["odd"] = self.made(p)
            p.sub_(p.grad, alpha=self.param_groups[0]["lr"])


register_state(Odd, {"odd": 0.0})


@pytest.mark.parametrize("cls", METHODS)
@pytest.mark.parametrize(
    "made,fine",
    [
        (lambda p: torch.zeros(3, 2), False),  # factored, blocks of a quantised state
        (lambda p: [torch.zeros_like(p)], False),
        (lambda p: {"exp_avg": torch.zeros_like(p)}, False),
        (lambda p: torch.zeros_like(p), True),
        (lambda p: torch.zeros(()), True),
        (lambda p: torch.zeros(1), True),
        (lambda p: 3, True),
        (lambda p: None, True),
        (lambda p: [], True),
    ],
)
def test_state_that_cannot_move_is_refused(cls, made, fine):
    model, optimizer, controller = setup(cls, partial(Odd, made=made))
    if fine:
        train(model, optimizer, 3)
        assert controller.updates == 1
        return
    before = masks(model)
    with pytest.raises(TypeError, match=f"{cls.__name__}: optimizer must keep its state per weight, .* got 'odd', a"):
        train(model, optimizer, 3)
    assert all((a == b).all() for a, b in zip(before, masks(model), strict=True))


@pytest.mark.parametrize("cls", METHODS)
def test_values_that_were_replaced_are_refused(cls):
    model, optimizer, _ = setup(cls)
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    with pytest.raises(RuntimeError, match=f"{cls.__name__}: optimizer no longer holds the values of layer '0'"):
        train(model, optimizer, 3)


def test_new_parameter_groups_are_no_business_of_the_controller():
    model, optimizer, controller = setup(update_every=1)
    new = SparseLinear(6, 6, dtype=torch.float64)
    optimizer.add_param_group({"params": list(new.parameters()), "lr": 0.0})
    before = new.col.clone()
    train(model, optimizer, 4)
    assert controller.updates == 4 and torch.equal(before, new.col)


@pytest.mark.parametrize("grown", [{}, None, {"0": torch.tensor(1)}, {"0": torch.ones(2), "2": 1}, {"0": -1, "2": 1}])
def test_a_refused_checkpoint_changes_nothing(grown):
    model, optimizer, controller = setup()
    train(model, optimizer, 4)
    before = str(controller.state_dict())
    with pytest.raises((TypeError, ValueError), match=r"RigL: (state\['grown'\]|grown\['\d'\]) must be"):
        controller.load_state_dict({**controller.state_dict(), "step": 9, "seed": 9, "grown": grown})
    assert str(controller.state_dict()) == before


def test_counts_follow_the_model_to_its_device():
    """As after model.to("cuda"), with devices that have no memory."""
    with FakeTensorMode():
        model, _, controller = setup(SET, update_every=1)
        for name in controller.grown:
            controller.grown[name] = torch.zeros((), dtype=torch.int64, device="meta")
        scores = torch.rand(20, 20)
        controller.random_scores = lambda name, layer: scores[: layer.out_features, : layer.in_features]
        controller.update()
        assert {count.device.type for count in controller.grown.values()} == {"cpu"}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: torch.load(saved(x), weights_only=False)])
def test_a_copy_made_while_a_dense_gradient_is_collected_has_none(duplicate):
    model, optimizer, _ = setup(update_every=1)
    (model(batch(0, model)[0])).sum().backward()
    assert model[0].probe.grad is not None
    want = duplicate(nn.Sequential(*(layer for layer in model)))
    size = len(pickle.dumps(want))
    for layer in want:
        assert getattr(layer, "probe", None) is None
        assert not getattr(layer, "values", layer)._backward_hooks
    twin = sparse_model()
    assert abs(size - len(pickle.dumps(nn.Sequential(*twin)))) < 3000  # gradients of a deep copy go along
    assert all("probe" not in key for key in model.state_dict())
    step_of = torch.optim.SGD(want.parameters(), lr=0.1)
    train(want, step_of, 1)
    assert want[0].probe is None and model[0].probe is not None


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file
