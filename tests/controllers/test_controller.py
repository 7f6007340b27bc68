"""What all controllers share: clock, attachment, in-place updates, checkpoints, refusals."""

import copy
import functools
import io

import pytest
import torch
from controllers.simulation import batch, masks, sparse_model, train
from torch import nn

from sparsegnn.controllers import SET, GradualMagnitude, Rewiring, RigL, StaticSparse
from sparsegnn.nn import SparseLinear


def setup(cls=RigL, **kwargs):
    model = sparse_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    return model, optimizer, cls(model, optimizer, **{"update_every": 3, "stop_at": 20, **kwargs})


@pytest.mark.parametrize("cls", [RigL, SET])
def test_updates_happen_in_place(cls):
    model, optimizer, controller = setup(cls)
    train(model, optimizer, 2)
    layer = model[0]
    tensors = [*layer.parameters(), *layer.buffers(), *optimizer.state[layer.values].values()]
    before, pattern, where = masks(model), layer.col.clone(), [t.data_ptr() for t in tensors]
    train(model, optimizer, 1, first=2)
    assert controller.updates == 1 and not torch.equal(pattern, layer.col)
    assert [t.data_ptr() for t in tensors] == where
    after = [*layer.parameters(), *layer.buffers(), *optimizer.state[layer.values].values()]
    assert all(a is b for a, b in zip(tensors, after, strict=True))
    grown = sum(int((a & ~b).sum()) for a, b in zip(masks(model), before, strict=True))
    assert sum(int(n) for n in controller.grown.values()) == grown > 0


def test_gradients_move_with_their_weights():
    """After an update, what accumulation would add to: the gradient of a kept weight, nothing for a grown one."""
    model, optimizer, controller = setup(SET)
    layer, seen = model[0], {}

    def gradients() -> dict[int, float]:
        rows = torch.repeat_interleave(torch.arange(layer.out_features), layer.crow.diff().long())
        places = rows * layer.in_features + layer.col
        return dict(zip(places.tolist(), layer.values.grad.tolist(), strict=True))

    optimizer.register_step_pre_hook(lambda *_: seen.update(now=gradients()))
    train(model, optimizer, 3)
    assert controller.updates == 1
    after = gradients()
    assert after.keys() - seen["now"].keys() and any(after.values())
    assert after == {place: seen["now"].get(place, 0.0) for place in after}


def test_static_never_moves():
    model, optimizer, controller = setup(StaticSparse)
    before = masks(model)
    train(model, optimizer, 10)
    assert controller.step == 10 and controller.updates == 0
    assert all((a == b).all() for a, b in zip(before, masks(model), strict=True))


def test_default_stop_is_20_updates():
    model, optimizer, controller = setup(SET, update_every=2, stop_at=None)
    assert controller.stop_at == 40
    train(model, optimizer, 50)
    assert controller.step == 50 and controller.updates == 19


def test_detach():
    model, optimizer, controller = setup(update_every=1)
    train(model, optimizer, 2)
    controller.detach()
    before = masks(model)
    train(model, optimizer, 3)
    assert controller.step == 2 and model[0].probe is None
    assert all((a == b).all() for a, b in zip(before, masks(model), strict=True))


@pytest.mark.parametrize("fused", [False, True])
def test_steps_skipped_by_the_grad_scaler_do_not_count(fused):
    model = sparse_model(dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
    controller = SET(model, optimizer, update_every=2, stop_at=10)
    scaler = torch.amp.GradScaler("cpu")
    before = masks(model)
    for step in range(4):
        x, y = (t.float() for t in batch(step, model))
        optimizer.zero_grad()
        scaler.scale((model(x) - y).square().mean() * (float("inf") if step % 2 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert controller.step == step // 2 + 1
        assert all((a == b).all() for a, b in zip(before, masks(model), strict=True)) == (step < 2)


def test_compiled_model_and_step_do_not_recompile():
    model, optimizer, controller = setup(update_every=2, stop_at=40)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    step = torch.compile(optimizer.step, backend="eager")
    for i in range(4):  # with and without the probe
        x, y = batch(i, model)
        optimizer.zero_grad()
        (compiled(x) - y).square().mean().backward()
        step()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for i in range(4, 16):
        x, y = batch(i, model)
        optimizer.zero_grad()
        (compiled(x) - y).square().mean().backward()
        step()
    assert controller.step == 16 and controller.updates == 8
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize("order", [("model", "optimizer", "controller"), ("controller", "optimizer", "model")])
@pytest.mark.parametrize("cls,at", [(RigL, 5), (RigL, 6), (SET, 5), (GradualMagnitude, 7), (StaticSparse, 4)])
def test_resume_is_bitwise(cls, at, order):
    def start(seed):
        model = sparse_model(seed, sparsity=0.0 if cls is GradualMagnitude else 0.8)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        extra = {} if cls is GradualMagnitude else {"seed": seed}
        return {"model": model, "optimizer": optimizer, "controller": cls(model, optimizer, update_every=3, stop_at=14,
                                                                          **extra)}  # fmt: skip

    run = start(0)
    train(run["model"], run["optimizer"], at)
    buffer = io.BytesIO()
    torch.save({k: v.state_dict() for k, v in run.items()}, buffer)
    train(run["model"], run["optimizer"], 16 - at, first=at)

    other, saved = start(1), torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    for part in order:
        other[part].load_state_dict(saved[part])
    train(other["model"], other["optimizer"], 16 - at, first=at)
    want, got = run["model"].state_dict(), other["model"].state_dict()
    assert all(torch.equal(want[k], got[k]) for k in want)
    assert str(run["controller"].state_dict()) == str(other["controller"].state_dict())


def test_layers_are_found_anywhere():
    class Conv(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = SparseLinear(8, 4, bias=False)

    model = nn.ModuleDict({"conv": Conv(), "heads": nn.ModuleList([nn.Linear(4, 4), SparseLinear(4, 2)])})
    model["frozen"] = SparseLinear(3, 3).requires_grad_(False)
    controller = SET(model, torch.optim.Adam(model.parameters()))
    assert list(controller.layers) == ["conv.lin", "heads.1"]
    assert "layers=2" in repr(controller)


def test_own_scores():
    class Newest(Rewiring):
        def drop_scores(self, name, layer):
            return torch.arange(layer.values.numel(), 0, -1, dtype=torch.float64)

        def grow_scores(self, name, layer):
            return torch.arange(layer.in_features * layer.out_features).view(layer.out_features, -1).double()

    model, optimizer, controller = setup(Newest, update_every=1, stop_at=2, drop_fraction=lambda step: 1.0)
    nnz = model[0].values.numel()
    train(model, optimizer, 1)
    assert model[0].to_dense().weight.count_nonzero() < nnz  # most of them new
    assert masks(model)[0].ravel()[-nnz:].all()
    controller.detach()
    plain = Rewiring(model, optimizer, update_every=1)
    with pytest.raises(NotImplementedError, match="must define grow_scores"):
        train(model, optimizer, 1)
    plain.detach()


def test_refused_arguments():
    model = sparse_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for bad, error, text in [
        ({"update_every": 0}, ValueError, "update_every must be at least 1, got 0"),
        ({"update_every": 2.5}, TypeError, "update_every must be an integer, got float"),
        ({"stop_at": -1}, ValueError, "stop_at must be at least 0, got -1"),
        ({"seed": "x"}, TypeError, "seed must be an integer, got str"),
        ({"drop_fraction": float("nan")}, ValueError, r"drop_fraction must be in \[0, 1\], got nan"),
        ({"drop_fraction": "half"}, TypeError, "drop_fraction must be a number or callable, got str"),
    ]:
        with pytest.raises(error, match="RigL: " + text):
            RigL(model, optimizer, **bad)
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got list"):
        RigL([model], optimizer)
    with pytest.raises(TypeError, match="optimizer must be a torch.optim.Optimizer, got Sequential"):
        RigL(model, model)
    with pytest.raises(TypeError, match="got LBFGS"):
        RigL(model, torch.optim.LBFGS(model.parameters()))
    assert not optimizer._optimizer_step_post_hooks


def test_refused_models():
    dense = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="SET: model must have a trainable SparseLinear"):
        SET(dense, torch.optim.SGD(dense.parameters(), lr=0.1))
    model = sparse_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups.clear()
    with pytest.raises(ValueError, match="optimizer must have parameters, got none"):
        SET(model, optimizer)
    with pytest.raises(ValueError, match="optimizer must hold the values of layer '0'"):
        SET(model, torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1))


def test_bad_schedule_is_reported():
    model, optimizer, _ = setup(SET, update_every=1, drop_fraction=lambda step: float("nan"))
    with pytest.raises(ValueError, match=r"drop_fraction must be in \[0, 1\], got nan at step 1"):
        train(model, optimizer, 1)


def test_refused_checkpoints():
    _, _, controller = setup()
    state = controller.state_dict()
    with pytest.raises(TypeError, match="RigL: state must be a dict, got list"):
        controller.load_state_dict([])
    with pytest.raises(ValueError, match="state must have the keys .* got none of"):
        controller.load_state_dict({"step": 1})
    with pytest.raises(ValueError, match="state must have controller RigL, got 'SET'"):
        controller.load_state_dict({**state, "controller": "SET"})
    with pytest.raises(ValueError, match=r"state must have shapes .*'0': \[16, 20\].*, got .*\[5, 5\]"):
        controller.load_state_dict({**state, "shapes": {"0": [5, 5]}})
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        controller.load_state_dict({**state, "step": -1})


LAST = "2"  # layer
BAD_STATES = {  # name: (changes to a good state, exception, message)
    "no controller": ({"controller": None}, ValueError, "state must have controller RigL, got None"),
    "a tensor as controller": (
        {"controller": torch.zeros(2)},
        ValueError,
        "state must have controller RigL, got tensor",
    ),
    "shapes in a list": ({"shapes": [16, 20]}, TypeError, r"state\['shapes'\] must be a dict, got list"),
    "shapes of tensors": ({"shapes": {"0": torch.zeros(2), "2": 3}}, ValueError, "state must have shapes"),
    "a deep shape": (
        {"shapes": {"0": functools.reduce(lambda a, _: [a], range(99_999), [])}},
        ValueError,
        "have shapes",
    ),
    "a shape of a huge number": ({"shapes": {"0": [10**5000, 20]}}, ValueError, "state must have shapes"),
    "names of huge numbers": ({"grown": {10**5000: 1}}, ValueError, r"state\['grown'\] must be of the layers"),
    "shapes of other layers": ({"shapes": {"a": [16, 20]}}, ValueError, "state must have shapes"),
    "no grown": ({"grown": {}}, ValueError, r"state\['grown'\] must be of the layers .* got \[\]"),
    "grown of another": ({"grown": {"a": torch.tensor(1)}}, ValueError, r"state\['grown'\] must be of the layers"),
    "grown is none": ({"grown": None}, TypeError, r"state\['grown'\] must be a dict, got NoneType"),
    "a negative step": ({"step": -1}, ValueError, "step must be at least 0, got -1"),
    "a huge step": ({"step": 10**5000}, ValueError, "step must be below 2.63, got a number of 16610 bits"),
    "a huge negative seed": ({"seed": -(10**5000)}, ValueError, "seed must be at least 0"),
    "a huge seed": ({"seed": 2**63}, ValueError, "seed must be below 2.63"),
    "a step that is a tensor": ({"step": torch.tensor(3)}, TypeError, "step must be an integer, got Tensor"),
    "updates that are true": ({"updates": True}, TypeError, "updates must be an integer, got bool"),
    "a seed of text": ({"seed": "7"}, TypeError, "seed must be an integer, got str"),
    **{
        f"grown: {kind}": ({"grown": {"0": torch.tensor(5), LAST: bad}}, error, rf"grown\['{LAST}'\] must be {words}")
        for kind, bad, error, words in (
            ("a vector", torch.ones(3, dtype=torch.int64), TypeError, "an integer, got Tensor"),
            ("repeated", torch.zeros(1, dtype=torch.int64).expand(2**40), TypeError, "an integer, got Tensor"),
            ("floating", torch.tensor(1.5), TypeError, "an integer, got float"),
            ("true", torch.tensor(True), TypeError, "an integer, got bool"),
            ("on meta", torch.zeros((), dtype=torch.int64, device="meta"), TypeError, "an integer, got Tensor"),
            ("sparse", torch.ones(1).to_sparse(), TypeError, "an integer, got Tensor"),
            ("none", None, TypeError, "an integer, got NoneType"),
            ("negative", torch.tensor(-1), ValueError, "at least 0, got -1"),
        )
    },
}


@pytest.mark.parametrize("kind", BAD_STATES)
def test_a_refused_state_changes_nothing(kind):
    change, error, message = BAD_STATES[kind]
    model, optimizer, controller = setup(update_every=2)
    train(model, optimizer, 3)
    before, probes = controller.state_dict(), {name: x.probe for name, x in controller.layers.items()}
    other = {**before, "step": 7, "seed": 5, "updates": 3, "grown": {k: v + 9 for k, v in before["grown"].items()}}
    with pytest.raises(error, match=message) as e:
        controller.load_state_dict({**other, **change})
    assert len(str(e.value)) < 600
    assert controller.state_dict() == before
    assert all(controller.layers[name].probe is probe for name, probe in probes.items())
    controller.load_state_dict(other)
    assert (controller.step, controller.seed, controller.updates) == (7, 5, 3)
    assert {k: int(v) for k, v in controller.grown.items()} == {k: int(v) for k, v in other["grown"].items()}


def test_without_memory_for_probes_a_state_is_not_loaded(monkeypatch):
    model, optimizer, controller = setup(update_every=2)
    train(model, optimizer, 2)
    before = controller.state_dict()

    def fail(*args):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(controller, "_probe", fail)
    with pytest.raises(torch.OutOfMemoryError):
        controller.load_state_dict(
            {**before, "step": 3, "seed": 9, "grown": {k: v + 1 for k, v in before["grown"].items()}}
        )
    assert controller.state_dict() == before


def test_an_update_that_failed_is_forgotten_with_the_state():
    model, optimizer, controller = setup(SET, update_every=2)
    train(model, optimizer, 1)
    state, wanted = controller.state_dict(), [x.col.clone() for x in controller.layers.values()]
    controller._moved.update(controller.layers)  # as an update that failed after the last layer leaves it
    controller.load_state_dict(state)
    train(model, optimizer, 1)
    assert not any(torch.equal(x.col, old) for x, old in zip(controller.layers.values(), wanted, strict=True))


def test_settings_beyond_int64_are_refused():
    for name in ("update_every", "stop_at", "seed"):
        with pytest.raises(ValueError, match=f"{name} must be below 2.63, got a number of"):
            setup(SET, **{name: 10**5000})
