"""scripts/gpu_check.sh: every stage runs on the CPU with tiny sizes; stages go on where they stopped."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"
if not SCRIPT.is_file():
    pytest.skip("not run from a checkout", allow_module_level=True)
sys.path[:0] = [str(ROOT / "benchmarks")]

from gpu import calibration, carry, stages  # noqa: E402
from suites import h200  # noqa: E402

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="is about the dry run on the CPU")


def run(*arguments, python: Path | str = sys.executable) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHON": str(python)}
    return subprocess.run([str(SCRIPT), *map(str, arguments)], env=env, capture_output=True, text=True, timeout=500)


def check_rows(folder: Path) -> None:
    """Of a dry run: all of them, right ones, with everything that a table needs."""
    for stage in stages.CHECKS:
        content = json.loads((folder / f"{stage}.json").read_text())
        assert content["complete"] and content["rows"], stage
        assert not any(row.get("error") for row in content["rows"]), stage
    rows = [json.loads(line) for line in (folder / "suite_h200.jsonl").read_text().splitlines()]
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


def check_calibration(folder: Path) -> None:
    """Every case is measured beside its prediction, and the assumptions that come out are the model's."""
    from cost import cases, model

    rows = json.loads((folder / "calibration.json").read_text())["rows"]
    assert rows[0]["case"] == {"what": "machine"} and rows[0]["hbm"] > 0
    beside = {row["case"]["case"]: row for row in rows if "measured_ms" in row}
    assert beside.keys() == {case.name for case in cases.everything() if case.how}
    for row in beside.values():
        assert row["measured_ms"] > 0 and row["ratio"] == pytest.approx(row["measured_ms"] / row["predicted_ms"])
    assert rows[-1]["case"] == {"what": "assumptions", "of": len(beside)}
    assert sum(rows[-1]["cases"].values()) == len(beside)
    assert json.loads((folder / "assumptions.json").read_text()).keys() == model.ASSUMED.keys()


@pytest.mark.deep
def test_dry_run_of_every_stage(tmp_path):
    done = run("--dry-run", "--output", tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    check_rows(tmp_path)
    assert "spmm sum, arxiv" in done.stdout  # the table
    assert "checks of all ops on cpu agree" in (tmp_path / "smoke.json").read_text()
    assert "a dry run" in (tmp_path / "sanitizer.json").read_text()
    check_calibration(tmp_path)
    assert json.loads((tmp_path / "tests.json").read_text())["rows"][0]["passed"] > 0
    measured = (tmp_path / "suite_h200.jsonl").read_bytes()
    again = run("--dry-run", "--output", tmp_path)
    assert again.returncode == 0
    assert again.stdout.splitlines()[: len(stages.names())] == [f"{s}: complete" for s in stages.names()]
    assert (tmp_path / "suite_h200.jsonl").read_bytes() == measured  # none was run again


def test_the_script_runs_stage_after_stage(tmp_path):
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(f"""#!/usr/bin/env bash
echo "$*" >> {log}
case "$*" in *--list*) printf "build\\nconstants\\n" ;; *broken*) exit 1 ;; esac
""")
    python.chmod(0o755)
    program = "benchmarks/gpu/stages.py"
    assert (ROOT / program).is_file()

    def calls(*arguments, code=0) -> list[str]:
        log.unlink(missing_ok=True)
        done = run(*arguments, python=python)
        assert done.returncode == code, done.stderr
        said.append(done.stdout)
        return [re.sub(r"--seconds \d+", "--seconds N", line) for line in log.read_text().splitlines()]

    said = []
    assert calls("--dry-run", "--output", tmp_path / "x", "build") == [
        f"{program} --table --dry-run --output {tmp_path}/x build"
    ]
    assert calls("--dry-run") == [f"{program} --table --dry-run"]
    assert calls("build", "constants") == [
        f"-u {program} --seconds N build", f"-u {program} --seconds N constants", f"{program} --table"
    ]  # fmt: skip
    assert calls()[1:] == calls("build", "constants") and "--list" in calls("--list")[0]
    assert len(calls("broken", "constants", code=1)) == 3 and "not complete: broken" in said[-1]
    assert calls("--seconds", "10", "build", code=1) == [f"{program} --table"]  # no time for any
    assert run("--wrong", python=python).returncode == 2


@without_gpu
def test_wrong_arguments_are_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        stages.main(["--dry-run", "no_such_stage"])
    assert "unknown stage no_such_stage; there are build, environment" in capsys.readouterr().err
    before = dict(os.environ)
    with pytest.raises(SystemExit, match="no GPU is visible"):
        stages.main(["build"])
    assert dict(os.environ) == before
    assert stages.main(["--list"]) == 0 and capsys.readouterr().out.split() == stages.names()


def test_programs_of_a_stage():
    code = "import os; print(os.environ['X']); exit(3)"
    assert stages.command(sys.executable, "-c", code, expected=(0, 3), X="y") == "y\n"
    with pytest.raises(RuntimeError, match="exit 4: spoken"):
        stages.command(sys.executable, "-c", "print('spoken'); exit(4)")
    with pytest.raises(RuntimeError, match="took over 0 s"):
        stages.command("sleep", 5, seconds=0.2)


def test_a_stage_goes_on_where_it_stopped(tmp_path):
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
    assert not stages.Record(path, seconds=100).run(cases(fail=True))  # the failure does not cost the third case
    assert calls == [0, 1, 2] and "out of memory" in path.read_text()
    assert not stages.Record(path, seconds=-1).run(cases(fail=False))  # no time left
    assert stages.Record(path, seconds=100).run(cases(fail=False))
    assert calls == [0, 1, 2, 1]
    content = json.loads(path.read_text())
    assert content["complete"] and sorted(row["ms"] for row in content["rows"]) == [0, 1, 2]
    assert not stages.Record(path, seconds=100, code="other sources").content["complete"]


def test_assumptions_are_corrected_by_what_was_measured(tmp_path):
    """A machine of half the memory speed, on which what waits takes twice as long as even that predicts."""
    rows = [{"case": {"what": "machine"}, "hbm": 2.15e12, "seconds": 1.0}]
    for name, ratio, bound in (("a", 2.0, "latency"), ("b", 8.0, "gather: latency"), ("c", 0.5, "issue")):
        rows.append({"case": {"case": name}, "measured_ms": ratio, "predicted_ms": 3.0, "ratio": ratio / 3,
                     "bound": bound, "predicted_with_this_machine_ms": 1.0})  # fmt: skip
    (tmp_path / "calibration.json").write_text(json.dumps({"rows": rows}))
    found = calibration.corrected(tmp_path)
    assert found["measured_over_predicted"] == {"latency": pytest.approx(4.0), "issue": pytest.approx(0.5)}
    values = json.loads((tmp_path / "assumptions.json").read_text())
    assert values["hbm"] == 2.15e12 and values["l2 latency"] == pytest.approx(4 * 250e-9)
    assert values["issue"] == pytest.approx(0.7 / 0.5) and values["pipes"] == 0.85
    text = calibration.table(tmp_path)
    assert "0.67  a  (latency)" in text and len(text.splitlines()) == 4


def test_what_travels_is_counted(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True, capture_output=True)

    git("init")
    for name, size in {"tracked": 10, "new": 20, "build/gpu/lib/a.so": 400, "build/other": 1000}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / ".gitignore").write_text("build/\n")
    git("add", "tracked", ".gitignore")
    sizes = carry.travelling(tmp_path)
    assert sizes == {"tracked": 10, "new": 20, ".gitignore": 7, "build/gpu/lib/a.so": 400}
    assert carry.report(sizes, limit=437)[1] and not carry.report(sizes, limit=436)[1]
    assert "Largest: build/gpu/lib/a.so" in carry.report(sizes, limit=436)[0]


def test_this_checkout_travels():
    """Without the libraries, which are as large as the compiler makes them: they have 32 MiB."""
    sizes = carry.travelling(ROOT, ())
    assert carry.report(sizes, carry.LIMIT // 2)[1], carry.report(sizes, carry.LIMIT // 2)[0]


def test_libraries_that_were_carried_are_not_built_again(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "command", lambda *a, **k: pytest.fail("built"))
    setting = type("Setting", (), dict(given=None, dry_run=False, built=tmp_path, libraries=lambda self: ["lib.so"]))()
    assert not stages.stamped(tmp_path)
    stages.stamp(tmp_path)
    ((_, run),) = stages.build(setting)
    assert run() == {"libraries": ["lib.so"], "carried": True}
    (tmp_path / "code.txt").write_text("of other sources")
    assert not stages.stamped(tmp_path)
