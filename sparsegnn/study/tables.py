"""The tables of a study's page."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from sparsegnn import _console
from sparsegnn.study.bands import Band
from sparsegnn.study.compare import (
    as_good,
    counterparts,
    dense_of,
    gain,
    quotient,
    reached,
    target,
    verdict,
)
from sparsegnn.study.plots.describe import short
from sparsegnn.study.plots.series import COST, MASKED, View
from sparsegnn.study.plots.text import number, plus_minus, with_band
from sparsegnn.study.results import Case, Net


@dataclass(frozen=True)
class Cell:
    """Text, the number or text by which its column is sorted, and more for who points at it."""

    text: str
    key: float | str | None = None
    more: str = ""


@dataclass
class Table:
    """``head``: (name, what it means, whether it is a number) of each column."""

    name: str
    head: list[tuple[str, str, bool]]
    rows: list[list[Cell]] = field(default_factory=list)


def _text(text: str, more: str = "") -> Cell:
    return Cell(_console.clean(text), _console.clean(text), more)


def _number(value: Band | float | None, text: str | None = None, more: str = "") -> Cell:
    if value is None:
        return Cell("-", None, more)
    mean = value.mean if isinstance(value, Band) else float(value)
    return Cell(number(mean) if text is None else text, mean, more)


def _share(value: Band | None) -> Cell:
    """Of the other's cost; the band for who points at it."""
    return _number(value, more="" if value is None else with_band(value))


def _unit(net: Net) -> str:
    return f"{net.metric.name}, {net.metric.unit}"


# --- over all nets ---------------------------------------------------------------------------------------------------


def overview(view: View) -> Table:
    """A row for each net: does a sparse net pay against the soonest dense net of any width?"""
    table = Table("overview", [
        ("net", "data set and model", False),
        ("dense", "mean test score of the dense net of full width", True),
        ("target", "that score less 0.3 points; of an error 0.3 % more", True),
        ("soonest dense", "of dense nets of any width the first to reach the target in the mean of its seeds", False),
        ("seconds", "of training until then, measured", True),
        ("soonest sparse", "of sparse nets, or with sparse activations, the first to reach the target", False),
        ("seconds", "of training until then, measured", True),
        ("speed-up", "time of the soonest dense by that of the soonest sparse: above 1 sparse pays", True),
    ])  # fmt: skip
    for net in (n for n in view.nets if n is n.family[0]):
        found = verdict(net.family)
        title = net.title.replace(f", {net.width} wide", "", 1) if len(net.family) > 1 else net.title
        if found is None:
            table.rows.append([_text(title), *[Cell("-")] * 7])
            continue
        best, aim = found.target.best.score, found.target.score
        cells = [_text(title), _number(best, f"{plus_minus(best)} {_mark(net)}".strip()),
                 _number(aim, f"{number(aim, 4)} {_mark(net)}".strip())]  # fmt: skip
        for case, seconds in ((found.dense, found.dense_seconds), (found.sparse, found.sparse_seconds)):
            cells.append(Cell("none") if case is None else _text(view.name_in_family(net, case), case.case))
            cells.append(_share(seconds))
        cells.append(_share(found.speedup))
        table.rows.append(cells)
    return table


def _mark(net: Net) -> str:
    return net.metric.unit if net.metric.unit == "%" else ""


def answer(view: View, net: Net) -> str:
    """What the overview says, as a sentence, of the sparse nets of this width."""
    found = verdict([net])
    if found is None:
        return "No dense net was trained, so there is nothing to compare with."
    score = f"test {net.metric.name} {number(found.target.score, 4)} {_mark(net)}".strip()
    if found.sparse is None:
        return f"No sparse net reaches the target, {score}, in the mean of its seeds."
    if found.dense is None or found.speedup is None:
        return f"No dense net with a measured time reaches the target, {score}."
    times, sparse, dense = found.speedup, view.name(net, found.sparse), view.name(net, found.dense)
    if times.low > 1 or (times.kind == "single" and times.mean > 1):
        said = f"{sparse} is there {with_band(times)} times as soon as {dense}, the soonest dense net"
    elif times.high < 1 or (times.kind == "single" and times.mean < 1):
        said = f"{sparse}, the soonest sparse net, is there only {with_band(times)} times as soon as {dense}"
    else:
        said = f"{sparse} is there as soon as {dense}, the soonest dense net, within the band: {with_band(times)} times"
    return f"Of the nets that reach the target, {score}: {said}."


# --- of one net ------------------------------------------------------------------------------------------------------


def summary(view: View, net: Net) -> Table:
    """Every case: score, and what it costs as a share of the dense net of equal width."""
    aim = target(net)
    table = Table("summary", [
        ("case", "role, method and sparsity", False),
        ("sparsity, %", "weights that do not exist, measured", True),
        ("width", "of a hidden layer", True),
        ("seeds", "runs that differ in their seed alone", True),
        (f"test {_unit(net)}", "mean and half its band", True),
        ("to dense", f"difference to the dense net of equal width, {net.metric.unit}", True),
        ("FLOPs", "of training, as a share of those of the dense net of equal width", True),
        ("time", "measured, of training, as a share of that of the dense net of equal width", True),
        ("time, s", "measured, of training", True),
        ("time, to narrow", "as a share of that of the soonest dense net of any width that is as good", True),
        ("memory", "of training, above what the process held before, as a share of the dense net's", True),
        ("model, MiB", "values and indices of the trained model", True),
        ("to target, s", "measured training time until the target is reached; seeds that do", True),
    ])  # fmt: skip
    for series in view.series(net):
        for case in series.cases:
            dense, narrow = dense_of(net, case), as_good(net, case)
            itself = dense is case
            shares = [Cell("1", 1.0) if itself else _share(quotient(case, dense, name))
                      for name in ("flops", "seconds_training", "run_memory_bytes")]  # fmt: skip
            to_narrow = Cell("-")
            if case.role in ("sparse", "masked") and narrow is not None:
                to_narrow = _number(quotient(case, narrow, "seconds_training"), more=f"of {view.name(net, narrow)}")
            size = case.band("model_bytes")
            table.rows.append([
                _text(view.name(net, case), case.case),
                Cell(f"{100 * case.sparsity:.2f}", case.sparsity),
                Cell("-") if case.hidden is None else Cell(str(case.hidden), case.hidden),
                Cell(str(len(case.rows)), len(case.rows), "seeds " + ", ".join(str(row.seed) for row in case.rows)),
                _number(case.score, plus_minus(case.score), case.score.kind),
                Cell("-") if itself else _gain(gain(case, dense)),
                *shares[:2],
                _number(case.band("seconds_training"), more=with_band(case.band("seconds_training"))),
                to_narrow,
                shares[2],
                _number(size.scaled(2**-20)),
                _to_target(net, case, aim.score) if aim else Cell("-"),
            ])  # fmt: skip
    return table


def _gain(value: Band | None) -> Cell:
    more = "" if value is None else f"{value.low:+.2f} to {value.high:+.2f}"
    return _number(value, plus_minus(value, sign=True), more)


def _to_target(net: Net, case: Case, score: float) -> Cell:
    found = reached(net, case, score)
    if found.seconds is None:
        return Cell("never", float("inf"), f"none of {found.of} seeds")
    some = "" if found.seeds == found.of else f" ({found.seeds} of {found.of})"
    return Cell(number(found.seconds.mean) + some, found.seconds.mean, with_band(found.seconds))


def against(view: View, net: Net) -> Table:
    """Every sparse case against narrower dense nets of equal cost, and against its mask over dense weights."""
    table = Table("counterparts", [
        ("sparse net", "method and sparsity", False),
        ("against", "what they have in common", False),
        ("width", "of a hidden layer of the counterpart", True),
        (f"its test {_unit(net)}", "mean and half its band", True),
        ("sparse less it", f"difference of the scores, {net.metric.unit}: "
         + ("above 0 the sparse net is better" if net.metric.higher_is_better else "below 0 the sparse net is better"),
         True),
        ("time", "of training, of the sparse net as a share of the counterpart's", True),
        ("memory", "of training, of the sparse net as a share of the counterpart's", True),
        ("weights", "of the sparse net as a share of the counterpart's", True),
    ])  # fmt: skip
    for case in (case for series in view.series(net, "sparse") for case in series.cases):
        for other in counterparts(net, case):
            what = MASKED if other.role == "masked" else f"narrower dense, {COST[other.matches]}"
            table.rows.append([
                _text(view.name(net, case), case.case),
                _text(what, other.case),
                Cell("-") if other.hidden is None else Cell(str(other.hidden), other.hidden),
                _number(other.score, plus_minus(other.score)),
                _gain(gain(case, other)),
                *(_share(quotient(case, other, name)) for name in ("seconds_training", "run_memory_bytes", "weights")),
            ])  # fmt: skip
    return table


# --- where it comes from ---------------------------------------------------------------------------------------------


def failures(view: View) -> Table:
    head = [("case", "its name in the study", False), ("data", "", False), ("model", "", False), ("seed", "", True),
            ("error", "", False), ("row", "file and line", False)]  # fmt: skip
    table = Table("failed", head)
    for run in view.results.failed:
        seed = Cell("-") if run.seed is None else Cell(str(run.seed), run.seed)
        error = Cell(short(run.error, 300), short(run.error, 300), _console.clean(run.error))
        table.rows.append([_text(run.case), _text(run.data), _text(run.model), seed, error, _text(run.where)])
    return table


def environments(view: View) -> Table:
    """What the runs ran on; runs that differ in their date alone are one row."""
    groups: dict[str, list] = {}
    for row in view.results.rows:
        facts = {k: v for k, v in row.environment.items() if k != "date"}
        groups.setdefault(json.dumps([row.study, facts], sort_keys=True, default=str), []).append(row)
    names = list(dict.fromkeys(k for row in view.results.rows for k in row.environment if k != "date"))
    head = [("study", "", False), ("runs", "", True), *((_console.clean(name), "", False) for name in names),
            ("from", "start of the first run", False), ("to", "start of the last run", False)]  # fmt: skip
    table = Table("environment", head)
    for rows in groups.values():
        facts = [_text(_said(rows[0].environment.get(name))) for name in names]
        starts = sorted(row.started for row in rows)
        ends = [_text(starts[0]), _text(starts[-1])]
        table.rows.append([_text(rows[0].study), Cell(str(len(rows)), len(rows)), *facts, *ends])
    return table


def _said(value: object) -> str:
    return "-" if value is None else short(value if isinstance(value, str) else json.dumps(value), 120)
