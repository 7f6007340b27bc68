"""scripts/gpu_check.sh: every stage runs on the CPU with tiny sizes; stages go on where they stopped."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="not run from a checkout")


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "benchmarks" / "gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments) -> subprocess.CompletedProcess:
    import os

    env = os.environ | {"PYTHON": sys.executable}
    return subprocess.run([str(SCRIPT), *map(str, arguments)], env=env, capture_output=True, text=True, timeout=300)


def test_dry_run_of_every_stage(module, tmp_path):
    done = run("--dry-run", "--output", tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for stage in module.STAGES:
        content = json.loads((tmp_path / f"{stage}.json").read_text())
        assert content["complete"] and content["rows"], stage
        assert not any(row.get("error") for row in content["rows"]), stage
    again = run("--dry-run", "--output", tmp_path)
    assert again.returncode == 0 and again.stdout.splitlines() == [f"{s}: complete" for s in module.STAGES]


def test_wrong_arguments_are_refused():
    assert run("--wrong").returncode == 2
    assert run("--dry-run", "no_such_stage").returncode == 2


def test_a_stage_goes_on_where_it_stopped(module, tmp_path):
    calls = []

    def cases(fail: bool):
        for i in range(3):

            def measure(i=i):
                calls.append(i)
                if fail and i == 1:
                    raise ValueError("out of memory, say")
                return {"ms": i}

            yield {"i": i}, measure

    path = tmp_path / "stage.json"
    assert not module.Record(path, seconds=100).run(cases(fail=True))  # the failure does not cost the third case
    assert calls == [0, 1, 2] and "out of memory" in path.read_text()
    assert not module.Record(path, seconds=-1).run(cases(fail=False))  # no time left
    assert module.Record(path, seconds=100).run(cases(fail=False))
    assert calls == [0, 1, 2, 1]
    content = json.loads(path.read_text())
    assert content["complete"] and sorted(row["ms"] for row in content["rows"]) == [0, 1, 2]
