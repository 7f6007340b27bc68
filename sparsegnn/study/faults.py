"""What is wrong with a configuration file: all of it at once, each with its line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

Key = tuple[str | int, ...]


class BadStudy(ValueError):
    """A configuration that cannot run: every fault, one a line."""


@dataclass
class Toml:
    """A TOML file: its values, the line of each key, and the faults that were found so far."""

    path: Path
    content: dict
    lines: dict[Key, int]
    faults: dict[tuple[int, str], str] = field(default_factory=dict)

    def line(self, key: Key) -> int:
        """Of the key, else of the nearest table or array that would hold it; 1 for what is nowhere."""
        return next((self.lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.lines), 1)

    def fault(self, key: Key, text: str, note: str = "") -> None:
        """``text``: what was expected, and what came; of the same text for one key only the first ``note`` is kept."""
        found = (self.line(key), f"{name_of(key)}: {text}" if key else text)
        if found not in self.faults:
            self.faults[found] = note

    def check(self) -> None:
        """BadStudy if there is a fault."""
        if self.faults:
            raise BadStudy(
                "\n".join(f"{self.path}:{line}: {text}{note}" for (line, text), note in sorted(self.faults.items()))
            )


def name_of(key: Key) -> str:
    """``data[0].hidden[2]``, as in Python; names with other characters in quotes, as in TOML."""
    text = ""
    for part in key:
        plain = isinstance(part, int) or re.fullmatch(r"[\w-]+", part)
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if plain else f'."{part}"'
    return text.removeprefix(".")


def read(path: str | Path) -> Toml:
    """BadStudy with the line where the file is no TOML; ValueError where it cannot be read."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"config: {path} cannot be read: {getattr(e, 'strerror', None) or e}") from None
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        at = re.search(r"at line (\d+)", str(e))
        line = at.group(1) if at else max(1, text.rstrip().count("\n") + 1)
        raise BadStudy(f"{path}:{line}: must be TOML: {e}") from None
    return Toml(path, content, lines_of(text))


def lines_of(text: str) -> dict[Key, int]:
    """The line of every key of a TOML text, from 1; elements of an array have their own lines.

    The text is cut into statements, each as many lines as the parser needs.
    """
    found: dict[Key, int] = {}
    arrays: dict[Key, int] = {}  # of [[tables]], the index of the last one
    where: Key = ()
    lines, start = text.split("\n"), 0
    while start < len(lines):
        end, statement = start + 1, None
        while statement is None:
            try:
                statement = tomllib.loads("\n".join(lines[start:end]))
            except tomllib.TOMLDecodeError:
                if end == len(lines):
                    raise
                end += 1
        if lines[start].lstrip().startswith("["):
            where = _header(statement, arrays)
            for n in range(1, len(where) + 1):
                found.setdefault(where[:n], start + 1)
        else:
            _keys(statement, where, start + 1, found, elements=False)
            for n in range(start + 1, end):  # which elements of an array are there by which line
                with suppress(tomllib.TOMLDecodeError):
                    _keys(tomllib.loads("\n".join([*lines[start:n], "]"])), where, n, found)
            _keys(statement, where, end, found)
        start = end
    return found


def _header(statement: dict, arrays: dict[Key, int]) -> Key:
    """The table that ``[a.b]`` or ``[[a.b]]`` begins."""
    key: Key = ()
    inside: object = statement
    while isinstance(inside, Mapping) and inside:
        ((name, inside),) = inside.items()
        key += (name,)
        if isinstance(inside, list):  # [[a]]: a new one
            arrays[key] = arrays.get(key, -1) + 1
            inside = inside[0]
        if key in arrays:
            key += (arrays[key],)
    return key


def _keys(value: object, where: Key, line: int, found: dict[Key, int], elements: bool = True) -> None:
    listed = enumerate(value) if isinstance(value, list) and elements else ()
    for name, inside in value.items() if isinstance(value, Mapping) else listed:
        found.setdefault((*where, name), line)
        _keys(inside, (*where, name), line, found, elements)
