"""Runs of temporal link prediction: both protocols, families of methods, selection, metrics, leaks."""

import dataclasses
import importlib
import json

import numpy as np
import pytest
import torch

from sparsegnn import _console
from sparsegnn import data as sets
from sparsegnn.controllers import METHODS
from sparsegnn.data import EventData
from sparsegnn.experiments.links import Leak, LinkConfig, models, train
from sparsegnn.experiments.loop import CheckFailed
from sparsegnn.experiments.models import linears
from sparsegnn.graph import CSRGraph

pytest.importorskip("tqdm")
pytest.importorskip("sklearn")
pytest.importorskip("gensim")
runs = importlib.import_module("sparsegnn.experiments.links.train")
SAME = ("val", "test", "tests", "selected_step", "weights", "flops", "layers")


@pytest.fixture(scope="module")
def data():
    return sets.meetings(60, 4, 1500, seed=2)


def config(model="gcn", method="dense", **changes):
    small = {
        "hidden": 16,
        "features": 8,
        "walks": 3,
        "length": 6,
        "passes": 5,
        "epochs": 5,
        "batch": 512,
        "progress": False,
    }
    return LinkConfig(**{"model": model, "method": method, **small, **changes})


def newcomers(groups=4, settled=10, new=10, count=700, seed=0) -> EventData:
    """In the past, nodes of groups meet their own, and each newcomer met anyone; then newcomers meet only one group.

    Which group that is, nothing in the past says.
    """
    rng = np.random.default_rng(seed)
    old, late, past = groups * settled, groups * new, int(0.7 * count)
    source = rng.integers(0, old, past)
    target = source % groups + groups * rng.integers(0, settled, past)
    first = rng.choice(past, late, replace=False)
    source[first], target[first] = old + np.arange(late), rng.integers(0, old, late)
    then = old + rng.integers(0, late, count - past)
    theirs = then % groups + groups * rng.integers(0, settled, count - past)
    return EventData(np.append(source, then), np.append(target, theirs), np.arange(count), old + late, "newcomers")


# --- models ----------------------------------------------------------------------------------------------------------


def test_the_shapes_of_the_original():
    """A pair of embeddings of 8 through 128 to one logit."""
    wanted = LinkConfig(model="walk")
    assert models.weight_shapes(wanted) == {"inputs.0": (128, 16), "layers.0": (1, 128)}
    assert (wanted.optimizer, wanted.lr, wanted.lr_decay, wanted.batch, wanted.epochs) == ("sgd", 0.05, 0.98, 1024, 20)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("model", ["walk", "gcn"])
def test_weight_shapes(model, layers):
    wanted = config(model, layers=layers, hidden=8)
    made = {n: tuple(m.weight.shape) for n, m in linears(models.build(wanted, 20)).items()}
    assert made == models.weight_shapes(wanted)


def test_the_scorer_is_an_mlp_on_both_ends():
    """Against the product by W of the two rows of a pair, side by side."""
    torch.manual_seed(0)
    model = models.build(config(hidden=6), 10)
    graph = CSRGraph.from_edge_index(torch.tensor([[0, 1, 2, 5], [1, 0, 3, 6]]), 10)
    source, target = torch.tensor([0, 3, 3, 9]), torch.tensor([1, 0, 3, 2])
    z = model.encoder(model.nodes, graph).relu()
    first, second = model.ends.weight.chunk(2)
    b, c = model.ends.bias.chunk(2)
    pair = torch.cat([z[source], z[target]], 1)
    hidden = (pair @ torch.cat([first, second], 1).T + b + c).relu()
    torch.testing.assert_close(model(graph, source, target), (hidden @ model.out.weight.T + model.out.bias)[:, 0])


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_by_hand():
    """Of six pairs with one tie: pairs of a positive and a negative in the right order, and precision at each hit."""
    logits, labels = torch.tensor([3.0, 2.0, 1.0, 1.0, 0.0, -1.0]), torch.tensor([1.0, 0, 1, 0, 1, 0])
    # over the 9 pairs: 3 > all three; 1 > -1, ties 1, loses to 2: 1.5; 0 > -1: 1
    auc = (3 + 1.5 + 1) / 9
    ap = 1 / 3 * 1 + 1 / 3 * (2 / 4) + 1 / 3 * (3 / 5)
    assert runs.scores(logits, labels) == {"auc": pytest.approx(auc), "ap": pytest.approx(ap)}
    assert np.isnan(runs.scores(logits.log(), labels)["auc"])  # of logits that are no numbers


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, method",
    [("walk", m) for m in ("dense", "set", "rigl", "gmp", "slr")]
    + [("gcn", m) for m in ("dense", "static", "rigl", "admm")],
)
def test_every_family(data, model, method):
    epochs = 12 if method in ("slr", "admm") else 5
    r = train(config(model, method, epochs=epochs), data)
    json.loads(_console.json_text(r))
    assert (r["task"], r["metric"], r["higher_is_better"]) == ("links", "auc", True)
    assert 0 <= r["test"] == r["tests"]["auc"] <= 1 and 0 < r["tests"]["ap"] <= 1 and 0 <= r["val"] <= 1
    pairs = 3 * r["pairs"]["train"]
    assert r["steps"] == epochs * -(-pairs // 512) and r["config"]["batch"] == 512
    wanted = 0 if method == "dense" else 0.9
    assert r["sparsity"] == 1 - r["weights"] / r["weights_dense"] and abs(r["sparsity"] - wanted) < 0.03
    assert (r["mask_updates"] > 0) == (method not in ("dense", "static"))
    if r["mask_updates"]:
        assert r["selected_step"] >= r["settings"]["stop_at"]
    assert set(r["layers"]) == set(models.weight_shapes(config(model)))
    assert all(points[0][0] == 0 and points[-1][0] <= r["steps"] for points in r["layers"].values())
    assert r["flops"] > 0 and r["seconds_training"] > 0 and (r["flops_aggregation"] > 0) == (model == "gcn")
    steps, val, test, flops, seconds = r["curve"][-1]
    assert (steps, flops) == (r["steps"], r["flops"]) and seconds == pytest.approx(r["seconds_training"])
    assert max(point[1] for point in r["curve"]) == r["val"] and test == r["test"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_trains_or_says_why_not(data, method):
    from controllers.methods import SETTINGS

    try:
        r = train(config("gcn", method, epochs=10, batch=4096, set=SETTINGS.get(method, {})), data)
    except ValueError as e:
        assert "must" in str(e)
    else:
        assert r["weights"] <= r["weights_dense"] and r["selected_step"] > 0


@pytest.mark.parametrize("model", ["walk", "gcn"])
def test_same_seed_same_result(data, model):
    copy = dataclasses.replace(data)  # what is kept is found by what the data are
    first, again, other = (train(config(model, "rigl", seed=s), d) for s, d in ((1, data), (1, copy), (2, data)))
    assert [first[n] for n in SAME] == [again[n] for n in SAME]
    assert [p[:4] for p in first["curve"]] == [p[:4] for p in again["curve"]]
    assert first["val"] != other["val"] and first["pairs"] == other["pairs"]
    third = train(config(model, "rigl", seed=1, split_seed=5), data)
    assert third["pairs"] == first["pairs"] and third["val"] != first["val"]


def test_walks_are_the_same_without_what_is_kept(data):
    first = train(config("walk"), data)
    for kept in (runs.split_once, runs.walk_embeddings):
        kept.cache_clear()
    again = train(config("walk"), data)
    assert [first[n] for n in SAME] == [again[n] for n in SAME]


@pytest.mark.parametrize("model", ["walk", "gcn"])
def test_learns_who_meets_whom(model):
    """More than the numbers of neighbours tell, as the groups are there to be learned."""
    data = sets.meetings(80, 4, 2500, within=0.95, seed=1)
    changes = {"hidden": 32, "epochs": 12, "walks": 10, "length": 10, "passes": 20}
    changes |= {"optimizer": "adam", "lr": 0.01} if model == "walk" else {}
    changes |= {"hidden": 64, "lr": 0.02} if model == "gcn" else {}
    methods = {"dense": None, "rigl": 0.75}
    dense, sparse = (train(config(model, m, sparsity=s, **changes), data) for m, s in methods.items())
    assert dense["levels"]["preferential_attachment"] < 0.75
    assert dense["test"] > 0.85 and sparse["test"] > 0.8


def test_the_test_pairs_never_select(data, monkeypatch):
    """Other labels of the test pairs change the reported test metrics and nothing else."""
    first = train(config(method="set", epochs=6), data)

    def turned(events, seed):
        links = split(events, seed)
        return dataclasses.replace(links, test=dataclasses.replace(links.test, label=1 - links.test.label))

    split = runs.split_once
    monkeypatch.setattr(runs, "split_once", turned)
    second = train(config(method="set", epochs=6), data)
    assert (first["val"], first["selected_step"]) == (second["val"], second["selected_step"])
    assert first["test"] == pytest.approx(1 - second["test"]) and first["test"] != second["test"]


def test_batches_cover_each_pair_once_an_epoch(data):
    links = runs.split(data, 0)
    task = runs.Task(config(), data, links, torch.device("cpu"))
    batches = list(task.batches())
    assert [b[0].numel() for b in batches[:-1]] == [512] * (len(batches) - 1)
    source, target, label = (torch.cat(parts) for parts in zip(*batches, strict=True))
    key = sorted(zip(source.tolist(), target.tolist(), label.tolist(), strict=True))
    wanted = zip(links.train.source.tolist(), links.train.target.tolist(), links.train.label.tolist(), strict=True)
    assert key == sorted(wanted) and source[:50].tolist() != links.train.source[:50].tolist()


def test_methods_of_an_update_an_epoch_have_one_an_epoch():
    wanted = config(method="slr", epochs=12).in_batches(10)
    assert wanted.steps == 120 and wanted.common()["update_every"] == 10
    assert config(method="slr", update_every=3).in_batches(10).common()["update_every"] == 3
    assert "update_every" not in config(method="rigl").in_batches(10).common()


def test_the_learning_rate_falls_after_each_epoch(data, monkeypatch):
    seen, make = [], runs.make_optimizer

    def watched(config, model):
        seen.append(make(config, model))
        return seen[-1]

    monkeypatch.setattr(runs, "make_optimizer", watched)
    train(config("walk", lr=0.5, lr_decay=0.9, epochs=4), data)
    assert [g["lr"] for g in seen[0].param_groups] == [pytest.approx(0.5 * 0.9**4)]
    assert seen[0].param_groups[0]["momentum"] == 0.9 and seen[0].param_groups[0]["nesterov"]


# --- leaks -----------------------------------------------------------------------------------------------------------


def future(links, data):
    """The graph of all events, those of the test among them."""
    place = np.full(data.num_nodes, -1)
    place[links.nodes] = np.arange(links.num_nodes)
    source, target = place[data.source], place[data.target]
    fine = (source >= 0) & (target >= 0) & (source != target)
    edges = np.stack([np.append(source[fine], target[fine]), np.append(target[fine], source[fine])])
    return CSRGraph.from_edge_index(torch.from_numpy(np.unique(edges, axis=1)), links.num_nodes)


def test_a_graph_that_knows_the_future_is_refused_and_would_have_shown(monkeypatch):
    """One edge of the future is refused. With the check away, the whole future scores what nobody can know."""
    data = newcomers()
    wanted = config(hidden=32, features=16, epochs=30, batch=4096, lr=0.02)
    honest = train(wanted, data)
    assert honest["test"] < 0.65
    graph_of = runs.message_graph

    def one_more(links):
        graph, p = graph_of(links), links.test.positives
        old = set(zip(graph.rows().tolist(), graph.col.tolist(), strict=True))
        u, v = next(e for e in zip(links.test.source[:p], links.test.target[:p], strict=True) if e not in old)
        edges = torch.stack([graph.col.long(), graph.rows()])
        return CSRGraph.from_edge_index(torch.cat([edges, torch.tensor([[u], [v]])], 1), links.num_nodes)

    for leaky in (one_more, lambda links: future(links, data)):
        monkeypatch.setattr(runs, "message_graph", leaky)
        with pytest.raises(Leak, match="graph: must have pairs with events before"):
            train(wanted, data)
    monkeypatch.setattr(runs, "check_past", lambda *args: None)
    assert train(wanted, data)["test"] > honest["test"] + 0.2


def test_walks_that_know_the_future_are_refused(monkeypatch, data):
    def leaky(events, seed):
        links = runs.split(events, seed)
        return dataclasses.replace(links, past=dataclasses.replace(links.past, time=links.past.time + 10**6))

    monkeypatch.setattr(runs, "split_once", leaky)
    with pytest.raises(Leak, match="walks: must have events before"):
        train(config("walk"), data)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"model": "gat"}, ValueError, "model must be one of walk, gcn, got 'gat'"),
        ({"optimizer": "lbfgs"}, ValueError, "optimizer must be one of sgd, adam"),
        ({"hidden": 0}, ValueError, "hidden must be a positive integer, got 0"),
        ({"hidden": 8.0}, TypeError, "hidden must be a positive integer, got 8.0"),
        ({"features": -1}, ValueError, "features must be an integer of at least 1"),
        ({"length": 1}, ValueError, "length must be an integer of at least 2, got 1"),
        ({"walks": True}, TypeError, "walks must be"),
        ({"batch": 0}, ValueError, "batch must be a positive integer"),
        ({"lr": float("nan")}, ValueError, "lr must be in"),
        ({"lr_decay": 0}, ValueError, r"lr_decay must be in \[1e-6, 1\]"),
        ({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\)"),
        ({"seed": -1}, ValueError, "seed must be"),
        ({"sparsity": 0.5}, ValueError, "sparsity must be 0 for method 'dense'"),
        ({"method": "rigl", "sparsity": 1.0}, ValueError, r"sparsity must be in \[0, 1\)"),
        ({"method": "nothing"}, ValueError, "method must be one of dense, "),
        ({"method": "rigl", "set": {"nothing": 1}}, ValueError, "must have the setting 'nothing'"),
        ({"method": "rigl", "distribution": "global"}, ValueError, "distribution must not be 'global'"),
        ({"method": "gmp", "drop_fraction": 0.3}, ValueError, "drop_fraction must be left out"),
        ({"model": "walk", "method": "kedge"}, ValueError, "model must be one that aggregates"),
        ({"eval_every": 0}, ValueError, "eval_every must be"),
    ],
)
def test_bad_settings(changes, error, words):
    with pytest.raises(error, match=words):
        LinkConfig(**{"model": "gcn", **changes})


def test_a_method_that_does_not_fit_is_refused(data):
    with pytest.raises(ValueError, match="must be at least 10000"):
        train(config(method="rigl", stop_at=10_000), data)


def test_divergence_is_reported(data):
    with pytest.raises(CheckFailed, match="training diverged"):
        train(config("walk", lr=1e30), data)


def test_data_by_name():
    assert train(config("gcn", epochs=1, data="meetings"))["data"] == "meetings"
    with pytest.raises(ValueError, match="no set named"):
        train(config(data="nothing"))
