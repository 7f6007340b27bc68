"""Configuration files: the line of every key, and every fault at once, by the line that it is in."""

import numpy as np
import pytest
from study.tiny import TOML, write, write_graph

from sparsegnn.study import tasks
from sparsegnn.study.config import read
from sparsegnn.study.faults import BadStudy, lines_of
from sparsegnn.study.plan import plan
from sparsegnn.study.schema import GRIDS

pytest.importorskip("tqdm")

LINES = '''\
# a comment: [not.a.table]
name = "x"
seeds = [
  0,  # first

  1, 2,
]
text = """
[no.table]
key = 1
"""

[[data]]
name = "a"
nested.key = { one = 1, "two words" = [1, 2] }

[data.more]
x = 1

[[data]]
  name = 'b'  # [[data]]
[methods."rigl, grouped"]
set = { a = 1 }
[[data.runs]]
y = 2
[[data.runs]]
y = 3
'''


def test_lines_of_keys():
    assert lines_of(LINES) == {
        ("name",): 2,
        ("seeds",): 3, ("seeds", 0): 4, ("seeds", 1): 6, ("seeds", 2): 6,
        ("text",): 8,
        ("data",): 13, ("data", 0): 13, ("data", 0, "name"): 14,
        ("data", 0, "nested"): 15, ("data", 0, "nested", "key"): 15, ("data", 0, "nested", "key", "one"): 15,
        ("data", 0, "nested", "key", "two words"): 15,
        ("data", 0, "nested", "key", "two words", 0): 15, ("data", 0, "nested", "key", "two words", 1): 15,
        ("data", 0, "more"): 17, ("data", 0, "more", "x"): 18,
        ("data", 1): 20, ("data", 1, "name"): 21,
        ("methods",): 22, ("methods", "rigl, grouped"): 22, ("methods", "rigl, grouped", "set"): 23,
        ("methods", "rigl, grouped", "set", "a"): 23,
        ("data", 1, "runs"): 24, ("data", 1, "runs", 0): 24, ("data", 1, "runs", 0, "y"): 25,
        ("data", 1, "runs", 1): 26, ("data", 1, "runs", 1, "y"): 27,
    }  # fmt: skip


def faults(folder, text):
    """``[(line, message)]`` of a configuration, the graph beside it."""
    path = write(folder, text)
    with pytest.raises(BadStudy) as caught:
        plan(read(path))
    lines = [line.removeprefix(f"{path}:").split(": ", 1) for line in str(caught.value).splitlines()]
    return [(int(number), said) for number, said in lines]


#: what is changed in the study of tiny.py, the line of the fault, and what it says
FAULTS = [
    ('name = "tiny"', 'name = "a/b"', 1, "name: must match pattern"),
    ('name = "tiny"', "", 1, "name: is missing"),
    ("seeds = 2", "seeds = 0", 2, "seeds: must be a number of seeds from 1 to 10000, or a list of seeds, got 0"),
    ("seeds = 2", "seeds = [0, -1]", 2, "seeds[1]: must be greater than or equal to 0, got -1"),
    ("seeds = 2", "seeds = [1, 1]", 2, "seeds: must be different values"),
    ("seeds = 2", 'seeds = ["1"]', 2, "seeds[0]: must be a whole number, got '1'"),
    ("threads = 1", "threads = true", 3, "threads: must be a whole number, got True"),
    ("threads = 1", "thread = 1", 3, "thread: must be one of name, task, seeds, threads, curve_points, sparsity, "
     "baselines, data, methods, common: did you mean threads?"),
    ("threads = 1", 'task = "chess"', 3, "task: must be one of nodes, links, traffic, got 'chess'"),
    ("[0.5, 0.9]", "[0.5, 1.0]", 4, "sparsity[1]: must be in [0, 1), got 1.0"),
    ("[0.5, 0.9]", "[0.5,\n -0.1]", 5, "sparsity[1]: must be in [0, 1), got -0.1"),
    ("[0.5, 0.9]", "[nan]", 4, "sparsity[0]: must be"),
    ("[0.5, 0.9]", "[0.0]", 4, "sparsity: sparsity must be above 0 for method 'rigl'"),
    ("[0.5, 0.9]", '"ten"', 4, "sparsity: must be sparsities in [0, 1) or the name of a grid, twelve, got 'ten'"),
    ("[0.5, 0.9]", "[]", 4, "sparsity: must not be empty, got []"),
    ("[0.5, 0.9]", "[0.5, 0.5]", 4, "must be different values, got [0.5, 0.5]"),
    ("epochs = 6", "epochs = 0", 7, "common.epochs: epochs must be a positive integer, got 0 (small gcn 16)"),
    ("epochs = 6", 'epochs = "6"', 7, "common.epochs: epochs must be a positive integer, got '6'"),
    ("epochs = 6", "epoch = 6", 7, "common.epoch: must be a setting of a run: did you mean epochs?"),
    ("epochs = 6", "seed = 6", 7, "common.seed: must be a setting of a run"),
    ('file = "small.npz"', 'file = "none.npz"', 11, "data[0].file: must be a file, got {folder}/none.npz: no "
     "such file"),
    ('file = "small.npz"', 'file = "cut.npz"', 11, "data[0].file: {folder}/cut.npz: unlabelled set (no array 'y')"),
    ('file = "small.npz"', 'file = "half.npz"', 11, "data[0].file: {folder}/half.npz: array 'val_mask' is missing"),
    ('file = "small.npz"', 'kind = "npz"', 9, "data[0].file: is missing, which kind 'npz' needs"),
    ('file = "small.npz"', 'edges = "small.npz"', 9, "data[0].features: is missing, which kind 'edges' needs"),
    ('file = "small.npz"', 'kind = "pyg"', 10, "data[0].name: must be a set that PyG downloads, cora, "),
    ('file = "small.npz"', "", 10, "data[0].name: data: no set named 'small'"),
    ('name = "small"', "", 9, "data[0].name: is missing"),
    ("hidden = 16", "hidden = [16, 0]", 12, "data[0].hidden[1]: must be greater than or equal to 1, got 0"),
    ("hidden = 16", "hidden = 16.5", 12, "data[0].hidden[0]: must be a whole number, got 16.5"),
    ("hidden = 16", 'model = "cnn"', 12, "data[0].model: model must be one of gcn, gat, "),
    ("hidden = 16", "maxk = 65", 12, "data[0].maxk: maxk must be in [1, 64]"),
    ("hidden = 16", "hidden = [16, 16]", 12, "data[0].hidden: must be different values, got [16, 16]"),
    ("hidden = 16", 'hidden = 16\n[[data]]\nname = "small"\nfile = "small.npz"\nhidden = 16', 13,
     "data[1].title: must tell this set from another one of the same name"),
    ("[methods.rigl]", "[methods.magic]", 14, "methods.magic.method: method must be one of "),
    ("[methods.rigl]", "[methods.rigl]\nsparsity = 1.5", 15, "methods.rigl.sparsity[0]: must be in [0, 1), got 1.5"),
    ("[methods.rigl]", '[methods.rigl]\npattern = "3:4"', 15, "methods.rigl.pattern: pattern must be one of"),
    ("[methods.rigl]", "[methods.rigl]\nset = { rho = 1 }", 15, "methods.rigl.set.rho: method 'rigl' must have the "
     "setting 'rho'"),
    ("[methods.rigl]", "[methods.rigl]\nrho = 1", 15, "methods.rigl.rho: must be a setting of a run (method, "),
    ("[methods.rigl]", "[methods.rigl]\nstop_at = 7", 15, "methods.rigl.stop_at: stop_at must be in [1, 6]"),
    ("[methods.rigl]", "[methods.maxk]\nsparsity = 0.5", 15, "methods.maxk.sparsity: must be left out for "),
    ("[methods.rigl]", '[methods.rigl]\nmodels = ["gcn", "gat"]', 15, "methods.rigl.models[1]: must be a model of this "
     "study, gcn, got 'gat'"),
    ("[methods.rigl]", "[methods]\nrigl = 3", 15, "methods.rigl: must be a table, got 3"),
    ('["weights"]', '["height"]', 20, "baselines.small_dense[0]: must be 'weights', 'time' or 'memory', got 'height'"),
    ("masked = true", "masked = 1", 21, "baselines.masked: must be true or false, got 1"),
    ("masked = true", 'of = ["set"]', 21, "baselines.of[0]: must be a method of this study, rigl, gmp, got 'set'"),
]  # fmt: skip


@pytest.mark.parametrize("old, new, line, said", FAULTS, ids=[f"{n} instead of {o}"[:50] for o, n, _, _ in FAULTS])
def test_fault(tmp_path, old, new, line, said):
    write_graph(tmp_path / "cut.npz", y=None)
    write_graph(tmp_path / "half.npz", train_mask=np.arange(120) < 9)
    assert old in TOML
    found = faults(tmp_path, TOML.replace(old, new))
    said = said.format(folder=tmp_path)
    assert [n for n, text in found if said in text] == [line], found


def test_all_faults_at_once(tmp_path):
    """One of every kind, in all parts of the file, each with its line."""
    text = TOML.replace("[methods.rigl]", "[methods.magic]\n[methods.set]\nsparsity = 1.5").replace(
        "seeds = 2", "seed = 2"
    )
    text = text.replace("epochs = 6", "epochs = 6\nlr = -1.0").replace(
        "[methods.gmp]", '[methods.gmp]\npattern = "3:4"'
    )
    text += 'x = 1\n[[data]]\nname = "other"\nfile = "none.npz"\nhidden = 0\n[[data]]\nname = "nowhere"\n'
    found = faults(tmp_path, text)
    assert [line for line, _ in found] == sorted(line for line, _ in found)
    said = {line: text.partition(": ")[0] for line, text in found}
    assert said == {
        2: "seed", 8: "common.lr", 15: "methods.magic.method", 17: "methods.set.sparsity[0]", 20: "methods.gmp.pattern",
        26: "baselines.x", 29: "data[1].file", 30: "data[1].hidden[0]", 32: "data[2].name",
    }  # fmt: skip


@pytest.mark.parametrize("text, line", [("a = \n", 1), ("a = 1\nb = 2\na = 3\n", 3), ("[x\n", 1), ('a = """\n\n', 1)])
def test_what_is_no_toml(tmp_path, text, line):
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(BadStudy, match=r"x.toml:\d+: must be TOML: ") as caught:
        read(tmp_path / "x.toml")
    assert int(str(caught.value).partition("x.toml:")[2].partition(":")[0]) >= line


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    for name in ("x.toml", "none.toml", "."):
        with pytest.raises(ValueError, match="config: .* cannot be read: "):
            read(tmp_path / name)


def test_values_in_short(tmp_path):
    """One value for a list, a number of seeds, a named grid, a list of methods."""
    text = TOML.partition("[methods.rigl]")[0].replace("[0.5, 0.9]", '"twelve"')
    text = text.replace("[common]", 'methods = ["rigl", "slr"]\n[common]') + 'model = ["gcn", "mlp"]\n'
    study = read(write(tmp_path, text))
    assert [m.name for m in study.methods] == ["rigl", "slr"] and study.methods[0].sparsities == list(GRIDS["twelve"])
    (data,) = study.sets
    assert (data.models, data.widths, data.seeds) == (["gcn", "mlp"], [16], [0, 1])
    assert len(GRIDS["twelve"]) == 12 and study.baselines.dense and (data.facts.nodes, data.facts.classes) == (120, 3)
    assert len(plan(study)) == 2 * 2 * (1 + 2 * 12)


def test_a_task_that_this_version_lacks(tmp_path, monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "links", ("sparsegnn.nowhere", "Config", "sparsegnn.nowhere"))
    ((line, said),) = faults(tmp_path, TOML.replace("threads = 1", 'task = "links"'))
    assert line == 3 and said.startswith("task: must be a task that this version has, got 'links': No module named")


def test_a_set_is_looked_at_once_and_its_fault_told_everywhere(tmp_path, monkeypatch):
    looked, load = [], tasks.load
    monkeypatch.setattr(tasks, "load", lambda *args: looked.append(args[1]["name"]) or load(*args))
    again = '[[data]]\nname = "small"\nfile = "small.npz"\nhidden = 8\n[methods.rigl]'
    read(write(tmp_path, TOML.replace("[methods.rigl]", again)))
    assert looked == ["small"]
    (tmp_path / "small.npz").write_bytes(b"no graph")
    monkeypatch.setattr("study.tiny.write_graph", lambda path, **changes: None)
    found = faults(tmp_path, TOML.replace("[methods.rigl]", again))
    assert [line for line, said in found if "not an .npz file" in said] == [11, 16]
