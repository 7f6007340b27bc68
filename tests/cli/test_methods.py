"""`sparsegnn methods`: the table, the page of one method, JSON, and any width."""

import json

import pytest

from sparsegnn import cli
from sparsegnn.controllers import METHODS, registry

pytest.importorskip("typer")


@pytest.fixture
def run(capsys):
    def call(*args):
        code = cli.main(["methods", *args])
        captured = capsys.readouterr()
        assert captured.err == "" or code
        return code, captured.out or captured.err

    return call


def test_table(run):
    code, out = run()
    assert code == 0 and all(f" {name} " in out for name in METHODS)
    assert all(not line.endswith(" ") for line in out.splitlines())
    code, out = run("--json")
    rows = json.loads(out)
    assert code == 0 and {row["name"] for row in rows} == METHODS.keys()
    families = [row["family"] for row in rows]
    assert families == sorted(families, key=registry.FAMILIES.index)
    by_name = {row["name"]: row for row in rows}
    assert by_name["rigl"] == {
        "name": "rigl", "family": "sparse", "target": "weights", "pattern": "any", "dense_gradient": "at updates",
        "starts": "sparse", "paper": "Evci et al., ICML 2020",
    }  # fmt: skip


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_any_width(run, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    pages = [run()[1], *(run(name)[1] for name in METHODS)]
    assert max(len(line) for page in pages for line in page.splitlines()) <= columns
    head = next(line for line in pages[0].splitlines() if "family" in line)
    assert [word in head for word in ("name", "target", "pattern", "starts", "paper")] == [True] * 5


@pytest.mark.parametrize("name", list(METHODS))
def test_page_and_json_of_each(run, monkeypatch, name):
    code, out = run(name, "--json")
    found = json.loads(out)
    assert code == 0 and found["name"] == name and found["text"]
    assert [s["name"] for s in found["settings"]] == list(registry.settings(METHODS[name]))
    for setting in found["settings"]:
        assert setting["kind"] and setting["meaning"], f"{name}: the docstring does not say what {setting['name']} is"
        assert ":class:" not in setting["meaning"] and "``" not in setting["meaning"]
    monkeypatch.setenv("COLUMNS", "160")
    code, out = run(name)
    assert code == 0 and all(s["name"] in out for s in found["settings"])


def test_unknown(run):
    code, out = run("magic")
    assert code == 2 and out.startswith("sparsegnn: method must be one of ") and "got 'magic'" in out
    assert run("no_such_module:X")[0] == 2
