"""What all methods with latent weights promise: bitwise resume, what the loop sees, skipped steps, the end."""

import copy
import pickle
from functools import partial

import pytest
import torch
from controllers.simulation import batch, sparse_model, train
from torch import nn, optim

from sparsegnn.controllers import SCL, UGT, NMDecay, ProbMask
from sparsegnn.nn import SparseLinear

METHODS = {
    "nm-linear": partial(NMDecay, start_at=2, stop_at=8),
    "nm-structure": partial(NMDecay, decay="structure", n=1, sr_ste=1e-2, stop_at=8),
    "probmask": partial(ProbMask, sparsity=0.7, lr=0.1, start_at=2, sparse_at=6, stop_at=8, seed=3),
    "scl": partial(SCL, penalty=0.8, lr=0.2, start_at=2, stop_at=8),
    "ugt": partial(UGT, sparsity=0.7, lr=0.1, weight_decay=0.01, stop_at=8, seed=3),
}
HARD = ("nm-structure", "scl", "ugt")
each_method = pytest.mark.parametrize("name", METHODS)


def adamw(parameters):
    return optim.AdamW(parameters, lr=0.05)


def setup(name, seed=0, make=adamw, dtype=torch.float64):
    model = sparse_model(seed, sparsity=0.0).to(dtype)
    optimizer = make(model.parameters())
    return model, optimizer, METHODS[name](model, optimizer)


def all_tensors(model, optimizer, method):
    found = dict(model.state_dict())
    for i, p in enumerate(optimizer.param_groups[0]["params"]):
        found |= {f"{i}.{k}": t for k, t in optimizer.state[p].items() if torch.is_tensor(t)}
    state = method.state_dict()
    found |= {f"{key}.{k}": t for key in ("latent", "scores") for k, t in state.get(key, {}).items()}
    found |= {f"moments.{n}.{k}": t for n, s in state.get("moments", {}).items() for k, t in s.items()}
    return found


def assert_same(a, b):
    a, b = all_tensors(*a), all_tensors(*b)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a), [k for k in a if not torch.equal(a[k], b[k])]


@each_method
@pytest.mark.parametrize("at", [1, 2, 5, 8, 10])
def test_goes_on_bit_for_bit_from_a_checkpoint(name, at):
    run = setup(name)
    train(*run[:2], at)
    saved = copy.deepcopy([part.state_dict() for part in run])
    fresh, last = setup(name, 1), setup(name, 2)
    for part, state in zip(fresh, saved, strict=True):
        part.load_state_dict(state)
    for part, state in zip(reversed(last), copy.deepcopy(saved[::-1]), strict=True):
        part.load_state_dict(state)
    copies, read = copy.deepcopy(run), pickle.loads(pickle.dumps(run))
    late = sparse_model(4, sparsity=0.0)  # its controller is made after it was loaded
    late.load_state_dict(saved[0])
    late = late, (optimizer := adamw(late.parameters())), METHODS[name](late, optimizer)
    for part, state in zip(late[1:], copy.deepcopy(saved[1:]), strict=True):
        part.load_state_dict(state)
    train(*run[:2], 4, first=at)
    for other in (fresh, last, copies, read, late):
        train(*other[:2], 4, first=at)
        assert_same(run, other)


@each_method
def test_refuses_checkpoints_that_do_not_fit(name):
    model, optimizer, method = setup(name)
    train(model, optimizer, 4)
    good = method.state_dict()
    before = copy.deepcopy(all_tensors(model, optimizer, method))
    bad = [
        ({"latent": [1]}, TypeError, r"state\['latent'\] must be a dict, got list"),
        ({"latent": {}}, ValueError, r"state\['latent'\] must be of the layers \['0', '2'\], got \[\]"),
        ({"latent": {**good["latent"], "0": torch.ones(3)}}, ValueError, r"\['latent'\]\['0'\] must be \[320\]"),
    ]
    if "scores" in good:
        moments = {"0": {"exp_avg": torch.ones(4)}, "2": {}}
        bad += [
            ({"scores": {"0": good["scores"]["0"]}}, ValueError, r"state\['scores'\] must be of the layers"),
            ({"moments": {"0": 1, "2": {}}}, TypeError, r"state\['moments'\]\['0'\] must be a dict, got int"),
            ({"moments": moments}, ValueError, r"state\['moments'\]\['0'\]\['exp_avg'\] must be one number or \[320\]"),
        ]
    for change, error, words in bad:
        with pytest.raises(error, match=words):
            method.load_state_dict({**good, **change})
        after = all_tensors(model, optimizer, method)
        assert method.step == 4 and all(torch.equal(after[k], before[k]) for k in before)


@each_method
def test_finalize_is_the_same_function(name):
    model, optimizer, method = setup(name)
    train(model, optimizer, 5)
    x = batch(99, model)[0]
    before, state = model(x), copy.deepcopy(optimizer.state[model[2].values])
    weight = model[2].dense_weight().detach()
    if name not in HARD:
        with pytest.raises(RuntimeError, match=r"finalize\(\) must come after step 8, when masks are hard, got step 5"):
            method.finalize()
        method.detach()
        assert torch.equal(model(x), before) and model[0].values.numel() == 320
        return
    assert method.finalize() is model and not method.attached
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-14)
    assert model[2].values.numel() < 96 and torch.equal(model[2].dense_weight().detach(), weight)
    mask = model[2].dense_weight().detach() != 0
    for key, slot in optimizer.state[model[2].values].items():
        if key != "step":
            assert torch.equal(slot, state[key].view(6, 16)[mask])
    train(model, optimizer, 2)
    assert model[2].values.numel() == mask.sum()


@each_method
def test_the_loop_sees_effective_weights_and_their_gradients(name):
    """Before, after, in hooks of the optimizer; the gradients that it accumulated are those that it made."""
    model, optimizer = (parts := setup(name, make=partial(optim.SGD, lr=0.1)))[:2]
    seen, method = [], parts[2]
    method.detach()
    optimizer.register_step_post_hook(lambda *_: seen.append(model[0].values.detach().clone()))
    model, method = parts[0], METHODS[name](model, optimizer)
    for step in range(7):
        x, y = batch(step, model)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        weight = model[0].dense_weight().detach().requires_grad_()
        twin = nn.functional.linear(torch.tanh(nn.functional.linear(x, weight, model[0].bias.detach())),
                                    model[2].dense_weight().detach(), model[2].bias.detach())  # fmt: skip
        (twin - y).square().mean().backward()
        factor = method.factor["0"].clone() if "0" in method.factor else 1.0
        optimizer.step()
        if "0" in method.latent:  # a hook that was there before sees the new weights behind the old mask
            assert torch.equal(seen[-1], method.latent["0"] * factor)
        if name != "ugt":  # which leaves none
            torch.testing.assert_close(model[0].values.grad.view_as(weight), weight.grad)
        else:
            assert model[0].values.grad is None


@each_method
def test_a_step_that_a_scaler_skips_changes_nothing(name):
    """A fused optimizer learns of it within its step."""
    make = partial(optim.SGD, lr=0.05, fused=True)
    skipping, plain = setup(name, make=make, dtype=torch.float32), setup(name, make=make, dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1000)
    for step in range(9):
        x, y = (t.float() for t in batch(step, skipping[0]))
        for broken in (True, False) if step in (1, 4) else (False,):
            skipping[1].zero_grad()
            scaler.scale((skipping[0](x) - y).square().mean()).backward()
            before = [p.detach().clone() for p in skipping[0].parameters()]
            if broken:
                skipping[0][0].values.grad[3] = float("inf")
            scaler.step(skipping[1])
            scaler.update()
            assert not broken or all(map(torch.equal, skipping[0].parameters(), before))  # the masked weights
        plain[1].zero_grad()
        (plain[0](x) - y).square().mean().backward()
        plain[1].step()
        assert skipping[2].step == plain[2].step == step + 1
        for a, b in zip(skipping[0].parameters(), plain[0].parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@each_method
def test_what_others_write_is_taken_over(name):
    model, optimizer, method = setup(name, make=partial(optim.SGD, lr=0.0))
    train(model, optimizer, 4)
    with torch.no_grad():
        before, effective = method.latent["0"].clone(), model[0].values.clone()
        model[0].values[::7] = 0.75
    train(model, optimizer, 1, first=4)
    ratio = effective / before
    soft = before + (0.75 - effective)
    want = torch.where((ratio == 0) | (ratio == 1), 0.75, soft)
    torch.testing.assert_close(method.latent["0"][::7], want[::7])
    assert torch.equal(method.latent["0"][1::7], before[1::7])
    latent = method.latent["0"].clone()
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    train(model, optimizer, 1, first=5)
    assert torch.equal(method.latent["0"], latent)


@each_method
def test_closures(name):
    runs = setup(name), setup(name)
    for step in range(10):
        x, y = batch(step, runs[0][0])

        def loss(model, optimizer):
            optimizer.zero_grad()
            value = (model(x) - y).square().mean()  # noqa: B023
            value.backward()
            return value

        loss(*runs[0][:2])
        runs[0][1].step()
        runs[1][1].step(lambda: loss(*runs[1][:2]))  # noqa: B023
    assert_same(*runs)


def test_a_closure_that_is_evaluated_twice_is_refused():
    class Twice(optim.SGD):
        def step(self, closure=None):
            if closure is not None:
                closure()
            return super().step(closure)

    model, optimizer, method = setup("ugt", make=partial(Twice, lr=0.1))
    train(model, optimizer, 3)  # some weights are masked
    before = model[0].values.detach().clone()

    def closure():
        loss = model(batch(0, model)[0]).square().mean()
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="UGT: a step must evaluate its closure once"):
        optimizer.step(closure)
    assert torch.equal(model[0].values, before) and method.step == 3
    assert not torch.equal(method.latent["0"], before)


def test_an_optimizer_that_ascends():
    runs = setup("scl", make=partial(optim.SGD, lr=0.1)), setup("scl", make=partial(optim.SGD, lr=0.1, maximize=True))
    for step in range(9):
        for sign, (model, optimizer, _) in zip((1, -1), runs, strict=True):
            x, y = batch(step, model)
            optimizer.zero_grad()
            (sign * (model(x) - y).square().mean()).backward()
            optimizer.step()
    assert torch.equal(runs[0][0][0].values, runs[1][0][0].values)


@each_method
def test_frozen_layers_rest(name):
    model, optimizer, method = setup(name)
    train(model, optimizer, 4)
    model[0].values.requires_grad_(False)
    before = model[0].values.clone()
    train(model, optimizer, 6, first=4)
    assert torch.equal(model[0].values, before) and model[2].values.numel() < 96
    model[0].values.requires_grad_(True)
    train(model, optimizer, 1, first=10)
    assert model[0].values.numel() < 320 and not method.latent


@each_method
def test_a_model_that_lacks_weights_is_refused_at_the_first_step(name):
    model = nn.Sequential(SparseLinear(20, 16, sparsity=0.5), nn.Tanh(), SparseLinear(16, 6, sparsity=0.0)).double()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    METHODS[name](model, optimizer)
    with pytest.raises(RuntimeError, match="must have all of its weights until step 8, got some missing in .'0'."):
        train(model, optimizer, 1)


def test_positions_that_a_pattern_does_not_hold_are_refused():
    model = nn.Sequential(SparseLinear(20, 16, sparsity=0.0, pattern="fan_in"))
    with pytest.raises(ValueError, match="UGT: model must have layers of pattern 'unstructured', got .'0': 'fan_in'"):
        UGT(model, optim.SGD(model.parameters(), lr=0.1))
