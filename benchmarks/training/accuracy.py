"""Accuracy of dense and sparse training on real graphs, through the command line with its defaults.

    python benchmarks/training/accuracy.py [--data FOLDER] [--only NAME ...] [--seeds 5] [--out FILE]

Prints a table with the bar of each row, writes one JSON line per row, and exits with 1 if a bar is missed. Dense and
sparse share their seeds. The graphs are the `.npz` files of SPARSEGNN_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from harness import FOLDER, runner  # noqa: E402


@dataclass(frozen=True)
class Case:
    """One run of the command line, and what its mean test accuracy must reach."""

    name: str
    arguments: str
    seeds: int = 5
    at_least: float | None = None  # absolute
    against: str | None = None  # another case: at_least is relative to its accuracy


CASES = (
    Case("cora gcn dense", "--data cora", at_least=0.805),
    Case("cora gcn rigl 90 %", "--data cora --method rigl --sparsity 0.9", at_least=-0.01, against="cora gcn dense"),
    Case("cora gcn rigl 95 %", "--data cora --method rigl --sparsity 0.95", at_least=-0.015, against="cora gcn dense"),
    Case("cora gcn static 95 %", "--data cora --method static --sparsity 0.95"),
    Case("cora gcn rigl 95 % over static", "", at_least=0.10, against="cora gcn static 95 %"),
    Case("cora gcn set 90 %", "--data cora --method set --sparsity 0.9"),
    Case("cora gcn gmp 90 %", "--data cora --method gmp --sparsity 0.9"),
    Case("cora gat dense", "--data cora --model gat", at_least=0.815),
    Case("cora gat rigl 90 %", "--data cora --model gat --sparsity 0.9", at_least=-0.02, against="cora gat dense"),
    Case("citeseer gcn dense", "--data citeseer", at_least=0.705),
    Case("citeseer gcn rigl 90 %", "--data citeseer --sparsity 0.9", at_least=-0.01, against="citeseer gcn dense"),
    Case("digits gcn dense", "--data digits"),
    Case("digits gcn rigl 90 %", "--data digits --sparsity 0.9", at_least=-0.01, against="digits gcn dense"),
    Case("coauthor_cs gcn dense", "--data coauthor_cs", seeds=1),
    Case("coauthor_cs gcn rigl 90 %", "--data coauthor_cs --sparsity 0.9", seeds=1),
    Case("facebook_pages gcn dense", "--data facebook_pages", seeds=1),
    Case("facebook_pages gcn rigl 90 %", "--data facebook_pages --sparsity 0.9", seeds=1),
)
SAME_RUN = {"cora gcn rigl 95 % over static": "cora gcn rigl 95 %"}


def run(case: Case, seeds: int | None, environment: dict[str, str]) -> dict:
    """The JSON object that `sparsegnn train` prints."""
    count = min(case.seeds, seeds) if seeds else case.seeds
    command = ["-m", "sparsegnn", "train", *case.arguments.split(), "--seeds", str(count), "--json"]
    done = subprocess.run([sys.executable, *command], env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{case.name}: sparsegnn train exited with {done.returncode}")
    return {"command": "sparsegnn train " + " ".join(command[3:-1]), **json.loads(done.stdout)}


def verdict(case: Case, accuracy: float, done: dict[str, dict]) -> tuple[str, bool]:
    """The bar in words, and whether it holds."""
    if case.at_least is None or (case.against and case.against not in done):
        return "", True
    base = done[case.against]["test_accuracy"] if case.against else 0.0
    words = f"{100 * (accuracy - base):+.2f} points (bar {100 * case.at_least:+.1f})" if case.against else ""
    return words or f"bar {100 * case.at_least:.1f} %", accuracy - base >= case.at_least - 1e-12


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of .npz graphs (default: SPARSEGNN_DATA)")
    parser.add_argument("--only", nargs="+", default=[""], help="run the cases whose name contains one of these")
    parser.add_argument("--seeds", type=int, help="at most so many seeds per case")
    parser.add_argument("--out", type=Path, help="default: results/<device>/training_accuracy.jsonl")
    options = parser.parse_args()
    environment = dict(os.environ)
    if options.data:
        environment["SPARSEGNN_DATA"] = options.data
    done: dict[str, dict] = {}
    missed = 0
    for case in CASES:
        if not any(part in case.name for part in options.only):
            continue
        source = SAME_RUN.get(case.name)
        if source is not None and source not in done:
            continue
        r = done[source] if source else run(case, options.seeds, environment)
        done[case.name] = {"case": case.name, **r}
        write(options.out or FOLDER / "results" / runner.device_name() / "training_accuracy.jsonl", done)
        words, holds = verdict(case, r["test_accuracy"], done)
        missed += not holds
        spread = f" ± {100 * r['test_accuracy_std']:.2f} (n = {len(r['seeds'])})" if "seeds" in r else " (n = 1)"
        accuracy = f"{100 * r['test_accuracy']:.2f}{spread}"
        print(
            f"{case.name:32} {accuracy:24} sparsity {r['sparsity']:.4f}  {words} {'' if holds else 'MISSED'}",
            flush=True,
        )
    return 1 if missed else 0


def write(path: Path, done: dict[str, dict]) -> None:
    """One JSON line per case: the means, and the test accuracy of each seed. Never half a file.

    Times are left out: this script does not need the machine for itself.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w") as f:
        for r in done.values():
            per_seed = [one["test_accuracy"] for one in r.get("runs", [r])]
            dropped = ("runs", "versions", "threads")
            kept = {k: v for k, v in r.items() if k not in dropped and not k.startswith("seconds_")}
            f.write(json.dumps(runner.environment() | kept | {"test_accuracies": per_seed}) + "\n")
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
