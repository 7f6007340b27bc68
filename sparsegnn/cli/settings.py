"""`--set name=value`: a method's own settings, read as its signature wants them."""

from __future__ import annotations

import inspect
import json
import os
import sys
import types
import typing
from collections.abc import Mapping, Sequence

from sparsegnn.controllers import Controller, registry
from sparsegnn.controllers.settings import shown

NONE, WORDS = ("none", "null"), {"true": True, "false": False}
#: kinds of values, the strictest first, and what a text that is none of one is told; a tuple of literals is a kind too
KINDS = {type(None): "none", bool: "true or false", int: "an integer", float: "a number", dict: "a JSON object",
         list: "numbers such as 1,2", tuple: "names such as a,b", str: "text"}  # fmt: skip


def find(name: str, others: Sequence[str] = ()) -> type[Controller]:
    """The method of that name, or the class at module:Class, of the current folder too, where `python -m` looks."""
    if ":" in name and not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    return registry.find(name, others)


def read(cls: type[Controller], texts: Sequence[str]) -> dict:
    """The values of ``name=value`` texts; ValueError names setting, expectation and value."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise ValueError(f"set must be name=value, got {shown(text)}")
        if name in found:
            raise ValueError(f"set must name each setting once, got {name} twice")
        found[name] = parse(name, value.strip(), kinds(cls, registry.check_setting(cls, name)))
    return found


def parse(name: str, text: str, allowed: Sequence) -> object:
    """The text as the first of the kinds that it can be."""
    for kind in allowed:
        try:
            return _as(kind, text)
        except (ValueError, RecursionError):  # of brackets in brackets
            continue
    raise ValueError(f"set: {name} must be {expected(allowed)}, got {shown(text)}")


def kinds(cls: type[Controller], setting: inspect.Parameter) -> list:
    """What a setting may be, the strictest kind first: by its annotation, else its default, else anything."""
    try:
        annotation = typing.get_type_hints(cls.__init__).get(setting.name)
    except Exception:  # of names that exist for a type checker only
        annotation = None
    found = {kind for part in _members(annotation) if (kind := _kind(part)) is not None}
    if not found and setting.default is not None:
        found = {_kind(type(setting.default)) or str}
    if setting.default is None:
        found = found | {type(None)} if found else KINDS.keys() - {tuple}
    order = list(KINDS)
    return sorted(found, key=lambda kind: order.index(kind) if kind in KINDS else -1)


def expected(allowed: Sequence) -> str:
    """The kinds in words, none last."""
    kinds = sorted(allowed, key=lambda kind: kind is type(None))
    return " or ".join(KINDS[kind] if kind in KINDS else "one of " + ", ".join(map(str, kind)) for kind in kinds)


def _members(annotation: object) -> list:
    """Of a union, and of unions in it."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [part for member in typing.get_args(annotation) for part in _members(member)]
    return [] if annotation in (None, typing.Any) else [annotation]


def _kind(annotation: object) -> object:
    """The kind of value that an annotation means; None for what no text can be, a callable for example."""
    origin, inside = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin is typing.Literal:
        return inside
    if origin in KINDS and origin not in (dict, list, tuple):
        return origin
    if not isinstance(origin, type):
        return None
    if issubclass(origin, Mapping):
        return dict
    return (tuple if str in inside else list) if issubclass(origin, Sequence) else None


def _as(kind: object, text: str) -> object:
    """The text as a value of the kind, or ValueError."""
    if isinstance(kind, tuple):  # of literals
        return kind[[str(value) for value in kind].index(text)]
    if kind in (int, float, str):
        return kind(text)
    if kind in (list, tuple):
        return _items(text, _number if kind is list else _name)
    if kind is dict:
        if isinstance(value := json.loads(text), dict):
            return value
    elif kind is bool:
        if text.lower() in WORDS:
            return WORDS[text.lower()]
    elif text.lower() in NONE:
        return None
    raise ValueError


def _items(text: str, item) -> tuple:
    """`1,2`, `[1, 2]` or `(1, 2)`."""
    inner = text[1:-1] if text[:1] + text[-1:] in ("[]", "()") else text
    parts = [part.strip() for part in inner.split(",")]
    return tuple(map(item, parts[:-1] if parts[-1] == "" and len(parts) > 1 else parts))  # (1,) is a tuple of one


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _name(text: str) -> str:
    if not (name := text.strip("'\"")):
        raise ValueError
    return name
