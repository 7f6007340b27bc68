"""A study's configuration file, checked before anything runs: every fault at once, each with its line."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sparsegnn.controllers import Controller, registry
from sparsegnn.controllers.settings import shown
from sparsegnn.study import faults, schema, tasks
from sparsegnn.study.faults import Key, Toml

TABLES = ("data", "methods", "common")
FILES = {"npz": ("file",), "edges": ("edges", "features", "labels")}
OF_METHODS = ("distribution", "pattern", "update_every", "stop_at", "drop_fraction", "set")
WORDS = {"int_type": "must be a whole number", "float_type": "must be a number", "bool_type": "must be true or false",
         "string_type": "must be text", "list_type": "must be a list", "dict_type": "must be a table",
         "model_type": "must be a table", "string_too_short": "must not be empty", "too_short": "must not be empty",
         "finite_number": "must be finite"}  # fmt: skip


@dataclass
class Set:
    """A data set of a study, and what its runs share."""

    key: Key
    name: str
    title: str
    source: dict  # as `tasks.load` takes it
    origin: dict  # the same as the file has it, whose paths are relative to it
    models: list[str]
    widths: list[int | None]
    seeds: list[int]
    settings: dict
    facts: tasks.Facts = tasks.Facts()

    @property
    def split_seed(self) -> int:
        return self.settings.get("split_seed", 0)


@dataclass
class Method:
    key: Key
    title: str
    name: str
    sparsities: list[float | None]
    settings: dict = field(default_factory=dict)
    models: list[str] | None = None  # None: all


@dataclass
class Study:
    name: str
    task: tasks.Task
    threads: int | None
    curve_points: int | None  # about as many points of a learning curve are kept; all
    sets: list[Set]
    methods: list[Method]
    baselines: schema.Baselines
    toml: Toml


def read(path: str | Path) -> Study:
    """The study of a file; :class:`BadStudy` with every fault that its values and its data have.

    Whether settings go together is for the plan to say (:func:`sparsegnn.study.plan.plan`), which adds its faults to
    ``toml``.
    """
    toml = faults.read(path)
    top, task = _top(toml)
    common = _common(toml, task)
    sets = list(_sets(toml, task, common, top.seeds))
    methods = list(_methods(toml, task, top.sparsity))
    baselines = top.baselines
    if baselines.oneshot and not any(m.name == "oneshot" for m in methods):
        grid = top.sparsity or sorted({s for m in methods for s in m.sparsities if s is not None})
        methods.append(Method(("baselines", "oneshot"), "oneshot", "oneshot", list(grid) or [0.9]))
    nets = list(dict.fromkeys(model for s in sets for model in s.models))
    for m in methods:
        for i, model in enumerate(m.models or ()):
            if model not in nets:
                toml.fault((*m.key, "models", i), f"must be a model of this study, {', '.join(nets)}, got {model!r}")
    known = [m.title for m in methods]
    for i, name in enumerate(baselines.of or ()):
        if name not in known:
            toml.fault(("baselines", "of", i), f"must be a method of this study, {', '.join(known)}, got {name!r}")
    if task is None:  # which the plan needs
        toml.check()
    return Study(top.name, task, top.threads, top.curve_points, sets, methods, baselines, toml)


# --- values ----------------------------------------------------------------------------------------------------------


def _top(toml: Toml) -> tuple[schema.Top, tasks.Task | None]:
    """What is in no table, without its faulty values; the task, None where it is one of these."""
    value = {k: v for k, v in toml.content.items() if k not in TABLES}
    made = _model(toml, (), schema.Top, value)
    if made is not None:
        return made, tasks.find(made.task)
    wrong = {key for key in value if any(text.startswith((f"{key}:", f"{key}.", f"{key}[")) for _, text in toml.faults)}
    made = schema.Top.model_validate({"name": "unnamed"} | {k: v for k, v in value.items() if k not in wrong})
    return made, None if "task" in wrong else tasks.find(made.task)


def _model(toml: Toml, key: Key, kind: type[schema.Table], value: Any) -> Any:
    """The value as a model of that kind; None, and faults, where it is none."""
    try:
        return kind.model_validate(value)
    except ValidationError as e:
        for error in e.errors():
            place = tuple(part for part in error["loc"] if not _of_pydantic(part))
            toml.fault((*key, *place), _said(kind, error))
    return None


def _of_pydantic(part: str | int) -> bool:
    return isinstance(part, str) and (part == "[key]" or "[" in part)


def _said(kind: type[schema.Table], error: dict) -> str:
    got, what = shown(error["input"]), error["type"]
    if what == "value_error":  # in our words
        return str(error["ctx"]["error"])
    if what == "missing":
        return "is missing"
    if what == "extra_forbidden":
        known = list(kind.model_fields)
        if kind is schema.Top:
            known += TABLES
        return f"must be one of {', '.join(known)}{_meant(str(error['loc'][-1]), known)}"
    if error["loc"][0] == "sparsity" and what in ("greater_than_equal", "less_than"):
        return f"must be in [0, 1), got {got}"
    words = WORDS.get(what) or error["msg"].replace("Input should be", "must be").replace("String should", "must")
    return f"{words}, got {got}"


def _meant(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f": did you mean {close[0]}?" if close else ""


def _settings(toml: Toml, key: Key, task: tasks.Task | None, settings: dict) -> dict:
    """Those that a run of the task has; a fault for each of the others."""
    for name in settings:
        if task is not None and name not in task.settings:
            known, more = task.settings, ""
            if key[:1] == ("methods",):
                known, more = ["method", "sparsity", "models", *known], "; a method's own are in set = { name = value }"
            toml.fault((*key, name), f"must be a setting of a run{_meant(name, known) or ' (' + ', '.join(known) + ')'}"
                                     f"{more}")  # fmt: skip
    return {name: value for name, value in settings.items() if task is None or name in task.settings}


def _common(toml: Toml, task: tasks.Task | None) -> dict:
    value = toml.content.get("common", {})
    if not isinstance(value, dict):
        toml.fault(("common",), f"must be a table, got {shown(value)}")
        return {}
    return _settings(toml, ("common",), task, value)


# --- methods ---------------------------------------------------------------------------------------------------------


def takes_sparsity(cls: type[Controller]) -> bool:
    """Whether a sparsity of the weights can be asked of a method."""
    asked = "sparsity" in registry.settings(cls) or cls.start == "sparse"
    return asked and "weights" in cls.target and cls.patterns != "2:4"


def _methods(toml: Toml, task: tasks.Task | None, grid: list[float] | None) -> Iterator[Method]:
    value = toml.content.get("methods", {})
    if isinstance(value, list):  # of names
        tables = {name if isinstance(name, str) else str(i): {} for i, name in enumerate(value)}
        places = {name: ("methods", i) for i, name in enumerate(tables)}
        for i, name in enumerate(value):
            if not isinstance(name, str):
                toml.fault(("methods", i), f"must be the name of a method, got {shown(name)}")
                tables.pop(str(i))
    elif isinstance(value, dict):
        tables, places = value, {name: ("methods", name) for name in value}
    else:
        toml.fault(("methods",), f"must be a list of names or a table of each, got {shown(value)}")
        return
    for title, table in tables.items():
        key = places[title]
        if not isinstance(table, dict):
            toml.fault(key, f"must be a table, got {shown(table)}")
            continue
        made = _model(toml, key, schema.Method, {"method": title, **table})
        if made is None:
            continue
        settings = _settings(toml, key, task, made.settings())
        takes = takes_sparsity(registry.find(made.method))
        if made.sparsity is not None and not takes:
            toml.fault((*key, "sparsity"), f"must be left out for method {made.method!r}, which takes none")
        sparsities = (made.sparsity or grid or [0.9]) if takes else [None]
        yield Method(key, title, made.method, list(sparsities), settings, made.models)


# --- data ------------------------------------------------------------------------------------------------------------


def _sets(toml: Toml, task: tasks.Task | None, common: dict, seeds: list[int]) -> Iterator[Set]:
    value = toml.content.get("data")
    if not isinstance(value, list) or not value:
        toml.fault(("data",), "must be there, a [[data]] for each set" + f", got {shown(value)}" * (value is not None))
        return
    looked: dict[str, tasks.Facts] = {}
    for i, table in enumerate(value):
        made = _model(toml, ("data", i), schema.Data, table)
        if made is None:
            _missing_files(toml, ("data", i), table)
            continue
        settings = {**common, **_settings(toml, ("data", i), task, made.settings())}
        found = Set(("data", i), made.name, made.title or made.name, *_source(toml, made), made.model,
                    made.hidden or [None], made.seeds or seeds, settings)  # fmt: skip
        if _complete(toml, found) and task is not None:
            same = f"{found.source} {found.split_seed}"
            if same not in looked and (facts := _look(toml, task, found)) is not None:
                looked[same] = facts
            found.facts = looked.get(same, found.facts)
        yield found


def _source(toml: Toml, made: schema.Data) -> tuple[dict, dict]:
    kind = made.source()
    files = {k: v for k in FILES.get(kind, ()) if (v := getattr(made, k)) is not None}
    about = {"kind": kind, "name": made.name, "directed": made.directed}
    return about | {k: tasks.named(toml.path.parent, v) for k, v in files.items()}, about | files


def _complete(toml: Toml, found: Set) -> bool:
    """Whether a set has the files that its kind needs, and no others."""
    source, before = found.source, len(toml.faults)
    needed = [key for key in FILES.get(source["kind"], ()) if key != "labels"]
    table = toml.content["data"][found.key[1]]
    for key in needed:
        if key not in source:
            toml.fault((*found.key, key), f"is missing, which kind {source['kind']!r} needs")
    for key in ("file", "edges", "features", "labels", "directed"):
        if key in table and key not in (*FILES.get(source["kind"], ()), *["directed"] * (source["kind"] == "edges")):
            toml.fault((*found.key, key), f"must be left out for kind {source['kind']!r}")
    _missing_files(toml, found.key, table)
    return len(toml.faults) == before


def _missing_files(toml: Toml, key: Key, table: Any) -> None:
    for name in ("file", "edges", "features", "labels"):
        text = table.get(name) if isinstance(table, dict) else None
        if isinstance(text, str) and text and not Path(path := tasks.named(toml.path.parent, text)).is_file():
            toml.fault(
                (*key, name), f"must be a file, got {path}: " + ("no file" if Path(path).exists() else "no such file")
            )


def _look(toml: Toml, task: tasks.Task, found: Set) -> tasks.Facts | None:
    """Load the set once: it must have features, labels, and a split or enough labels for one. None where it cannot."""
    place = next((n for n in ("file", "edges") if n in found.source), "name")
    split_seed = found.split_seed
    if not isinstance(split_seed, int) or isinstance(split_seed, bool) or split_seed < 0:
        return None  # the plan refuses it
    try:
        data = tasks.load(task.name, found.source, split_seed)
    except ValueError as e:
        text = str(e)
        for name in ("features", "labels"):  # whose file it is
            if text.startswith(str(found.source.get(name, "\0"))):
                place = name
        toml.fault((*found.key, place), text)
        return None
    return tasks.facts(data)
