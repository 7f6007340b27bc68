"""`sparsegnn study`: exit codes, what it prints, faults of the file on stderr, a graph in tables from end to end."""

import contextlib
import json
import re
import signal
from pathlib import Path

import pytest
from study.tiny import TOML, rows, write

from sparsegnn import cli
from sparsegnn.study import tasks

pytest.importorskip("typer")
ROOT = Path(__file__).resolve().parents[2]
SHORT = TOML.partition("[methods.gmp]")[0].replace("[0.5, 0.9]", "0.9").replace("seeds = 2", "seeds = 1")


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*args):
        code = cli.main(["study", *map(str, args)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_study(call, tmp_path):
    config = write(tmp_path, SHORT)
    code, out, err = call(config, "--json")
    told = json.loads(out)
    assert code == 0 and err == "" and (told["runs"], told["made"], told["left"], told["failed"]) == (2, 2, 0, [])
    assert told["out"] == "study_tiny.jsonl" and len(rows(tmp_path / told["out"])) == 2
    code, out, err = call(config)
    assert code == 0 and "study tiny" in out and "0, and 0 of equal nets copied" in out


def test_dry_run_writes_nothing(call, tmp_path):
    code, out, _ = call(write(tmp_path), "--dry-run", "--only", "rigl 90", "--only", "gmp")
    assert code == 0 and "small gcn 16: rigl 90 %" in out and "rigl 50 %" not in out and "0, 1" in out
    code, out, _ = call(tmp_path / "tiny.toml", "--dry-run", "--json")
    assert code == 0 and json.loads(out)["runs"] == 18
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.npz", "tiny.toml"]


def test_faults(call, tmp_path):
    config = write(tmp_path, SHORT.replace("rigl", "magic").replace("epochs", "epoch"))
    code, out, err = call(config)
    assert code == 2 and out == "" and "Traceback" not in err
    lines = err.splitlines()
    assert lines[0].startswith(f"{config}:7: common.epoch: must be a setting of a run")
    assert lines[1].startswith(f"{config}:14: methods.magic.method: method must be one of ")
    assert lines[2:] == [f"sparsegnn: {config} has 2 faults, so nothing was run"]
    code, out, _ = call(config, "--json")
    assert code == 2 and f"{config}:14: methods.magic" in json.loads(out)["error"]
    assert not (tmp_path / "study_tiny.jsonl").exists()


@pytest.mark.parametrize(
    "args, said",
    [
        (["none.toml"], "config: none.toml cannot be read: No such file or directory"),
        (["tiny.toml", "--data", "nowhere"], "data must be a folder of .npz graphs, got 'nowhere'"),
        (["tiny.toml", "--threads", "0"], "threads must be a positive integer, at most 1024, got 0"),
        (["tiny.toml", "--out", "no/such/out.jsonl"], "out must be a file in a writable folder"),
        (["tiny.toml", "--out", "small.npz"], "small.npz:1: each line must be the JSON of a run"),
        (["tiny.toml", "--only", "nothing"], "only must leave runs to be made, got nothing"),
    ],
)
def test_bad_arguments(call, tmp_path, args, said):
    write(tmp_path, SHORT)
    before = (tmp_path / "small.npz").read_bytes()
    code, out, err = call(*args, "--json")
    assert code == 2 and said in json.loads(out)["error"] in err and "Traceback" not in err
    assert (tmp_path / "small.npz").read_bytes() == before


@pytest.mark.parametrize("args", [[], ["a.toml", "b.toml"], ["a.toml", "--bogus"]])
def test_usage(call, args):
    code, out, err = call(*args)
    assert code == 2 and out == "" and "Usage:" in err


def test_failures_and_interrupts(call, tmp_path, monkeypatch):
    config, real, what = write(tmp_path, SHORT), tasks.find("nodes").train, []

    def train(config, data=None):
        if config.method != "dense":
            raise what[0]
        return real(config, data)

    monkeypatch.setattr("sparsegnn.experiments.train.train", train)
    monkeypatch.setattr("sparsegnn.study.run._Runner._warm", lambda self, run: None)
    what[:] = [KeyboardInterrupt()]
    code, out, err = call(config)
    assert code == 130 and out == "" and err == "sparsegnn: interrupted\n" and len(rows(Path("study_tiny.jsonl"))) == 1
    what[:] = [RuntimeError("out of luck")]
    code, out, err = call(config, "--json")
    assert code == 1 and json.loads(out)["failed"] == [
        {"case": "small gcn 16: rigl 90 %", "seed": 0, "error": "out of luck"}
    ]
    assert "1 of 2 runs failed: see 'error' in study_tiny.jsonl" in err
    monkeypatch.undo()
    code, out, _ = call(config, "--json", "--again", "--out", tmp_path / "study_tiny.jsonl")
    assert code == 0 and json.loads(out)["failed"] == [] and json.loads(out)["done"] == 2


def test_a_signal_that_python_drops_ends_the_study(call, tmp_path, monkeypatch):
    """As it does where the exception is raised while an object is deleted."""
    config, real, seen = write(tmp_path), tasks.find("nodes").train, []

    def train(config, data=None):
        seen.append(config)
        if len(seen) == 2:
            with contextlib.suppress(BaseException):
                signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)
        return real(config, data)

    monkeypatch.setattr("sparsegnn.experiments.train.train", train)
    monkeypatch.setattr("sparsegnn.study.run._Runner._warm", lambda self, run: None)
    code, out, err = call(config)
    assert code == 128 + signal.SIGTERM and out == "" and "terminated by SIGTERM" in err
    assert len(seen) == 2 == len(rows(Path("study_tiny.jsonl")))
    code, out, _ = call(config, "--json")
    assert code == 0 and json.loads(out)["done"] == 18


def test_progress(call, tmp_path):
    code, _, err = call(write(tmp_path, SHORT), "--progress")
    assert code == 0 and "of 2 runs" in err and "left: " in err and "small gcn 16: rigl 90 %, seed 0" in err


def test_the_worked_example_of_the_docs(call, tmp_path):
    """Every file of the page, as it is there, and the command."""
    page = (ROOT / "docs" / "study_your_own.md").read_text()
    files = dict(re.findall(r"`([\w.]+)`:\n\n```\w*\n(.*?)```", page, re.S))
    assert {"edges.csv", "nodes.csv", "study.toml"} <= files.keys()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    code, out, err = call("study.toml", "--json")
    told = json.loads(out)
    assert code == 0 and told["left"] == 0 and told["failed"] == [], err
    found = rows(tmp_path / told["out"]).values()
    assert {row["role"] for row in found} == {"dense", "sparse", "masked", "small_dense"}
    assert all(row["nodes"] == len(files["nodes.csv"].splitlines()) - 1 for row in found)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "study").glob("*.toml")), ids=lambda p: p.name)
def test_shipped_studies_are_fine(call, graph_data_dir, path, monkeypatch):
    from sparsegnn.study.config import read
    from sparsegnn.study.plan import plan

    monkeypatch.setenv("SPARSEGNN_DATA", str(graph_data_dir))
    monkeypatch.setattr(tasks, "load", lambda *args: None)  # the sets are as data/README.md says
    runs = plan(read(path))
    assert len({r.id for r in runs}) == len(runs)
    assert {r.role for r in runs} >= {"dense", "sparse", "small_dense"} and len({r.seed for r in runs}) >= 3
