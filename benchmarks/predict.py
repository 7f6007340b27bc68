#!/usr/bin/env python3
"""What the CUDA kernels should cost on an H200: predictions from machine code, degrees and bytes. docs/predict.md

    python benchmarks/predict.py [--op OP] [--graph NAME] [--json] [--budget] [--assumptions FILE]

Compiles the kernels with nvcc and counts their instructions (exit code 2 where nvcc or cuobjdump is missing);
``--budget`` takes the counts of csrc/cuda/budget.json, for which a C++ compiler will do. ``--write-budget`` puts the
counts there. No number is a measurement.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

if not __package__:
    sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from cost import cases, counts, cubin, degrees, model, sass  # noqa: E402

NOTE = "Predictions for one H200, not measurements."


def predictions(found: dict, machine: model.Machine, op: str | None = None, graph: str | None = None) -> list[dict]:
    """A row for every case: milliseconds, what bounds them, and those of the peers' arithmetic and of the target."""
    rows = []
    for case in cases.everything():
        if (op and case.op != op) or (graph and case.graph != graph):
            continue
        parts = case.run(found, machine)
        peer = 1e3 * case.peer(machine) if case.peer else None
        target = 1e3 * case.target(found, machine) if case.target else None
        ms = 1e3 * model.total(parts, machine)
        bounds = [{"kernel": c.name, "ms": {k: 1e3 * v for k, v in c.bounds.items()}} for c in parts]
        rows.append(dict(op=case.op, case=case.name, graph=case.graph, predicted_ms=ms, bound=model.bound(parts),
                         peer_ms=peer, peer=case.against, target_ms=target, kernels=bounds))  # fmt: skip
    return rows


def bars(found: dict, machine: model.Machine, op: str | None = None, graph: str | None = None) -> list[cases.Bar]:
    rows_share = ("segments", "spmm", "gat", "maxk_spmm")

    def wanted(of: str, on: str | None) -> bool:
        return (op in (None, of) or (of == "segments" and op in rows_share)) and graph in (None, on)

    every = [*cases.filling(found, wanted), *cases.counting(found, wanted), *cases.timing(found, machine, wanted)]
    if wanted("sparse_linear", None):
        try:
            every += cases.policy(found, machine)
        except ImportError as error:
            print(f"predict: the policy needs torch: {error}", file=sys.stderr)
    return [b for b in every if wanted(b.op, b.graph)]


def table(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * w for w in widths], *rows]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in lines)


def number(x: float | None) -> str:
    return "-" if x is None else f"{x:.3g}"


def show(found: dict, machine: model.Machine, rows: list[dict], every: list[cases.Bar]) -> None:
    print(NOTE + "\n")
    values = [[k, f"{machine[k]:.3g}", unit, source] for k, (_, unit, source) in model.ASSUMED.items()]
    print(table(["assumed", "value", "unit", "from"], values) + "\n")
    print(table(["counted, of a unit", "unit", "all", *sass.CLASSES, "tail", "registers", "warps"], [
        [name, counts.table()[name]["unit"], f"{c.instructions:.1f}", *(f"{c.of[k]:.1f}" for k in c.of),
         number(c.tail), str(c.registers), str(model.occupancy(c.registers, c.shared, 256))]
        for name, c in found.items()]) + "\n")  # fmt: skip
    if every:
        print(table(["bar", "found", "bar", "", "before", "note"], [
            [b.name, number(b.found), f"{'>=' if b.least else '<='} {b.bar:g}", "met" if b.met else "NOT MET", b.before,
             b.note] for b in every]) + "\n")  # fmt: skip
    print(table(["case", "predicted ms", "bound by", "peer, arithmetic", "ratio", "target ms", ""], [
        [r["case"], number(r["predicted_ms"]), r["bound"],
         f"{number(r['peer_ms'])} {r['peer']}" if r["peer_ms"] else r["peer"] or "-",
         number(r["peer_ms"] / r["predicted_ms"] if r["peer_ms"] else None), number(r["target_ms"]),
         "" if r["target_ms"] is None else "met" if r["predicted_ms"] <= r["target_ms"] else "NOT MET"]
        for r in rows]))  # fmt: skip


def machine_of(path: Path | None) -> model.Machine:
    """The assumptions, with those replaced that a file of the same names gives."""
    machine = model.Machine()
    if path:
        given = json.loads(path.read_text())
        if unknown := set(given) - set(machine.values):
            raise ValueError(f"{path}: unknown assumption {', '.join(sorted(unknown))}")
        machine.values |= given
    return machine


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", help="of one op alone: " + ", ".join(sorted({c.op for c in cases.everything()})))
    parser.add_argument("--graph", help="on one graph alone: " + ", ".join(degrees.available()))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--budget", action="store_true", help="counts of budget.json, without a compiler for the GPU")
    parser.add_argument("--write-budget", action="store_true", help="put the counts into csrc/cuda/budget.json")
    parser.add_argument("--assumptions", type=Path, help="JSON with other values, such as a GPU was measured to have")
    args = parser.parse_args(arguments)
    if args.op and args.op not in {c.op for c in cases.everything()}:
        parser.error(f"unknown op {args.op}")
    if args.graph and args.graph not in degrees.available():
        parser.error(f"unknown graph {args.graph}; there are {', '.join(degrees.available())}")
    try:
        if args.write_budget:
            counts.write(counts.counted())
            return 0
        found = counts.budgeted() if args.budget else counts.Counts() if args.op else counts.counted()
        machine = machine_of(args.assumptions)
        rows, every = predictions(found, machine, args.op, args.graph), bars(found, machine, args.op, args.graph)
    except cubin.Missing as error:
        print(f"predict: {error}", file=sys.stderr)
        return 2
    if args.json:
        listed = [vars(b) | {"met": b.met} for b in every]
        print(json.dumps(dict(note=NOTE, assumed=machine.values, counts={k: vars(c) for k, c in found.items()},
                              bars=listed, cases=rows), indent=1))  # fmt: skip
    else:
        show(found, machine, rows, every)
    return 0


if __name__ == "__main__":
    sys.exit(main())
