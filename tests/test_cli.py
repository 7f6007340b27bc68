"""The command line: what it prints, its exit codes, and that bad input leaves nothing behind."""

import inspect
import itertools
import json
import os
import subprocess
import sys

import fresh
import numpy as np
import pytest
import torch

from sparsegnn import cli, data
from sparsegnn.cli import bench
from sparsegnn.cli.train import train
from sparsegnn.controllers import RigL, registry

typer = pytest.importorskip("typer")
pytest.importorskip("sklearn")
QUICK = ["--epochs", "4", "--hidden", "8", "--no-progress"]


@pytest.fixture
def run(capsys):
    def call(*args):
        code = cli.main([str(a) for a in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


# --- info ------------------------------------------------------------------------------------------------------------


def test_info_lists_versions_environment_and_ops(run):
    code, out, _ = run("info", "--json")
    content = json.loads(out)
    assert code == 0 and content["versions"]["torch"] == torch.__version__
    assert "SPARSEGNN_STRICT" in content["environment"]
    ops = {row["op"]: row for row in content["ops"]}
    assert {"spmm", "gat", "sparse_linear"} <= set(ops)
    assert all(row["cuda"] in ("compiled", "PyTorch") or row["cuda"].startswith("fallback: ") for row in ops.values())
    code, out, _ = run("info")
    assert code == 0 and "spmm" in out and torch.__version__ in out


def test_info_works_without_the_extra():
    hide = "import sys; sys.modules['typer'] = None; from sparsegnn.cli import main; sys.exit(main(sys.argv[1:]))"
    shown = fresh.python(hide, "info")
    assert shown.returncode == 0 and "spmm" in shown.stdout
    other = fresh.python(hide, "train")
    assert other.returncode == 2 and "pip install 'sparsegnn[cli]'" in other.stderr


# --- train -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["gcn", "gat"])
def test_train_json_is_one_object(run, model):
    code, out, err = run("train", "--model", model, "--sparsity", 0.9, "--json", *QUICK)
    result = json.loads(out)
    assert code == 0 and err == ""
    for name in ("test_accuracy", "val_accuracy", "seconds_per_step", "peak_memory_bytes", "flops"):
        assert result[name] > 0, name
    assert abs(result["sparsity"] - 0.9) < 0.01 and result["config"]["method"] == "rigl"


def test_train_prints_a_table(run):
    code, out, _ = run("train", "--backend", "pyg", "--seeds", 2, *QUICK)
    assert code == 0 and "test accuracy" in out and "over 2 seeds" in out and "peak memory" in out


def test_every_seed_is_a_run_of_its_own(run):
    code, out, _ = run("train", "--backend", "pyg", "--seed", 3, "--seeds", 2, "--json", *QUICK)
    result = json.loads(out)
    assert code == 0 and result["seeds"] == [r["config"]["seed"] for r in result["runs"]] == [3, 4]
    one, two = (r["test_accuracy"] for r in result["runs"])
    assert result["test_accuracy"] == pytest.approx((one + two) / 2)
    assert result["test_accuracy_std"] == pytest.approx(abs(one - two) / 2**0.5)


def test_train_in_a_process(tmp_path):
    saved = tmp_path / "model.pt"
    command = [sys.executable, "-m", "sparsegnn", "train", "--sparsity", "0.8", "--method", "set", "--json", *QUICK]
    done = subprocess.run([*command, "--save", str(saved)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    checkpoint = torch.load(saved, weights_only=True)
    assert checkpoint["result"]["test_accuracy"] == result["test_accuracy"]
    assert any(name.endswith("lin.values") for name in checkpoint["model"])
    assert os.listdir(tmp_path) == ["model.pt"]


BAD = [
    (["--data", "nowhere"], "no set named 'nowhere'"),
    (["--data", "no/such.npz"], "no/such.npz: no such file"),
    (["--model", "gcnii"], "model must be one of gcn, gat, sage, gin, sign, mlp, got 'gcnii'"),
    (["--method", "magic"], "method must be one of"),
    (["--sparsity", "1.0"], "sparsity must be in [0, 1), got 1.0"),
    (["--sparsity", "nan"], "sparsity must be in [0, 1), got nan"),
    (["--sparsity", "-0.1"], "sparsity must be in [0, 1), got -0.1"),
    (["--sparsity", "0.5", "--method", "dense"], "sparsity must be 0 for method 'dense'"),
    (["--sparsity", "0", "--method", "set"], "sparsity must be above 0 for method 'set'"),
    (["--sparsity", "0.5", "--backend", "pyg"], "method must be 'dense' for backend 'pyg'"),
    (["--hidden", "0"], "hidden must be a positive integer, got 0"),
    (["--epochs", "-1"], "epochs must be a positive integer, got -1"),
    (["--stop-at", "500"], "stop_at must be in [1, 200]"),
    (["--lr", "inf"], "lr must be in [0, 1e31), got inf"),
    (["--dropout", "1.5"], "dropout must be in [0, 1), got 1.5"),
    (["--seed", "-1"], "seed must be an integer in [0, 2^63), got -1"),
    (["--seeds", "0"], "seeds must be a positive integer, got 0"),
    (["--threads", "0"], "threads must be a positive integer, got 0"),
    (["--threads", "100000"], "threads must be at most 1024 or the number of processors, got 100000"),
    (["--device", "quantum"], "device must be cpu or cuda[:index], got 'quantum'"),
    (["--device", "meta"], "device must be cpu or cuda[:index], got 'meta'"),
    (["--cuda-graph"], "cuda_graph must be used on a GPU, got device 'cpu': add --device cuda"),
    (["--cuda-graph", "--backend", "pyg", "--device", "cuda"], "cuda_graph must be used with backend 'sparsegnn'"),
    (["--save", "no/such/folder/m.pt"], "save must be a file in a writable folder"),
    (["--save", "m.pt", "--seeds", "2"], "save must be used with a single seed"),
]


@pytest.mark.parametrize("args, message", BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_arguments_exit_with_2(run, args, message):
    code, out, err = run("train", "--json", *args)
    assert code == 2 and message in err and "Traceback" not in err and err.count("\n") == 1
    assert err == f"sparsegnn: {json.loads(out)['error']}\n" and json.loads(out)["type"] in ("ValueError", "TypeError")


HOSTILE = ("", " ", "nan", "-inf", "-1", "0", "1e400", "9" * 5000, "\udcff", "[/red]x", "../..", "0x10", "\0", "\u202e")


def test_any_value_of_any_option_is_run_or_refused(run, monkeypatch, tmp_path):
    """One strict JSON value, exit code 2, no traceback; what gets as far as a run is refused there."""

    def refuse(config, graph):
        raise ValueError("as far as a run")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sparsegnn.experiments.train.train", refuse)
    graph, load = data.load("digits"), data.load
    monkeypatch.setattr(data, "load", lambda name, **kw: graph if name == "digits" else load(name, **kw))
    command = typer.main.get_command(cli.application())
    monkeypatch.setattr(cli, "application", lambda: command)
    options = [name for name in inspect.signature(train).parameters if name not in ("as_json", "threads")]
    ran = set()
    for name, value in itertools.product(options, HOSTILE):
        code, out, err = run("train", "--json", f"--{name.replace('_', '-')}={value}")
        assert code == 2 and "Traceback" not in err, (name, value, err)
        if out and json.loads(out)["error"] == "as far as a run":
            ran.add(name)
    assert {"lr", "seed", "dropout"} <= ran < set(options) and not os.listdir(tmp_path)
    own = [f"--set={name}" for name in ("", *registry.settings(RigL))]
    for name, value in itertools.product(own, HOSTILE):
        code, out, err = run("train", "--json", "--method=rigl", f"{name}={value}")
        assert code == 2 and "Traceback" not in err and json.loads(out)["error"], (name, value, err)
    for value in HOSTILE[1:]:
        code, out, err = run("methods", "--json", "--", value)
        assert code == 2 and "Traceback" not in err, (value, err)


@pytest.mark.parametrize("args", [["--bogus"], ["--epochs", "many"], ["surplus"]])
def test_usage_errors_exit_with_2(run, args):
    code, out, err = run("train", *args)
    assert code == 2 and out == "" and "Usage:" in err


def test_missing_gpu_is_bad_input(run):
    code, _, err = run("train", "--device", f"cuda:{torch.cuda.device_count()}", *QUICK)
    assert code == 2 and "is not there: torch" in err


def test_bad_file_leaves_nothing(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "cut.npz"
    np.savez(path, edge_index=np.zeros((2, 3), dtype=np.int64))
    path.write_bytes(path.read_bytes()[:-30])
    code, out, err = run("train", "--data", path, "--save", "out.pt")
    assert code == 2 and out == "" and "cut.npz: file is truncated" in err
    assert "Traceback" not in err and os.listdir(tmp_path) == ["cut.npz"]


def test_diverged_run_exits_with_1_and_saves_nothing(run, tmp_path):
    code, out, err = run("train", "--backend", "pyg", "--lr", "1e30", "--save", tmp_path / "m.pt", "--json", *QUICK)
    assert code == 1 and "training diverged" in json.loads(out)["error"] in err and not os.listdir(tmp_path)


def test_debug_shows_the_traceback(run):
    code, _, err = run("train", "--data", "nowhere", "--debug")
    assert code == 2 and "Traceback" in err


# --- bench -----------------------------------------------------------------------------------------------------------


def write_harness(folder, name, source):
    (folder / "harness").mkdir()
    (folder / "harness" / "__init__.py").touch()
    (folder / "harness" / name).write_text(source)


def without_harness(monkeypatch):
    """That of another folder is imported next."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "harness"]:
        monkeypatch.delitem(sys.modules, name)


def test_bench_names_what_is_missing(run, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", sys.path[:])  # `bench` puts its folder there, for good
    monkeypatch.setattr(bench, "checkouts", lambda: [tmp_path])
    for args in (["spmm"], ["--suite", "cpu"]):
        code, _, err = run("bench", *args)
        assert code == 2 and "bench needs a checkout" in err
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops" / "bench_spmm.py").touch()
    source = "def run(op, quick, table):\n    return [{'op': op, 'quick': quick}]\n"
    write_harness(tmp_path, "runner.py", source)
    code, _, err = run("bench", "nothing")
    assert code == 2 and "op must be one of spmm, got 'nothing'" in err
    sys.path.insert(0, str(tmp_path))
    without_harness(monkeypatch)
    code, out, _ = run("bench", "spmm", "--quick", "--json")
    assert code == 0 and json.loads(out) == [{"op": "spmm", "quick": True}]
    without_harness(monkeypatch)


@pytest.mark.parametrize("args", [[], ["spmm", "--suite", "cpu"], ["spmm", "--check"], ["spmm", "--only", "x"]])
def test_bench_refuses_what_does_not_fit(run, args):
    code, out, err = run("bench", *args)
    assert code == 2 and out == "" and err.startswith("sparsegnn: ") and "must be" in err or "needs" in err


@pytest.mark.parametrize("passed, check, want", [(False, True, 1), (False, False, 0), (True, True, 0), (None, True, 0)])
def test_bench_suite_fails_only_when_asked_to_check(run, monkeypatch, tmp_path, passed, check, want):
    monkeypatch.setattr(bench, "checkouts", lambda: [tmp_path])
    row = {"suite_row": "spmm", "regime": "kept", "passed": passed}
    source = f"def run(name, quick, only, table):\n    return [{row!r}]\n"
    source += "def missed(rows):\n    return [r for r in rows if r['passed'] is False]\n"
    write_harness(tmp_path, "suite.py", source)
    monkeypatch.syspath_prepend(str(tmp_path))
    without_harness(monkeypatch)
    code, out, err = run("bench", "--suite", "any", "--json", *["--check"] * check)
    without_harness(monkeypatch)
    assert code == want and json.loads(out) == [row]
    assert err == ("sparsegnn: 1 bars missed: spmm (kept)\n" if want else "")
