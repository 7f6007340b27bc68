"""What the package prints goes through here.

Names, paths, environment variables and messages of errors are text from elsewhere: none of it is taken for markup, none
of it controls a terminal, and no stream is too narrow, closed, full or ASCII for it.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

#: a cell of a table: text, or text and the style that rich gives it
Cell = str | tuple[str, str]


def clean(text: object) -> str:
    """The text on one line, with what is not printable as an escape: line breaks, controls, halves of characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def json_text(value: object, short: bool = False) -> str:
    """Strict JSON in ASCII: NaN and infinities are null, and what UTF-8 cannot hold is an escape within its string."""
    separators = (",", ":") if short else None
    return json.dumps(_plain(value), allow_nan=False, separators=separators).replace("\x7f", "\\u007f")


def _plain(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(_plain(k)): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, int):
        return value
    return str(value).encode("utf-8", "backslashreplace").decode()


def write(text: str) -> None:
    """Print to stdout, whatever its encoding, now."""
    if sys.stdout is not None:
        sys.stdout.write(encodable(text, sys.stdout))
        sys.stdout.flush()


def encodable(text: str, stream: object) -> str:
    """The text with what the stream's encoding lacks as escapes."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


# --- tables ----------------------------------------------------------------------------------------------------------


def table(title: str, rows: Sequence[Sequence[Cell]], head: Sequence[str] = (), *, box: str = "", right=()) -> str:
    """Rows of text as a table: with rich if it is there, of a `box` by rich's name, `right` the columns to align."""
    try:
        import rich.box
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return _plain_table(title, rows, head)
    made = Table(title=Text(clean(title)), title_justify="left", show_header=bool(head))
    made.box = getattr(rich.box, box) if box else None
    made.padding = (0, 1) if box else (0, 2, 0, 0)
    for i in range(len(rows[0]) if rows else len(head)):
        justify = "right" if i in right else "left"
        made.add_column(Text(clean(head[i])) if head else "", justify=justify, overflow="fold")
    for row in rows:
        cells = (cell if isinstance(cell, tuple) else (cell, "") for cell in row)
        made.add_row(*(Text(clean(text), style) for text, style in cells))
    return rendered(made)


def _plain_table(title: str, rows: Sequence[Sequence[Cell]], head: Sequence[str]) -> str:
    lines = [list(head)] * bool(head)
    lines += [[clean(cell[0] if isinstance(cell, tuple) else cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)
    return "".join(f"{line.rstrip()}\n" for line in (clean(title), *aligned))


def width(least: int = 60) -> int:
    """Columns of the terminal, 120 where there is none, never too few."""
    return min(max(shutil.get_terminal_size((120, 25)).columns, least), 400)


def rendered(renderable: object, least: int = 60) -> str:
    """A renderable of rich as text for stdout: as wide as the terminal, 120 where there is none, never too narrow."""
    from rich.console import Console

    plain = {"markup": False, "emoji": False, "highlight": False, "force_jupyter": False}
    console = Console(file=sys.stdout or io.StringIO(), width=width(least), height=25, **plain)
    with console.capture() as capture:
        console.print(renderable)
    text = capture.get()
    return text if console.is_terminal else "".join(f"{line.rstrip()}\n" for line in text.splitlines())


# --- streams ---------------------------------------------------------------------------------------------------------


class ReaderGone(BaseException):
    """Nobody reads stdout any more, as after `sparsegnn info | head -1`: a reason to stop, and no error."""


class Stream:
    """A standard stream that takes any text and never fails: what it cannot write goes to `instead`, or nowhere.

    `used` says that something was written, `failure` why no more is. Only where there is an `instead`, the pipe of a
    reader who left raises ReaderGone.
    """

    def __init__(self, stream, instead: Stream | None = None) -> None:
        self.stream, self.instead = stream, instead
        self.used, self.failure = False, ""

    def write(self, text: str) -> int:
        with self._failures():
            if self.stream is not None:
                self.stream.write(encodable(text, self.stream))
                self.stream.flush()
                self.used |= bool(text)
                return len(text)
        if self.instead is not None:
            self.instead.write(text)
        return len(text)

    def flush(self) -> None:
        with self._failures():
            if self.stream is not None:
                self.stream.flush()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as e:  # ValueError: a closed file
            self.stream, self.failure = None, getattr(e, "strerror", None) or str(e)
            if self.instead is not None and getattr(e, "errno", None) == errno.EPIPE:
                raise ReaderGone from e

    def isatty(self) -> bool:
        return self.stream is not None and self.stream.isatty()

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def diagnostics() -> Stream:
    """stderr for progress and messages, which are not worth a run."""
    return sys.stderr if isinstance(sys.stderr, Stream) else Stream(sys.stderr)


#: what ended the command: kept, as Python drops exceptions that a signal raises within a finalizer
stopped: list[BaseException] = []


def stop_if_asked() -> None:
    """Between pieces of long work: raise what a signal raised and nobody saw."""
    if stopped:
        raise stopped[0]


@contextmanager
def command_line() -> Iterator[tuple[Stream, Stream]]:
    """stdout and stderr of a command, as streams that never fail: stderr takes what stdout cannot."""
    _open_standard_files()
    real = sys.stdout, sys.stderr
    sys.stderr = error = Stream(real[1])
    sys.stdout = out = Stream(real[0], instead=error)
    try:
        yield out, error
    finally:
        sys.stdout, sys.stderr = real
        for stream in real:
            _drop_what_cannot_be_written(stream)


def _open_standard_files() -> None:
    """No file that is opened later may become stdin, stdout or stderr, where others print."""
    with suppress(OSError):
        while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(handle)


def _drop_what_cannot_be_written(stream) -> None:
    """Python flushes its streams when it ends, and exits with 120 where that fails."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
