"""Compaction: narrower models against the wide ones, in fp64, over a table of architectures."""

import copy
import warnings

import pytest
import torch
from dying import CASES, IN, OUT, N, Net, build, chain, features, graph, zero
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import sparsegnn
from sparsegnn.controllers import RigL
from sparsegnn.nn import MaxK


def widths(model):
    return {n: list(p.shape) for n, p in model.named_parameters()}


@pytest.mark.parametrize("name", CASES)
def test_outputs_stay_and_dead_units_go(name):
    model, dead, inputs = build(name)
    wide = copy.deepcopy(model)
    found = sparsegnn.dead_units(model)
    assert {n: x.tolist() for n, x in found.items()} == {n: list(x) for n, x in dead.items()}
    flags = [m.training for m in model.modules()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of dead units that must stay, see below
        assert sparsegnn.compact(model, *inputs) is model
    assert flags == [m.training for m in model.modules()]
    smaller = sum(p.numel() for p in model.parameters())
    assert smaller < sum(p.numel() for p in wide.parameters())
    for mode in (False, True):
        torch.testing.assert_close(model.train(mode)(*inputs), wide.train(mode)(*inputs), rtol=1e-12, atol=1e-12)
    layers = dict(model.named_modules())
    for name, units in dead.items():  # noqa: PLR1704
        width = dict(wide.named_modules())[name]
        for attribute in ("out_features", "num_features", "embedding_dim"):
            if hasattr(width, attribute):
                assert getattr(layers[name], attribute) == getattr(width, attribute) - len(list(units))
    again = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sparsegnn.compact(model)
    assert widths(model) == widths(again)  # nothing is left to remove
    model.load_state_dict(again.state_dict())
    torch.testing.assert_close(model(*inputs), again(*inputs), rtol=0, atol=0)


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-3, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
}
STAYS_DEAD = ("mlp", "gcn", "sage", "called_twice", "pyg", "sparse", "sparse_grouped", "batch_norm")


def losses(model, optimizer, inputs, steps, schedule=None):
    target, found = torch.linspace(-1, 1, N * OUT, dtype=torch.float64).view(N, OUT), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(*inputs) - target).square().mean()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("name, optimizer", [(n, "adam") for n in STAYS_DEAD] + [("gcn", o) for o in OPTIMIZERS])
def test_training_goes_on_as_without(name, optimizer):
    model, _, inputs = build(name)
    made = OPTIMIZERS[optimizer](model.parameters())
    losses(model, made, inputs, 3)  # units with ReLU stay dead
    wide, wide_optimizer = copy.deepcopy((model, made))
    mine = torch.optim.lr_scheduler.StepLR(made, 2, 0.5)
    other = torch.optim.lr_scheduler.StepLR(wide_optimizer, 2, 0.5)
    before = sum(p.numel() for p in model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sparsegnn.compact(model, optimizer=made)
    assert sum(p.numel() for p in model.parameters()) < before
    state = [t for s in made.state.values() for t in s.values() if torch.is_tensor(t) and t.dim()]
    assert all(any(t.shape == p.shape for p in model.parameters()) for t in state)
    want, got = losses(wide, wide_optimizer, inputs, 8, other), losses(model, made, inputs, 8, mine)
    torch.testing.assert_close(torch.tensor(got), torch.tensor(want), rtol=1e-9, atol=1e-12)


KEPT = {
    "layer_norm": (lambda: nn.LayerNorm(8), "1 of 'a', as 'n' (LayerNorm) may mix channels"),
    "softmax": (lambda: nn.Softmax(-1), "1 of 'a', as 'n' (Softmax) may mix channels"),
    "maxk": (lambda: MaxK(4), "1 of 'a', as 'n' (MaxK) may mix channels"),
    "plain_norm": (lambda: shifted(nn.BatchNorm1d(8, affine=False)), "1 of 'a', as they are constant where no"),
    "prelu": (lambda: nn.PReLU(8), "1 of 'a', as 'n' (PReLU) may mix channels"),
    "hooked": (lambda: hooked(nn.ReLU()), "1 of 'a', as 'n' (ReLU) may mix channels"),
    "in_dropout": (lambda: nn.Sequential(nn.Sigmoid(), nn.Dropout(0.5)), "1 of 'a', as they are constant where no"),
}


def hooked(module):
    module.register_forward_hook(lambda m, args, y: y.flip(1))
    return module


@pytest.mark.parametrize("name", KEPT)
def test_units_that_must_stay_are_named(name):
    make, words = KEPT[name]
    model = Net(chain("a", "n", "b"), a=nn.Linear(IN, 8), n=make(), b=nn.Linear(8, OUT)).double()
    zero((model.a.weight, [2]), (model.a.bias, [2]))
    before = widths(model)
    with pytest.warns(UserWarning) as caught:
        sparsegnn.compact(model, features(), graph())
    assert words in str(caught[0].message) and widths(model) == before and not sparsegnn.dead_units(model)


def shifted(norm):
    norm.running_mean += 1
    return norm


def shape_reading(self, x, graph):
    h = F.relu(self.a(x))
    return self.b(h.view(h.shape[0], h.shape[1]))


def in_place(self, x, graph):
    h = self.a(x)
    h.sigmoid_()
    return self.b(h)


def weight_used_elsewhere(self, x, graph):
    return self.b(F.relu(self.a(x))) + self.a.weight.sum()


def sliced(self, x, graph):
    return self.b(F.relu(self.a(x))[:, list(range(8))])


def alpha(self, x, graph):
    h = F.relu(self.a(x))
    return self.b(torch.add(h, h, alpha=2))


def stacked(self, x, graph):
    h = F.relu(self.a(x))
    return self.b(torch.stack([h, h]).sum(0))


def columns_of_ones(self, x, graph):
    return self.b(F.relu(self.a(x)) + torch.ones(8, dtype=torch.float64))


@pytest.mark.parametrize("forward", [shape_reading, in_place, weight_used_elsewhere, sliced, alpha, stacked,
                                     columns_of_ones])  # fmt: skip
def test_around_what_is_not_known_all_channels_stay(forward):
    model = Net(forward, a=nn.Linear(IN, 8), b=nn.Linear(8, OUT)).double()
    zero((model.a.weight, [2]), (model.a.bias, [2]))
    before, y = widths(model), model(features(), None)
    with pytest.warns(UserWarning, match="dead units stay"):
        sparsegnn.compact(model)
    assert widths(model) == before and torch.equal(model(features(), None), y)


def test_tied_parametrized_and_hooked_layers_keep_their_width():
    def net():
        model = Net(chain("a", F.relu, "b", F.relu, "c"), a=nn.Linear(IN, 8), b=nn.Linear(8, 8),
                    c=nn.Linear(8, OUT))  # fmt: skip
        zero((model.a.weight, [2]), (model.a.bias, [2]), (model.b.weight, [4]), (model.b.bias, [4]))
        return model.double()

    tied, pruned, hook, unseen = net(), net(), net(), net()
    tied.unused = nn.Linear(8, 8)
    tied.unused.weight = tied.b.weight
    prune.l1_unstructured(pruned.b, "weight", 0.1)
    hook.b.register_forward_pre_hook(lambda m, args: (args[0].flip(1),))
    unseen.b.reset_parameters()  # its norm of a zero row is NaN
    nn.utils.parametrizations.weight_norm(unseen.b)
    for model in (tied, pruned, hook, unseen):
        y = model(features(), None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sparsegnn.compact(model)
        assert list(model.a.weight.shape) == [8, IN] and list(model.c.weight.shape) == [OUT, 8]
        torch.testing.assert_close(model(features(), None), y)


def test_channels_of_the_last_head():
    model, _, inputs = build("gat_of_which_one_head_is_left")
    sparsegnn.compact(model, *inputs)
    assert (model.a.heads, model.a.out_channels, model.b.in_channels) == (1, 3, 3)


def test_one_unit_stays_where_all_are_dead():
    model, _, inputs = build("mlp")
    zero((model.a.weight, slice(None)), (model.a.bias, slice(None)))
    y = model(*inputs)
    with pytest.warns(UserWarning, match="the last of a layer"):
        sparsegnn.compact(model, *inputs)
    assert model.a.out_features == 1
    torch.testing.assert_close(model(*inputs), y)


def test_a_module_that_cannot_be_traced_stays_as_it_is():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(8, 8)

        def forward(self, x):
            return self.lin(x) if x.sum() > 0 else self.lin(-x)

    model = Net(chain("a", F.relu, "b", F.relu, "c"), a=nn.Linear(IN, 8), b=Looks(), c=nn.Linear(8, OUT)).double()
    zero((model.a.weight, [2]), (model.a.bias, [2]))
    with pytest.warns(UserWarning, match=r"1 of 'a', as 'b' \(Looks\) may mix channels"):
        sparsegnn.compact(model)

    class Root(Looks):
        pass

    with pytest.raises(ValueError, match="compact: model must have a forward.. that torch.fx can trace, got Root"):
        sparsegnn.compact(Root())


def test_optional_arguments_are_those_of_the_example():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(IN, 8), nn.Linear(8, OUT)

        def forward(self, x, mix=None, double=False):
            h = F.relu(self.a(x))
            h = h if mix is None else h @ mix
            return self.b(h) * (2 if double else 1)

    model = Optional()
    zero((model.a.weight, [2]), (model.a.bias, [2]))
    with pytest.warns(UserWarning, match="dead units stay"):
        sparsegnn.compact(model, torch.randn(4, IN), torch.randn(8, 8), True)
    assert sparsegnn.compact(model, torch.randn(4, IN)).a.out_features == 7
    with pytest.raises(ValueError, match="compact: example_inputs must be what forward.* takes, got too many"):
        sparsegnn.compact(model, 1, 2, 3, 4)


def test_a_difference_undoes_everything(monkeypatch):
    from sparsegnn.width import flow

    model, _, inputs = build("gcn")
    model.extra = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam(model.parameters())
    losses(model, optimizer, inputs, 1)
    monkeypatch.setattr(flow.Flow, "kept", lambda self: torch.arange(len(self.channels)) % 8 != 2)
    before, y = copy.deepcopy((model, optimizer)), model.eval()(*inputs)
    with pytest.raises((RuntimeError, ValueError)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sparsegnn.compact(model, *inputs, optimizer=optimizer)
    assert widths(model) == widths(before[0]) and torch.equal(model(*inputs), y)
    assert model.a.out_channels == 8 and model.b.lin.in_features == 8
    torch.testing.assert_close(losses(model, optimizer, inputs, 3), losses(*before, inputs, 3), rtol=0, atol=0)


def test_copies():
    model, dead, inputs = build("sparse")
    average = torch.optim.swa_utils.AveragedModel(model)
    other = sparsegnn.compact(model, inplace=False)
    assert model.a.out_features == 32 and other.a.out_features == 30
    sparsegnn.compact(model)
    assert average.module.a.out_features == 32 and torch.isfinite(average(*inputs)).all()
    with pytest.raises(RuntimeError):
        average.update_parameters(model)


def test_refused():
    model, _, inputs = build("sparse")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    class Unknown(torch.optim.Optimizer):
        pass

    for error, words, arguments in [
        (TypeError, "compact: model must be a torch.nn.Module, got int", (3,)),
        (ValueError, "compact: optimizer must be None with inplace=False, got SGD", (model, optimizer, False)),
        (TypeError, "compact: optimizer must be a torch.optim.Optimizer, got int", (model, 3)),
        (TypeError, "compact: optimizer must be one whose state is known", (model, Unknown(model.parameters(), {}))),
    ]:
        with pytest.raises(error, match=words):
            keywords = dict(zip(("optimizer", "inplace"), arguments[1:], strict=False))
            sparsegnn.compact(arguments[0], **keywords)
    with pytest.raises(TypeError, match="dead_units: model must be"):
        sparsegnn.dead_units(None)
    controller = RigL(model, optimizer)
    with pytest.raises(ValueError, match="compact: model must have no layer that a controller moves, got those of"):
        sparsegnn.compact(model)
    controller.detach()
    assert sparsegnn.compact(model).a.out_features == 30
