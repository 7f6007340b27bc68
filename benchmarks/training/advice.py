"""How near are the steps that ``sparsegnn advise`` expects to those that it measures? All of its options, many nets.

    python benchmarks/training/advice.py [--data FOLDER] [--only WORD ...] [--threads 2] [--seconds 60] [--save]

The nets are those of the map (``pays.py``), at the widths of its sparse nets, and others on which the advice was not
made: other graphs, depths and models. Each runs in a process of its own. Unlike ``sparsegnn advise``, which measures
its best three options, this measures ``--options`` of them, spread over all kinds of levers, whether they gain or not,
and all narrower nets. Prints expected over measured, net by net; the bar is within 25 %. The machine must be free.

A line per net goes to ``advice.jsonl``, in a folder for temporary files, or with ``--save`` in ``results/<device>``;
nets that are there already, with the same command, are not run again (``--again``: all are).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from harness import FOLDER, runner  # noqa: E402
from training import pays, runs  # noqa: E402

BAR = 0.25  # expected may be so far from measured
TRIED = {  # on which the advice was made: docs/advise.md
    "GCN, 2 layers, facebook_pages 256",
    "GCN, 3 layers, coauthor_cs 512",
    "GAT, 2 layers of 8 heads, cora 32",
}
OTHERS = {
    "GAT, 2 layers of 8 heads, cora 32": "--model gat --data cora --hidden 32",
    "GCN, 2 layers, citeseer 256": "--model gcn --data citeseer --hidden 256",
    "GCN, 4 layers, residual, flickr_7575 256": "--model gcn --layers 4 --residual --layer-norm --data flickr_7575 "
    "--hidden 256",
    "SAGE, 3 layers, blogcatalog 512": "--model sage --layers 3 --data blogcatalog --hidden 512",
    "GIN, 3 layers, amazon_photo 256": "--model gin --layers 3 --layer-norm --data amazon_photo --hidden 256",
    "GAT, 2 layers of 8 heads, amazon_photo 16": "--model gat --data amazon_photo --hidden 16",
    "SIGN, 3 hops, amazon_photo 512": "--model sign --hops 3 --layers 3 --data amazon_photo --hidden 512",
    "MLP, 4 layers, citeseer 1024": "--model mlp --layers 4 --layer-norm --data citeseer --hidden 1024",
    "MLP, 3 layers, amazon_computers 512": "--model mlp --layers 3 --data amazon_computers --hidden 512",
}


def nets() -> dict[str, str]:
    """Options of ``sparsegnn advise`` for each net, by its name: dense nets, as wide as the sparse ones of the map."""
    mapped = {f"{net.name} {width}": f"{net.arguments} --hidden {width}" for net in pays.NETS for width in net.sparse}
    return mapped | {name: words for name, words in OTHERS.items() if name not in mapped}


# --- one net, in a process of its own --------------------------------------------------------------------------------


def one(words: list[str], seconds: float, options: int, clock: Callable[[], float] = time.perf_counter) -> dict:
    """All narrower nets and so many other options of a net: what is expected, and what was measured."""
    from sparsegnn.advice.builtin import problem_of
    from sparsegnn.advice.search import Search
    from sparsegnn.advice.work import Stopwatch

    class Spread(Search):
        def best(self):
            return spread_over(super().best(), self.findings.options, options)

    problem = problem_of(runs.config(words))
    findings = Spread(problem, Stopwatch(problem.device, clock), seconds, lambda what: None).run()
    measured = [x for x in findings.options if x.measured is not None]
    return {
        "step": findings.given.measured,
        "parts": findings.given.seconds,
        "options": [{"option": str(x.option), "expected": x.expected, "measured": x.measured} for x in measured],
        "left_out": findings.left_out,
        "rounds": findings.rounds,
    }


def spread_over(best: list, options: list, count: int) -> list:
    """``count`` options: the best ones, and others of all kinds in turn, the middle ones of each kind first."""
    kinds: dict[tuple, list] = {}
    for found in options:
        if found.option.kinds not in ((), ("narrower",)) and found not in best:
            kinds.setdefault((found.option.kinds, found.option.pattern), []).append(found)
    chosen = list(best)
    queues = [middle_first(family) for family in kinds.values()]
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return chosen[:count]


def middle_first(found: list) -> list:
    """From the middle of the order by sparsity outwards."""
    ordered = sorted(found, key=lambda x: x.option.sparsity)
    middle = (len(ordered) - 1) / 2
    return sorted(ordered, key=lambda x: abs(ordered.index(x) - middle))


# --- all of them -----------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """A net with expected over measured seconds of each of its options."""

    name: str
    ratios: dict[str, float]


def row(name: str, found: dict) -> Row:
    return Row(name, {x["option"]: x["expected"] / x["measured"] for x in found["options"]})


def table(rows: list[Row]) -> str:
    """By net, then of all, of those on which the advice was made and of the others; and what misses the bar."""
    head = "| net | options | within 25 % | middle error, % | worst error, % | worst option |"
    lines = [head, "|---|---:|---:|---:|---:|---|"]
    lines += [line(r.name + (" (tried)" if r.name in TRIED else ""), [r]) for r in rows if r.ratios]
    for name, some in (("tried", [r for r in rows if r.name in TRIED]), ("all others", others(rows)), ("all", rows)):
        if any(r.ratios for r in some):
            lines.append(line(f"**{name}**", some))
    return "\n".join(lines)


def others(rows: list[Row]) -> list[Row]:
    return [r for r in rows if r.name not in TRIED]


def line(name: str, rows: list[Row]) -> str:
    pairs = [(abs(ratio - 1), option, ratio) for r in rows for option, ratio in r.ratios.items()]
    errors, (worst, option, ratio) = [e for e, *_ in pairs], max(pairs)
    within = sum(e <= BAR for e in errors)
    return (f"| {name} | {len(pairs)} | {within} | {100 * statistics.median(errors):.0f} | {100 * worst:.0f} | "
            f"{option}: {ratio:.2f} |")  # fmt: skip


def missed(rows: list[Row]) -> Iterator[str]:
    for r in rows:
        for option, ratio in r.ratios.items():
            if abs(ratio - 1) > BAR:
                yield f"{r.name}: {option}: expected is {ratio:.2f} of measured"


def measure(wanted: dict[str, str], path: Path, options: argparse.Namespace) -> list[str]:
    """Run what is not in the file yet; returns the names that failed."""
    from tqdm import tqdm

    env, failed = runs.environment(options.data), []
    bar = tqdm(wanted.items(), "advice", file=sys.stderr)
    for name, words in bar:
        bar.set_postfix_str(name)
        command = f"{words} --threads {options.threads} --seconds {options.seconds:g} --options {options.options}"
        if not options.again and runs.read(path).get(name, {}).get("command") == command:
            continue
        called = [sys.executable, __file__, "--one", words, *shlex.split(command.removeprefix(words))]
        found = answer(called, env, options.timeout)
        if isinstance(found, dict) and not found["options"]:
            found = f"no option was measured in {options.seconds:g} seconds, of a step of {found['step']:.3g}"
        if isinstance(found, str):
            bar.write(f"{name}: {found}", file=sys.stderr)
            failed.append(name)
            continue
        rows = runs.read(path)
        rows[name] = {"case": name, "command": command, **runner.environment(), **found}
        runs.write(path, rows)
    return failed


def answer(command: list[str], env: dict[str, str], timeout: float) -> dict | str:
    """What a process printed, as JSON, or what went wrong."""
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return f"not done after {timeout:g} seconds"
    if done.returncode == 0:
        with contextlib.suppress(ValueError):
            return json.loads(done.stdout)
    return f"exit {done.returncode}: {done.stderr.strip().splitlines()[-1:] or done.stdout[-200:]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of .npz graphs (default: SPARSEGNN_DATA)")
    parser.add_argument("--only", nargs="+", default=[""], help="nets whose name has one of these words")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0, help="that a net may take, about")
    parser.add_argument("--options", type=int, default=10, help="of a net that are measured, beside narrower ones")
    parser.add_argument("--again", action="store_true", help="measure nets that are in the file already, too")
    parser.add_argument("--save", action="store_true", help="into results/<device>, else a folder for temporary files")
    parser.add_argument("--timeout", type=float, default=900, help="seconds of a net, which then counts as failed")
    parser.add_argument("--out", type=Path, help="another folder than these")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = pays.device_of(options.threads)
    if options.one is not None:
        print(json.dumps(one(shlex.split(options.one), options.seconds, options.options)))
        return 0
    wanted = {name: words for name, words in nets().items() if any(word in name for word in options.only)}
    if not wanted:
        print(f"no net has one of the words {options.only} in its name", file=sys.stderr)
        return 1
    temporary = Path(tempfile.gettempdir()) / f"sparsegnn-advice-{os.getuid()}" / device
    folder = options.out or (FOLDER / "results" / device if options.save else temporary)
    path = folder / "advice.jsonl"
    failed = measure(wanted, path, options)
    rows = [row(name, found) for name, found in runs.read(path).items() if name in wanted]
    if rows:
        print(f"expected over measured, {options.threads} thread(s), {device}, from {path}\n\n{table(rows)}\n")
        print("\n".join(missed(rows)))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
