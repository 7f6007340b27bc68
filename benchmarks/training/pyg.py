"""A training step of nets of PyG: as they are, with ``sparsegnn.accelerate``, and as ``sparsegnn.nn`` has them.

    python benchmarks/training/pyg.py [--nodes 170000] [--edges 2300000] [--threads 1] [--rounds 5] [--save]
    python benchmarks/training/pyg.py --publish

All three take a raw ``edge_index`` or, of ``sparsegnn.nn``, a CSRGraph; Adam, cross entropy. ``--save`` writes
``results/<device>/pyg.jsonl``, of which ``--publish`` makes the table in ``docs/from_pyg.md``. The machine must be
free: times are compared.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

if not __package__:  # run by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from harness import FOLDER, runner  # noqa: E402
from harness.graphs import lognormal  # noqa: E402
from harness.pages import between  # noqa: E402

import sparsegnn  # noqa: E402

FEATURES, HIDDEN, CLASSES = 128, 256, 40
PAGE, BEGIN, END = FOLDER.parent / "docs" / "from_pyg.md", "<!-- table:", "<!-- /table -->"
HEAD = """| net | PyG | accelerated | sparsegnn.nn | times faster than PyG | time beside sparsegnn.nn |
|---|---|---|---|---|---|"""
BUDGET = 60  # seconds of a net; of what takes a fifth of it, PyG's own steps, three are enough


class Net(nn.Module):
    """Two convolutions, or an MLP and a propagation."""

    def __init__(self, first: nn.Module, second: nn.Module, propagation: bool = False):
        super().__init__()
        self.first, self.second, self.propagation = first, second, propagation

    def forward(self, x, graph):
        x = self.first(x) if self.propagation else self.first(x, graph)
        return self.second(functional.relu(x), graph)


def nets(library) -> dict:
    """The nets of a library; of one that lacks a layer, without it."""

    def gin(inputs, outputs):
        return library.GINConv(nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, outputs)))

    def appnp():
        mlp = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
        return Net(mlp, library.APPNP(10, 0.1), propagation=True)

    wanted = {
        "GCN": lambda: Net(library.GCNConv(FEATURES, HIDDEN), library.GCNConv(HIDDEN, CLASSES)),
        "SAGE": lambda: Net(library.SAGEConv(FEATURES, HIDDEN), library.SAGEConv(HIDDEN, CLASSES)),
        "GIN": lambda: Net(gin(FEATURES, HIDDEN), gin(HIDDEN, CLASSES)),
        "GAT": lambda: Net(library.GATConv(FEATURES, 8, heads=8), library.GATConv(64, CLASSES)),
        "APPNP": appnp,
    }
    found = {}
    for name, make in wanted.items():
        torch.manual_seed(0)
        try:
            found[name] = make()
        except AttributeError:
            continue
    return found


def step(net: nn.Module, graph, nodes: int):
    """A closure that trains one step."""
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(nodes, FEATURES, generator=g), torch.randint(CLASSES, (nodes,), generator=g)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)

    def run():
        optimizer.zero_grad()
        functional.cross_entropy(net(x, graph), y).backward()
        optimizer.step()

    return run


def measure(name: str, theirs: nn.Module, ours: nn.Module | None, args) -> dict:
    graph = lognormal(args.nodes, args.edges)
    edge_index = torch.stack([graph.col.long(), graph.rows()])
    contenders = {"accelerated": step(sparsegnn.accelerate(copy.deepcopy(theirs)), edge_index, args.nodes)}
    if ours is not None:
        contenders["sparsegnn.nn"] = step(ours, graph, args.nodes)
    if args.pyg:
        contenders["PyG"] = step(theirs, edge_index, args.nodes)
    samples = runner.interleave(contenders, args.rounds, budget=BUDGET)
    return {"net": name, **{k: sorted(v)[len(v) // 2] for k, v in samples.items()}}


def line(row: dict) -> str:
    here, library, before = row["accelerated"], row.get("sparsegnn.nn"), row.get("PyG")
    cells = [f"{1e3 * t:,.0f} ms" if t else "-" for t in (before, here, library)]
    cells += [f"{before / here:.1f}" if before else "-", f"{here / library:.2f}" if library else "-"]
    return f"| {row['net']} | {' | '.join(cells)} |"


def publish() -> None:
    """The tables of all machines, into the page."""
    parts = []
    for path in sorted((FOLDER / "results").glob("*/pyg.jsonl")):
        rows = [json.loads(text) for text in path.read_text().splitlines()]
        of = rows[0]
        about = (
            f"{of['nodes']:,} nodes, {of['edges']:,} edges, log-normal degrees, {FEATURES}-{HIDDEN}-{CLASSES} (GAT 8 "
            f"heads of 8; APPNP 10 steps), fp32, {of['threads']} thread(s), torch {of['torch']}, "
            f"`benchmarks/results/{of['device']}`:"
        )
        parts += [about, "\n".join([HEAD, *map(line, rows)])]
    PAGE.write_text(between(PAGE.read_text(), BEGIN, END, "\n\n".join(parts)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=170_000)
    parser.add_argument("--edges", type=int, default=2_300_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="nets")
    parser.add_argument("--without-pyg", dest="pyg", action="store_false", help="leave out the slow ones")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--publish", action="store_true")
    args = parser.parse_args()
    if args.publish:
        publish()
        return 0
    torch.set_num_threads(args.threads)
    import torch_geometric.nn as pyg

    theirs, ours, rows = nets(pyg), nets(sparsegnn.nn), []
    print(f"{args.nodes:,} nodes, {args.edges:,} edges, {args.threads} thread(s), load {os.getloadavg()[0]:.1f}")
    print(HEAD)
    for name in theirs:
        if args.only and name not in args.only:
            continue
        row = measure(name, theirs[name], ours.get(name), args)
        rows.append(row | {"nodes": args.nodes, "edges": args.edges, "threads": args.threads})
        print(line(rows[-1]), flush=True)
        if args.save:
            folder = FOLDER / "results" / runner.device_name()
            folder.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(runner.environment() | row) for row in rows]
            (folder / "pyg.jsonl").write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
