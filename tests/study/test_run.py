"""Studies are resumed: after kills, interrupts, failures and torn lines, with the rows of an undisturbed study."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from study.tiny import TOML, rows, settled, write, write_graph

from sparsegnn.experiments.train import CheckFailed
from sparsegnn.study import tasks
from sparsegnn.study.config import read
from sparsegnn.study.plan import plan
from sparsegnn.study.run import _Runner, run, thinned

pytest.importorskip("tqdm")
TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Config, rows and what the call returned, of a study without an interruption."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = write(folder)
    found = run(config, folder / "out.jsonl", progress=False)
    return config, rows(folder / "out.jsonl"), found


@pytest.fixture
def train(monkeypatch):
    """Counts trainings, and can fail or interrupt one of them."""
    real, seen = tasks.find("nodes").train, []
    fails: dict[int, BaseException] = {}

    def counted(config, data=None):
        seen.append(config)
        if len(seen) in fails:
            raise fails[len(seen)]
        return real(config, data)

    monkeypatch.setattr("sparsegnn.experiments.train.train", counted)
    monkeypatch.setattr(_Runner, "_warm", lambda self, run: None)
    return seen, fails


def test_rows(undisturbed):
    config, found, told = undisturbed
    wanted = plan(read(config))
    assert list(found) == [r.id for r in wanted] and told["runs"] == told["done"] == len(wanted) == 18
    assert told["made"] + told["copied"] == 18 and told["left"] == 0 == len(told["failed"])
    for r in wanted:
        row = found[r.id]
        assert (row["case"], row["role"], row["of"], row["matches"]) == (r.case, r.role, r.of, r.matches)
        assert row["study"] == "tiny" and row["task"] == "nodes" and row["data"] == "small" and row["model"] == "gcn"
        assert row["seed"] == r.seed == row["config"]["seed"] and row["hidden"] == row["config"]["hidden"]
        assert row["sparsity_asked"] == r.sparsity and row["environment"]["threads"] == row["threads"] == 1
        assert row["curve"][-1][0] == row["steps"] == 6 and row["metric"] == "accuracy"
    masked = [row for row in found.values() if row["role"] == "masked"]
    assert {row["of"] for row in masked} == {"small gcn 16: rigl 50 %", "small gcn 16: rigl 90 %"}
    assert all(row["weights"] == row["weights_dense"] and row["method"] == "masked-dense" for row in masked)


def test_a_curve_of_few_points_reaches_every_score_as_soon(tmp_path):
    """All points at which the selected step changes are kept, the last one, and every third of the others."""
    curve = [[i, 0.5, test, i * 100, i * 0.5] for i, test in enumerate([1, 1, 1, 3, 3, 2, 2, 2, 2, 4, 4], 1)]
    assert [p[0] for p in thinned(curve, 4)] == [1, 4, 6, 7, 10, 11]
    for score in (1, 2, 3, 4):
        full, few = (next(p for p in points if p[2] >= score) for points in (curve, thinned(curve, 4)))
        assert full == few
    assert thinned(curve, None) == curve == thinned(curve, 11) and thinned(curve[:1], 4) == curve[:1]
    config = write(tmp_path, TOML.replace("threads = 1", "threads = 1\ncurve_points = 2"))
    run(config, tmp_path / "out.jsonl", progress=False, only=["dense"])
    for row in rows(tmp_path / "out.jsonl").values():
        points = [p[0] for p in row["curve"]]
        assert {1, 4, 6} <= set(points) and len(points) <= 6


def test_small_dense_nets_have_as_many_weights(undisturbed):
    _, found, _ = undisturbed
    small = [row for row in found.values() if row["role"] == "small_dense"]
    assert small and all(row["method"] == "dense" and row["sparsity"] == 0 for row in small)
    for row in small:
        sparse = next(r for r in found.values() if r["case"] == row["of"])
        assert row["match"] == {"quantity": "weights", "aimed_at": sparse["weights"], "reached": row["weights"]}
        assert abs(row["weights"] - sparse["weights"]) <= (12 + 3) / 2  # half of what a unit has
        assert row["weights_dense"] == row["hidden"] * (12 + 3)


def test_a_net_that_is_there_is_copied(tmp_path, train):
    """Two methods leave as many weights: the small dense net of the second is that of the first, of the same seed."""
    seen, _ = train
    text = TOML.replace("[methods.rigl]", "[methods.oneshot]").replace("[0.5, 0.9]", "0.5").replace("masked = true", "")
    told = run(write(tmp_path, text), tmp_path / "out.jsonl", progress=False)
    found = rows(tmp_path / "out.jsonl")
    copies = [row for row in found.values() if "copied_from" in row]
    assert told["copied"] == len(copies) == 2 and len(seen) == told["made"] == told["done"] - 2 == 8
    for row in copies:
        other = found[row["copied_from"]]
        assert settled(row) | {"id": "", "case": "", "of": ""} == settled(other) | {"id": "", "case": "", "of": ""}
        assert row["of"] == "small gcn 16: gmp 50 %" and other["of"] == "small gcn 16: oneshot 50 %"
        assert row["match"]["aimed_at"] == other["match"]["aimed_at"] == 120 == row["weights"]


def test_ten_kills_change_nothing(tmp_path):
    config = write(tmp_path)
    paths = [tmp_path / "undisturbed.jsonl", tmp_path / "killed.jsonl"]
    command = [sys.executable, str(TESTS / "study" / "kills.py"), str(config), *map(str, paths), "11"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=TESTS)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["kills"] == 10 and told["lines"] == sorted(told["lines"])  # nothing that was written is lost
    undisturbed, killed = map(rows, paths)
    assert 0 < told["lines"][-1] and undisturbed.keys() == killed.keys() and len(killed) == 18
    for id, row in undisturbed.items():
        assert settled(killed[id]) == settled(row), row["case"]


def test_a_run_does_not_depend_on_those_before(undisturbed, tmp_path):
    config, found, _ = undisturbed
    cases = ["small gcn 16: gmp 50 %", "small gcn 16: rigl 90 %"]
    for i, case in enumerate(reversed(cases)):
        torch.manual_seed(1000 + i)
        told = run(config, tmp_path / f"{i}.jsonl", only=[case], progress=False)
        alone = {id: r for id, r in rows(tmp_path / f"{i}.jsonl").items() if r["role"] == "sparse"}
        assert told["done"] == 2 == len(alone)
        assert [settled(row) for row in alone.values()] == [settled(found[id]) for id in alone]


def test_the_first_run_takes_no_more_memory_than_others(tmp_path):
    """In a new process, which loads what all runs need: tens of MiB."""
    text = TOML.partition("[methods.gmp]")[0].replace("seeds = 2", "seeds = 3")
    command = [sys.executable, "-m", "sparsegnn", "study", str(write(tmp_path, text)), "--only", "16: dense"]
    subprocess.run([*command, "--out", str(tmp_path / "out.jsonl")], check=True, capture_output=True, cwd=TESTS)
    first, *others = (row["run_memory_bytes"] for row in rows(tmp_path / "out.jsonl").values())
    assert first < max(others) + (8 << 20)


def test_nothing_is_made_twice(undisturbed, tmp_path, train):
    seen, _ = train
    config, found, _ = undisturbed
    out = tmp_path / "out.jsonl"
    lines = [json.dumps(row) + "\n" for row in found.values()]
    out.write_text("".join(lines[:-3]) + lines[-3][:100])  # a torn line
    told = run(config, out, progress=False)
    assert told["done"] == 18 and told["made"] + told["copied"] == 3 and len(seen) == told["made"] <= 3
    again = {id: settled(row) for id, row in rows(out).items()}
    assert again == {id: settled(row) for id, row in found.items()}
    assert run(config, out, again=True, progress=False)["made"] == 0


def test_runs_of_data_that_have_changed_are_made_again(tmp_path, train, capsys):
    """Those of the other set are not, nor rows of a version that did not note the data."""
    text = TOML.replace("[methods.rigl]", '[[data]]\nname = "other"\nfile = "other.npz"\nhidden = 16\n\n[methods.rigl]')
    text = text.replace('["weights"]', "[]")
    config, out = write(tmp_path, text), tmp_path / "out.jsonl"
    write_graph(tmp_path / "other.npz")
    first = run(config, out, progress=False, only=[": dense"])
    before = rows(out)
    seen, _ = train
    seen.clear()
    assert run(config, out, progress=False, only=[": dense"])["made"] == 0 and first["left"] == 0
    x = np.random.default_rng(1).normal(size=(120, 12)).astype(np.float32)
    write_graph(tmp_path / "small.npz", x=x)
    told = run(config, out, progress=False, only=[": dense"])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    changed = {id for id, row in before.items() if row["data"] == "small"}
    assert {row["id"] for row in lines[len(before) :]} == changed and told["left"] == 0 and told["done"] == len(before)
    assert len(seen) == sum("copied_from" not in row for row in lines[len(before) :]) > 0
    assert all(row["data_digest"] != before[row["id"]]["data_digest"] for row in lines[len(before) :])
    assert "of other data than there is now (small): made again" in capsys.readouterr().err
    seen.clear()
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "data_digest"}) + "\n" for row in lines))
    assert run(config, bare, progress=False, only=[": dense"])["made"] == 0 and not seen


def test_an_interrupt_leaves_whole_lines(tmp_path, train):
    seen, fails = train
    config, out = write(tmp_path), tmp_path / "out.jsonl"
    fails[4] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(config, out, progress=False)
    assert len(rows(out)) == 3
    told = run(config, out, progress=False)
    assert told["done"] == 18 and len(seen) == 1 + 3 + told["made"]


def test_failures_are_rows(tmp_path, train, capsys):
    seen, fails = train
    config, out = write(tmp_path), tmp_path / "out.jsonl"
    fails |= {3: CheckFailed("training diverged: loss nan"), 4: MemoryError()}  # both seeds of a sparse case
    told = run(config, out, progress=False)
    assert "rigl 50 %, seed 0: CheckFailed: training diverged: loss nan" in capsys.readouterr().err
    assert [f["error"] for f in told["failed"]] == ["training diverged: loss nan", "MemoryError"]
    bad = [row for row in rows(out).values() if "error" in row]
    assert {row["case"] for row in bad} == {"small gcn 16: rigl 50 %"} and {"seed", "type", "id"} <= bad[0].keys()
    assert told["left"] == 2  # the small dense nets of that case have nothing to be measured by
    made = len(seen)
    told = run(config, out, progress=False)
    assert len(seen) == made and len(told["failed"]) == 2  # not tried again
    told = run(config, out, again=True, progress=False)
    assert told["failed"] == [] and told["done"] == 18 and told["left"] == 0


def test_only_and_dry_run(tmp_path, train):
    seen, _ = train
    config, out = write(tmp_path), tmp_path / "out.jsonl"
    told = run(config, out, only=["dense", "nothing"], dry_run=True)
    assert not seen and not out.exists() and all("dense" in case["case"] for case in told["cases"])
    assert {tuple(case["seeds"]) for case in told["cases"]} == {(0, 1)}
    with pytest.raises(ValueError, match="only must leave runs to be made, got nothing"):
        run(config, out, only=["nothing"])
    assert run(config, out, only=["16: dense"], progress=False)["made"] > 0
    assert {row["role"] for row in rows(out).values()} == {"dense"}


@pytest.mark.parametrize("kind, quantity", [("time", "seconds_per_step"), ("memory", "run_memory_bytes")])
def test_nets_that_are_matched_by_measurement(tmp_path, kind, quantity):
    config = write(tmp_path, TOML.replace('["weights"]', f'["{kind}"]').replace("[0.5, 0.9]", "[0.9]"))
    told = run(config, tmp_path / "out.jsonl", only=["rigl"], progress=False)
    found = list(rows(tmp_path / "out.jsonl").values())
    small = [row for row in found if row["role"] == "small_dense"]
    assert told["left"] == 0 and len(small) == 2 and len({row["hidden"] for row in small}) == 1
    assert all(row["match"]["quantity"] == quantity and 1 <= row["hidden"] <= 16 for row in small)
    reached = [r["seconds_training"] / r["steps"] if kind == "time" else r[quantity] for r in small]
    assert [row["match"]["reached"] for row in small] == pytest.approx(reached, rel=1e-6)  # rows have seven digits
    assert small[0]["matches"] == kind
