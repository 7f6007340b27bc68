"""Draws speed against sparsity from committed results: ``python benchmarks/publish/figure.py [results folder]``.

One panel per shape: how many times faster than dense ``torch.mm`` every contender is, and where it breaks even.
Reads ``suite_sparsity.jsonl`` (``sparsegnn bench --suite sparsity``); writes ``figures/speedup.svg`` and ``.png``.
"""

import json
import math
import sys
from pathlib import Path

if not __package__:  # run by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import FOLDER  # noqa: E402

from publish.readme import processor  # noqa: E402

#: label, contender, colour, line, marker
LINES = (
    ("sparsegnn, forward + backward", "sparsegnn, forward + backward", "#c1272d", "-", "o"),
    ("sparsegnn, forward", "sparsegnn, forward", "#c1272d", "--", None),
    ("SparseProp, forward + backward", "SparseProp, forward + backward", "#0000a7", "-", "s"),
    ("sparselab, forward + backward", "sparselab, forward + backward", "#b8489c", "-", "x"),
    ("torch CSR, forward", "torch CSR, forward", "#008176", "--", "^"),
    ("torch_sparse, forward", "torch_sparse, forward", "#8a6d00", "--", "v"),
    ("scipy, forward", "scipy, forward", "#7a7a7a", "--", "d"),
)
TICKS = (0, 0.2, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


def place(sparsity: float) -> float:
    """Where a sparsity is drawn: linear in the logarithm of what is kept, which spreads 90 to 99 %."""
    return -math.log10(1 - min(sparsity, 0.995))


def curves(rows: list[dict]) -> dict[tuple, dict[str, list[tuple[float, float]]]]:
    """``{shape: {contender: [(sparsity, speed-up), ...]}}``, sorted; what was not measured is left out."""
    found: dict[tuple, dict[str, list]] = {}
    for row in rows:
        if row["value"] is not None:
            shape = found.setdefault(tuple(row["case"]["shape"]), {})
            shape.setdefault(row["contender"], []).append((row["case"]["sparsity"], row["value"]))
    return {shape: {name: sorted(points) for name, points in lines.items()} for shape, lines in found.items()}


def break_even(points: list[tuple[float, float]]) -> float | None:
    """The sparsity from which on a contender stays above dense; None if it never does, or always did."""
    last = None
    for (s0, v0), (s1, v1) in zip(points, points[1:], strict=False):
        if v0 < 1 <= v1:
            share = math.log(1 / v0) / math.log(v1 / v0)
            last = s0 + share * (s1 - s0)
    return last if points[-1][1] >= 1 else None


def draw(rows: list[dict], folder: Path) -> list[Path]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "sparsegnn", "font.size": 9})
    panels = curves(rows)
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(lines, columns, figsize=(5.2 * columns, 3.5 * lines + 0.9), squeeze=False, sharey=True)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (shape, found) in zip(axes.flat, panels.items(), strict=False):
        n, k, m = shape
        axis.set_title(f"{n:,} rows, {k} inputs, {m} outputs", fontsize=10)
        axis.axhline(1, color="black", linewidth=0.9)
        for label, name, colour, style, marker in LINES:
            if name not in found:
                continue
            points = found[name]
            thick = 2 if style == "-" else 1.2
            axis.plot([place(s) for s, _ in points], [v for _, v in points], style, color=colour, marker=marker,
                      markersize=3.5, linewidth=thick, label=label)  # fmt: skip
            even = break_even(points)
            if even is not None:
                axis.plot([place(even)], [1], "o", color="white", markeredgecolor=colour, markersize=6, zorder=5)
                where, side = ((-5, 4), "right") if marker is None else ((5, -11), "left")
                axis.annotate(f"{100 * even:.0f} %", (place(even), 1), where, color=colour, ha=side, fontsize=8,
                              textcoords="offset points")  # fmt: skip
        axis.set_yscale("log")
        axis.set_xticks([place(s) for s in TICKS], [f"{100 * s:g}" for s in TICKS])
        axis.yaxis.set_major_formatter(lambda v, _: f"{v:g}x")
        axis.grid(True, which="major", alpha=0.25)
        axis.set_xlim(place(0) - 0.03, place(0.99) + 0.06)
    for axis in axes[:, 0]:
        axis.set_ylabel("speed against dense torch.mm(out=)")
    for axis in axes[-1, :]:
        axis.set_xlabel("sparsity, %")
    about = rows[0]
    figure.suptitle(f"Sparse weights against dense: fp32, {about['threads']} threads, {processor(about)}, "
                    f"{about['isa']}; circles: break-even", fontsize=10)  # fmt: skip
    handles, labels = max((a.get_legend_handles_labels() for a in axes.flat), key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.09 if lines > 1 else 0.14, 1, 1))
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"speedup.{kind}" for kind in ("svg", "png")]
    figure.savefig(paths[0], metadata={"Date": None})
    figure.savefig(paths[1], dpi=130)
    plt.close(figure)
    return paths


def main() -> None:
    found = sorted(p.parent for p in (FOLDER / "results").glob("cpu-*/suite_sparsity.jsonl"))
    if len(sys.argv) < 2 and not found:
        sys.exit("no results: run `sparsegnn bench --suite sparsity` first")
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else found[0]
    rows = [json.loads(line) for line in (folder / "suite_sparsity.jsonl").read_text().splitlines()]
    for path in draw(rows, FOLDER / "figures"):
        print(path)


if __name__ == "__main__":
    main()
