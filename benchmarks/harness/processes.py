"""The processes of a suite: what they say, what is done when one dies or hangs, the progress bar."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

SILENCE = 240  # seconds without a word from a process after which it is taken to hang
ABOUT = ("device", "threads", "isa", "torch", "sparsegnn", "python", "malloc", "suite", "limits", "code")


def run(command: list[str], todo: list[str], step: Callable[[str], None], keep: Callable[[list[dict]], object],
        failed: Callable[[str, str], list[dict]]) -> list[dict]:  # fmt: skip
    """The rows of these groups. A process that dies or hangs costs the group that it was at: its rows are ``failed``.

    ``step`` hears the name of every group that begins, ``keep`` gets the rows so far whenever one is done.
    """
    rows: list[dict] = []
    while todo:
        found, at, end = follow([*command, "--todo", json.dumps(todo)], step, lambda more, rows=rows: keep(rows + more))
        if at is None and end:
            raise RuntimeError(f"{' '.join(command[1:5])} {end}")
        rows += found
        if not end:
            break
        about = {name: value for name, value in (rows or [{}])[-1].items() if name in ABOUT}
        there = {row["suite_row"] for row in found if row["group"] == at}
        rows += [about | row for row in failed(at, f"the process {end}") if row["suite_row"] not in there]
        keep(rows)
        todo = todo[todo.index(at) + 1 :]
    return rows


def follow(command: list[str], step: Callable[[str], None],
           keep: Callable[[list[dict]], object]) -> tuple[list[dict], str | None, str]:  # fmt: skip
    """Rows, the group that was begun last, and how the process ended, "" if well."""
    rows, at = [], None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines: queue.Queue = queue.Queue()

        def read():
            for line in process.stdout:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        while True:
            try:
                line = lines.get(timeout=SILENCE)
            except queue.Empty:
                process.kill()
                return rows, at, f"said nothing for {SILENCE} s and was ended"
            if line is None:
                break
            if not line.startswith("{"):
                continue
            event = json.loads(line)
            if "start" in event:
                at = event["start"]
                step(at)
            elif "row" in event:
                rows.append(event["row"])
            elif "done" in event:
                keep(rows)
    return rows, at, f"ended with code {process.returncode}" if process.returncode else ""


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:48}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task, begun = bar.add_task("starting", total=total), [False]

        def step(description: str) -> None:
            bar.update(task, description=description, advance=int(begun[0]))
            begun[0] = True

        yield step
        bar.update(task, description="done", completed=total)
