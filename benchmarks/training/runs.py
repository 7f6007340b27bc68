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


def run(arguments: str, env: dict[str, str]) -> dict | str:
    """What `sparsegnn train ARGUMENTS --json` printed, or what went wrong."""
    command = ["train", *shlex.split(arguments), "--json"]
    done = subprocess.run([sys.executable, "-m", "sparsegnn", *command], env=env, capture_output=True, text=True)
    if done.returncode != 0:
        return f"exit {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"
    return {"command": " ".join(command), **runner.environment(), **json.loads(done.stdout)}


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
            line: Callable[[str, dict], dict]) -> list[str]:  # fmt: skip
    """Run each (name, arguments) that is not in the file yet, with this command; returns the names that failed."""
    from tqdm import tqdm

    rows, failed = read(path), []
    bar = tqdm(list(wanted), path.stem, file=sys.stderr)
    for name, arguments in bar:
        bar.set_postfix_str(name)
        command = " ".join(["train", *shlex.split(arguments), "--json"])
        if not again and rows.get(name, {}).get("command") == command:
            continue
        result = run(arguments, env)
        if isinstance(result, str):
            bar.write(f"{name}: {result}", file=sys.stderr)
            failed.append(name)
            continue
        rows = read(path)  # another process may have added some
        rows[name] = line(name, result)
        write(path, rows)
    return failed
