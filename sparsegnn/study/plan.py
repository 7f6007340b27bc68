"""The runs of a study: names, ids and order. What needs no training to be known is checked here."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from sparsegnn.study.config import OF_METHODS, Method, Set, Study
from sparsegnn.study.faults import Key

DENSE, MASKED = "dense", "masked-dense"
CLASSES = {MASKED: "sparsegnn.experiments.masked_dense:MaskedDense"}  # of methods that are no one's
ROLES = (
    "dense",
    "sparse",
    "masked",
    "small_dense",
)  # in the order in which they run: the last follow from measurements
NOT_SETTINGS = ("progress", "save")  # of a run, which change nothing of its result


@dataclass(frozen=True)
class Run:
    """One training of a study.

    ``config`` holds the settings of the run; of a small dense net those of the net that it is smaller than, until its
    width is known.
    """

    id: str
    case: str
    role: str
    matches: str | None
    of: str | None
    set: Set
    model: str
    method: str
    sparsity: float | None
    config: object

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def cost(self) -> float:
        """What the run costs beside others, roughly: operations of products and aggregation."""
        facts, config = self.set.facts, self.config
        hidden = (config.hidden or 1) * (config.heads if self.model == "gat" else 1)
        layers = getattr(config, "layers", 2)
        weights = min(facts.features, 256) + hidden * max(0, layers - 2) + facts.classes
        kept = 1 - 0.75 * (self.sparsity or 0.0) * (self.role == "sparse")
        whole = facts.nodes * hidden * weights * kept + layers * facts.edges * hidden
        return config.epochs * (whole / (4 if self.role == "small_dense" else 1) + 1e6)

    def with_width(self, hidden: int) -> Run:
        return replace(self, config=replace(self.config, hidden=hidden))

    @property
    def training(self) -> str:
        """The same for runs that train the same net with the same settings on the same data."""
        return _digest({"data": self.set.origin, **_settings(self.config)})


def plan(study: Study) -> list[Run]:
    """All runs, in the order in which they are made: dense, sparse, masked, small dense; sets by their cost, and seeds.

    Raises :class:`~sparsegnn.study.faults.BadStudy` with the faults of the file and those of settings that do not go
    together, all at once.
    """
    found = list(_runs(study))
    _check_names(study, found)
    study.toml.check()
    size = dict.fromkeys(map(id, study.sets), 0.0)
    for run in found:
        size[id(run.set)] += run.cost
    places = {run.id: i for i, run in enumerate(found)}
    return sorted(found, key=lambda run: (ROLES.index(run.role), size[id(run.set)], places[run.id]))


def _runs(study: Study) -> Iterator[Run]:
    wanted = study.baselines
    for data, model in ((s, m) for s in study.sets for m in s.models):
        for width in data.widths:
            net = _Net(study, data, model, width)
            if wanted.dense:
                yield from net.runs("dense", net.case("dense"), DENSE, None)
            masked: dict[float, str] = {}  # sparsity -> the case that it is compared with first
            fitting = [m for m in study.methods if m.models is None or model in m.models]
            for method, sparsity in ((m, s) for m in fitting for s in m.sparsities):
                case = net.case(_title(method.title, sparsity))
                sparse = list(net.runs("sparse", case, method.name, sparsity, method))
                yield from sparse
                if not sparse:
                    continue
                if sparsity is not None:
                    masked.setdefault(sparsity, case)
                if wanted.of is None or method.title in wanted.of:
                    yield from _small(net, method, sparsity, case, wanted.small_dense)
            for sparsity, case in masked.items() if wanted.masked else ():
                yield from net.runs("masked", net.case(_title(MASKED, sparsity)), MASKED, sparsity, of=case)


def _small(net: _Net, method: Method, sparsity: float | None, case: str, matches: list[str]) -> Iterator[Run]:
    """Small dense nets that a sparse one is compared with; of a method that keeps all weights not one of as many."""
    for kind in matches:
        if kind != "weights" or sparsity is not None:
            title = f"dense of equal {kind}, {_title(method.title, sparsity)}"
            yield from net.runs("small_dense", net.case(title), DENSE, None, of=case, matches=kind)


@dataclass
class _Net:
    """A model on a data set, of one width."""

    study: Study
    data: Set
    model: str
    width: int | None

    def case(self, title: str) -> str:
        width = "" if self.width is None else f" {self.width}"
        return f"{self.data.title} {self.model}{width}: {title}"

    def runs(self, role: str, case: str, name: str, sparsity: float | None, method: Method | None = None, *,
             of: str | None = None, matches: str | None = None) -> Iterator[Run]:  # fmt: skip
        """One for each seed; none, and a fault, where settings are refused."""
        settings = {k: v for k, v in self.data.settings.items() if method is not None or k not in OF_METHODS}
        settings |= method.settings if method is not None else {}
        given = {"data": self.data.name, "model": self.model, "method": CLASSES.get(name, name), "sparsity": sparsity,
                 "hidden": self.width, "progress": False}  # fmt: skip
        first = self._config(settings, given | {"seed": self.data.seeds[0]}, method)
        for seed in self.data.seeds if first is not None else ():
            config = copy.copy(first)  # checked already
            config.seed = seed
            about = {"role": role, "matches": matches, "of": of, "data": self.data.origin, "case": case}
            made = _digest({**about, "task": self.study.task.name, **_settings(config)})
            yield Run(made, case, role, matches, of, self.data, self.model, name, sparsity, config)

    def _config(self, settings: dict, given: dict, method: Method | None) -> object | None:
        """None where settings are refused: each that is has its fault."""
        refused = False
        while True:
            try:
                config = self.study.task.config(**{**settings, **given})
                return None if refused else config
            except (ValueError, TypeError, OverflowError) as e:
                word, refused = self._blame(str(e), method, settings), True
            if word not in settings:
                return None
            settings = {name: value for name, value in settings.items() if name != word}  # is there more?

    def _blame(self, text: str, method: Method | None, settings: dict) -> str:
        """A fault at the line of the setting that a message begins with, else of the method or the set; its name."""
        toml, word = self.study.toml, text.split(maxsplit=1)[0].rstrip(":")
        places: list[Key] = [method.key] if method is not None else []
        places += [self.data.key, ("common",), ()]
        for name in settings.get("set") or ():
            if repr(name) in text or f"{name} must" in text:
                places.insert(0, (*places[0], "set"))
                word = name
        key = next((p for place in places if (p := (*place, word)) in toml.lines), places[0])
        where = f"{self.data.title} {self.model}" + f" {self.width}" * (self.width is not None)
        toml.fault(key, text, f" ({where})")
        return word


def _title(title: str, sparsity: float | None) -> str:
    return title if sparsity is None else f"{title} {100 * sparsity:.7g} %"


def _check_names(study: Study, runs: list[Run]) -> None:
    """A case's seeds must be the only runs of that name, or they could not be told apart."""
    for (case, seed), same in itertools.groupby(
        sorted(runs, key=lambda r: (r.case, r.seed)), lambda r: (r.case, r.seed)
    ):
        _, *others = same
        for run in others:
            said = "must tell this set from another one of the same name"
            study.toml.fault((*run.set.key, "title"), said, f": there are two runs of {case!r}, seed {seed}")


def _settings(config: object) -> dict:
    return {f.name: getattr(config, f.name) for f in fields(config) if f.name not in NOT_SETTINGS}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]
