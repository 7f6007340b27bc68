"""The planted faults of tests/mutants.py can all be planted, and the runner tells caught ones from others."""

import ast
import json
import os
import subprocess
import time
from collections import Counter

import mutants
import pytest

FAULTS = mutants.load()


def test_there_are_enough_in_every_area():
    count = Counter(m.area for m in FAULTS)
    assert len(FAULTS) >= 70 and min(count.values()) >= 8
    areas = ("cli", "controllers", "cpu", "cuda", "data", "graph", "nn", "ops", "policy", "pyg", "study", "tasks")
    assert tuple(sorted(count)) == areas
    assert [name for name, n in Counter(m.name for m in FAULTS).items() if n > 1] == []


@pytest.mark.parametrize("area", sorted({m.area for m in FAULTS}))
def test_faults_still_apply(area):
    assert {m.name: p for m in FAULTS if m.area == area and (p := mutants.problems(m))} == {}
    for m in FAULTS:
        if m.area == area and m.needs == "python":
            ast.parse((mutants.ROOT / m.file).read_text().replace(m.old, m.new))


def toml(**entry) -> str:
    return "\n".join(["[[mutant]]", *(f"{key} = {json.dumps(value)}" for key, value in entry.items()), ""])


@pytest.mark.deep
def test_runner(tmp_path, capsys, monkeypatch):
    """In a checkout of one function, whose test sees one change and not another, which changes nothing."""
    fault = {"file": "half.py", "old": "n / 2", "breaks": "halves", "tests": ["tests/test_half.py"]}
    faults = {"caught": "n / 3", "survives": "2 * n / 4"}
    files = {
        "half.py": "def half(n):\n    return n / 2\n",
        "tests/test_half.py": "from half import half\n\n\ndef test_half():\n    assert half(2) == 1 and half(4) == 2\n",
        "tests/mutants/all.toml": "".join(toml(name=name, new=new, **fault) for name, new in faults.items()),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_text("build/\n")
    monkeypatch.setattr(mutants, "import_what_tests_import", lambda: None)
    assert mutants.main(["--targeted"], tmp_path) == 1
    results = json.loads((tmp_path / "tests/results/mutants.json").read_text())["results"]
    assert {name: r["status"] for name, r in results.items()} == {"caught": "caught", "survives": "survived"}
    assert results["caught"]["by"] == "tests/test_half.py::test_half"
    assert "1 of 2 faults caught" in capsys.readouterr().out
    assert (tmp_path / "build/mutants/tree/half.py").read_text() == files["half.py"]
    before = (tmp_path / "tests/results/mutants.json").read_text()
    assert mutants.main(["--targeted"], tmp_path) == 1  # all have results: nothing runs
    assert (tmp_path / "tests/results/mutants.json").read_text() == before
    (tmp_path / "half.py").write_text("def half(n):\n    return n / 2 + n / 2 - n / 2\n")
    with pytest.raises(SystemExit, match="is 3 times"):
        mutants.main(["--targeted"], tmp_path)


def test_what_hangs_is_ended():
    pid = os.fork()
    if pid == 0:
        os.setsid()
        time.sleep(1000)
    time.sleep(0.1)
    assert mutants.wait(pid, 0.2) is None
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)
