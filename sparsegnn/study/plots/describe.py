"""What a figure shows, before it is drawn: panels of lines or bars with their bands, axes and units.

Figures are made as these descriptions, which are drawn for paper (`draw`) and for a page (`hover`) alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from sparsegnn import _console
from sparsegnn.study.bands import Band, kinds
from sparsegnn.study.results import Net


@dataclass(frozen=True)
class Axis:
    """A label with its unit, and a scale: linear, log, or `kept`: of sparsity in %, even steps in log(1 - sparsity)."""

    label: str
    scale: str = "linear"


@dataclass(frozen=True)
class Style:
    """A colour, and the marker and dashes by which it is told without colour; bars have a hatch instead."""

    colour: str
    marker: str = "o"
    dash: str = "-"
    hollow: bool = False
    hatch: str = ""


@dataclass
class Line:
    """Points with bands. ``text`` says more of each; ``steps``: constant from each point to the next.

    ``joined``: by a line; ``group``: the label of the line that these points belong to, and are not in the legend.
    """

    label: str
    style: Style
    x: list[Band]
    y: list[Band]
    text: list[str]
    shaded: bool = False
    steps: bool = False
    joined: bool = True
    group: str = ""


@dataclass
class Level:
    """A value across the whole panel."""

    label: str
    style: Style
    y: Band


@dataclass
class Mark:
    """A place that ``text`` tells of: the break-even of a line."""

    x: float
    y: float
    text: str
    style: Style


@dataclass
class Panel:
    net: Net
    title: str
    x: Axis
    y: Axis
    lines: list[Line]
    levels: list[Level] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)


@dataclass
class Segment:
    """A part of every bar, one value for each; None: nothing to show."""

    label: str
    styles: list[Style]
    values: list[Band | None]
    text: list[str]


@dataclass
class Bars:
    """Horizontal bars, stacked where there are several segments; ``said`` is written beside each."""

    net: Net
    title: str
    x: Axis
    names: list[str]
    segments: list[Segment]
    said: list[str]
    level: tuple[str, float] | None = None


@dataclass
class Figure:
    """A file: ``name`` without its suffix."""

    name: str
    title: str
    panels: list[Panel | Bars]
    note: str = ""
    columns: int = 2

    @property
    def bands(self) -> str:
        """What the bands are, in words; "" where there are none."""
        found: list[Band] = []
        for panel in self.panels:
            if isinstance(panel, Bars):
                found += [v for s in panel.segments for v in s.values if v is not None and len(panel.segments) == 1]
            else:
                found += [v for line in panel.lines for v in line.y] + [level.y for level in panel.levels]
        return kinds(found)

    @property
    def caption(self) -> str:
        return ". ".join(filter(None, (self.note, f"Bands: {self.bands}" if self.bands else "")))


@dataclass(frozen=True)
class Missing:
    """Why the rows make no figure of this name."""

    name: str
    why: str


def named(name: str, net: Net, made: list[Figure]) -> str:
    """The name of a figure of one net: of letters, digits, dots, dashes and underscores, and none that is taken."""
    words = re.sub(r"[^A-Za-z0-9.]+", "-", net.title).strip("-.")[:80] or "net"
    taken = {figure.name for figure in made}
    while f"{name}-{words}" in taken:
        words += "-x"
    return f"{name}-{words}"


def short(text: str, most: int = 44) -> str:
    """On one line, its middle left out where it is long."""
    clean = _console.clean(text)
    half = (most - 3) // 2
    return clean if len(clean) <= most else f"{clean[:half]}...{clean[-half:]}"
