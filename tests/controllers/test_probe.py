"""The dense gradient is that of the step: of no batch that was thrown away, of all that were added up."""

import pytest
import torch
from controllers.simulation import batch, masks, sparse_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from sparsegnn import SET, RigL
from sparsegnn.controllers.schedules import Constant
from sparsegnn.nn import SparseLinear

PARTS = (slice(0, 10), slice(10, 32))
JUNK = (float("nan"), float("inf"), 7.0)


def setup(cls=RigL, **kwargs):
    model = sparse_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, cls(model, optimizer, **{"update_every": 1, "stop_at": 9, **kwargs})


def loss(model, part=slice(None), scale=1.0):
    x, y = batch(0, model)
    return (model(x[part]) * scale - y[part]).square().mean()


def twin_of(model):
    return nn.Sequential(*(m.to_dense() if isinstance(m, SparseLinear) else m for m in model))


def gradient_seen(controller, optimizer, model):
    """The dense gradients by which the step grows weights."""
    seen = {}
    grow = controller.grow_scores

    def watch(name, layer):
        got = controller.dense_gradient(layer)
        seen[name] = None if got is None else got.clone()
        return grow(name, layer)

    controller.grow_scores = watch
    optimizer.step()
    return [seen[name] for name in ("0", "2")]


# --- ways to throw a batch away --------------------------------------------------------------------------------------


def to_none(model, optimizer):
    optimizer.zero_grad()


def to_zero(model, optimizer):
    optimizer.zero_grad(set_to_none=False)


def of_the_model(model, optimizer):
    model.zero_grad()


def by_hand(model, optimizer):
    for p in model.parameters():
        p.grad = None


def by_hand_to_zero(model, optimizer):
    for p in model.parameters():
        p.grad.data.zero_()


def by_new_zeros(model, optimizer):
    for p in model.parameters():
        p.grad = torch.zeros_like(p)


def by_foreach(model, optimizer):
    torch._foreach_zero_([p.grad for p in model.parameters()])


def by_product(model, optimizer):
    for p in model.parameters():
        p.grad.nan_to_num_(0, 0, 0).mul_(0)


def after_a_skipped_step(model, optimizer):
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.zeros(()))
    scaler.step(optimizer)
    optimizer.zero_grad()


CLEARS = (to_none, to_zero, of_the_model, by_hand, by_hand_to_zero, by_new_zeros, by_foreach, by_product)


@pytest.mark.parametrize("bad", JUNK)
@pytest.mark.parametrize("clear", [*CLEARS, after_a_skipped_step])
def test_a_batch_that_was_thrown_away_leaves_nothing(clear, bad):
    if clear is after_a_skipped_step and bad == 7.0:
        return
    model, optimizer, controller = setup()
    twin = twin_of(model)
    loss(model, scale=bad).backward()
    clear(model, optimizer)
    for m in (model, twin):
        for part in PARTS:
            loss(m, part).backward()
    for got, m in zip(gradient_seen(controller, optimizer, model), (twin[0], twin[2]), strict=True):
        torch.testing.assert_close(got, m.weight.grad)


@pytest.mark.parametrize("clear", CLEARS)
def test_a_step_after_a_batch_that_was_thrown_away_moves_nothing(clear):
    model, optimizer, controller = setup()
    before = masks(model)
    loss(model, scale=7.0).backward()
    clear(model, optimizer)
    assert gradient_seen(controller, optimizer, model) == [None, None]
    assert all((a == b).all() for a, b in zip(before, masks(model), strict=True))


# --- backward passes that are none of the step's ---------------------------------------------------------------------


def of_the_input(model):
    x = batch(0, model)[0].requires_grad_()
    return torch.autograd.grad(model(x).square().sum(), x)[0]


def of_the_input_alone(model):
    x = batch(0, model)[0].requires_grad_()
    model(x).square().sum().backward(inputs=[x])


def with_frozen_weights(model):
    x = batch(0, model)[0].requires_grad_()
    model.requires_grad_(False)
    model(x).square().sum().backward()
    model.requires_grad_(True)


def of_the_parameters(model):
    torch.autograd.grad(loss(model, scale=3.0), list(model.parameters()))


def without_a_gradient(model):
    with torch.no_grad():
        loss(model, scale=3.0)


OTHERS = (of_the_input, of_the_input_alone, with_frozen_weights, of_the_parameters, without_a_gradient)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("other", OTHERS)
def test_gradients_of_something_else_are_not_in_it(other, sparse):
    model, optimizer, controller = setup()
    twin = twin_of(model)
    if sparse and other is with_frozen_weights:
        model.requires_grad_(False)
        x = batch(0, model)[0]
        head = torch.ones(16, dtype=torch.float64, requires_grad=True)
        (model[0](x.to_sparse_csr()) * head).sum().backward()
        model.requires_grad_(True)
    other(model)
    for part in PARTS:  # between micro-batches, too
        for m in (model, twin):
            loss(m, part).backward()
        other(model)
    for got, m in zip(gradient_seen(controller, optimizer, model), (twin[0], twin[2]), strict=True):
        torch.testing.assert_close(got, m.weight.grad)


# --- backward passes that all count ----------------------------------------------------------------------------------


def micro_batches(model):
    for part in PARTS:
        (loss(model, part) / 2).backward()


def two_losses(model):
    y = model(batch(0, model)[0])
    y.square().mean().backward(retain_graph=True)
    y.abs().mean().backward()


def the_same_twice(model):
    mine = loss(model)
    mine.backward(retain_graph=True)
    mine.backward()


def clipped_between(model):
    loss(model, PARTS[0]).backward()
    for p in model.parameters():
        p.grad.mul_(1.0)
    nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    loss(model, PARTS[1]).backward()


def replaced_between(model):
    loss(model, PARTS[0]).backward()
    for p in model.parameters():
        p.grad = p.grad.clone()
    loss(model, PARTS[1]).backward()


def checkpointed(reentrant):
    def run(model):
        x = batch(0, model)[0].requires_grad_(reentrant)
        for part in PARTS:
            checkpoint(model, x[part], use_reentrant=reentrant).square().mean().backward()

    run.__name__ = f"checkpointed, {reentrant}"
    return run


def twice_in_one_call(model):
    x = batch(0, model)[0]
    (model(x).square().mean() + model(2 * x).square().mean()).backward()


@pytest.mark.parametrize(
    "train",
    [micro_batches, two_losses, the_same_twice, clipped_between, replaced_between, checkpointed(False),
     checkpointed(True), twice_in_one_call],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_all_that_is_added_up_counts(train):
    model, optimizer, controller = setup()
    twin = twin_of(model)
    loss(model, scale=9.0).backward()
    optimizer.zero_grad()
    for m in (model, twin):
        train(m)
    for got, m in zip(gradient_seen(controller, optimizer, model), (twin[0], twin[2]), strict=True):
        torch.testing.assert_close(got, m.weight.grad)


def test_compiled_layers():
    model, optimizer, controller = setup()
    twin = twin_of(model)
    torch._dynamo.reset()
    fast = torch.compile(model, backend="aot_eager")
    (fast(batch(0, model)[0]) * float("nan")).sum().backward()
    to_zero(model, optimizer)
    for m in (fast, twin):
        for part in PARTS:
            m(batch(0, model)[0][part]).square().mean().backward()
    for got, m in zip(gradient_seen(controller, optimizer, model), (twin[0], twin[2]), strict=True):
        torch.testing.assert_close(got, m.weight.grad)


def test_gradients_of_missing_weights_alone_add_up():
    model, optimizer, controller = setup()
    mask = torch.from_numpy(masks(model)[0])
    column = int(mask.sum(0).argmin())
    flow = (~mask[:, column]).double()
    x = torch.zeros(4, 20, dtype=torch.float64)
    x[:, column] = 1
    for _ in range(3):
        (model[0](x) * flow).sum().backward()
    assert not model[0].values.grad.any() and flow.any()
    (got, other) = gradient_seen(controller, optimizer, model)
    assert other is None
    torch.testing.assert_close(got[:, column], 12 * flow)


# --- what an update cannot know --------------------------------------------------------------------------------------


def by_autograd(model):
    for p, g in zip(model.parameters(), torch.autograd.grad(loss(model), list(model.parameters())), strict=True):
        p.grad = g


def by_inputs(model):
    loss(model).backward(inputs=list(model.parameters()))


def by_functional_call(model):
    def f(params):
        return torch.func.functional_call(model, params, batch(0, model)[0]).square().mean()

    params = {k: p.detach().requires_grad_() for k, p in model.named_parameters()}
    for k, p in model.named_parameters():
        p.grad = torch.autograd.grad(f(params), params[k])[0]


@pytest.mark.parametrize("give", [by_autograd, by_inputs, by_functional_call])
def test_gradients_that_come_another_way_are_announced_once(give):
    model, optimizer, controller = setup()
    before = masks(model)
    with pytest.warns(UserWarning) as seen:
        for _ in range(4):
            optimizer.zero_grad()
            give(model)
            optimizer.step()
    told = [str(w.message) for w in seen if "RigL" in str(w.message)]
    assert len(told) == 1 and r"no weight of the layers ['0', '2'] moves" in told[0] and "loss.backward()" in told[0]
    assert all((a == b).all() for a, b in zip(before, masks(model), strict=True))
    optimizer.zero_grad()
    loss(model).backward()
    optimizer.step()
    assert all((a != b).any() for a, b in zip(before, masks(model), strict=True))


@pytest.mark.filterwarnings("error")
def test_a_layer_without_gradient_is_no_reason_to_warn():
    model, optimizer, controller = setup()
    model[0](batch(0, model)[0]).sum().backward()
    optimizer.step()
    assert controller.updates == 1


# --- controllers that meet -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", [RigL, SET])
@pytest.mark.parametrize("first", [RigL, SET])
def test_a_cell_that_is_run_again(first, second):
    model, optimizer, one = setup(first)
    again = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="another controller of another optimizer moves, .* detach.* notebook"):
        second(model, again, update_every=1, stop_at=9)
    one.detach()
    two = second(model, again, update_every=1, stop_at=9)
    before = masks(model)
    loss(model).backward()
    again.step()
    assert (one.step, two.updates) == (0, 1)
    assert all((a != b).any() for a, b in zip(before, masks(model), strict=True))


def test_a_function_that_is_called_again():
    """Its controller and optimizer refer to each other, and stay until the garbage collector comes."""
    model = sparse_model()

    def fit():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        controller = RigL(model, optimizer, update_every=1, stop_at=9, drop_fraction=Constant(0.3))
        loss(model).backward()
        optimizer.step()
        return controller.updates

    assert [fit(), fit()] == [1, 1]


def test_without_memory_for_probes_the_update_comes_a_step_later(monkeypatch):
    model, optimizer, controller = setup(update_every=2)
    probe, before = controller._probe, masks(model)

    def fail(*args):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(controller, "_probe", fail)
    loss(model).backward()
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.step()
    monkeypatch.setattr(controller, "_probe", probe)
    for step, updates in ((1, 0), (2, 1)):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
        assert (controller.step, controller.updates) == (step, updates)
    assert all((a != b).any() for a, b in zip(before, masks(model), strict=True))


def test_an_update_that_is_due_unexpectedly_comes_a_step_later():
    model, optimizer, controller = setup(update_every=100, stop_at=200)
    controller.update_every = 1
    for updates in (0, 1):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
        assert controller.updates == updates


@pytest.mark.parametrize("static", [False, True])
def test_a_dense_gradient_begins_when_it_is_asked_for(static):
    """Where the gradients of the values are added up over updates, that of a probe is of the steps since the last."""
    model, optimizer, controller = setup()
    if static:
        controller.make_static()
        controller.arm()
    for _ in range(2):
        loss(model).backward()
        twin = twin_of(model)
        loss(twin).backward()
        wanted = [twin[i].weight.grad for i in (0, 2)]
        torch.testing.assert_close(gradient_seen(controller, optimizer, model), wanted)
