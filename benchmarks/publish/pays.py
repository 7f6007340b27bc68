"""The page and the figure of the map: where a sparse net beats every dense width, by time or memory, and where not."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from harness import FOLDER
from training.pays import CLOSE, FASTER, NETS, SMALLER, Run, Verdict, case_of, judge, most_accurate, rounds_of, spread

FIGURE = "pays"
LEAST = {"time": FASTER, "memory": SMALLER}
DENSE, SPARSE = "#0000a7", "#c1272d"


def envelope(found: list[Run]) -> list[tuple[float, float]]:
    """The best accuracy that one of these runs has after so many seconds: steps up, at (seconds, accuracy)."""
    timed = [run for run in found if math.isfinite(run.seconds)]
    points = sorted((steps * run.seconds, reached) for run in timed for steps, reached in run.curve)
    best, steps = -1.0, []
    for seconds, reached in points:
        if reached > best:
            best = reached
            steps.append((seconds, reached))
    return steps


def named(run: Run | None, cost: str) -> str:
    return "none" if run is None else f"{run.label}: {cost}"


def gain(value: float) -> str:
    return "-" if value == 0 else f"{value:.2f}x"


def table(nets: dict[str, list[Run]], verdicts: dict[str, Verdict]) -> str:
    head = ["net", "best dense", "best sparse", "dense, soonest", "sparse, soonest", "faster", "dense, least memory",
            "sparse, least memory", "smaller", "pays"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for net, v in verdicts.items():
        time = {d: named(r, f"{r.time_to(v.target):.1f} s" if r else "") for d, r in v.fastest.items()}
        memory = {d: named(r, f"{r.memory / 2**20:.0f} MiB" if r else "") for d, r in v.smallest.items()}
        sparse = most_accurate(run for run in nets[net] if not run.dense)
        best = [named(run, percent(run.accuracy)) for run in (v.best, sparse)]
        cells = [net, *best, time[True], time[False], gain(v.ratio("time")), memory[True],
                 memory[False], gain(v.ratio("memory")), "yes" if v.pays else "no"]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def percent(accuracy: float) -> str:
    return f"{100 * accuracy:.2f} %"


def why(net: str, found: list[Run]) -> str:
    """One sentence: with what it pays, or what keeps it from paying."""
    v, sparse = judge(found), [run for run in found if not run.dense]
    if v is None or not sparse:
        return f"{net}: no {'dense' if v is None else 'sparse'} net was trained yet."
    said = [words for kind in ("time", "memory") if v.ratio(kind) >= LEAST[kind] and (words := compared(v, kind))]
    if said:
        return f"{net}: {' and '.join(said)}: it pays."
    best = most_accurate(sparse)
    if v.smallest[False] is None:
        points = 100 * (v.target - best.accuracy)
        return (f"{net}: no sparse net is accurate enough; the best, {best.label}, has {percent(best.accuracy)}, "
                f"{points:.2f} points below the target of {percent(v.target)}.")  # fmt: skip
    said = [words for kind in ("time", "memory") if (words := compared(v, kind))]
    said = said or [f"{v.smallest[False].label} is accurate enough, but was not timed"]
    more = best.accuracy - v.best.accuracy
    better = f"; {best.label} is {100 * more:.2f} points more accurate than any dense width" if more > 0 else ""
    return f"{net}: {' and '.join(said)}{better}{rest(v)}."


def compared(v: Verdict, kind: str) -> str:
    """The sparse net beside the dense one, by time or memory; "" where one of them is not known."""
    pair = v.fastest if kind == "time" else v.smallest
    if pair[False] is None or pair[True] is None:
        return ""
    sparse, dense = (cost(pair[of], kind, v.target) for of in (False, True))
    verb = "is there after" if kind == "time" else "needs"
    return f"{pair[False].label} {verb} {sparse} where {pair[True].label} {verb} {dense}"


def cost(run: Run, kind: str, target: float) -> str:
    return f"{run.time_to(target):.1f} s" if kind == "time" else f"{run.memory / 2**20:.0f} MiB"


def rest(v: Verdict) -> str:
    """What a step of the soonest dense net consists of, which says what sparse weights can gain over it."""
    dense = v.fastest[True]
    if dense is None or not dense.parts:
        return ""
    weights = dense.parts["weights"]
    other = max((part for part in dense.parts if part not in ("weights", "mask_updates")), key=dense.parts.get)
    named = {"other": "Python, autograd and memory"}.get(other, other)
    return (f"; weights are {100 * weights:.0f} % of a step of {dense.label}, {named} is "
            f"{100 * dense.parts[other]:.0f} %, whatever is done to the weights")  # fmt: skip


def every_run(nets: dict[str, list[Run]]) -> str:
    """All cases, by net."""
    parts = []
    for net, found in nets.items():
        v = judge(found)
        rows = [f"### {net}", "", "| case | accuracy, % | step, ms | to the target, s | memory, MiB | FLOPs |",
                "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
        for run in found:
            step = "" if math.isnan(run.seconds) else f"{1e3 * run.seconds:.1f}"
            reached = run.time_to(v.target) if v else math.inf
            soonest = {math.inf: "never"}.get(reached, "not timed" if math.isnan(reached) else f"{reached:.1f}")
            rows.append(f"| {run.label} | {100 * run.accuracy:.2f} | {step} | {soonest} | "
                        f"{run.memory / 2**20:.0f} | {run.flops:.3g} |")  # fmt: skip
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def page(nets: dict[str, list[Run]], times: dict[str, dict] | None = None) -> str:
    verdicts = {net: v for net, found in nets.items() if (v := judge(found)) is not None and has_both(found)}
    paying = [net for net, v in verdicts.items() if v.pays]
    said = f"It pays for {len(paying)} of {len(verdicts)} nets: {'; '.join(paying)}."
    if not paying:
        said = f"It pays for none of {len(verdicts)} nets: at the accuracy of the best dense net, less "
        said += f"{100 * CLOSE:g} points, a dense net, mostly a narrow one, is sooner and smaller."
        said += reason(nets, verdicts)
    reasons = "\n".join(f"* {why(net, found)}" for net, found in nets.items())
    return f"""# When it pays

<!-- made by benchmarks/training/pays.py publish from benchmarks/results/*/pays_*.jsonl; do not edit -->

For the same accuracy, is a sparse net trained sooner, or in less memory, than **any** dense width? Dense nets of every
width and sparse ones (RigL, with and without MaxK) are trained with the same steps and step size, several seeds each;
the epoch is selected on the validation set, for sparse nets once the positions of their weights are final. The target
is the test accuracy of the best dense net less {100 * CLOSE:g} points. Times are steps to the target times the measured
seconds of a step, mask updates included; memory is the peak above what the process held before the model was made. To
pay, a sparse net must get there {FASTER:g} times sooner, or in {SMALLER:g} times less memory.{rounds(times or {})}

**{said}**{unfinished(nets)}

{table(nets, verdicts)}

{reasons}

![Accuracy against time and memory](../benchmarks/figures/{FIGURE}.svg)

{every_run(nets)}

Run it: `python benchmarks/training/pays.py accuracy`, `... times` on a free machine, `... publish`.
"""


def reason(nets: dict[str, list[Run]], verdicts: dict[str, Verdict]) -> str:
    """In how many nets no speed of weights could make the most accurate net of sparse weights the sooner one."""
    known = beaten = 0
    for net, v in verdicts.items():
        sparse = [run for run in nets[net] if run.sparse_weights and run.parts]
        dense = v.fastest[True]
        if sparse and dense is not None and math.isfinite(dense.seconds):
            best = most_accurate(sparse)
            known += 1
            beaten += best.seconds * (1 - best.parts["weights"]) > dense.seconds
    if not beaten:
        return ""
    return (f" The reason: in {beaten} of {known} a step of the most accurate net with sparse weights takes longer "
            "without its weights (aggregation, activations, memory, all as wide as the net) than a whole step of that "
            "dense net.")  # fmt: skip


def has_both(found: list[Run]) -> bool:
    return len({run.dense for run in found}) == 2


def rounds(times: dict[str, dict]) -> str:
    """How well the rounds of a case agree."""
    each = {case: rounds_of(times, case) for case in dict.fromkeys(map(case_of, times))}
    several = [spread(seconds) for seconds in each.values() if len(seconds) > 1]
    if not several:
        return ""
    worst, middle = 100 * max(several), 100 * statistics.median(several)
    least = min(map(len, each.values()))
    said = f" Of each case the median of {least} rounds or\nmore counts; half of them lie within {worst:.0f} % of it"
    return f"{said} in the worst case, {middle:.1f} % in the middle one."


def unfinished(nets: dict[str, list[Run]]) -> str:
    """Which nets of the map have cases that were not trained or not timed."""
    missing = [net.name for net in NETS if net.name not in nets]
    parts = []
    for net in NETS:
        found = nets.get(net.name, [])
        lacking = len(dict(net.cases())) - len(found), sum(math.isnan(run.seconds) for run in found)
        words = [f"{n} cases not {what}" for n, what in zip(lacking, ("trained", "timed"), strict=True) if n > 0]
        parts += [f"{net.name} ({', '.join(words)})"] if found and words else []
    said = f" Not measured yet: {'; '.join(missing)}." if missing else ""
    return said + (f" Not finished, so that its answer may change: {'; '.join(parts)}." if parts else "")


def draw(nets: dict[str, list[Run]], folder: Path) -> list[Path]:
    """A row of two panels for each net: accuracy against seconds of training, and against memory."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "sparsegnn", "font.size": 8})
    figure, axes = plt.subplots(len(nets), 2, figsize=(10.4, 2.6 * len(nets) + 0.6), squeeze=False)
    for (by_time, by_memory), (net, found) in zip(axes, nets.items(), strict=True):
        v, seen = judge(found), []
        low = min((run.accuracy for run in found), default=0.0)
        floor = 100 * max(low, v.target - 0.06) - 0.3 if v is not None else 0.0
        for dense, colour, marker, label in ((True, DENSE, "s", "dense, any width"), (False, SPARSE, "o", "sparse")):
            mine = [run for run in found if run.dense == dense]
            for run in mine:
                timed = run.curve if math.isfinite(run.seconds) else []
                seconds = [steps * run.seconds for steps, _ in timed]
                by_time.plot(seconds, [100 * a for _, a in timed], color=colour, alpha=0.18, linewidth=0.8)
                by_memory.plot(run.memory / 2**20, 100 * run.accuracy, marker, color=colour, markersize=4.5,
                               markerfacecolor=colour if dense else "white")  # fmt: skip
                name = run.label.removeprefix("dense ") if dense else run.label
                by_memory.annotate(name, (run.memory / 2**20, 100 * run.accuracy), (4, -7),
                                   fontsize=5.5, color=colour, textcoords="offset points")  # fmt: skip
            best = envelope(mine)
            if best:
                style = "-" if dense else "--"
                by_time.plot([s for s, _ in best], [100 * a for _, a in best], style, color=colour, linewidth=1.8,
                             drawstyle="steps-post", label=label)  # fmt: skip
                seen += [s for s, a in best if 100 * a >= floor] or [best[-1][0]]
        if seen:
            by_time.set_xlim(min(seen) / 1.5, max(seen) * 1.5)
        by_time.set_xscale("log")
        for formatted in (by_time.xaxis.set_major_formatter, by_time.xaxis.set_minor_formatter):
            formatted(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "125" else "")
        by_memory.margins(x=0.28)
        for axis in (by_time, by_memory):
            axis.grid(True, alpha=0.25)
            axis.set_title(net, fontsize=8)
            axis.set_ylabel("test accuracy, %")
            if v is not None:
                axis.axhline(100 * v.target, color="black", linewidth=0.8, linestyle=":")
                axis.set_ylim(floor, 100 * max(r.accuracy for r in found) + 0.4)
        by_time.set_xlabel("seconds of training")
        by_memory.set_xlabel("peak memory of training, MiB")
    if axes[0, 0].get_legend_handles_labels()[0]:
        axes[0, 0].legend(loc="lower right", frameon=False)
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{FIGURE}.{kind}" for kind in ("svg", "png")]
    figure.savefig(paths[0], metadata={"Date": None})
    figure.savefig(paths[1], dpi=110)
    plt.close(figure)
    return paths


def write(nets: dict[str, list[Run]], times: dict[str, dict], path: Path) -> None:
    path.write_text(page(nets, times))
    draw(nets, FOLDER / "figures")
