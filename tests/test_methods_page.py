"""The page of measured methods, and the script that measures them: resumed, paired, never half a file."""

import functools
import json
import subprocess

import pytest
import torch
from training import methods, runs
from training.masked_dense import MaskedDense, MaskedLinear

from sparsegnn.controllers import METHODS
from sparsegnn.nn import GCNConv


def line(group, method, accuracies, seconds, data="cora", **more):
    given = {"case": f"{group} {data} {method}", "group": group, "method": method, "data": data, "flops": 1000}
    where = {"command": f"sparsegnn train {group} {method}", "device": "cpu-x", "threads": 2, "torch": "2"}
    mean = {"test_accuracy": sum(accuracies) / len(accuracies), "test_accuracy_std": 0.01}
    end = {"sparsity": 0.9, "run_memory_bytes": 3 << 20, "edges_at_start": 10, "edges_at_end": 10}
    return given | where | mean | end | {"test_accuracies": accuracies, "training_seconds": seconds} | more


def test_page():
    lines = [
        line("cora", "dense", [0.80, 0.82, 0.81], [2.0, 9.0, 2.0], sparsity=0.0),
        line("cora", "masked-dense", [0.5], [4.0]),
        line("cora", "rigl", [0.81, 0.80, 0.81], [1.0, 1.0, 7.0], flops=127, edges_at_end=5),
        line("side", "dense", [0.8], [1.0]),
        line("side", "rigl", [0.8], [1.0], flops=127),
        line("side", "slr", [0.79], [3.0], flops=775),
        line("wide", "dense", [0.84], [1.0], sparsity=0.0),
        line("wide", "rgp", [0.82], [1.0]),
        line("edges", "dense", [0.93], [1.0], data="amazon_photo", sparsity=0.0),
        line("edges", "gebt", [0.92], [1.0], data="amazon_photo", edges_at_end=5),
        line("wall", "dense", [0.9], [10.0], data="coauthor_cs"),
        line("wall", "set", [0.895], [5.0], data="coauthor_cs"),
    ]
    text = methods.page({row["case"]: row for row in lines})
    rows = {
        cells[1]: cells[2:-1] for cells in (r.split(" | ") for r in text.replace("|", " |").splitlines()) if cells[1:]
    }
    rows = [[c.strip() for c in r.strip("|").split("|")] for r in text.splitlines() if r.startswith("| ")]
    (rigl,) = (r for r in rows if r[0] == "`rigl`" and r[1] == "sparse")
    assert rigl[2:6] == ["weights", "any", "at updates", "Evci et al., ICML 2020"]
    assert rigl[6:] == ["90.0 %, 50 % of the edges", "80.67 ± 1.00", "-0.33", "0.127", "0.5", "0.25", "3"]
    assert {f"`{name}`" for name in METHODS} <= {r[0] for r in rows}
    assert next(r for r in rows if r[0] == "`set`" and r[1] == "sparse")[6] == "not measured"
    assert ["cora", "`slr`", "90.0 %", "79.00 ± 1.00", "-1.00", "0.775", "6.1", "3"] in rows
    assert ["`set`", "90.0 %", "89.50 ± 1.00", "-0.50", "5.0", "0.5", "1", "3"] in rows
    assert ["`rgp`", "90.0 %", "82.00 ± 1.00", "-2.00", "1"] in rows
    gebt = ["`gebt`", "90.0 %, 50 % of the edges", "92.00 ± 1.00", "-1.00", methods.CLAIMS["gebt"]]
    assert gebt in rows and set(methods.CLAIMS) == set(methods.edge_methods())
    assert "sparse" in methods.page({})  # before anything is measured
    assert "ran twice" not in text
    lines[4]["command"] = lines[2]["command"]
    again = methods.page({row["case"]: row | {"threads": 1} for row in lines})
    assert "The command that ran twice took up to 0 % longer" in again and "1 thread, torch" in again
    lines += [
        line("edges", "dense", [0.9], [1.5], data="amazon_photo", command=lines[0]["command"]) | {"case": "other"}
    ]
    assert "2 commands that ran twice took up to 33 % longer" in methods.page({row["case"]: row for row in lines})


def test_cases_that_are_there_are_not_run_again(tmp_path, monkeypatch):
    path, ran, others = tmp_path / "a" / "runs.jsonl", [], subprocess.run

    def run(command, **options):
        if "sparsegnn" not in command:
            return others(command, **options)
        assert command[1:4] == ["-m", "sparsegnn", "train"] and command[-1] == "--json"
        ran.append(command[5])
        bad = command[5] == "b"
        return subprocess.CompletedProcess(command, int(bad), json.dumps({"value": 1}), "no\n")

    monkeypatch.setattr(subprocess, "run", run)
    wanted = [("first", "--data a --seeds 2"), ("second", "--data b --seeds 2")]
    measure = functools.partial(runs.measure, path=path, env={}, line=lambda name, result: {"case": name, **result})
    assert measure(wanted, again=False) == ["second"] and ran == ["a", "b"]
    assert measure(wanted, again=False) == ["second"] and ran == ["a", "b", "b"]
    assert measure([("first", "--data c --seeds 2")], again=False) == [] and ran[3:] == ["c"]
    assert measure([("first", "--data c --seeds 2")], again=True) == [] and ran[3:] == ["c", "c"]
    assert [json.loads(row)["case"] for row in path.read_text().splitlines()] == ["first"]


def test_cases():
    found = {c.name: c.arguments for c in methods.cases()}
    assert found["cora cora dense"] == "--data cora --hidden 64"
    assert found["cora cora rigl"] == "--data cora --hidden 64 --method rigl --sparsity 0.9"
    assert {f"cora cora {name}" for name in METHODS} <= found.keys()
    assert found["wall coauthor_cs set"].startswith("--data coauthor_cs --hidden 512 --layers 3")


@pytest.mark.parametrize("sparse", [False, True])
def test_masked_dense_is_a_product_with_a_masked_weight(sparse):
    conv, x = GCNConv(20, 8), torch.rand(9, 20)
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1)
    MaskedDense(conv, optimizer, sparsity=0.75)
    lin = conv.lin
    assert type(lin) is MaskedLinear and lin.mask.sum() == 40 and lin.mask.unique().tolist() == [0, 1]
    given = x.to_sparse_csr() if sparse else x
    torch.testing.assert_close(lin(given), x @ (lin.weight * lin.mask).t())
    before = lin.weight.detach().clone()
    lin(given).square().sum().backward()
    optimizer.step()
    assert torch.equal(lin.weight.detach() != before, lin.mask.bool())
