"""Every number of the GPU kernels: the bars of all ops against their strongest peers, in stages of a few minutes.

One process after another on one GPU, and a tiny dry run on the CPU with ``--quick``. The stages come in the order of
what their numbers are worth; a run that is stopped goes on where it was.
"""

from __future__ import annotations

import statistics

from harness.suite import Group
from suites.gpu import aggregation, attention, constants, grid, layer, maxk, training, weights

REGIMES = ("gpu",)
PARTS = (aggregation, weights, attention, maxk, layer, training, constants, grid)
STAGES = (*(part.STAGE for part in PARTS), "more")


def groups(quick: bool) -> list[Group]:
    found = [group for part in PARTS for group in part.groups(quick)]
    found += [group for part in PARTS if hasattr(part, "more") for group in part.more(quick)]
    return list({group.name: group for group in reversed(found)}.values())[::-1]  # tiny, some are the same


def summary(rows: list[dict]) -> list[dict]:
    """The dispatcher over its grid: geometric mean and worst cell, by precision and chooser."""
    found = []
    for text in grid.CHOOSERS.values():
        for rate in grid.RATES:
            cells = [r for r in rows if r["group"].startswith("dispatch") and r["suite_row"].endswith(text)
                     and r["case"].get("precision") == rate and r["value"] is not None]  # fmt: skip
            if not cells:
                continue
            mean = statistics.geometric_mean(r["value"] for r in cells)
            worst = max(cells, key=lambda r: r["value"])
            judged = dict(bar=grid.MEAN, passed=mean <= grid.MEAN) if worst["bar"] else dict(bar=None, passed=None)
            empty = dict.fromkeys(("ours", "theirs", "baseline", "roofline", "error", "error_baseline", "stretch",
                                   "floor", "memory", "memory_baseline", "spread"))  # fmt: skip
            name = f"dispatch, {rate.replace('tf', 'TF')}, geometric mean of {len(cells)} cells, {text}"
            note = f"worst cell {worst['value']:.2f}x: {worst['suite_row']}"
            found.append(worst | empty | judged | dict(suite_row=name, group="mean", value=mean, note=note, missing=[],
                                                       case=dict(precision=rate), several=False))  # fmt: skip
    return found
