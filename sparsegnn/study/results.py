"""The rows of a study as cases and nets: JSON lines in, means over seeds out.

A line that is broken, or a row that lacks something or contradicts another one, is an error that names file and line.
Only what a run that was killed leaves, half a last line, is passed over, with a note.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sparsegnn import _console
from sparsegnn.study.bands import Band, band

ROLES = ("dense", "small_dense", "masked", "sparse")
#: settings of which seeds of one case may have different ones
OF_A_SEED = frozenset(("seed", "split_seed", "progress", "save"))
#: the order in which parts of a step are shown; what is left is `other`
PARTS = ("weights", "features", "aggregation", "elementwise", "optimizer", "mask_updates", "other")


@dataclass(frozen=True)
class Metric:
    """What a task is measured by: its name, the unit shown, the factor to it, and which way is better."""

    name: str
    unit: str
    factor: float
    higher_is_better: bool

    def better(self, a: float, b: float) -> bool:
        return a > b if self.higher_is_better else a < b


METRICS = {
    "accuracy": Metric("accuracy", "%", 100.0, True),
    "auc": Metric("AUC", "%", 100.0, True),
    "mae": Metric("MAE", "units of the data", 1.0, False),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, protected_namespaces=())


class Failed(_Strict):
    """A run that ended with an error."""

    id: str
    case: str
    error: str
    data: str = ""
    model: str = ""
    method: str = ""
    seed: int | None = None
    where: str = ""


class Row(_Strict):
    """A run, as far as it is read here."""

    id: str
    study: str
    case: str
    role: Literal["dense", "small_dense", "masked", "sparse"]
    matches: Literal["weights", "time", "memory"] | None
    of: str | None
    task: Literal["nodes", "links", "traffic"]
    data: str
    model: str
    method: str
    sparsity_asked: float | None
    hidden: int | None
    seed: int
    environment: dict
    started: str
    metric: Literal["accuracy", "auc", "mae"]
    higher_is_better: bool
    val: float
    test: float
    steps: int
    selected_step: int
    #: steps, validation, test of the step that is selected by then, FLOPs, seconds of training
    curve: list[tuple[int, float, float, float | None, float]]
    layers: dict[str, list[tuple[int, float]]]
    sparsity: float
    weights: int
    weights_dense: int
    model_bytes: float
    flops: float | None
    seconds_training: float
    peak_memory_bytes: float
    run_memory_bytes: float
    config: dict
    copied_from: str | None = None  # the id of an equal net that was trained for another case
    where: str = ""

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of a step in parts that do not overlap, in the order of `PARTS`; {} where they were not measured.

        Time of the optimizer is one of them only where its operations are counted apart; else it is within elementwise.
        """
        found = {}
        for part in PARTS:
            seconds = getattr(self, f"seconds_{part}", None)
            apart = part != "optimizer" or hasattr(self, "flops_optimizer")
            if isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and apart:
                found[part] = float(seconds)
        return found


@dataclass
class Case:
    """Runs that differ in their seed alone."""

    rows: list[Row]

    def __getattr__(self, name: str):
        """What all of its rows have in common."""
        if name in ("case", "role", "matches", "of", "data", "model", "method", "sparsity_asked", "hidden", "config"):
            return getattr(self.rows[0], name)
        raise AttributeError(name)

    @property
    def metric(self) -> Metric:
        return METRICS[self.rows[0].metric]

    @property
    def sparsity(self) -> float:
        """As measured, a mean over the seeds; of dense weights under a mask, which are all there, as asked for."""
        if self.role == "masked" and self.sparsity_asked is not None:
            return self.sparsity_asked
        return statistics.fmean(row.sparsity for row in self.rows)

    @cached_property
    def score(self) -> Band:
        """The test metric in the unit shown."""
        return band(self.scores)

    @property
    def scores(self) -> list[float]:
        return [row.test * self.metric.factor for row in self.rows]

    def values(self, name: str) -> list[float]:
        """Of every seed; [] where one of them lacks it."""
        found = [getattr(row, name) for row in self.rows]
        return [] if None in found else [float(value) for value in found]

    def band(self, name: str) -> Band | None:
        values = self.values(name)
        return band(values) if values else None


@dataclass(eq=False)
class Net:
    """All cases of a data set, a model and a width, of one study and one machine: what a panel of a figure shows.

    ``width`` is that of the dense net and the sparse ones; narrower dense nets are with the one that they are held
    against. ``family``: the nets of all widths, this one among them.
    """

    study: str
    task: str
    data: str
    model: str
    machine: str
    width: int | None = None
    cases: list[Case] = field(default_factory=list)
    title: str = ""
    family: list[Net] = field(default_factory=list, repr=False)

    @property
    def metric(self) -> Metric:
        return self.cases[0].metric

    def of_role(self, *roles: str) -> list[Case]:
        return [case for case in self.cases if case.role in roles]

    @property
    def dense_of_any_width(self) -> list[Case]:
        return [case for net in self.family for case in net.of_role("dense", "small_dense")]

    def named(self, name: str | None) -> Case | None:
        return next((case for case in self.cases if case.case == name), None)


@dataclass
class Results:
    nets: list[Net]
    failed: list[Failed]
    notes: list[str]
    files: list[str]

    @property
    def rows(self) -> list[Row]:
        return [row for net in self.nets for case in net.cases for row in case.rows]


def read(paths: Sequence[str | os.PathLike]) -> Results:
    """The runs in these files of JSON lines.

    Raises ValueError, with file and line, for a line that is no JSON object, a row that lacks a key or holds a value of
    the wrong kind, seeds of one case with other settings, or no runs at all; OSError for a file that cannot be read.
    """
    if isinstance(paths, (str, os.PathLike)) or not paths:
        raise ValueError(f"results must be one or more files of JSON lines, got {paths!r}")
    notes: list[str] = []
    found: dict[tuple[str, str], Row | Failed] = {}
    for path in paths:
        for row in _rows(Path(path), notes):
            key = (row.id, machine(getattr(row, "environment", None) or {}))
            _put(found, key, row, notes)
    rows = [row for row in found.values() if isinstance(row, Row)]
    done = {row.id for row in rows}
    failed = [row for row in found.values() if isinstance(row, Failed) and row.id not in done]
    if not rows and not failed:
        raise ValueError(f"results must hold rows of runs, got none in {_shown(paths)}")
    nets = _nets(rows)
    for net in nets:
        notes += [
            f"{case.rows[0].where}: {case.case} is the counterpart of {case.of}, of which there is no run"
            for case in net.cases
            if case.of is not None and net.named(case.of) is None
        ]
    return Results(nets, failed, notes, [_console.clean(path) for path in paths])


def machine(environment: dict) -> str:
    """The processor, the GPU if there is one, and the threads, on one line."""
    names = [environment.get(key) for key in ("processor", "gpu", "device")]
    words = dict.fromkeys(_console.clean(name) for name in names if name and name != "cpu")
    threads = environment.get("threads")
    said = list(words) or ["a machine without a name"]
    return ", ".join([*said, f"{threads} thread{'s' * (threads != 1)}"] if threads else said)


# --- lines -----------------------------------------------------------------------------------------------------------


def _rows(path: Path, notes: list[str]) -> Iterable[Row | Failed]:
    content = path.read_bytes()
    lines = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{_console.clean(path)}:{number}"
        try:
            value = json.loads(line, parse_constant=_no_constant)
        except (ValueError, RecursionError) as e:
            if number == len(lines):  # no line break after it
                notes.append(f"{where}: half a line, left out: its run was not written to its end")
                return
            raise ValueError(f"{where}: each line must be a JSON object, got {_excerpt(line)}: {e}") from None
        if not isinstance(value, dict):
            raise ValueError(f"{where}: each line must be a JSON object, got {_excerpt(line)}")
        yield _row(value, line, where)


def _row(value: dict, line: bytes, where: str) -> Row | Failed:
    kind = Failed if value.get("error") is not None else Row
    try:
        row = kind.model_validate_json(line)
    except ValidationError as e:
        raise ValueError(f"{where}: " + "; ".join(_fault(fault) for fault in e.errors())) from None
    row.where = where
    if isinstance(row, Row):
        _check(row)
    return row


def _fault(fault: dict) -> str:
    name = ".".join(map(str, fault["loc"]))
    if fault["type"] == "missing":
        return f"{name} is missing"
    return f"{name} is wrong: {fault['msg']}, got {_excerpt(repr(fault['input']).encode())}"


def _check(row: Row) -> None:
    """What one value says of another."""
    metric = METRICS[row.metric]
    if row.higher_is_better != metric.higher_is_better:
        raise ValueError(f"{row.where}: higher_is_better must be {metric.higher_is_better} for metric {row.metric!r}")
    if (row.role == "small_dense") != (row.matches is not None):
        raise ValueError(f"{row.where}: matches must be set for role 'small_dense' and for no other, got "
                         f"{row.matches!r} for {row.role!r}")  # fmt: skip
    if not row.curve:
        raise ValueError(f"{row.where}: curve must hold at least one point")
    if any(b[0] <= a[0] or b[4] < a[4] for a, b in zip(row.curve, row.curve[1:], strict=False)):
        raise ValueError(f"{row.where}: curve must go on in steps and seconds")
    for name in ("sparsity", "sparsity_asked"):
        if not 0 <= (getattr(row, name) or 0.0) < 1:
            raise ValueError(f"{row.where}: {name} must be in [0, 1), got {getattr(row, name)}")


def _put(found: dict, key: tuple, row: Row | Failed, notes: list[str]) -> None:
    """A later row of the same run takes the place of the earlier one."""
    before = found.get(key)
    if isinstance(before, Row):
        if isinstance(row, Failed) or row.started == before.started:
            return
        notes.append(f"{row.where}: run {row.id} is also at {before.where}, of which this, the later one, is used")
    found[key] = row


def _no_constant(name: str):
    raise ValueError(f"{name} is no JSON")


def _excerpt(text: bytes) -> str:
    shown = _console.clean(text[:61].decode(errors="backslashreplace"))
    return shown[:60] + "..." * (len(shown) > 60)


def _shown(paths: Sequence) -> str:
    return ", ".join(_console.clean(path) for path in paths)


# --- cases and nets --------------------------------------------------------------------------------------------------


def _nets(rows: list[Row]) -> list[Net]:
    cases: dict[tuple, Case] = {}
    for row in rows:
        net = (row.study, row.task, row.data, row.model, machine(row.environment))
        case = cases.setdefault((net, row.case), Case([]))
        _fits(case, row)
        case.rows.append(row)
    families: dict[tuple, dict[int | None, Net]] = {}
    for (key, _), case in cases.items():
        case.rows.sort(key=lambda row: row.seed)
        sparse = cases.get((key, case.of), case) if case.role == "small_dense" else case
        nets = families.setdefault(key, {})
        nets.setdefault(sparse.hidden, Net(*key, sparse.hidden)).cases.append(case)
    made = []
    for key in sorted(families):
        family = [net for _, net in sorted(families[key].items(), key=lambda item: item[0] or 0)]
        made += family
        _one_metric(family)
        for net in family:
            net.family = family
            net.cases.sort(key=_order)
    for net in made:
        others = [n for n in made if (n.data, n.model) == (net.data, net.model)]
        words = [_console.clean(net.data), _console.clean(net.model)]
        words += [f"{net.width} wide"] * (len(net.family) > 1)
        words += [_console.clean(net.study)] * (len({n.study for n in others}) > 1)
        words += [net.machine] * (len({n.machine for n in others}) > 1)
        net.title = ", ".join(words)
    return made


def _order(case: Case) -> tuple:
    asked = case.sparsity if case.sparsity_asked is None else case.sparsity_asked
    return ROLES.index(case.role), case.method, case.matches or "", case.hidden or 0, asked, case.case


def _fits(case: Case, row: Row) -> None:
    """ValueError where a row cannot be another seed of the case."""
    for other in case.rows:
        if other.seed == row.seed:
            raise ValueError(f"{row.where}: seed {row.seed} of case {row.case!r} is already at {other.where}, with "
                             "other settings: name the cases apart, or plot one of the files")  # fmt: skip
    if not case.rows:
        return
    first = case.rows[0]
    names = ("role", "matches", "of", "method", "sparsity_asked", "hidden", "metric")
    mine, theirs = ({name: getattr(r, name) for name in names} | _settings(r) for r in (row, first))
    for name in sorted(mine.keys() | theirs.keys(), key=str):
        if mine.get(name) != theirs.get(name):
            raise ValueError(f"{row.where}: case {row.case!r} has {name} {mine.get(name)!r} here, but "
                             f"{theirs.get(name)!r} at {first.where}: seeds of a case must share settings")  # fmt: skip


def _settings(row: Row) -> dict:
    return {f"config.{name}": value for name, value in row.config.items() if name not in OF_A_SEED}


def _one_metric(family: list[Net]) -> None:
    cases = [case for net in family for case in net.cases]
    for case in cases:
        if case.metric is not cases[0].metric:
            first, other = cases[0].rows[0], case.rows[0]
            raise ValueError(f"{other.where}: metric {other.metric!r}, but {first.metric!r} at {first.where}, of the "
                             f"same data and model")  # fmt: skip
