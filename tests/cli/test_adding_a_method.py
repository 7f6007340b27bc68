"""The page docs/adding_a_method.md: its class, its commands and its loop run as they are printed."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from sparsegnn import cli
from sparsegnn.controllers import METHODS, Controller

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/adding_a_method.md"

pytest.importorskip("typer")
pytest.importorskip("sklearn")
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="not run from a checkout")


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Its blocks of code, in a folder that has the class as the page says."""
    blocks = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.S)
    assert [language for language, _ in blocks] == ["python", "bash", "python"]
    method, commands, loop = (code for _, code in blocks)
    (tmp_path / "my_methods.py").write_text(method)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    before = dict(METHODS)
    yield method, commands.splitlines(), loop
    METHODS.clear()
    METHODS.update(before)
    sys.modules.pop("my_methods", None)


def test_the_commands(page, capsys):
    for line in page[1]:
        name, *args = shlex.split(line)
        assert name == "sparsegnn" and cli.main([*args, "--json"]) == 0, capsys.readouterr().err
    described, result = map(json.loads, capsys.readouterr().out.splitlines())
    assert described["settings"][0] == {
        "name": "noise", "kind": "a number", "default": 0.1, "recipe": 0.1, "meaning": "in [0, 1]; 0 is RigL.",
    }  # fmt: skip
    assert described["name"] == "my_methods:Noisy" and described["text"].startswith("Drops the smallest magnitudes")
    assert result["settings"]["noise"] == 0.5 and abs(result["sparsity"] - 0.8) < 0.01 and result["mask_updates"] > 10
    assert cli.main([*args[:-1], "noise=2"]) == 2
    assert capsys.readouterr().err == "sparsegnn: Noisy: noise must be in [0, 1], got 2.0\n"


def test_the_loop(page, monkeypatch):
    monkeypatch.syspath_prepend(".")
    names = {}
    exec(compile(page[2], str(PAGE), "exec"), names)
    assert names["controller"].step == 40 and names["controller"].updates == 5
    assert METHODS["noisy"] is names["Noisy"]


def test_what_it_says_of_a_class_is_there(page):
    table = re.findall(r"^\| (`.*?) \|", PAGE.read_text(), re.M)
    names = [name for cell in table for name in re.findall(r"`(\w+)", cell)]
    assert len(names) >= 10 and [n for n in names if not hasattr(Controller, n)] == []
