"""A GCN training step as users write it, and with the elementwise functions in the layers; default and kept memory.

    python benchmarks/training/step.py [--dropout 0.5] [--threads 1] [--rounds 7] [--save]
    python benchmarks/training/step.py --publish

"As written" has ``relu``, ``dropout`` and the loss of torch between and behind two sparse ``GCNConv`` (128-256-40,
90 %); "fused" has ``act="relu", dropout=`` in the first, and the same loss. Without ``--dropout`` none drops. Default
malloc and ``sparsegnn.keep_memory()`` are each a process of its own, which take turns. Beside the time of a step, with
one thread its CPU time, stand its page faults (``resource.getrusage``). ``--save`` writes
``results/<device>/step_memory.jsonl``, of which ``--publish`` makes the table in README.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

if not __package__:  # run by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from harness import FOLDER, runner  # noqa: E402
from harness.graphs import lognormal  # noqa: E402
from harness.pages import between  # noqa: E402
from training import pyg  # noqa: E402
from training.pyg import CLASSES, FEATURES, HIDDEN  # noqa: E402

import sparsegnn  # noqa: E402
from sparsegnn.nn import GCNConv  # noqa: E402

SPARSITY = 0.9
MALLOCS, WAYS = ("default", "kept"), ("as written", "fused")
SIZES = ("nodes", "edges", "threads", "dropout")
README, BEGIN, END = FOLDER.parent / "README.md", "<!-- step table:", "<!-- /step table -->"


class Net(nn.Module):
    def __init__(self, fused: bool, dropout: float):
        super().__init__()
        own = dict(act="relu", dropout=dropout) if fused else {}
        self.dropout = dropout
        self.conv1 = GCNConv(FEATURES, HIDDEN, sparsity=SPARSITY, **own)
        self.conv2, self.fused = GCNConv(HIDDEN, CLASSES, sparsity=SPARSITY), fused

    def forward(self, x, graph):
        x = self.conv1(x, graph)
        if not self.fused:
            x = functional.relu(x)
            x = functional.dropout(x, self.dropout, self.training) if self.dropout else x
        return self.conv2(x, graph)


def step(fused: bool, args):
    """A closure that trains one step."""
    torch.manual_seed(0)
    return pyg.step(Net(fused, args.dropout), lognormal(args.nodes, args.edges), args.nodes)


def serve(args) -> None:
    """Times a step of one kind whenever a line asks for it."""
    if args.serve == "kept" and not sparsegnn.keep_memory():
        raise SystemExit("this process has another malloc than glibc's")
    steps = {way: step(way == "fused", args) for way in WAYS}
    for run in steps.values():
        run(), run()
    print("ready", flush=True)
    for line in sys.stdin:
        run = steps[line.strip()]
        run()  # the memory that the other kind left
        before, clock = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        run()
        clock, after = time.perf_counter() - clock, resource.getrusage(resource.RUSAGE_SELF)
        user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
        print(json.dumps([clock, user + system, system, after.ru_minflt - before.ru_minflt]), flush=True)


def measure(args) -> list[dict]:
    command = [sys.executable, __file__, *(f"--{k}={getattr(args, k)}" for k in SIZES)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    processes = {malloc: subprocess.Popen([*command, f"--serve={malloc}"], **pipes) for malloc in MALLOCS}
    samples: dict[tuple[str, str], list] = {}
    try:
        for process in processes.values():
            if process.stdout.readline() != "ready\n":
                raise SystemExit("a process ended before it was ready")
        for _ in range(args.rounds):
            for way in WAYS:
                for malloc, process in processes.items():
                    print(way, file=process.stdin, flush=True)
                    samples.setdefault((way, malloc), []).append(json.loads(process.stdout.readline()))
    finally:
        for process in processes.values():
            process.stdin.close()
            process.wait()
    rows, names = [], ("wall", "cpu", "system", "faults")
    for (way, malloc), taken in samples.items():
        medians = (statistics.median(values) for values in zip(*taken, strict=True))
        rows.append({"way": way, "malloc": malloc, **dict(zip(names, medians, strict=True)), "samples": taken})
    return rows


def seconds(row: dict) -> float:
    """Of a step: with one thread those that it had a core, which does not count what else runs there."""
    return row["cpu"] if row["threads"] == 1 else row["wall"]


def table(rows: list[dict]) -> str:
    """One line per way of writing each step, the mallocs side by side."""
    lines = ["| GCN step | default malloc | `keep_memory()` |", "|---|---|---|"]
    for dropout in sorted({row["dropout"] for row in rows}):
        found = {(row["way"], row["malloc"]): row for row in rows if row["dropout"] == dropout}
        what = f"relu, dropout {dropout:g}" if dropout else "relu"
        for way in WAYS:
            cells = [f"{1e3 * seconds(row):,.0f} ms, {row['faults']:,.0f} page faults"
                     for row in (found[way, malloc] for malloc in MALLOCS)]  # fmt: skip
            lines.append(f"| {what}, {way} | {' | '.join(cells)} |")
        ratios = [seconds(found[WAYS[0], malloc]) / seconds(found[WAYS[1], malloc]) for malloc in MALLOCS]
        lines.append(f"| {what}, as written / fused | " + " | ".join(f"{r:.2f}" for r in ratios) + " |")
    return "\n".join(lines)


def publish() -> None:
    """The tables of all machines, into README."""
    parts = []
    for path in sorted((FOLDER / "results").glob("*/step_memory.jsonl")):
        rows = [json.loads(text) for text in path.read_text().splitlines()]
        of = rows[0]
        about = (
            f"{of['nodes']:,} nodes, {of['edges']:,} edges, {FEATURES}-{HIDDEN}-{CLASSES}, 90 % sparse; `relu`, "
            "dropout and loss of torch (as written), or all but the loss in the layer (fused); fp32, "
            f"{of['threads']} thread(s), medians of turns, CPU time of a step and its page "
            f"faults; `benchmarks/results/{of['device']}`:"
        )
        parts += [about, table(rows)]
    README.write_text(between(README.read_text(), BEGIN, END, "\n\n".join(parts)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=170_000)
    parser.add_argument("--edges", type=int, default=2_300_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--publish", action="store_true")
    parser.add_argument("--serve", choices=MALLOCS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.publish:
        publish()
    elif args.serve:
        serve(args)
    else:
        sizes = {name: getattr(args, name) for name in SIZES}
        rows = [runner.environment() | sizes | row for row in measure(args)]
        print(table(rows))
        if args.save:
            folder = FOLDER / "results" / runner.device_name()
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "step_memory.jsonl"
            before = [json.loads(text) for text in path.read_text().splitlines()] if path.is_file() else []
            rows += [row for row in before if row["dropout"] != args.dropout]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
