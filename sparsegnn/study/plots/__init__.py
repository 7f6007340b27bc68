"""The figures of a study. Each module here makes one of them from results; `figures` makes all that there are."""

from __future__ import annotations

from pathlib import Path

from sparsegnn.study.plots import (
    layer_sparsity,
    score_bytes,
    score_flops,
    score_sparsity,
    score_time,
    speedup,
    step_time,
    time_to_score,
)
from sparsegnn.study.plots.describe import Figure, Missing
from sparsegnn.study.plots.series import View

#: in the order in which they are shown: of all nets, and of one net each
OF_ALL = (score_sparsity, speedup, score_time, score_flops, score_bytes)
OF_EACH = (time_to_score, step_time, layer_sparsity)


def figures(view: View) -> tuple[list[Figure], list[Missing]]:
    """All figures that the results have something for, and the others with the reason."""
    made: list[Figure | Missing] = [kind.figure(view) for kind in OF_ALL]
    for kind in OF_EACH:
        found = kind.figures(view)
        made += [found] if isinstance(found, Missing) else found
    return [f for f in made if isinstance(f, Figure)], [f for f in made if isinstance(f, Missing)]


def save(view: View, folder: Path) -> tuple[list[Path], list[Missing]]:
    """Write every figure into the folder, as SVG and PNG."""
    from sparsegnn.study.plots import draw

    found, missing = figures(view)
    return [path for figure in found for path in draw.save(figure, folder)], missing
