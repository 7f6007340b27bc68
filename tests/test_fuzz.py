"""The fuzzer of all readers: a few inputs always, 100,000 in the deep leg."""

import json
import subprocess
import sys

import fuzz
import pytest


@pytest.mark.parametrize("name", fuzz.READERS)
def test_a_few_inputs(name):
    count = 250 if name == "npz" else 40  # few of whose inputs are still valid
    found = fuzz.run(name, count, seed=1)
    assert not found["wrong"], "\n".join(found["examples"])
    assert found["accepted"] and found["refused"] and found["accepted"] + found["refused"] == count


def test_what_goes_wrong_is_counted(monkeypatch):
    monkeypatch.setitem(
        fuzz.READERS, "broken", (lambda folder: lambda rng: 1 // (rng.random() < 0.5) and "accepted", 0)
    )
    found = fuzz.run("broken", 50, seed=0)
    assert found["wrong"] > 10 and found["accepted"] > 10 and "ZeroDivisionError" in found["examples"][0]
    monkeypatch.setitem(fuzz.READERS, "crash", (lambda folder: lambda rng: fuzz.signal.raise_signal(9), 0))
    assert fuzz.alone("crash", 5, seed=0)["examples"] == ["exit code -9 at input 0"]
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    monkeypatch.setitem(fuzz.READERS, "hang", (lambda folder: lambda rng: fuzz.time.sleep(9), 0))
    assert "Hang: more than 1 s" in fuzz.run("hang", 1, seed=0)["examples"][0]


def test_the_last_full_run_found_nothing():
    if not fuzz.RESULT.is_file():
        pytest.skip("no full run is committed: python tests/fuzz.py")
    found = json.loads(fuzz.RESULT.read_text())
    assert found["readers"].keys() == fuzz.READERS.keys()
    assert found["all"]["inputs"] >= 100_000 and found["all"]["wrong"] == 0


@pytest.mark.deep
@pytest.mark.timeout(3600)
def test_all_inputs():
    subprocess.run([sys.executable, fuzz.__file__, "--seed", "7"], check=True)
