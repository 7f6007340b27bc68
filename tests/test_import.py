"""What ``import sparsegnn`` imports: its layers and nothing else; the rest when it is asked for."""

import ast
import json
import types
from pathlib import Path

import fresh
import pytest

import sparsegnn

SOURCE = Path(sparsegnn.__file__)


def run(program: str):
    """What a program of its own prints, as JSON."""
    return json.loads(fresh.output(program))


IMPORTED = """
import json, sys, torch
before = set(sys.modules)
import sparsegnn
first = set(sys.modules) - before
sparsegnn.sparsify, sparsegnn.RigL, sparsegnn.summary, sparsegnn.compact, sparsegnn.flops, sparsegnn.CapturedStep
print(json.dumps([sorted(first), sorted(set(sys.modules) - before)]))
"""
HEAVY = ("torch_geometric", "torch._dynamo", "torch._inductor", "pydantic", "scipy", "rich")


def test_import_takes_the_layers_and_no_more():
    first, later = run(IMPORTED)
    others = {name for name in first if not name.startswith("sparsegnn")}
    assert others <= {"torch.utils.flop_counter", "torch.utils.module_tracker"}
    parts = {name.split(".")[1] for name in first if name.startswith("sparsegnn.")}
    assert {"nn", "ops", "pyg", "graph"} <= parts
    assert not parts & {"controllers", "convert", "width", "report", "advice", "experiments", "study", "cli", "data"}
    assert "sparsegnn.controllers" in later
    assert not [name for name in later if any(name == heavy or name.startswith(heavy + ".") for heavy in HEAVY)]


IN_ANY_ORDER = """
import importlib, json, os, sparsegnn
modules = ["compaction", "convert", "report", "capture", "controllers", "linears", "plans", "width", "advice.run"]
def asked(names):
    for name in names:
        found = getattr(sparsegnn, name)
        assert callable(found) or name in ("nn", "ops"), (name, found)
def ends(call, *args):
    child = os.fork()
    if child == 0:
        call(*args)
        os._exit(0)
    return os.waitpid(child, 0)[1]
wrong = [name for name in sparsegnn.__all__ if ends(asked, [name])]
wrong += [name for name in modules if ends(importlib.import_module, "sparsegnn." + name)]
for name in modules:
    importlib.import_module("sparsegnn." + name)
asked(sparsegnn.__all__)
print(json.dumps(wrong))
"""


def test_names_are_found_in_any_order():
    """Each as the first that is asked for, and after the modules."""
    assert run(IN_ANY_ORDER) == []
    names: dict = {}
    exec("from sparsegnn import *", names)
    assert names["sparsify"] is sparsegnn.sparsify and set(sparsegnn.__all__) <= set(dir(sparsegnn))
    assert sparsegnn.ledger.__name__ == "Ledger" and sparsegnn.controllers.RigL is sparsegnn.RigL
    with pytest.raises(AttributeError, match="module 'sparsegnn' has no attribute 'sparsfy'"):
        sparsegnn.sparsfy  # noqa: B018


def test_type_checkers_are_told_the_same_names():
    tree = ast.parse(SOURCE.read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    told = {alias.asname: (line.module, alias.name) for line in block.body for alias in line.names}
    assert {name: module for name, (module, _) in told.items()} == sparsegnn._PLACES
    assert all(name == real for name, (_, real) in told.items())
    assert not any(isinstance(getattr(sparsegnn, name), types.ModuleType) for name in told)
