"""Dense against 90 %-sparse training of a GCN and a GAT, with PyG's own layers beside them. Run by `make demo`.

Two graphs: the nearest-neighbour graph of scikit-learn's handwritten digits (small and real: accuracy), and a
generated graph of 50,000 nodes with power-law degrees and planted classes (large enough for time to mean something).
Every row is a full training run in this process; PyG takes only a few steps on the large graph.
"""

from __future__ import annotations

import argparse
import time

from rich import box
from rich.table import Table
from rich.text import Text

from sparsegnn import _console, _files
from sparsegnn import data as graphs
from sparsegnn.experiments.config import TrainConfig
from sparsegnn.experiments.train import train

ROWS = (
    ("dense", {"method": "dense"}),
    ("sparse 90 %", {"method": "rigl", "sparsity": 0.9}),
    ("PyG", {"backend": "pyg"}),
)
# No dropout on the large graph: torch draws it with a single thread, which would be a third of a step.
WIDE = {"layers": 3, "epochs": 24, "update_every": 2, "eval_every": 5, "weight_decay": 0.0, "dropout": 0.0, "lr": 0.01}
LARGE = {"gcn": {"hidden": 256, **WIDE}, "gat": {"hidden": 32, "heads": 8, **WIDE}}


def runs(pyg_steps: int, scale: float):
    """(graph, model, row name, configuration) of every row of the table."""
    small = graphs.load("digits")
    large = graphs.skewed(int(50_000 * scale))
    for graph, recipes in ((small, {"gcn": {}, "gat": {}}), (large, LARGE)):
        for model, recipe in recipes.items():
            for name, method in ROWS:  # each shows a progress bar when it takes over two seconds
                settings = {"input_dropout": 0.0, **recipe, **method}
                if name == "PyG" and graph is large:
                    settings |= {"epochs": pyg_steps, "eval_every": pyg_steps}
                yield graph, model, name, TrainConfig(data=graph.name, model=model, **settings)


CAPTION = (
    "Accuracy on the test nodes at the epoch of best validation accuracy (-: too few steps). GFLOP of all training "
    "steps; PyG's gather and scatter are not counted, hence -. Times: medians per full-batch step. Peak memory: above "
    "what the process held before the run."
)


def table(results: list[tuple[str, str, str, dict]]) -> Table:
    """One section per graph and model: dense, sparse, PyG."""
    made = Table(title="Training a GNN, dense and 90 % sparse", caption=CAPTION, box=box.SIMPLE_HEAD, padding=(0, 1))
    made.caption_justify = "left"
    made.add_column("\nlayers", no_wrap=True)
    for column in COLUMNS:
        made.add_column(column, justify="right", no_wrap=True)
    for graph, model in dict.fromkeys((g, m) for g, m, _, _ in results):
        rows = {name: r for g, m, name, r in results if (g, m) == (graph, model)}
        made.add_section()
        made.add_row(Text(f"{_console.clean(graph)}, {model.upper()}", "bold"))
        for name, r in rows.items():
            made.add_row(f"  {name}", *cells(r, rows["dense"]), style="green" if name.startswith("sparse") else None)
    return made


COLUMNS = (
    "test\nacc %",
    "\nweights",
    "train\nGFLOP",
    "forward\nms",
    "backw.\nms",
    "optim.\nms",
    "step\nms",
    "versus\ndense",
    "peak\nMiB",
)


def cells(r: dict, dense: dict) -> list[str]:
    return [
        "-" if r["config"]["epochs"] < 20 else f"{100 * r['test_accuracy']:.1f}",
        f"{r['weights']:,}",
        "-" if r["flops"] is None else f"{r['flops'] / 1e9:,.1f}",
        *(f"{1e3 * r[f'seconds_{phase}']:.1f}" for phase in ("forward", "backward", "optimizer", "per_step")),
        f"{dense['seconds_per_step'] / r['seconds_per_step']:.2f}x",
        f"{r['run_memory_bytes'] / 2**20:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pyg-steps", type=int, default=2, help="steps of PyG's layers on the large graph")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the generated graph, 1 = 50,000 nodes")
    parser.add_argument("--json", metavar="PATH", help="also write one JSON line per row")
    options = parser.parse_args()
    if options.json:
        _files.check("json", options.json)
    start, results = time.perf_counter(), []
    for graph, model, name, config in runs(options.pyg_steps, options.scale):
        results.append((graph.name, model, name, train(config, graph)))
    if options.json:
        lines = (_console.json_text({"row": row, **r}) + "\n" for *row, r in results)
        _files.replace(options.json, "".join(lines).encode())
    _console.write(_console.rendered(table(results), least=100))  # narrower, the columns would be cut
    for graph, model in dict.fromkeys((g, m) for g, m, _, _ in results):
        r = next(r for g, m, _, r in results if (g, m) == (graph, model))
        c = r["config"]
        width = c["hidden"] if model == "gcn" else f"{c['heads']} heads x {c['hidden']}"
        sizes = f"{r['nodes']:,} nodes, {r['edges']:,} edges; {c['layers']} layers, hidden {width}; {c['epochs']} steps"
        _console.write(f"{_console.clean(graph)}, {model.upper()}: {sizes}\n")
    _console.write(f"{time.perf_counter() - start:.0f} seconds in all\n")


if __name__ == "__main__":
    main()
