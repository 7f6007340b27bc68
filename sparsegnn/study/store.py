"""The rows of a study on the disk: JSON lines that are only ever added to, by one process at a time."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from sparsegnn import _console, _files

STARTS = b'{"id":"', b'{"id": "'  # of every line, by this version or by hand
#: what is kept of each row in memory, beside the place of the row in the file
KEPT = ("id", "case", "role", "matches", "error", "training", "hidden", "steps", "weights", "seconds_training",
        "run_memory_bytes", "seconds_wall", "seed", "data_digest")  # fmt: skip


class Store:
    """Rows by their id, a later one in place of an earlier one::

        with Store("study.jsonl") as store:
            store.add({"id": "0a1b2c3d4e5f", ...})

    A line is on the disk before ``add`` returns; whatever happens meanwhile, even a full disk, leaves the lines before
    it whole. Half a last line, which a kill leaves, is removed when the file is opened. ValueError where another
    process has it open, or where a line is none of a study.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.rows: dict[str, dict] = {}
        self.removed = 0  # bytes of half a line
        self._places: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Store:
        _files.check("out", self.path)
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"out must be a file that no other study writes now, got {self.path}") from None
            self._read()
        except BaseException:
            os.close(self._handle)
            raise
        return self

    def __exit__(self, *error) -> None:
        os.close(self._handle)

    def add(self, row: dict) -> None:
        """Write a row, all of it or nothing, its floats to seven digits; OSError where the disk is full."""
        row = json.loads(_console.json_text({"id": row["id"], **row}), parse_float=_seven_digits)
        line = _console.json_text(row, short=True).encode() + b"\n"
        end = os.fstat(self._handle).st_size
        try:
            self._write(line)
        except BaseException:
            os.ftruncate(self._handle, end)
            raise
        self._keep(row, end, len(line))

    def whole(self, id: str) -> dict:
        """The row as it is in the file."""
        start, length = self._places[id]
        return json.loads(os.pread(self._handle, length, start))

    def done(self, id: str) -> bool:
        """Whether a run has ended, well or with an error."""
        return id in self.rows

    def failed(self, id: str) -> bool:
        return self.rows.get(id, {}).get("error") is not None

    def good(self) -> Iterator[dict]:
        return (row for row in self.rows.values() if row.get("error") is None)

    def _keep(self, row: dict, start: int, length: int) -> None:
        self.rows[row["id"]] = {key: row[key] for key in KEPT if key in row}
        self._places[row["id"]] = start, length

    def _write(self, content: bytes) -> None:
        while content:
            content = content[os.write(self._handle, content) :]
        os.fsync(self._handle)

    def _read(self) -> None:
        start = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                row = _row(line)
                torn = not line.endswith(b"\n") and any(start.startswith(line[: len(start)]) for start in STARTS)
                if row is None and torn:
                    self.removed = len(line)
                    os.ftruncate(self._handle, start)
                    os.fsync(self._handle)
                    return
                if row is None:
                    raise ValueError(f"{self.path}:{number}: each line must be the JSON of a run, got "
                                     f"{_console.clean(line[:60].decode(errors='replace'))!r}")  # fmt: skip
                self._keep(row, start, len(line))
                start += len(line)
        if start and not line.endswith(b"\n"):  # a whole row, whose line break is missing
            self._write(b"\n")


def _seven_digits(text: str) -> float:
    return float(f"{float(text):.7g}")


def _row(line: bytes) -> dict | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("id"), str) else None
