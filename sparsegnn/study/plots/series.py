"""Which cases make a line, and what lines and cases are called, alike in every figure and table of some results."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sparsegnn import _console
from sparsegnn.study.plots import style
from sparsegnn.study.plots.describe import Style, short
from sparsegnn.study.results import OF_A_SEED, Case, Net, Results

COST = {"weights": "as many weights", "time": "equal time", "memory": "equal memory"}
MASKED = "masked dense weights"
MOST = 40  # bars; where there are more, of each line the cases nearest to these sparsities are
SHOWN = (0.5, 0.8, 0.9, 0.95)


@dataclass
class Series:
    """Cases of one label, in order of sparsity."""

    label: str
    role: str
    style: Style
    cases: list[Case]


def percent(share: float) -> str:
    """90 %, 98.5 %: without digits that say nothing."""
    return f"{round(100 * share, 2):g} %"


class View:
    """Results with the names and styles of what is in them."""

    def __init__(self, results: Results):
        self.results = results
        self.nets = results.nets
        self._lines: dict[int, dict[tuple, list[Case]]] = {id(net): _lines(net) for net in self.nets}
        keys = {key for lines in self._lines.values() for key in lines if key[0] in ("sparse", "masked")}
        self._styles = {name: style.numbered(i) for i, name in enumerate(sorted({key[1:] for key in keys}))}
        self._names: dict[int, dict[str, str]] = {id(net): self._case_names(net) for net in self.nets}

    def series(self, net: Net, *roles: str) -> list[Series]:
        """The lines of a net; of these roles, or all."""
        found = []
        for key, cases in self._lines[id(net)].items():
            if not roles or key[0] in roles:
                found.append(Series(self._label(net, key), key[0], self._style(net, key), cases))
        return found

    def name(self, net: Net, case: Case) -> str:
        """What a case is called beside others of its net."""
        found = self._names[id(net)].get(case.case)
        if found is not None:
            return found
        of = next(n for n in net.family if case in n.cases)  # of another width
        found = self._names[id(of)][case.case]
        return found if case.role == "small_dense" else f"{found}{_wide(case)}"

    def name_in_family(self, net: Net, case: Case) -> str:
        """What a case is called beside others of all widths."""
        mine = next(n for n in net.family if case in n.cases)
        others = next((n for n in net.family if n is not mine), mine)
        return self.name(others, case)

    def sparsity(self, net: Net, case: Case) -> float:
        """Where a case stands on an axis of sparsity, in %: a narrower dense net at that of its sparse counterpart."""
        sparse = net.named(case.of) if case.role == "small_dense" else case
        return 100 * (case if sparse is None else sparse).sparsity

    def chosen(self, net: Net) -> list[tuple[Series, Case]]:
        """The cases that bars show: all, or where they are many some of the sparsities of each method."""
        every = [(series, case) for series in self.series(net) for case in series.cases]
        if len(every) <= MOST:
            return every
        kept, narrow = [], set()
        for series in self.series(net):
            if series.role in ("sparse", "masked"):
                near = [min(series.cases, key=lambda c, s=s: (abs(c.sparsity - s), c.case)) for s in SHOWN]
                kept += [(series, case) for case in series.cases if case in near]
                narrow.add(near[-2].case)
        shown = {id(c) for _, c in kept} | {id(c) for c in net.of_role("dense")}
        shown |= {id(c) for c in net.of_role("small_dense") if c.of in narrow}
        return [(series, case) for series, case in every if id(case) in shown]

    def left_out(self, net: Net) -> str:
        """What of the cases `chosen` leaves out, for the note of a figure; "" where it is nothing."""
        if len(self.chosen(net)) == len(net.cases):
            return ""
        return (". Of each method the sparsities nearest to 50, 80, 90 and 95 % are shown, and narrower dense nets of "
                "that nearest to 90 %")  # fmt: skip

    # --- inner works ---

    def _label(self, net: Net, key: tuple) -> str:
        role, *words = key
        if role == "dense":
            return "dense"
        if role == "small_dense":
            return f"narrower dense, {COST[words[0]]}"
        return self._said(net, key)

    def _said(self, net: Net, key: tuple) -> str:
        """Method, and what else tells a sparse or masked line from others."""
        role, method, *words = key
        if role == "masked":  # mostly of one method, whose name says no more
            alone = len({k[1] for k in self._lines[id(net)] if k[0] == "masked"}) == 1
            words.insert(0, MASKED if alone else f"{method}, {MASKED}")
        else:
            words.insert(0, method)
        return ", ".join(_console.clean(word) for word in words if word)

    def _style(self, net: Net, key: tuple) -> Style:
        if key[0] == "dense":
            return style.DENSE
        if key[0] == "small_dense":
            return style.NARROW[key[1]]
        own = self._styles[key[1:]]
        return Style(own.colour, own.marker, own.dash, key[0] == "masked")

    def _case_names(self, net: Net) -> dict[str, str]:
        names = {}
        for key, cases in self._lines[id(net)].items():
            for case in cases:
                if key[0] == "dense":
                    names[case.case] = "dense"
                elif key[0] != "small_dense":
                    asked = case.sparsity_asked if case.sparsity_asked is not None else case.sparsity
                    names[case.case] = f"{self._said(net, key)}, {percent(asked)}"
        for case in net.of_role("small_dense"):
            sparse = names.get(case.of, short(case.of or ""))
            names[case.case] = f"narrower dense{_wide(case)}: {case.matches} of {sparse}"
        again = Counter(names.values())
        return {case: _console.clean(f"{name} ({case})" if again[name] > 1 else name) for case, name in names.items()}


def _wide(case: Case) -> str:
    return "" if case.hidden is None else f", {case.hidden} wide"


def _lines(net: Net) -> dict[tuple, list[Case]]:
    """(role, what tells this line from others) -> its cases."""
    found: dict[tuple, list[Case]] = {}
    for case in net.of_role("dense"):
        found.setdefault(("dense",), []).append(case)
    for role in ("sparse", "masked"):
        for method in sorted({case.method for case in net.of_role(role)}):
            mine = [case for case in net.of_role(role) if case.method == method]
            for case in mine:
                variant = "; ".join(f"{name} {case.config.get(name)}" for name in _varying(mine))
                found.setdefault((role, method, short(variant) if variant else ""), []).append(case)
    for case in net.of_role("small_dense"):
        found.setdefault(("small_dense", case.matches), []).append(case)

    def place(case: Case) -> tuple:
        sparse = net.named(case.of) if case.role == "small_dense" else None
        return (case if sparse is None else sparse).sparsity, case.hidden or 0, case.case

    return {key: sorted(cases, key=place) for key, cases in found.items()}


def _varying(cases: list[Case]) -> list[str]:
    """Settings that tell cases of a method apart that share their sparsity."""
    groups: dict[float | None, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.sparsity_asked, []).append(case)
    names = set()
    for group in groups.values():
        for name in {name for case in group for name in case.config}:
            if len({repr(case.config.get(name)) for case in group}) > 1:
                names.add(name)
    return sorted(names - OF_A_SEED - {"sparsity"})
