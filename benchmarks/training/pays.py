"""When does a sparse net pay? Dense nets of every width against sparse ones, by accuracy, time and memory of training.

    python benchmarks/training/pays.py accuracy [--data FOLDER] [--only WORD ...] [--seeds 3] [--threads 2]
    python benchmarks/training/pays.py times    [the same; the machine must be free]
    python benchmarks/training/pays.py status
    python benchmarks/training/pays.py publish

``accuracy`` trains every case and writes learning curves, FLOPs and peak memory, which no other load changes;
``times`` runs short trainings of the same cases, in turns, for the seconds of a step, mask updates included: three
rounds, and up to seven of the cases whose rounds disagree. Each writes a JSON line per case to
``results/<device>/pays_*.jsonl``, and runs nothing again that is there. ``status`` says what there is and whose times
still disagree; ``publish`` makes ``docs/when_it_pays.md`` and its figure of all that is there, and leaves out cases
whose settings have changed since.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:  # run by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from harness import FOLDER, runner  # noqa: E402
from training import runs  # noqa: E402

PAGE = FOLDER.parent / "docs" / "when_it_pays.md"
CLOSE = 0.003  # accuracy counts as that of the best dense net from here on
ROUNDS, MOST_ROUNDS = 3, 7  # of times: more than three only where they disagree
SHORT = 24  # steps of a training that is timed
STEADY = 0.05  # of the median: rounds that lie so near to it agree
FASTER, SMALLER = 1.5, 2.0  # what must be gained to pay
PARTS = ("weights", "aggregation", "elementwise", "mask_updates", "other")  # of a step, in times

GCN = "--model gcn --weight-decay 0 --input-dropout 0"
MLPS = "--weight-decay 0 --input-dropout 0 --layer-norm"
LEVERS = {
    "90 % grouped:8": "--method rigl --sparsity 0.9 --pattern grouped:8",
    "95 % grouped:8": "--method rigl --sparsity 0.95 --pattern grouped:8",
    "98 %": "--method rigl --sparsity 0.98",
    "90 % grouped:8, MaxK": "--method rigl --sparsity 0.9 --pattern grouped:8 --maxk {k}",
    "98 %, MaxK": "--method rigl --sparsity 0.98 --maxk {k}",
    "dense weights, MaxK": "--maxk {k}",
}


@dataclass(frozen=True)
class Net:
    """A network on a graph: what all of its cases share."""

    name: str
    arguments: str
    dense: tuple[int, ...]
    sparse: tuple[int, ...]  # widths
    levers: tuple[str, ...]
    steps: int = 100

    def cases(self) -> Iterator[tuple[str, str]]:
        """Of each case the name and the command's arguments."""
        common = f"{self.arguments} --epochs {self.steps} --eval-every 2"
        for width in self.dense:
            yield f"{self.name} | dense {width}", f"{common} --hidden {width}"
        for width in self.sparse:
            for lever in self.levers:
                words = LEVERS[lever].format(k=max(8, width // 8))
                updates = f" --update-every 5 --stop-at {self.steps // 2}" if "--method" in words else ""
                yield f"{self.name} | {lever} {width}", f"{common} --hidden {width} {words}{updates}"


WIDTHS = (16, 32, 64, 128, 256, 512)
WEIGHTS = ("90 % grouped:8", "95 % grouped:8", "98 %")
BOTH = ("90 % grouped:8", "98 %", "90 % grouped:8, MaxK", "dense weights, MaxK")
NETS = (
    Net("GCN, 2 layers, facebook_pages", f"{GCN} --data facebook_pages", WIDTHS, (256, 512), BOTH, 120),
    Net("GCN, 3 layers, facebook_pages", f"{GCN} --data facebook_pages --layers 3", WIDTHS, (256,), BOTH, 120),
    Net("GCN, 2 layers, coauthor_cs", f"{GCN} --data coauthor_cs", WIDTHS, (256, 512), BOTH, 80),
    Net("GCN, 3 layers, coauthor_cs", f"{GCN} --data coauthor_cs --layers 3", WIDTHS, (256, 512), BOTH, 80),
    Net("GCN, 2 layers, cornell5", f"{GCN} --data cornell5", WIDTHS[:-1], (256,), BOTH, 80),
    Net("SAGE, 2 layers, amazon_computers", f"--model sage {MLPS} --data amazon_computers", WIDTHS, (512,), BOTH, 80),
    Net("GIN, 2 layers, amazon_computers", f"--model gin {MLPS} --lr 0.001 --data amazon_computers", WIDTHS, (512,),
        WEIGHTS, 120),  # sums of large features: at 0.01 no width gets beyond 47 %
    Net("SIGN, MLP of 3 layers, coauthor_physics", f"--model sign --hops 1 {MLPS} --layers 3 --data coauthor_physics",
        WIDTHS, (512,), WEIGHTS, 40),  # 1024 wide a training takes six minutes, and 128 wide is as accurate as 512
    Net("SIGN, MLP of 3 layers, cornell5", f"--model sign --hops 1 {MLPS} --layers 3 --data cornell5",
        (*WIDTHS, 1024), (512, 1024), WEIGHTS, 60),
    Net("GAT, 2 layers of 8 heads, coauthor_cs",
        "--model gat --weight-decay 0 --lr 0.02 --input-dropout 0 --data coauthor_cs",
        (2, 4, 8, 16, 32), (32,), WEIGHTS, 60),
)  # fmt: skip


# --- running ---------------------------------------------------------------------------------------------------------


def accuracy_line(name: str, result: dict) -> dict:
    each = result.get("runs", [result])
    kept = ("command", *runner.environment(), "test_accuracy", "val_accuracy", "sparsity", "weights", "flops",
            "run_memory_bytes", "kernels", "patterns", "config")  # fmt: skip
    return {
        "case": name,
        **{key: result[key] for key in kept if key in result},
        "test_accuracies": [r["test_accuracy"] for r in each],
        "curves": [r["curve"] for r in each],
    }


def time_line(name: str, result: dict) -> dict:
    """Of a short training: seconds of a step, the share of mask updates in it as in the whole training."""
    kept = ("command", *runner.environment(), "seconds_preparation", "kernels")
    steps = result["config"]["epochs"]
    parts = {key: result[key] for key in result if key.startswith("seconds_")}
    return {
        "case": name,
        **{key: result[key] for key in kept if key in result},
        "seconds_per_step": result["seconds_training"] / steps,
        "parts": parts,
    }


def short(arguments: str) -> str:
    """The same training in few steps: half of them with mask updates, as in the whole."""
    words = arguments.split()
    for option, value in (("--epochs", SHORT), ("--stop-at", SHORT // 2), ("--eval-every", SHORT)):
        if option in words:
            words[words.index(option) + 1] = str(value)
    return " ".join(words)


def all_cases() -> dict[str, str]:
    """Arguments of every case of the map, by its name."""
    return dict(case for net in NETS for case in net.cases())


def current(rows: dict[str, dict], wanted: dict[str, str]) -> dict[str, dict]:
    """Those of ``rows`` that are of a wanted case as it is now."""
    found = {}
    for name, row in rows.items():
        arguments = wanted.get(case_of(name))
        texts = () if arguments is None else (f"train {arguments} ", f"train {short(arguments)} ")
        rest = [row["command"].removeprefix(text) for text in texts if row["command"].startswith(text)]
        if any(words.startswith(("--seeds ", "--threads ")) for words in rest):
            found[name] = row
    return found


def case_of(name: str) -> str:
    """Of a line of ``times``, without its round."""
    return " | ".join(name.split(" | ")[:2])


def rounds_of(times: dict[str, dict], case: str) -> list[float]:
    """Seconds of a step in every round of a case."""
    return [row["seconds_per_step"] for name, row in times.items() if case_of(name) == case]


def spread(seconds: list[float]) -> float:
    """How far half of the rounds lie from their median, as a share of it: one bad round of three does not count."""
    middle = statistics.median(seconds)
    far = sorted(abs(s - middle) for s in seconds)
    return far[len(far) // 2] / middle if len(seconds) > 2 else far[-1] / middle


def unsteady(times: dict[str, dict], wanted: dict[str, str]) -> list[str]:
    """Cases whose rounds disagree."""
    timed = {name: rounds_of(times, name) for name in wanted}
    return [name for name, seconds in timed.items() if seconds and spread(seconds) > STEADY]


def measure_times(wanted: dict[str, str], extra: str, path: Path, env: dict[str, str],
                  timeout: float) -> list[str]:  # fmt: skip
    """All cases in turns, then those whose rounds disagree again; returns the names that failed."""
    failed: list[str] = []
    for i in range(MOST_ROUNDS):
        rows = current(runs.read(path), wanted)
        names = list(wanted) if i < ROUNDS else unsteady(rows, wanted)
        if not names:
            break
        commands = [(f"{name} | {i}", short(wanted[name]) + extra) for name in names]
        failed += runs.measure(commands, path, env, False, time_line, timeout)
    return failed


def status(accuracies: dict[str, dict], times: dict[str, dict]) -> str:
    """What there is, net by net."""
    lines = [f"{'net':44} {'accuracy':>9} {'times':>9}  unsteady times"]
    for net in NETS:
        wanted = dict(net.cases())
        done = len(current(accuracies, wanted)), sum(bool(rounds_of(current(times, wanted), c)) for c in wanted)
        shaky = ", ".join(case_of(name).partition(" | ")[2] for name in unsteady(current(times, wanted), wanted))
        counts = [f"{n} of {len(wanted)}" for n in done]
        lines.append(f"{net.name:44} {counts[0]:>9} {counts[1]:>9}  {shaky}".rstrip())
    return "\n".join(lines)


# --- what came out ---------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A case with its accuracy, memory and seconds of a step; a curve of (steps, mean test accuracy)."""

    net: str
    label: str
    accuracy: float
    curve: list[tuple[int, float]]
    memory: float
    flops: float
    seconds: float  # a step; NaN where it was not timed
    parts: dict[str, float] = field(default_factory=dict)  # of a step

    @property
    def dense(self) -> bool:
        return not self.sparse_weights and not self.label.startswith("dense weights")

    @property
    def sparse_weights(self) -> bool:
        """Of the others, those with MaxK alone have dense ones."""
        return not self.label.startswith("dense ")

    def time_to(self, target: float) -> float:
        """Seconds of training until the selected epoch is as accurate on the test set; inf: never."""
        return next((steps * self.seconds for steps, reached in self.curve if reached >= target), math.inf)


def most_accurate(found: Iterable[Run]) -> Run:
    return max(found, key=lambda run: run.accuracy)


def mean_curve(curves: list[list]) -> list[tuple[int, float]]:
    """Over the seeds, from the step on at which all have selected an epoch."""
    if not all(curves):
        return []
    begin = max(curve[0][0] for curve in curves)
    each = [{steps: test for steps, _, test, *_ in curve} for curve in curves]
    return [
        (s, statistics.fmean(c[s] for c in each)) for s in sorted(each[0]) if s >= begin and all(s in c for c in each)
    ]


def collect(accuracies: dict[str, dict], times: dict[str, dict]) -> dict[str, list[Run]]:
    """Runs by the name of their net, in the order of the map."""
    found: dict[str, list[Run]] = {net.name: [] for net in NETS}
    for name, row in accuracies.items():
        net, label = name.split(" | ")
        rounds = [r for case, r in times.items() if case_of(case) == name]
        seconds = statistics.median(r["seconds_per_step"] for r in rounds) if rounds else math.nan
        curve, memory = mean_curve(row["curves"]), row["run_memory_bytes"]
        parts = shares(rounds)
        found.setdefault(net, []).append(
            Run(net, label, row["test_accuracy"], curve, memory, row["flops"], seconds, parts)
        )
    return {net: those for net, those in found.items() if those}


def shares(rounds: list[dict]) -> dict[str, float]:
    """Of a step, what its parts take, by the medians of the rounds."""
    taken = [r["parts"] for r in rounds if r.get("parts")]
    if not taken:
        return {}
    parts = {part: statistics.median(t.get(f"seconds_{part}", 0.0) for t in taken) for part in PARTS}
    total = sum(parts.values())
    return {part: t / total for part, t in parts.items()} if total > 0 else {}


@dataclass
class Verdict:
    """Of one net: the best dense net, and the fastest and smallest of both kinds within CLOSE of it."""

    best: Run
    target: float
    fastest: dict[bool, Run | None]  # by dense
    smallest: dict[bool, Run | None]

    def ratio(self, kind: str) -> float:
        """How many times faster, or smaller, the best sparse net is; 0 where none is as accurate."""
        pair = self.fastest if kind == "time" else self.smallest
        if pair[False] is None or pair[True] is None:
            return 0.0
        cost = (lambda run: run.time_to(self.target)) if kind == "time" else (lambda run: run.memory)
        return cost(pair[True]) / cost(pair[False])

    @property
    def pays(self) -> bool:
        return self.ratio("time") >= FASTER or self.ratio("memory") >= SMALLER


def judge(found: list[Run]) -> Verdict | None:
    """None without a dense net."""
    if not any(run.dense for run in found):
        return None
    best = most_accurate(run for run in found if run.dense)
    target = best.accuracy - CLOSE
    fastest, smallest = {}, {}
    for dense in (True, False):
        mine = [run for run in found if run.dense == dense]
        timed = [run for run in mine if math.isfinite(run.time_to(target))]
        fastest[dense] = min(timed, key=lambda run: run.time_to(target), default=None)
        reached = [run for run in mine if run.accuracy >= target]
        smallest[dense] = min(reached, key=lambda run: run.memory, default=None)
    return Verdict(best, target, fastest, smallest)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("accuracy", "times", "status", "publish"))
    parser.add_argument("--data", help="folder of .npz graphs (default: SPARSEGNN_DATA)")
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose name has one of these words")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="run cases that are in the file already, too")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds of a case, which then counts as failed")
    parser.add_argument("--out", type=Path, help="default: results/<device>")
    options = parser.parse_args()
    folder = options.out or FOLDER / "results" / device_of(options.threads)
    files = {what: folder / f"pays_{what}.jsonl" for what in ("accuracy", "times")}
    if options.what == "status":
        print(status(*(runs.read(path) for path in files.values())))
        return 0
    if options.what == "publish":
        return publish(files)
    wanted = {name: a for name, a in all_cases().items() if any(word in name for word in options.only)}
    if not wanted:
        print(f"no case has one of the words {options.only} in its name", file=sys.stderr)
        return 1
    path, env, extra = files[options.what], runs.environment(options.data), f" --threads {options.threads}"
    if options.what == "times":
        if options.again:
            runs.write(path, {name: row for name, row in runs.read(path).items() if case_of(name) not in wanted})
        failed = measure_times(wanted, extra, path, env, options.timeout)
    else:
        commands = [(name, f"{a} --seeds {options.seeds}{extra}") for name, a in wanted.items()]
        failed = runs.measure(commands, path, env, options.again, accuracy_line, options.timeout)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def device_of(threads: int) -> str:
    """The folder of results of so many threads, whatever this process has."""
    import torch

    torch.set_num_threads(threads)
    return runner.device_name()


def publish(files: dict[str, Path]) -> int:
    from publish import pays as page

    rows = {what: runs.read(path) for what, path in files.items()}
    kept = {what: current(found, all_cases()) for what, found in rows.items()}
    if not kept["accuracy"]:
        print(f"nothing to publish: no case of the map is in {files['accuracy']}", file=sys.stderr)
        return 1
    for what, found in rows.items():
        if gone := sorted(found.keys() - kept[what].keys()):
            print(f"left out, {what} of cases that have changed since: {', '.join(gone)}", file=sys.stderr)
    print(status(kept["accuracy"], kept["times"]))
    page.write(collect(kept["accuracy"], kept["times"]), kept["times"], PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
