"""Runs the processes of a suite inside of the test's: what they say is the same, without importing torch once more."""

import contextlib
import io
import json
import sys
import warnings
from pathlib import Path

import pytest
import torch

import sparsegnn

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def in_process(monkeypatch):
    """Takes the place of ``processes.follow``; a list of the groups that were begun."""
    from harness import processes, suite

    begun = []

    def follow(command, step, keep):
        said = io.StringIO()
        with monkeypatch.context() as m, contextlib.redirect_stdout(said):
            m.setattr(sys, "argv", command[1:])
            suite.main()
        rows = []
        for event in (json.loads(line) for line in said.getvalue().splitlines() if line.startswith("{")):
            if "start" in event:
                begun.append(event["start"])
                step(event["start"])
            rows += [event["row"]] if "row" in event else []
        keep(rows)
        return rows, None, ""

    threads = torch.get_num_threads()
    monkeypatch.setenv("SPARSEGNN_STRICT", "1")
    monkeypatch.setattr(processes, "follow", follow)
    monkeypatch.setattr(sparsegnn, "keep_memory", lambda: True)  # else of this process, for good
    with warnings.catch_warnings():
        yield begun
    torch.set_num_threads(threads)
