"""scripts/gpu_check.sh: every stage runs on the CPU with tiny sizes; stages go on where they stopped."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="not run from a checkout")


@pytest.fixture(scope="module")
def module():
    sys.path[:0] = [str(ROOT / "benchmarks")]
    from gpu import stages

    return stages


def run(*arguments) -> subprocess.CompletedProcess:
    import os

    env = os.environ | {"PYTHON": sys.executable}
    return subprocess.run([str(SCRIPT), *map(str, arguments)], env=env, capture_output=True, text=True, timeout=300)


def test_dry_run_of_every_stage(module, tmp_path):
    done = run("--dry-run", "--output", tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for stage in module.CHECKS:
        content = json.loads((tmp_path / f"{stage}.json").read_text())
        assert content["complete"] and content["rows"], stage
        assert not any(row.get("error") for row in content["rows"]), stage
    rows = [json.loads(line) for line in (tmp_path / "suite_h200.jsonl").read_text().splitlines()]
    from suites import h200

    expected = {(g.name, row.text) for g in h200.groups(quick=True) for row in g.rows}
    assert {(row["group"], row["suite_row"]) for row in rows if row["group"] != "mean"} == expected
    assert not [row["note"] for row in rows if row["note"].startswith("failed")]
    alone = [row["suite_row"] for row in rows if row["value"] is None]  # whose peers need a GPU
    assert all("bf16" in text for text in alone) and len(alone) < 0.1 * len(rows)
    for row in rows:
        precision = "bf16" if "bf16" in row["contender"] + str(row["case"].get("precision")) else "fp32"
        assert row["error"] is None or row["error"] < (0.3 if precision == "bf16" else 1e-5), row["suite_row"]
        timed = row["kind"] not in ("bytes", "memory") and row["value"] is not None and row["group"] != "mean"
        if timed and "yelp" not in row["suite_row"]:  # too large for fp64
            assert row["error"] is not None and (row["baseline"] is None or row["error_baseline"] is not None), row
            assert set(row["precisions"]) == {row["contender"], *row["baselines"]}
    assert "spmm sum, arxiv" in done.stdout  # the table
    again = run("--dry-run", "--output", tmp_path)
    assert again.returncode == 0
    assert again.stdout.splitlines()[: len(module.names())] == [f"{s}: complete" for s in module.names()]


def test_wrong_arguments_are_refused():
    assert run("--wrong").returncode == 2
    assert run("--dry-run", "no_such_stage").returncode == 2
    if not torch.cuda.is_available():
        done = run("build")
        assert done.returncode == 1 and "no GPU is visible" in done.stderr


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
    assert not module.Record(path, seconds=100, code="other sources").content["complete"]
