"""`sparsegnn advise`: its options are those of `train` that make a model, its JSON is one object."""

import inspect
import json

import pytest
import torch

from sparsegnn import cli
from sparsegnn.cli.advise import OF_A_RUN
from sparsegnn.cli.advise import advise as command
from sparsegnn.cli.train import train
from sparsegnn.experiments.config import TrainConfig

pytest.importorskip("typer")
pytest.importorskip("sklearn")


@pytest.fixture
def run(capsys):
    def call(*args):
        code = cli.main(["advise", *map(str, args)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.mark.parametrize("model", ["gcn", "gat"])
def test_json_is_one_object(run, model):
    threads = torch.get_num_threads()
    code, out, err = run("--model", model, "--hidden", 8, "--seconds", 1, "--threads", 1, "--json")
    found = json.loads(out)
    assert code == 0 and err == "" and found["threads"] == 1 and torch.get_num_threads() == threads
    assert found["answer"] in ("levers", "compare", "narrower", "nothing") and found["step"] > 0
    assert {"weights", "features", "aggregation", "elementwise", "optimizer", "other"} == found["parts"].keys()
    for row in found["options"]:
        assert row["expected"] > 0 and row["weights"] > 0 and sum(row["memory"].values()) > 0


def test_options_are_those_of_train():
    """New ones of a model are there by themselves."""
    mine = {name: p.default for name, p in inspect.signature(command).parameters.items()}
    of_train = {name: p.default for name, p in inspect.signature(train, eval_str=True).parameters.items()}
    assert OF_A_RUN <= of_train.keys() and mine.keys() == (of_train.keys() - OF_A_RUN) | {
        "seconds", "threads", "progress", "as_json"}  # fmt: skip
    assert all(of_train[name] == default for name, default in mine.items() if name in of_train.keys() - OF_A_RUN)


BAD = [
    (["--seconds", "0"], "seconds must be at least 1, got 0"),
    (["--seconds", "nan"], "seconds must be at least 1, got nan"),
    (["--threads", "0"], "threads must be a positive integer, at most 1024"),
    (["--hidden", "0"], "hidden must be a positive integer, got 0"),
    (["--data", "nowhere"], "no set named 'nowhere'"),
    (["--device", "cuda:99"], "is not there"),
]


@pytest.mark.parametrize("args, message", BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_arguments_exit_with_2(run, args, message):
    code, out, err = run("--json", *args)
    assert code == 2 and message in err and "Traceback" not in err and json.loads(out)["error"] in err


def test_a_method_is_refused():
    import sparsegnn

    with pytest.raises(ValueError, match="advise: method must be 'dense'"):
        sparsegnn.advise(TrainConfig(method="rigl"), show=False)
    with pytest.raises(ValueError, match="advise: loss, optimizer and narrower must be left out"):
        sparsegnn.advise(TrainConfig(), lambda model: 0, show=False)
