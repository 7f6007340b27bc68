"""Events of temporal link prediction: the split by time, negatives, walks, and that leaks of the future are refused."""

import dataclasses
import json

import numpy as np
import pytest

from sparsegnn import data as sets
from sparsegnn.data import EventData
from sparsegnn.experiments.links import events, walks
from sparsegnn.experiments.links.events import Leak, LinkSplit, check_past, others, split
from sparsegnn.experiments.links.heuristics import levels


def random_events(n=40, count=1500, seed=0, kind=np.int64) -> EventData:
    """Events with repeats, self-loops, many at one time, and nodes that appear late."""
    rng = np.random.default_rng(seed)
    time = np.sort(rng.integers(0, count // 3, count)).astype(kind)
    source, target = rng.integers(0, n, (2, count))
    late = rng.random(count) < 0.1
    source = np.where(late & (np.arange(count) > 0.8 * count), n + rng.integers(0, 3, count), source)
    return EventData(source, target, time, n + 5, "random")


@pytest.fixture(scope="module")
def data():
    return random_events()


@pytest.fixture(scope="module")
def links(data):
    return split(data, seed=1)


def pairs_of(source, target) -> set:
    return set(zip(source.tolist(), target.tolist(), strict=True))


def by_hand(data: EventData, first, second) -> list[set]:
    """The positives of each part, as pairs of ids of the data, event by event."""
    known, parts = set(), [set(), set(), set()]
    rows = list(zip(data.source.tolist(), data.target.tolist(), data.time.tolist(), strict=True))
    for u, v, t in rows:
        if t < first and u != v:
            known |= {u, v}
    for u, v, t in rows:
        if u != v and u in known and v in known:
            parts[0 if t < first else 1 if t < second else 2].add((u, v))
    return parts


# --- the split -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.int64, np.float64])
def test_split_by_time(kind):
    data = random_events(kind=kind)
    links = split(data)
    first, second = links.start
    share = np.cumsum([(data.time < first).mean(), ((data.time >= first) & (data.time < second)).mean()])
    assert np.allclose(share, [0.7, 0.85], atol=0.01)  # events of one time stay together
    for pairs, wanted in zip((links.train, links.val, links.test), by_hand(data, first, second), strict=True):
        p = pairs.positives
        assert p == len(wanted) > 50
        assert pairs_of(links.nodes[pairs.source[:p]], links.nodes[pairs.target[:p]]) == wanted
        assert pairs.label.tolist() == [1.0] * p + [0.0] * 2 * p
    assert links.past.time.max() < first <= second
    past = (data.time < first) & (data.source != data.target)
    assert np.array_equal(links.nodes[links.past.source], data.source[past])
    assert np.array_equal(links.past.time, data.time[past])
    assert set(links.nodes) == set(data.source[past]) | set(data.target[past])
    assert any("left out" in note for note in links.notes) and links.num_nodes < data.num_nodes


def test_negatives(links):
    for pairs in (links.train, links.val, links.test):
        p = pairs.positives
        u, v = pairs.source.reshape(3, p), pairs.target.reshape(3, p)
        positive = pairs_of(u[0], v[0])
        assert np.array_equal(v[1], v[0]) and np.array_equal(u[2], u[0])  # one end of each corruption stays
        for kind in (1, 2):
            assert not pairs_of(u[kind], v[kind]) & positive
            assert (u[kind] != v[kind]).all()
            assert u[kind].min() >= 0 and max(u[kind].max(), v[kind].max()) < links.num_nodes


def test_negatives_are_fixed_by_the_seed(data):
    first, again, other = split(data, 3), split(data, 3), split(data, 4)
    for name in ("train", "val", "test"):
        for part in ("source", "target"):
            a, b, c = (getattr(getattr(s, name), part) for s in (first, again, other))
            assert np.array_equal(a, b) and not np.array_equal(a, c)
            p = a.size // 3
            assert np.array_equal(a[:p], c[:p])
    assert not np.array_equal(first.val.source[:30], first.test.source[:30])


def test_others_are_drawn_evenly():
    """Node 0 has banned 1, 3 and 4 of 7, so 2, 5 and 6 are left, each a third of the time."""
    kept = np.zeros(30000, dtype=np.int64)
    drawn = others(kept, np.resize([1, 3, 4], kept.size), np.arange(7), np.random.default_rng(0), "x")
    count = np.bincount(drawn, minlength=7)
    assert count[[0, 1, 3, 4]].sum() == 0 and (abs(count[[2, 5, 6]] - 10000) < 400).all()


@pytest.mark.parametrize("n", [2, 3, 17])
def test_others_against_a_loop(n):
    rng = np.random.default_rng(n)
    kept, banned = rng.integers(0, n, (2, 4 * n))
    allowed = {u: set(range(n)) - {u} - {b for k, b in zip(kept, banned, strict=True) if k == u} for u in range(n)}
    free = np.array([u for u in kept if allowed[u]])
    fine = np.array([bool(allowed[u]) for u in kept])
    if not fine.all():
        with pytest.raises(ValueError, match="must leave every node one that it has no event with"):
            others(kept, banned, np.arange(n), rng, "x")
    if free.size:
        drawn = others(kept[fine], banned[fine], np.arange(n), rng, "x")
        assert all(d in allowed[u] for u, d in zip(free, drawn, strict=True))


def test_a_node_with_events_with_all_others_has_no_negative():
    n = 6
    rest = np.arange(1, n)
    source = np.concatenate([np.zeros(5), np.resize(rest, 95)]).astype(int)
    target = np.concatenate([rest, np.resize(np.roll(rest, 1), 95)])
    data = EventData(source, target, np.arange(100), n, "star")
    with pytest.raises(ValueError, match="got node 0 with events with all 5 others"):
        split(data)


@pytest.mark.parametrize(
    "times, words",
    [(np.zeros(50, dtype=int), "must have training events"), (np.arange(1), "enough to split by time")],
)
def test_events_that_cannot_be_split(times, words):
    rng = np.random.default_rng(0)
    source = rng.integers(0, 20, times.size)
    with pytest.raises(ValueError, match=words):
        split(EventData(source, (source + 1) % 20, times, 20, "few"))


# --- walks -----------------------------------------------------------------------------------------------------------


def test_walks_follow_events_in_the_order_of_time(links):
    nodes, times = walks.temporal_walks(links.past, 4, 7, seed=0)
    assert nodes.shape == (4 * links.num_nodes, 7) and times.shape == (4 * links.num_nodes, 6)
    assert np.array_equal(nodes[:, 0], np.tile(np.arange(links.num_nodes), 4))
    past = links.past
    happened = {
        (*sorted((u, v)), t)
        for u, v, t in zip(past.source.tolist(), past.target.tolist(), past.time.tolist(), strict=True)
    }
    last = {}  # time of a node's last event
    for u, v, t in happened:
        last[u], last[v] = max(last.get(u, t), t), max(last.get(v, t), t)
    lengths = (nodes >= 0).sum(1)
    assert lengths.min() >= 2 and lengths.max() == 7
    for walk, when, length in zip(nodes.tolist(), times.tolist(), lengths, strict=True):
        steps = list(zip(walk, walk[1:length], when, strict=False))
        assert all((*sorted((u, v)), t) in happened for u, v, t in steps)
        assert all(a < b for a, b in zip(when[: length - 1], when[1 : length - 1], strict=False))
        assert walk[length:] == [-1] * (7 - length)
        if length < 7:  # it ended because there was nothing later
            assert last[walk[length - 1]] == when[length - 2]
    again, other = walks.temporal_walks(past, 4, 7, seed=0), walks.temporal_walks(past, 4, 7, seed=1)
    assert np.array_equal(again[0], nodes) and np.array_equal(again[1], times) and not np.array_equal(other[0], nodes)


def test_a_step_takes_each_later_event_as_often():
    """From node 1, reached at time 5, events at 6, 7 and 8 are left, of which two lead to node 3."""
    rows = [(0, 1, 5), (1, 2, 4), (1, 2, 6), (1, 3, 7), (3, 1, 8)]
    u, v, t = np.array(sorted(rows, key=lambda r: r[2])).T
    nodes, _ = walks.temporal_walks(EventData(u, v, t, 4, "x"), 3000, 3, seed=0)
    from_zero = nodes[nodes[:, 0] == 0]
    assert (from_zero[:, 1] == 1).all()
    share = np.bincount(from_zero[:, 2], minlength=4) / from_zero.shape[0]
    assert np.allclose(share, [0, 0, 1 / 3, 2 / 3], atol=0.04)


def test_embeddings_are_the_same_every_time(links):
    pytest.importorskip("gensim")
    nodes, _ = walks.temporal_walks(links.past, 3, 6, seed=0)
    first, again, other = (walks.embed(nodes, links.num_nodes, 8, 5, seed) for seed in (5, 5, 6))
    assert first.shape == (links.num_nodes, 8) and first.dtype == np.float32 and np.isfinite(first).all()
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_embeddings_know_the_groups():
    pytest.importorskip("gensim")
    data = sets.meetings(60, 3, 4000, within=1.0)
    links = split(data)
    made = walks.walk_embeddings(data, links, 10, 10, 8, 20, 0)
    group = (np.random.default_rng(0).permutation(60) % 3)[links.nodes]
    unit = made / np.linalg.norm(made, axis=1, keepdims=True)
    same = group[:, None] == group
    near = unit @ unit.T
    assert near[same].mean() > near[~same].mean() + 0.2


# --- leaks -----------------------------------------------------------------------------------------------------------


def leaked(links: LinkSplit, data: EventData) -> LinkSplit:
    """With a pair of the test among the events of the past, at a time of the past."""
    old = pairs_of(links.past.source, links.past.target)
    test = zip(links.test.source.tolist(), links.test.target.tolist(), links.test.label, strict=True)
    u, v = next((u, v) for u, v, y in test if y and (u, v) not in old and (v, u) not in old)
    past = dataclasses.replace(
        links.past,
        source=np.append(links.past.source, u),
        target=np.append(links.past.target, v),
        time=np.append(links.past.time, links.past.time[-1]),
    )
    return dataclasses.replace(links, past=past)


def test_an_event_of_the_future_is_refused(data, links):
    check_past("graph", links.past.source, links.past.target, data, links)
    bad = leaked(links, data)
    with pytest.raises(Leak, match="graph: must have pairs with events before .* got 1 others"):
        check_past("graph", bad.past.source, bad.past.target, data, bad)


def test_walks_into_the_future_are_refused(data, links):
    nodes, times = walks.temporal_walks(links.past, 2, 5, seed=0)
    walks.check_walks(nodes, times, data, links)
    on = nodes[:, 1] >= 0
    late = times.copy()
    late[on.argmax(), 0] = links.start[0]
    with pytest.raises(Leak, match="walks: must have events before"):
        walks.check_walks(nodes, late, data, links)
    back = times.copy()
    back[on.argmax(), -1] = times[on.argmax(), 0] - 1
    with pytest.raises(Leak, match="a step back in time"):
        walks.check_walks(nodes, back, data, links)
    bad = leaked(links, data)
    nodes, times = walks.temporal_walks(bad.past, 20, 5, seed=0)
    with pytest.raises(Leak, match="walks: must have pairs"):
        walks.check_walks(nodes, times, data, bad)


# --- levels ----------------------------------------------------------------------------------------------------------


def test_levels_by_hand():
    """Of events among six nodes; scores of two pairs, counted by hand."""
    past = EventData(np.array([0, 0, 0, 1, 2, 4]), np.array([1, 1, 2, 2, 3, 5]), np.arange(6), 6, "x")
    pairs = events.Pairs(np.array([0, 4, 3]), np.array([1, 3, 1]), np.float32([1, 0, 0]))
    links = LinkSplit(past, np.arange(6), (6, 7), pairs, pairs, pairs, ())
    # neighbours 0: 1 2; 1: 0 2; 2: 0 1 3; 3: 2; 4: 5; 5: 4. degrees 2 2 3 1 1 1
    # pair (0, 1): 4, common {2}, 2 events; (4, 3): 1, none, none; (3, 1): 2, common {2}, none
    assert levels(links) == {"preferential_attachment": 1.0, "common_neighbours": 0.75, "recurrence": 1.0}


# --- files and bad input ---------------------------------------------------------------------------------------------

META = json.dumps({"format": sets.FORMAT, "name": "tiny", "deduplicated": False})


def arrays(**changes) -> dict:
    made = {
        "edge_index": np.array([[0, 1, 2, 0], [1, 2, 0, 1]], dtype=np.int32),
        "edge_time": np.array([3, 3, 5, 8]),
        "num_nodes": np.int64(3),
        "meta": np.array(META),
        **changes,
    }
    return {k: v for k, v in made.items() if v is not None}


def test_files_of_events(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "tiny.npz", **arrays())
    monkeypatch.setenv("SPARSEGNN_DATA", str(tmp_path))
    for name in ("tiny", tmp_path / "tiny.npz"):
        found = sets.load_events(name)
        assert found.name == "tiny" and found.num_nodes == 3 and found.num_events == 4
        assert found.source.tolist() == [0, 1, 2, 0] and found.time.dtype == np.int64
    assert found == sets.load_events("tiny") and hash(found) == hash(sets.load_events("tiny"))
    assert found != dataclasses.replace(found, time=found.time + 1)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"edge_time": None}, "no array 'edge_time'"),
        ({"edge_time": np.array([3, 2, 5, 8])}, "'edge_time' must not decrease"),
        ({"edge_time": np.array([0, 1, 2, np.nan])}, "'edge_time' must be finite"),
        ({"edge_time": np.arange(3)}, r"'edge_time' must have shape \[4\]"),
        ({"num_nodes": np.int64(2)}, "'edge_index' must be below 2"),
    ],
)
def test_files_that_are_refused(tmp_path, changes, words):
    np.savez_compressed(tmp_path / "bad.npz", **arrays(**changes))
    with pytest.raises(ValueError, match=words):
        sets.load_events(tmp_path / "bad.npz")


def test_a_name_of_nothing():
    with pytest.raises(ValueError, match="no set named 'nothing': not embedded"):
        sets.load_events("nothing")


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"time": np.array([2, 1])}, ValueError, "time must not decrease"),
        ({"time": np.array([0.0, np.nan])}, ValueError, "time must not decrease"),
        ({"time": np.arange(3)}, ValueError, r"time must have shape \[2\]"),
        ({"source": np.array([0, 9])}, ValueError, r"source must be in \[0, 3\)"),
        ({"target": np.array([0, -1])}, ValueError, r"target must be in \[0, 3\)"),
        ({"source": [0, 1]}, TypeError, "source must be an array of numbers, got list"),
        ({"source": np.array([0.0, 1.0])}, TypeError, "source must be an array of numbers, got float64"),
    ],
)
def test_events_that_are_none(changes, error, words):
    fine = {"source": np.array([0, 1]), "target": np.array([1, 2]), "time": np.arange(2)}
    EventData(**fine, num_nodes=3, name="x")
    with pytest.raises(error, match=words):
        EventData(**(fine | changes), num_nodes=3, name="x")


@pytest.mark.parametrize(
    "changes", [{"num_nodes": 3}, {"num_groups": 0}, {"num_events": 1}, {"within": 1.5}, {"within": float("nan")}]
)
def test_meetings_out_of_range(changes):
    with pytest.raises(ValueError, match=f"meetings: {next(iter(changes))} is out of range"):
        sets.meetings(**changes)
