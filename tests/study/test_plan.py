"""The runs of a configuration: which, in which order, with which names and ids; and widths of nets of equal cost."""

import importlib
import itertools
from dataclasses import replace

import numpy as np
import pytest
from study.tiny import TOML, write

from sparsegnn.experiments.models import build, weight_counts
from sparsegnn.study import tasks
from sparsegnn.study.baselines import Widths, dense_weights, interpolated, short
from sparsegnn.study.config import read
from sparsegnn.study.plan import plan
from sparsegnn.study.progress import Estimate, duration

pytest.importorskip("tqdm")


def planned(folder, text=TOML):
    return plan(read(write(folder, text)))


def test_runs(tmp_path):
    runs = planned(tmp_path)
    name = "small gcn 16: "
    cases = {r.case.removeprefix(name): r for r in runs}
    assert list(cases) == [
        "dense", "rigl 50 %", "rigl 90 %", "gmp 50 %", "masked-dense 50 %", "masked-dense 90 %",
        "dense of equal weights, rigl 50 %", "dense of equal weights, rigl 90 %", "dense of equal weights, gmp 50 %",
    ]  # fmt: skip
    assert [r.seed for r in runs] == [0, 1] * 9 and len({r.id for r in runs}) == 18
    assert all(len(r.id) == 12 and int(r.id, 16) >= 0 for r in runs)
    assert cases["rigl 90 %"].config.sparsity == 0.9 == cases["rigl 90 %"].sparsity
    assert cases["dense"].config.method == "dense" and cases["dense"].of is None
    assert cases["masked-dense 50 %"].of == name + "rigl 50 %"
    assert cases["dense of equal weights, gmp 50 %"].of == name + "gmp 50 %"
    assert {r.matches for r in runs if r.role == "small_dense"} == {"weights"}


def test_ids_follow_the_settings(tmp_path):
    """The same settings have the same id in any file, at any place; others have others."""
    first = {r.id for r in planned(tmp_path)}
    moved = TOML.replace('name = "tiny"', 'name = "other"').replace("threads = 1\n", "").replace("\n\n", "\n# x\n\n")
    assert {r.id for r in planned(tmp_path, moved)} == first
    for change in (("epochs = 6", "epochs = 7"), ("hidden = 16", "hidden = 17"), ("[methods.gmp]", "[methods.set]")):
        other = {r.id for r in planned(tmp_path, TOML.replace(*change))}
        assert len(other & first) == (0 if "gmp" not in change[0] else 14)


def test_settings_of_methods_are_not_those_of_dense_nets(tmp_path):
    text = TOML.replace("epochs = 6", 'epochs = 6\nupdate_every = 2\npattern = "unstructured"')
    text = text.replace("[methods.rigl]", '[methods.mine]\nmethod = "rigl"\nset = { drop_fraction = 0.25 }\nepochs = 8')
    runs = {r.case.partition(": ")[2]: r.config for r in planned(tmp_path, text)}
    assert runs["mine 50 %"].set == {"drop_fraction": 0.25} and runs["mine 50 %"].method == "rigl"
    assert (runs["mine 50 %"].update_every, runs["mine 50 %"].epochs) == (2, 8)
    assert (runs["gmp 50 %"].update_every, runs["gmp 50 %"].epochs) == (2, 6)
    for title in ("dense", "masked-dense 50 %", "dense of equal weights, mine 50 %"):
        assert (runs[title].update_every, runs[title].pattern, runs[title].set) == (None, None, {})


def test_methods_without_a_sparsity_run_once(tmp_path):
    text = TOML.replace("[methods.gmp]\nsparsity = 0.5", "[methods.maxk]\nset = { k = 4 }").replace(
        '["weights"]', '["weights", "time", "memory"]\noneshot = true\nof = ["maxk"]'
    )
    cases = {r.case.partition(": ")[2] for r in planned(tmp_path, text)}
    assert {c for c in cases if "maxk" in c} == {"maxk", "dense of equal time, maxk", "dense of equal memory, maxk"}
    assert {"oneshot 50 %", "oneshot 90 %"} <= cases and not any("equal" in c and "rigl" in c for c in cases)


def test_methods_for_some_models(tmp_path):
    text = TOML.replace("hidden = 16", 'hidden = 16\nmodel = ["gcn", "sage"]').replace(
        "[methods.gmp]", '[methods.gmp]\nmodels = "gcn"'
    )
    assert {r.model for r in planned(tmp_path, text) if "gmp" in r.case} == {"gcn"}
    assert {r.model for r in planned(tmp_path, text) if "rigl" in r.case} == {"gcn", "sage"}


def test_sets_that_cost_less_come_first(tmp_path):
    entry = '[[data]]\nname = "big"\nfile = "small.npz"\nhidden = [16, 512]\nseeds = [7]\n'
    runs = planned(tmp_path, TOML.replace("[[data]]", entry + "[[data]]", 1))
    dense = [(r.set.name, r.config.hidden, r.seed) for r in runs if r.role == "dense"]
    assert dense == [("small", 16, 0), ("small", 16, 1), ("big", 16, 7), ("big", 512, 7)]
    roles = [role for role, _ in itertools.groupby(r.role for r in runs)]
    assert roles == ["dense", "sparse", "masked", "small_dense"]


# --- widths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["gcn", "gat", "sage", "gin", "sign", "mlp"])
def test_width_of_equal_weights_is_the_nearest(tmp_path, model):
    """Against the weights of models that are built, at every width."""
    run = planned(tmp_path, TOML.replace("hidden = 16", f'model = "{model}"\nhidden = 12'))[0]
    data = tasks.load("nodes", run.set.source)
    config = replace(run.config, heads=2)
    counts = [weight_counts(build(replace(config, hidden=w), data))[0] for w in range(1, 13)]
    for aim in (1, counts[0] + 1, sum(counts[3:5]) / 2 - 1, counts[6], counts[-1] - 1, 10 * counts[-1]):
        width, about = Widths(None).find("weights", [{"weights": aim}], config, data)
        assert abs(counts[width - 1] - aim) == min(abs(c - aim) for c in counts), aim
        assert about == {"quantity": "weights", "aimed_at": aim}


@pytest.mark.parametrize(
    "task, model", [("links", "walk"), ("links", "gcn"), ("traffic", "stgcn"), ("traffic", "stgat")]
)
def test_weights_of_other_tasks_are_those_of_their_models(task, model):
    found = tasks.find(task)
    config = found.config(data={"links": "meetings", "traffic": "ringroad"}[task], model=model, hidden=16)
    models = importlib.import_module(f"{type(config).__module__.rpartition('.')[0]}.models")
    built = models.build(config, 7) if task == "links" else models.build(config)
    assert dense_weights(config, None) == weight_counts(built)[1]


@pytest.mark.parametrize("matches", ["time", "memory"])
def test_width_of_equal_cost(tmp_path, matches):
    """A training whose costs are known: width squared, with noise that must not mislead."""
    trained = []

    def train(config, data):
        trained.append(config)
        cost = config.hidden**2 + (30 if config.hidden == 8 else 0)
        return {"seconds_training": cost * config.epochs, "steps": config.epochs, "run_memory_bytes": cost}

    config = replace(planned(tmp_path)[0].config, hidden=64, epochs=200)
    widths = Widths(train)
    wanted = [{"seconds_training": 10 * c, "steps": 10, "run_memory_bytes": c} for c in (1024, 1000, 1030)]
    width, about = widths.find(matches, wanted, config, None)
    assert width == 32 and about["aimed_at"] == 1024
    once = len(trained)
    assert widths.find(matches, wanted[:1], replace(config, seed=3), None)[0] == 32 and len(trained) == once
    assert {c.hidden for c in trained} == {1, 4, 8, 16, 32, 48, 64} and {c.epochs for c in trained} == {24}
    assert widths.find(matches, [{"seconds_training": 1, "steps": 9, "run_memory_bytes": 0}], config, None)[0] == 1
    many = [{"seconds_training": 1e9, "steps": 1, "run_memory_bytes": 1e9}]
    assert widths.find(matches, many, config, None)[0] == 64


@pytest.mark.parametrize(
    "matches, aim, width", [("weights", 100, 8), ("weights", 1, 4), ("time", 130, 12), ("memory", 9, 4)]
)
def test_only_widths_that_the_settings_allow(tmp_path, monkeypatch, matches, aim, width):
    """Here multiples of 4: the nearest of these, and nothing else is trained."""
    kind, trained = type(planned(tmp_path)[0].config), []
    init = kind.__post_init__

    def multiples(self):
        init(self)
        if self.hidden % 4:
            raise ValueError(f"hidden must be a multiple of 4, got {self.hidden}")

    def train(config, data):
        trained.append(config.hidden)
        return {"seconds_training": config.hidden**2, "steps": 1, "run_memory_bytes": config.hidden**2}

    monkeypatch.setattr(kind, "__post_init__", multiples)
    config, data = replace(planned(tmp_path)[0].config, hidden=32), tasks.load("nodes", planned(tmp_path)[0].set.source)
    row = {"weights": aim, "seconds_training": aim, "steps": 1, "run_memory_bytes": aim}
    assert Widths(train).find(matches, [row], config, data)[0] == width
    assert all(hidden % 4 == 0 for hidden in trained)


def test_interpolation_passes_over_plateaus():
    assert interpolated(5, [1, 2, 4, 8], [1, 5, 4, 9]) == 2
    assert interpolated(7, [1, 2, 4, 8], [1, 5, 4, 9]) == 5
    assert interpolated(10.0, [1, 2, 3, 4, 5], [1, 9, 4, 5, 12]) == 3  # what is too high is not believed to fall again
    assert interpolated(0, [3, 4], [1, 2]) == 3 and interpolated(9, [3, 4], [2, 2]) == 3


def test_short_trainings_look_once(tmp_path):
    config = short(replace(planned(tmp_path)[0].config, epochs=10))
    assert (config.epochs, config.eval_every) == (10, 10)


# --- time left -------------------------------------------------------------------------------------------------------


def test_time_left(tmp_path):
    runs = planned(tmp_path)
    estimate = Estimate(runs, {})
    assert estimate.left(runs) is None and estimate.left([]) == 0
    rigl = [r for r in runs if "16: rigl 50" in r.case]
    for r in rigl:
        estimate.add(r, 3.0)
    assert estimate.seconds(rigl[0]) == pytest.approx(3.0) and estimate.left(rigl) == pytest.approx(6.0)
    dense = next(r for r in runs if r.role == "dense")
    assert estimate.seconds(dense) == pytest.approx(3.0 * dense.cost / rigl[0].cost)
    estimate.add(dense, 10.0)
    assert estimate.seconds(dense) == pytest.approx(10.0) and estimate.seconds(rigl[0]) == pytest.approx(3.0)
    resumed = Estimate(runs, {rigl[0].id: {"seconds_wall": 3.0}, dense.id: {}})
    assert resumed.left(rigl) == pytest.approx(6.0)


def test_durations():
    assert [duration(s) for s in (None, 0.4, 59.6, 3599, 3600, 90061)] == [
        "?", "0 s", "1 min 00 s", "59 min 59 s", "1 h 00 min", "25 h 01 min"]  # fmt: skip


def test_costs_are_positive(tmp_path):
    assert np.all([r.cost > 0 for r in planned(tmp_path)])
