"""Runs of the command line as cases of a table: resumable, a JSON line each."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from harness import FOLDER, runner


def environment(data: str | None = None) -> dict[str, str]:
    """Of the processes: where graphs are, and methods of ``benchmarks``."""
    paths = [str(FOLDER), os.environ.get("PYTHONPATH", "")]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return found | {"SPARSEGNN_DATA": data} if data else found


def run(arguments: str, env: dict[str, str], timeout: float | None = None) -> dict | str:
    """What `sparsegnn train ARGUMENTS --json` printed, or what went wrong."""
    command = ["train", *shlex.split(arguments), "--json"]
    words = [sys.executable, "-m", "sparsegnn", *command]
    try:
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return f"not done after {timeout:g} seconds"
    if done.returncode != 0:
        return f"exit {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"
    try:
        found = json.loads(done.stdout)
    except ValueError:
        return f"no JSON on stdout but {done.stdout[-200:]!r}"
    return {"command": " ".join(command), **runner.environment(), **found}


def config(words: list[str]):
    """The TrainConfig of options as the command line has them; those that are not of it raise KeyError."""
    from sparsegnn.experiments.config import TrainConfig

    known, given, at = TrainConfig.__dataclass_fields__, {}, 0
    while at < len(words):
        name = words[at].removeprefix("--").replace("-", "_")
        kind = known[name].type
        if kind == "bool":
            given[name], at = True, at + 1
            continue
        text = words[at + 1]
        given[name], at = (text if "str" in kind else (float(text) if "float" in kind else int(text))), at + 2
    return TrainConfig(**given)


def read(path: Path) -> dict[str, dict]:
    """Lines by the names of their cases."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return {row["case"]: row for row in map(json.loads, lines)}


def write(path: Path, rows: dict[str, dict]) -> None:
    """Never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    temporary.replace(path)


def measure(wanted: Iterable[tuple[str, str]], path: Path, env: dict[str, str], again: bool,
            line: Callable[[str, dict], dict], timeout: float | None = None) -> list[str]:  # fmt: skip
    """Run each (name, arguments) that is not in the file yet, with this command; returns the names that failed.

    One that takes longer than ``timeout`` seconds has failed.
    """
    from tqdm import tqdm

    rows, failed = read(path), []
    bar = tqdm(list(wanted), path.stem, file=sys.stderr)
    for name, arguments in bar:
        bar.set_postfix_str(name)
        command = " ".join(["train", *shlex.split(arguments), "--json"])
        if not again and rows.get(name, {}).get("command") == command:
            continue
        result = run(arguments, env, timeout)
        if isinstance(result, str):
            bar.write(f"{name}: {result}", file=sys.stderr)
            failed.append(name)
            continue
        rows = read(path)  # another process may have added some
        rows[name] = line(name, result)
        write(path, rows)
    return failed
