"""Runs a study: one training after another, a JSON line each, from where it was left."""

from __future__ import annotations

import functools
import gc
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

from sparsegnn import _console, _info
from sparsegnn._version import __version__
from sparsegnn.study import config, tasks
from sparsegnn.study.baselines import QUANTITIES, Widths, short
from sparsegnn.study.config import Set, Study
from sparsegnn.study.plan import Run, plan
from sparsegnn.study.progress import Display, Estimate
from sparsegnn.study.store import Store

#: of a row, what belongs to the run that a study names, and not to the training
IDENTITY = ("id", "study", "case", "role", "matches", "match", "of", "data_digest", "copied_from")


def run(path: str | Path, out: str | Path | None = None, *, data: str | None = None, threads: int | None = None,
        only: Sequence[str] = (), again: bool = False, dry_run: bool = False,
        progress: bool | None = None) -> dict:  # fmt: skip
    """Make the runs of the study at ``path`` that are not in ``out`` yet.

    Args:
        out: the file of JSON lines; ``study_<name>.jsonl`` in the current folder if None.
        data: folder of ``.npz`` graphs, in place of the environment variable SPARSEGNN_DATA.
        threads: of torch, in place of the file's.
        only: runs whose case has one of these words; all if there is none.
        again: make runs again that failed.
        dry_run: only check and list.
        progress: a display on stderr; None: on a terminal.

    Returns:
        ``study``, ``out``, ``runs``, ``done`` (in the file by now), ``made`` (by this call), ``copied``, ``left``,
        ``failed`` (case, seed and error of each), ``seconds``; of a dry run ``cases`` as well.

    Raises :class:`~sparsegnn.study.faults.BadStudy` before anything runs, ValueError for an ``out`` that is none.
    """
    start = time.perf_counter()
    with _data_folder(data):
        study = config.read(path)
        wanted = [r for r in plan(study) if not only or any(word in r.case for word in only)]
        if not wanted:
            raise ValueError(f"only must leave runs to be made, got {', '.join(only) or 'a study without runs'}")
        out = Path(f"study_{study.name}.jsonl") if out is None else Path(out)
        if dry_run:
            return _listing(study, out, wanted)
        with _threads(threads or study.threads), _frozen(), Store(out) as store:
            runner = _Runner(study, store, progress)
            made = runner.make(wanted, again)
            failed = [r for r in wanted if store.failed(r.id)]
            return {
                "study": study.name,
                "out": str(out),
                "runs": len(wanted),
                "done": sum(not runner.due(r) and not store.failed(r.id) for r in wanted),
                **made,
                "left": sum(map(runner.due, wanted)),
                "failed": [{"case": r.case, "seed": r.seed, "error": str(store.rows[r.id]["error"])} for r in failed],
                "seconds": time.perf_counter() - start,
            }


def _listing(study: Study, out: Path, runs: Sequence[Run]) -> dict:
    """What would run."""
    cases: dict[str, dict] = {}
    for r in runs:
        seeds = {"case": r.case, "role": r.role, "method": r.method, "of": r.of, "seeds": []}
        cases.setdefault(r.case, seeds)["seeds"].append(r.seed)
    return {"study": study.name, "out": str(out), "runs": len(runs), "cases": list(cases.values())}


class _Runner:
    """Trains, and writes rows; one data set is in memory at a time."""

    def __init__(self, study: Study, store: Store, progress: bool | None):
        self.study, self.store, self.progress = study, store, progress
        self.widths = Widths(self._train)
        self._warmed: set[tuple] = set()
        self._loaded: tuple[object, object] | None = None

    def make(self, runs: Sequence[Run], again: bool) -> dict:
        """``made`` and ``copied``: how many."""
        store, count = self.store, {"made": 0, "copied": 0}
        old = [r for r in runs if self.outdated(r)]
        todo = [r for r in runs if self.due(r) or (again and store.failed(r.id))]
        estimate, lacking = Estimate(runs, store.rows), {}
        with Display(runs, todo, estimate, self.progress) as display:
            if store.removed:
                display.say(f"{store.path}: half a last line was removed: its run is made again")
            if old:
                sets = ", ".join(sorted({r.set.title for r in old}))
                display.say(f"{store.path}: {len(old)} runs are of other data than there is now ({sets}): made again")
            for r in todo:
                _console.stop_if_asked()
                display.begin(r)
                self._warm(r)
                begun = time.perf_counter()
                row = self._row(r)
                if row is None:
                    lacking[r.of] = lacking.get(r.of, 0) + 1
                    display.todo.remove(r)
                    continue
                copied = "copied_from" in row
                if not copied:
                    row["seconds_wall"] = time.perf_counter() - begun
                store.add(row)
                if row.get("error") is not None:
                    display.say(f"{r.case}, seed {r.seed}: {row['type']}: {row['error']}")
                elif not copied:
                    estimate.add(r, time.perf_counter() - begun)
                count["copied" if copied else "made"] += 1
                display.end(r)
            if lacking:
                first = ", ".join(list(lacking)[:3]) + ", ..." * (len(lacking) > 3)
                display.say(f"{sum(lacking.values())} runs were left out: {len(lacking)} cases that they are compared "
                            f"with have no result: {first}")  # fmt: skip
        return count

    def due(self, r: Run) -> bool:
        """Whether a run has not ended, or on other data than there is now."""
        return not self.store.done(r.id) or self.outdated(r)

    def outdated(self, r: Run) -> bool:
        """Whether a run is there whose data were others."""
        return not _is_of(self.store.rows.get(r.id, {}), r.set)

    def _good(self, r: Run) -> Iterator[dict]:
        """Rows of the data that ``r`` is of."""
        return (row for row in self.store.good() if _is_of(row, r.set))

    def _row(self, r: Run) -> dict | None:
        """The row of a run; None where the one that it is compared with has none."""
        about = {"id": r.id, "study": self.study.name, "case": r.case, "role": r.role, "matches": r.matches, "of": r.of,
                 "data_digest": r.set.facts.digest}  # fmt: skip
        net = {"data": r.set.title, "model": r.model, "method": r.method, "sparsity_asked": r.sparsity, "seed": r.seed}
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        head = {**about, **net, "task": self.study.task.name, "environment": environment(), "started": started}
        try:
            if r.role == "small_dense":
                found = self._small(r)
                if found is None:
                    return None
                r, about["match"] = found
            same = next((row for row in self._good(r) if row["training"] == r.training), None)
            if same is not None:  # as a net of equal width is that is there for another case
                row = {k: v for k, v in self.store.whole(same["id"]).items() if k not in IDENTITY}
                row = {**about, **row, **net, "copied_from": same["id"]}
            else:
                result = self._train(r.config, self._data(r))
                result["curve"] = thinned(result["curve"], self.study.curve_points)
                row = {**head, **result, **head, **about, "hidden": r.config.hidden, "training": r.training}
        except Exception as e:  # a study does not end with one of its runs
            return {**head, "error": " ".join(str(e).split()) or type(e).__name__, "type": type(e).__name__}
        if "match" in about:
            row["match"] = about["match"] | {"reached": QUANTITIES[r.matches](row)}
        return row

    def _small(self, r: Run) -> tuple[Run, dict] | None:
        """A run with its width: that of the case's other seeds, else the one that is found now."""
        for row in self._good(r):
            if row["case"] == r.case:
                match = self.store.whole(row["id"])["match"]
                return r.with_width(row["hidden"]), {k: match[k] for k in ("quantity", "aimed_at")}
        rows = [row for row in self._good(r) if row["case"] == r.of]
        if not rows:
            return None
        width, match = self.widths.find(r.matches, rows, r.config, self._data(r))
        return r.with_width(width), match

    def _warm(self, r: Run) -> None:
        """A short training of the first dense and sparse net of a model: what is loaded once is no run's memory."""
        kind = r.model, r.role == "sparse"
        if kind not in self._warmed:
            self._warmed.add(kind)
            with suppress(Exception):  # the run itself will tell
                self._train(short(r.config), self._data(r))

    def _train(self, settings: object, data: object) -> dict:
        """One training, which nothing of those before has any part in."""
        random.seed(settings.seed)
        np.random.seed(settings.seed % 2**32)
        torch.manual_seed(settings.seed)
        return self.study.task.train(settings, data)

    def _data(self, r: Run) -> object:
        if self._loaded is None or self._loaded[0] is not r.set:
            self._loaded = None  # before the next one is there
            self._loaded = r.set, tasks.load(self.study.task.name, r.set.source, r.set.split_seed)
        return self._loaded[1]


def _is_of(row: dict, data: Set) -> bool:
    """Whether a row is of these data, as far as it says: those of before this was noted count as of them."""
    return row.get("data_digest") in (None, data.facts.digest)


def thinned(curve: Sequence[list], points: int | None) -> list:
    """About so many points of a learning curve, the last one, and all at which another step is selected.

    So the steps, FLOPs and seconds until a test score is reached stay what they were.
    """
    every = max(1, -(-len(curve) // (points or len(curve))))
    last = len(curve) - 1
    return [p for i, p in enumerate(curve) if i % every == 0 or i == last or p[2] != curve[i - 1][2]]


def environment() -> dict:
    """Where a run was made."""
    machine = _machine()
    return {
        "processor": machine["cpu"],
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "isa": machine["isa"],
        "malloc": machine["malloc"],
        "gpu": machine["gpus"][0] if machine["gpus"] else None,
        "torch": str(torch.__version__),
        "sparsegnn": __version__,
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


@functools.cache
def _machine() -> dict:
    return _info.info()["machine"]


@contextmanager
def _data_folder(folder: str | None) -> Iterator[None]:
    """Where named sets are looked up within."""
    before = os.environ.get("SPARSEGNN_DATA")
    if folder is not None and not Path(folder).is_dir():
        raise ValueError(f"data must be a folder of .npz graphs, got {folder!r}")
    if folder is not None:
        os.environ["SPARSEGNN_DATA"] = str(folder)
    try:
        yield
    finally:
        if folder is not None:
            os.environ.pop("SPARSEGNN_DATA")
            if before is not None:
                os.environ["SPARSEGNN_DATA"] = before


@contextmanager
def _frozen() -> Iterator[None]:
    """What is there already is passed over by the garbage collections at the start of every run."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """So many threads of torch within, those before after it."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or before)
        yield
    finally:
        torch.set_num_threads(before)
