"""How every figure looks: colours that are told apart by those who see few, and by marker and dashes in grey."""

from __future__ import annotations

from sparsegnn.study.plots.describe import Style

#: of Okabe and Ito, without their yellow, which is too light for a line on white
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
BLACK, GREY = "#000000", "#6E6E6E"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
MARKERS = ("o", "^", "s", "v", "D", "P", "X", "<", ">")
DASHES = ("-", "--", "-.", "-..")  # dots are for what sparse nets are held against

DENSE = Style(BLACK, "*", "-")
#: dense nets as narrow as to have the weights, the time or the memory of a sparse net
NARROW = {"weights": Style(GREY, "+", ":", True), "time": Style(GREY, "x", ":", True),
          "memory": Style(GREY, "d", ":", True)}  # fmt: skip
ANY_WIDTH = Style(GREY, "h", ":", True)

PARTS = {
    "weights": Style(BLUE),
    "features": Style(PURPLE, hatch="\\\\\\"),
    "aggregation": Style(ORANGE, hatch="///"),
    "elementwise": Style(SKY, hatch="..."),
    "optimizer": Style(GREEN, hatch="xxx"),
    "mask_updates": Style(VERMILLION, hatch="---"),
    "other": Style("#CCCCCC"),
}


def numbered(i: int, hollow: bool = False) -> Style:
    """The i-th style; the first 36 differ in marker or dashes, whatever their colour."""
    return Style(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)], hollow)


#: matplotlib's settings of all figures; a page is 7.2 inches wide
SETTINGS = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.5,
    "text.parse_math": False,
    "text.hinting": "no_hinting",  # else the width of text depends on the resolution, and in some it is cut
    "svg.hashsalt": "sparsegnn",
    "figure.dpi": 100,
}
WIDTH = 7.2
