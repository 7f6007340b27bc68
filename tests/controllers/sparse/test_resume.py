"""A run that stops in the middle of any phase and goes on elsewhere is, bit for bit, the run that did not stop."""

import copy
import io

import pytest
import torch
from controllers.simulation import sparse_model, train
from torch import nn

from sparsegnn.controllers import DSTEE, ITOP, MEST, RGP, Freeze, GraNet, SRigL
from sparsegnn.nn import SparseLinear

CLOCK = {"update_every": 3, "stop_at": 14}
CASES = {
    "itop": (ITOP, CLOCK, 0.8),
    "dst-ee": (DSTEE, {**CLOCK, "c": 0.05}, 0.8),
    "srigl": (SRigL, {**CLOCK, "gamma_sal": 0.6, "drop_fraction": 0.5}, 0.7),
    "granet": (GraNet, {**CLOCK, "start_at": 2}, 0.0),
    "granet-half": (GraNet, {**CLOCK, "initial_sparsity": 0.5, "distribution": "global"}, 0.0),
    "mest": (MEST, {**CLOCK, "lam": 1.0}, 0.8),
    "mest-soft": (MEST, {**CLOCK, "soft": True}, 0.8),
    "placed": (MEST, {**CLOCK, "sparsity": 0.8}, 0.0),
    "rgp": (RGP, {"nodes": 6, "sparsity": 0.5, "tries": 9}, 0.0),
    "freeze": (Freeze, {**CLOCK, "freeze_at": [8]}, 0.8),
}
OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
}


def make(case, seed, optimizer):
    cls, settings, sparsity = CASES[case]
    if cls is SRigL:
        torch.manual_seed(seed)
        kind = {"sparsity": sparsity, "pattern": "fan_in", "dtype": torch.float64}
        model = nn.Sequential(SparseLinear(20, 16, **kind), nn.Tanh(), SparseLinear(16, 6, **kind))
    else:
        model = sparse_model(seed, sparsity=sparsity)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    return model, optimizer, cls(model, optimizer, **settings)


@pytest.mark.filterwarnings("ignore:FrozenForward")
@pytest.mark.parametrize("case, optimizer", [(case, "adam") for case in CASES] + [("mest", "momentum")])
def test_resume(case, optimizer):
    model, opt, method = make(case, 0, optimizer)
    saved = {}
    for step in range(18):
        if step in (1, 3, 7, 10, 14, 16):
            parts = copy.deepcopy([model.state_dict(), opt.state_dict(), method.state_dict()])
            file = io.BytesIO()
            torch.save(parts, file)
            file.seek(0)
            saved[step] = torch.load(file, weights_only=True)
        train(model, opt, 1, first=step)
    for step, parts in saved.items():
        other, other_opt, other_method = make(case, 0 if case == "rgp" else 1, optimizer)
        for thing, state in zip((other, other_opt, other_method), parts, strict=True):
            thing.load_state_dict(state)
        train(other, other_opt, 18 - step, first=step)
        for (key, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b), (step, key)
        mine, theirs = method.state_dict(), other_method.state_dict()
        assert str(mine) == str(theirs)
        if case == "freeze":
            assert method.frozen == other_method.frozen == ["0"]


@pytest.mark.parametrize("case, key, value, text", [
    ("dst-ee", "rounds", {"0": torch.zeros(2, 2)}, "DSTEE: state\\['rounds'\\] must be of the layers"),
    ("dst-ee", "rounds", {"0": torch.zeros(2, 2), "2": torch.zeros(6, 16)}, "must be \\[16, 20\\] torch.uint8, got"),
    ("srigl", "budget", {"0": 0, "2": 5}, "SRigL: budget\\['0'\\] must be at least 1, got 0"),
    ("granet", "first", {"0": 1.5, "2": 5}, "GraNet: first\\['0'\\] must be an integer, got float"),
    ("mest", "own", 3, "MEST: state\\['own'\\] must be a dict, got int"),
])  # fmt: skip
def test_wrong_checkpoints_change_nothing(case, key, value, text):
    model, opt, method = make(case, 0, "adam")
    train(model, opt, 4)
    before = str(method.state_dict())
    with pytest.raises((TypeError, ValueError), match=text):
        method.load_state_dict({**method.state_dict(), key: value})
    assert str(method.state_dict()) == before


@pytest.mark.filterwarnings("ignore:FrozenForward")
def test_an_earlier_state_thaws():
    model, opt, method = make("freeze", 0, "adam")
    train(model, opt, 5)
    state = copy.deepcopy([model.state_dict(), opt.state_dict(), method.state_dict()])
    train(model, opt, 9, first=5)
    want = {k: v.clone() for k, v in model.state_dict().items()}
    for thing, part in zip((model, opt, method), state, strict=True):
        thing.load_state_dict(part)
    assert method.frozen == [] and model[0].values.requires_grad and "forward" not in vars(model[0])
    train(model, opt, 9, first=5)
    assert all(torch.equal(v, want[k]) for k, v in model.state_dict().items())
