"""Every method of the registry on real graphs, through the command line, and the page that shows what came out.

    python benchmarks/training/methods.py [--data FOLDER] [--only WORD ...] [--seeds 5] [--epochs 200] [--again]
    python benchmarks/training/methods.py --publish

Writes one JSON line per case to ``results/<device>/methods.jsonl``; cases that are there already, with the same
command, are not run again. ``--publish`` makes ``docs/methods.md`` of them. Accuracies are paired: dense and sparse
share seeds. The machine must be free: times are compared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from harness import FOLDER, runner  # noqa: E402
from training import runs  # noqa: E402

from sparsegnn.controllers import METHODS, registry  # noqa: E402

PAGE = FOLDER.parent / "docs" / "methods.md"
MASKED = "masked-dense"
#: options of a method where its own defaults are not what is compared
OPTIONS: dict[str, str] = {}
SIDE = ("cora", "citeseer", "coauthor_cs")
LARGE = "--weight-decay 0 --input-dropout 0 --eval-every 5"  # as the notes on accuracy train coauthor_cs
WIDE = f"--data coauthor_cs --hidden 512 --layers 3 --epochs 100 {LARGE}"
SMALL_RHO = "--set rho=1e-5 --set s0=1e-6"  # of SLR where Adam's second moments of the loss are smaller; by validation
WALL = ("set", "rigl", "dst-ee", "srigl")
WIDER = ("rgp", "maxk")  # whose papers have wider nets: once more with 256
EDGES = "amazon_photo"  # a graph with edges to spare: 31 a node, Cora has 4
CLAIMS = {  # what the papers say of graphs without edges, where it is known
    "cgp": "as accurate as dense, fewer edges, channels and weights",
    "fastgat": "as accurate as GAT, in up to a tenth of the time",
    "gebt": "Cora: 81.1 against 80.9 %, with edges and weights removed",
    "kedge": "PubMed: 80 % of the edges removed cost 2 points",
    "triple": "none on edges alone",
}
KEPT = ("data", "test_accuracy", "test_accuracy_std", "val_accuracy", "sparsity", "weights", "weights_dense",
        "edges_at_start", "edges_at_end", "flops", "peak_memory_bytes", "run_memory_bytes", "mask_updates", "phases",
        "settings", "kernels", "config")  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One run of the command line for several seeds."""

    group: str  # "cora", "wide", "edges", "side" or "wall"
    method: str  # "dense" and MASKED too
    data: str
    arguments: str

    @property
    def name(self) -> str:
        return f"{self.group} {self.data} {self.method}"


def options_of(method: str, sparsity: float = 0.9) -> str:
    """The command line's options for a method at a sparsity; edge methods have the share of edges of their own."""
    if method == "dense":
        return ""
    if method == MASKED:
        return f"--method training.masked_dense:MaskedDense --sparsity {sparsity}"
    cls = METHODS[method]
    takes = "sparsity" in registry.settings(cls) or cls.start == "sparse"
    # two of every four: no other sparsity
    asked = "" if not takes or "2:4" == cls.patterns or "weights" not in cls.target else f" --sparsity {sparsity}"
    return f"--method {method}{asked} {OPTIONS.get(method, '')}".strip()


def edge_methods() -> list[str]:
    return [name for name in sorted(METHODS) if "edges" in METHODS[name].target]


def cases(data: str = "cora", hidden: int = 64) -> list[Case]:
    small = f"--data {data} --hidden {hidden}"
    found = [Case("cora", m, data, f"{small} {options_of(m)}".strip()) for m in ("dense", MASKED, *sorted(METHODS))]
    wide = f"--data {data} --hidden 256"
    found += [Case("wide", m, data, f"{wide} {options_of(m)}".strip()) for m in ("dense", *WIDER)]
    edges = f"--data {EDGES} --hidden {hidden} --weight-decay 0"
    found += [Case("edges", m, EDGES, f"{edges} {options_of(m, 0.5)}".strip()) for m in ("dense", *edge_methods())]
    for graph in SIDE:
        extra = LARGE if graph == "coauthor_cs" else ""
        for method in ("dense", "slr", "rigl"):
            if method in ("dense", *METHODS):
                width, own = (256, SMALL_RHO) if graph == "coauthor_cs" else (64, "")
                words = f"--data {graph} --hidden {width} {extra} {options_of(method)} {own if method == 'slr' else ''}"
                found.append(Case("side", method, graph, " ".join(words.split())))
    for method in ("dense", MASKED, *WALL):
        if method in ("dense", MASKED, *METHODS):
            found.append(Case("wall", method, "coauthor_cs", f"{WIDE} {options_of(method)}".strip()))
    return found


# --- running ---------------------------------------------------------------------------------------------------------


def line(case: Case, result: dict) -> dict:
    """What is kept of a result."""
    each = result.get("runs", [result])
    about = ("command", *runner.environment())
    return {
        "case": case.name,
        "group": case.group,
        "method": case.method,
        **{name: result[name] for name in (*about, *KEPT) if name in result},
        **{name: value for name, value in result.items() if name.startswith(("flops_", "seconds_"))},
        "test_accuracies": [r["test_accuracy"] for r in each],
        "training_seconds": [r["seconds_training"] for r in each],
    }


# --- the page --------------------------------------------------------------------------------------------------------


def seconds(row: dict) -> float:
    """Of the training steps of a run, mask updates and dense phases too; the median over the seeds."""
    return statistics.median(row["training_seconds"])


def delta(row: dict, base: dict | None) -> str:
    """Paired by seed, in points."""
    if base is None:
        return ""
    pairs = list(zip(row["test_accuracies"], base["test_accuracies"], strict=False))
    return f"{100 * statistics.fmean(a - b for a, b in pairs):+.2f}"


def accuracy(row: dict) -> str:
    spread = f" ± {100 * row['test_accuracy_std']:.2f}" if "test_accuracy_std" in row else ""
    return f"{100 * row['test_accuracy']:.2f}{spread}"


def over(row: dict, base: dict | None, value) -> str:
    return "" if base is None or not value(base) else f"{value(row) / value(base):.3g}"


def flops(row: dict) -> float:
    return row["flops"]


def memory(row: dict) -> str:
    return f"{row['run_memory_bytes'] / 2**20:.0f}"


def kept(row: dict) -> str:
    """How sparse it ended: weights, and edges where they got fewer."""
    if row["method"] == MASKED:
        return f"{100 * row.get('settings', {}).get('sparsity', 0.9):.1f} %, masked"
    edges = row.get("edges_at_end", 0), row.get("edges_at_start", 0)
    fewer = f", {100 * (1 - edges[0] / edges[1]):.0f} % of the edges" if edges[0] != edges[1] else ""
    return f"{100 * row['sparsity']:.1f} %{fewer}"


def table(head: list[str], rows: list[list[str]], left: int = 1) -> str:
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows))


def methods_table(rows: dict[str, dict]) -> str:
    mine = {row["method"]: row for row in rows.values() if row["group"] == "cora"}
    dense, masked = mine.get("dense"), mine.get(MASKED)
    head = ["method", "family", "target", "pattern", "dense gradients", "paper", "sparsity", "accuracy, %",
            "over dense", "FLOPs / dense", "time / dense", "time / masked dense", "memory, MiB"]  # fmt: skip
    order = ["dense", MASKED]
    order += sorted(METHODS, key=lambda m: (registry.FAMILIES.index(METHODS[m].family), m))
    lines = []
    for name in order:
        cls, row = METHODS.get(name), mine.get(name)
        about = ["", "", "", "every step" if name in ("dense", MASKED) else "", ""]
        if cls is not None:
            about = [cls.family, cls.target, cls.patterns, cls.dense_gradient_need, cls.paper]
        found = ["not measured"] + [""] * 6
        if row is not None:
            found = [kept(row), accuracy(row), delta(row, dense), over(row, dense, flops), over(row, dense, seconds),
                     over(row, masked, seconds), memory(row)]  # fmt: skip
        lines.append([f"`{name}`", *about, *found])
    return table(head, lines, 6)


def side_table(rows: dict[str, dict]) -> str:
    lines = []
    for graph in SIDE:
        mine = {r["method"]: r for r in rows.values() if r["group"] == "side" and r["data"] == graph}
        for name in (m for m in ("dense", "slr", "rigl") if m in mine):
            row = mine[name]
            lines.append([graph, f"`{name}`", kept(row), accuracy(row), delta(row, mine.get("dense")),
                          over(row, mine.get("dense"), flops), over(row, mine.get("rigl"), flops),
                          over(row, mine.get("dense"), seconds)])  # fmt: skip
    head = ["graph", "method", "sparsity", "accuracy, %", "over dense", "FLOPs / dense", "FLOPs / RigL", "time / dense"]
    return table(head, lines, 2)


def wall_table(rows: dict[str, dict]) -> str:
    mine = {r["method"]: r for r in rows.values() if r["group"] == "wall"}
    dense = mine.get("dense")
    lines = [
        [f"`{name}`", kept(row), accuracy(row), delta(row, dense), f"{seconds(row):.1f}", over(row, dense, seconds),
         over(row, dense, flops), memory(row)]
        for name, row in ((m, mine[m]) for m in ("dense", MASKED, *WALL) if m in mine)
    ]  # fmt: skip
    head = ["method", "sparsity", "accuracy, %", "over dense", "training, s", "time / dense", "FLOPs / dense",
            "memory, MiB"]  # fmt: skip
    return table(head, lines, 1)


def wide_table(rows: dict[str, dict]) -> str:
    mine = {r["method"]: r for r in rows.values() if r["group"] == "wide"}
    lines = [[f"`{n}`", kept(mine[n]), accuracy(mine[n]), delta(mine[n], mine.get("dense")),
              over(mine[n], mine.get("dense"), flops)] for n in ("dense", *WIDER) if n in mine]  # fmt: skip
    return table(["method", "sparsity", "accuracy, %", "over dense", "FLOPs / dense"], lines, 2)


def edges_table(rows: dict[str, dict]) -> str:
    mine = {r["method"]: r for r in rows.values() if r["group"] == "edges"}
    lines = [[f"`{n}`", kept(mine[n]), accuracy(mine[n]), delta(mine[n], mine.get("dense")), CLAIMS.get(n, "")]
             for n in ("dense", *edge_methods()) if n in mine]  # fmt: skip
    return table(["method", "sparsity", "accuracy, %", "over dense", "the paper's claim"], lines, 2)


def sections(rows: dict[str, dict]) -> str:
    """The other tables, of what was run."""
    tables = {
        "wide": ("Wider: GCN on Cora, 2 layers of 256, for methods whose papers have such nets", wide_table),
        "edges": (
            f"Half of the edges of a denser graph, and of weights where a method prunes both: GCN on {EDGES}, 64",
            edges_table,
        ),
        "side": (
            "Train-and-prune against sparse training: 90 %, GCN, 2 layers of 64, of 256 on coauthor_cs",
            side_table,
        ),
        "wall": ("Wall time: GCN on coauthor_cs, 3 layers of 512, 90 %, 100 epochs", wall_table),
    }
    there = {row["group"] for row in rows.values()}
    return "".join(f"## {title}\n\n{table(rows)}\n\n" for key, (title, table) in tables.items() if key in there)


def twice(rows: dict[str, dict]) -> str:
    """How far the times of equal commands are apart, where some ran for two tables."""
    times: dict[str, list[float]] = {}
    for row in rows.values():
        times.setdefault(row["command"], []).append(seconds(row))
    apart = [max(found) / min(found) - 1 for found in times.values() if len(found) > 1]
    if not apart:
        return ""
    many = f"{len(apart)} commands that ran twice took" if len(apart) > 1 else "The command that ran twice took"
    told = f"{many} up to {100 * max(apart):.0f} % longer the one time than the other: smaller differences say nothing,"
    return f"{told} and ratios of two times may be off by a factor of {(1 + max(apart)) ** 2:.1f}."


def page(rows: dict[str, dict]) -> str:
    first = next(iter(rows.values()), {})
    threads = first.get("threads", "?")
    threads = f"{threads} thread{'s' * (threads != 1)}"
    machine = f"`{first.get('device', '')}`, {threads}, torch {first.get('torch', '?')}"
    counts = sorted({len(row["test_accuracies"]) for row in rows.values()})
    seeds = " or ".join(map(str, counts)) or "no"
    return f"""# Methods, measured

<!-- made by benchmarks/training/methods.py --publish from benchmarks/results/*/methods.jsonl; do not edit -->

Every method of `sparsegnn methods`, by `sparsegnn train --method NAME`, {seeds} seeds, on {machine}.
*Over dense* is in points of test accuracy, paired by seed; the validation set selects the epoch, once the sparsity is
final. *FLOPs* are those of all training steps, products and aggregation (`sparsegnn.ledger`). *Time* is that of all
training steps, mask updates and dense phases too, over that of the same model dense on this library's kernels, and over
dense weights multiplied by a mask at every forward (`{MASKED}`, whose mask is random and stays); *memory* is the peak
above what the process held before the model was made. {twice(rows)}

## All methods: GCN on Cora, 2 layers of 64, 200 epochs

{methods_table(rows)}

Half of Cora's 5,278 undirected edges are 2,639, for 2,708 nodes: hardly more than a spanning forest.

{sections(rows)}The commands are in the `command` field of each line of `benchmarks/results/*/methods.jsonl`.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of .npz graphs (default: SPARSEGNN_DATA)")
    parser.add_argument("--graph", default="cora", help="in place of Cora in the first table: digits, to try this")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="cases whose name, 'GROUP GRAPH METHOD', has one of these"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="in place of each case's own number")
    parser.add_argument("--threads", type=int, help="of every run; default: torch's")
    parser.add_argument("--again", action="store_true", help="run cases that are in the file already, too")
    parser.add_argument("--out", type=Path, help="default: results/<device>/methods.jsonl")
    parser.add_argument("--publish", action="store_true", help="only make docs/methods.md of the results")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    path = options.out or FOLDER / "results" / runner.device_name() / "methods.jsonl"
    if options.publish:
        options.page.write_text(page(runs.read(path)))
        return 0
    extra = ["--seeds", str(options.seeds)]
    for name in ("epochs", "threads"):
        if getattr(options, name) is not None:
            extra += [f"--{name}", str(getattr(options, name))]
    wanted = {c.name: c for c in cases(options.graph) if any(part in c.name for part in options.only)}
    commands = [(name, " ".join([case.arguments, *extra])) for name, case in wanted.items()]
    env = runs.environment(options.data)
    failed = runs.measure(commands, path, env, options.again, lambda name, result: line(wanted[name], result))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
