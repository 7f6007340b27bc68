"""Methods in a training run: how each one's model starts, what it is asked, what the result says of it."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from controllers.methods import SETTINGS

from sparsegnn import _console, controllers
from sparsegnn import data as graphs
from sparsegnn.cli import settings
from sparsegnn.controllers import METHODS, Controller, registry
from sparsegnn.experiments.config import TrainConfig
from sparsegnn.experiments.models import build, prepare, sparsities, weight_counts, weight_shapes
from sparsegnn.experiments.train import CheckFailed, make_controller, parameter_groups, train
from sparsegnn.nn import SparseLinear

pytest.importorskip("tqdm")


@pytest.fixture(scope="module")
def small():
    return graphs.skewed(240, 8, 4, 24, signal=1.0, seed=3)


@pytest.fixture(autouse=True)
def restore():
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


def config(method, **changes):
    return TrainConfig(**{"data": "skewed", "epochs": 30, "hidden": 16, "progress": False, "method": method, **changes})


def of_old(config, model, optimizer):
    """The first four methods, made by their constructors and nothing else."""
    epochs, stop = config.epochs, config.stop_at or max(1, int(0.75 * config.epochs))
    clock = {"update_every": config.update_every or max(1, epochs // 20), "stop_at": stop}
    if config.method == "static":
        return controllers.StaticSparse(model, optimizer)
    if config.method == "gmp":
        wanted = {"sparsity": 0.9, "distribution": config.distribution or "erk", "start_at": min(epochs // 10, stop)}
        return controllers.GradualMagnitude(model, optimizer, **wanted, **clock)
    kind = {"set": controllers.SET, "rigl": controllers.RigL}[config.method]
    return kind(model, optimizer, drop_fraction=config.drop_fraction or 0.5, seed=config.seed, **clock)


@pytest.mark.parametrize("changes", [{"update_every": 2, "stop_at": 2}, {"distribution": "uniform", "model": "gat"}])
@pytest.mark.parametrize("method", ["static", "set", "rigl", "gmp"])
def test_recipes_are_those_of_the_constructors(small, monkeypatch, method, changes):
    wanted = config(method, seed=5, heads=2, **changes)
    got = train(wanted, small)
    monkeypatch.setattr(registry, "make", lambda cls, model, optimizer, **kw: of_old(wanted, model, optimizer))
    old = train(wanted, small)
    for name in ("test_accuracy", "val_accuracy", "best_epoch", "weights", "flops", "mask_updates"):
        assert got[name] == old[name], name


# --- every method that is registered ---------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("method", list(METHODS))
def test_every_registered_method(small, tmp_path, method):
    cls, path = METHODS[method], str(tmp_path / "m.pt")
    r = train(config(method, epochs=60, save=path, set=SETTINGS.get(method, {})), small)
    again = json.loads(_console.json_text(r))
    assert again["settings"].keys() == registry.settings(cls).keys() and again["phases"][0][1] == 0
    assert 0 < r["weights"] <= r["weights_dense"] and 0 < r["edges_at_end"] <= r["edges_at_start"]
    assert r["weights"] < r["weights_dense"] or cls.start == "plain" or cls.target != "weights"
    if cls.start == "sparse" and cls.keeps_size:
        assert abs(r["sparsity"] - r["config"]["sparsity"]) < 0.01
    steps = [step for _, step in r["phases"]]
    assert steps == sorted(set(steps)) and all(a[0] != b[0] for a, b in itertools.pairwise(r["phases"]))
    checkpoint = torch.load(path, weights_only=True)
    model = build(TrainConfig(**checkpoint["config"]), small)
    model.load_state_dict(checkpoint["model"])


HOSTILE = ("", " ", "nan", "-inf", "-1", "0", "1", "0.5", "1e400", "9" * 30, "none", "true", "a,b", "{}", '{"a": 1}')


@pytest.mark.sampled(3)
@pytest.mark.parametrize("method", list(METHODS))
def test_any_value_of_any_setting_is_taken_or_refused(small, method):
    """What cannot be read, and what the constructor refuses, is bad input; nothing else is raised."""
    cls, graph, done = METHODS[method], prepare("sparsegnn", small), []
    for name, text in itertools.product(registry.settings(cls), HOSTILE):
        try:
            chosen = config(method, hidden=8, set=SETTINGS.get(method, {}) | settings.read(cls, [f"{name}={text}"]))
            model = build(chosen, small)
            made = make_controller(chosen, model, torch.optim.Adam(parameter_groups(model, chosen), lr=0.01), graph)
            made.detach()
            done.append(name)
        except (ValueError, TypeError, OverflowError, MemoryError) as e:
            assert str(e), (name, text)
    assert done or not registry.settings(cls)


# --- what a class says of itself -------------------------------------------------------------------------------------


def registered(name="mine", base=Controller, **members):
    """A class with these members, that updates nothing."""
    members = {"family": "structure", "due": lambda self, step: False, **members}
    return controllers.register(name)(type(name.title(), (base,), members))


@pytest.mark.parametrize("start", ["sparse", "dense", "plain"])
def test_how_the_model_starts(small, start):
    seen = []
    find = {"_find_layers": lambda self, model, optimizer: {}} if start == "plain" else {}
    registered(start=start, begin=lambda self: seen.append(self.model), settled_at=0, **find)
    r = train(config("mine", epochs=2, **({"sparsity": 0.75} if start == "sparse" else {})), small)
    (model,) = seen
    kept, size = weight_counts(model)
    sparse = [isinstance(conv.lin, SparseLinear) for conv in model.convs]
    wanted = {"sparse": (True, True), "dense": (False, True), "plain": (False, False)}
    assert (kept < size, all(sparse)) == wanted[start]
    assert start != "sparse" or abs(kept / size - 0.25) < 0.01
    assert r["phases"] == [["sparse" if start == "sparse" else "dense", 0]]


def test_a_start_that_is_less_sparse_than_the_end(small):
    registered(start="sparse", settled_at=0, start_sparsity=classmethod(lambda cls, sparsity: sparsity / 2))
    assert abs(train(config("mine", epochs=2, sparsity=0.8), small)["sparsity"] - 0.4) < 0.01


def test_a_method_of_one_pattern_gets_it(small):
    registered(start="sparse", patterns="fan_in", settled_at=0)
    model = build(config("mine"), small)
    assert [conv.lin.structure for conv in model.convs] == ["fan_in"] * 2
    assert [conv.lin.structure for conv in build(config("mine", pattern="unstructured"), small).convs] != ["fan_in"] * 2


def test_phases_of_a_method_that_prunes(small):
    r = train(config("gmp", update_every=1, stop_at=20), small)
    assert r["phases"] == [["dense", 0], ["sparse", 4]]  # 30 // 10 = 3 is the first step that may prune, by nothing
    assert r["settings"]["stop_at"] == 20 and r["best_epoch"] >= 19


def test_what_changes_the_graph(small):
    """A method may rewrite the graph in place: the steps after that aggregate over fewer edges, and cost less."""

    def halve(self):
        half = small.edge_index[:, ::2]
        kept = type(self.held).from_edge_index(half, small.num_nodes)
        self.held.__setstate__(kept.__getstate__())

    def init(self, model, optimizer, *, graph=None, seed: int = 0):
        self.held = graph  # which the ledger does not know
        Controller.__init__(self, model, optimizer, update_every=20, stop_at=21)

    nothing = {"_find_layers": lambda self, model, optimizer: {}, "start": "plain", "target": "edges"}
    registered("whole", update=lambda self: None, due=Controller.due, __init__=init, **nothing)
    registered("halved", update=halve, due=Controller.due, __init__=init, **nothing)
    beside = {"after_step": lambda self: halve(self) if self.step == 20 else None, "every_step": True}
    registered("cut", due=lambda self, step: False, __init__=init, **beside, **nothing)  # with no update
    few = replace(small, edge_index=small.edge_index[:, ::2])
    whole, fewer = (train(config("whole", epochs=40), data) for data in (small, few))
    for name in ("halved", "cut"):
        halved = train(config(name, epochs=40), small)
        assert whole["edges_at_end"] == whole["edges_at_start"] == halved["edges_at_start"] > halved["edges_at_end"]
        assert whole["mask_updates"] == 1 and halved["mask_updates"] == (name == "halved")
        assert halved["flops"] == (whole["flops"] + fewer["flops"]) / 2 < whole["flops"]  # after 20 of 40 steps


def test_no_epoch_is_selected_before_a_method_settles(small):
    late = registered("late", settled_at=property(lambda self: 8 if self.step > 3 else 0))
    assert train(config("late", epochs=20, eval_every=1), small)["best_epoch"] not in range(4, 7)
    late.settled_at = property(lambda self: 30 if self.step else 0)
    found = config("late", epochs=20)
    with pytest.raises(CheckFailed, match="late: sparsity must be final by the last epoch, got step 30 of 20"):
        train(found, small)
    late.settled_at = 21
    with pytest.raises(ValueError, match="epochs must be at least 21 for method 'late', whose sparsity is final only"):
        train(found, small)


def test_weights_that_get_lost(small):
    def lose(self):
        self.prune({name: x.values.numel() // 2 for name, x in self.layers.items()})

    members = {"update": lose, "due": lambda self, step: step == 2, "settled_at": 2, "counts": None}
    registered("loses", controllers.Shrinking, keeps_size=True, **members)
    with pytest.raises(CheckFailed, match="loses: the number of weights must not change, "):
        train(config("loses", epochs=4), small)


@pytest.mark.parametrize("distribution", ["er", {"convs.0.lin": 0.5, "convs.1.lin": 0.75}])
def test_distributions(small, distribution):
    model = build(config("set", distribution=distribution), small)
    if isinstance(distribution, dict):
        assert [round(conv.lin.sparsity, 2) for conv in model.convs] == [0.5, 0.75]
    shapes = weight_shapes(config("set"), small.num_features, 4)
    assert list(sparsities(shapes, 0.9, distribution).values()) == [conv.lin.sparsity for conv in model.convs]


BAD = [
    ({"set": [1]}, TypeError, "set must be a dict of settings, got list"),
    ({"set": {"drop_fraction": len}}, TypeError, "set must have numbers, texts, lists and dicts, got drop_fraction="),
    ({"method": 3}, TypeError, "method must be a name or 'module:Class', got int"),
    ({"method": "dense", "set": {"x": 1}}, ValueError, "set must be empty for method 'dense', which has no settings"),
    ({"pattern": "2:4", "sparsity": 0.9}, ValueError, "sparsity must be 0.5 for pattern '2:4'"),
    ({"distribution": ["erk"]}, ValueError, "distribution must be one of erk, er, uniform, global"),
]


@pytest.mark.parametrize("changes, error, words", BAD)
def test_refused(small, changes, error, words):
    with pytest.raises(error, match=words):
        train(config(**{"method": "rigl", **changes}), small)
