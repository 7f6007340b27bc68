"""The stages of scripts/gpu_check.sh: build, correctness, calibration, measurements; one that was stopped goes on.

They come in the order of what they tell: are the kernels right on a GPU, how far off is the cost model
(``gpu/calibration.py``), the rows of README's table, sanitizers, the rest. Those of ``CHECKS`` yield rows. Each is
written as soon as it is there, under the key of what it did, and skipped next time; a stage that runs out of time stops
between two rows. The file's ``complete`` says whether all are there. The others are stages of the suite h200
(``harness/suite.py``), whose rows are in ``suite_h200.jsonl``. Results of other sources count as none.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if not __package__:  # run by its path
    sys.path.insert(0, str(ROOT / "benchmarks"))
SECONDS = 420  # of a stage
SUITE = "h200"
NO_GPU = "gpu_check: no GPU is visible to PyTorch; --dry-run runs every stage on the CPU"


class Setting:
    """How this run goes: where, how large, how long."""

    def __init__(self, dry_run: bool, output: Path | None, seconds: float = SECONDS):
        import torch

        import gpu

        if not dry_run and not gpu.on_gpu():
            sys.exit(NO_GPU)
        os.environ["SPARSEGNN_STRICT"] = "1"  # a fallback to plain PyTorch must not pass for a kernel
        self.dry_run, self.device, self.seconds = dry_run, "cpu" if dry_run else "cuda", min(seconds, SECONDS)
        self.given = os.environ.get("SPARSEGNN_LIBRARIES")
        self.built = ROOT / "build" / "gpu" / "lib"
        if dry_run:  # with the package that is installed
            gpu.hide()
            torch.set_num_threads(1)
        else:  # with this checkout
            os.environ.setdefault("SPARSEGNN_LIBRARIES", str(self.built))
            os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
            sys.path.insert(0, str(ROOT))
        usual = ROOT / "benchmarks" / "results" / gpu.name()
        self.output = output or usual
        self.output.mkdir(parents=True, exist_ok=True)
        if self.output.resolve() != usual.resolve() and not dry_run:  # go on from what is committed
            for path in usual.glob("*.json*"):
                if not (self.output / path.name).exists():
                    shutil.copy(path, self.output)

    def libraries(self) -> list[str]:
        return sorted(p.name for p in Path(self.given or self.built).glob("libsparsegnn_*.so"))


class Record:
    """The rows of a stage in its JSON file, by key."""

    def __init__(self, path: Path, seconds: float, code: str = ""):
        self.path, self.deadline = path, time.monotonic() + seconds
        self.content = json.loads(path.read_text()) if path.is_file() else {}
        if self.content.get("code") != code:
            self.content = {"complete": False, "code": code, "rows": []}

    def run(self, cases: Iterator[tuple[dict, Callable[[], dict]]]) -> bool:
        done = [row["case"] for row in self.content["rows"] if not row.get("error")]
        self.content["rows"] = [row for row in self.content["rows"] if not row.get("error")]
        for case, measure in cases:
            if case in done:
                continue
            if time.monotonic() > self.deadline:
                print("  out of time; run the stage again to go on")
                return False
            start = time.monotonic()
            try:
                row = {"case": case} | measure()
            except Exception as error:  # one case that fails, for want of memory say, must not cost the others
                row = {"case": case, "error": f"{type(error).__name__}: {error}"[:4000]}
            self.content["rows"].append(row | {"seconds": round(time.monotonic() - start, 2)})
            self.write()
            print("  " + json.dumps(self.content["rows"][-1]), flush=True)
        self.content["complete"] = not any(row.get("error") for row in self.content["rows"])
        self.write()
        return self.content["complete"]

    def write(self) -> None:
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.content, indent=1) + "\n")
        temporary.replace(self.path)


def command(*arguments, seconds: float = SECONDS, expected: tuple[int, ...] = (0,), folder: Path = ROOT,
            **variables: str) -> str:  # fmt: skip
    """Run a program; what it printed."""
    arguments = [str(a) for a in arguments]
    try:
        done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=seconds,
                              env=os.environ | variables)  # fmt: skip
    except subprocess.TimeoutExpired as error:
        text = (error.stdout or b"").decode(errors="replace")
        raise RuntimeError(f"{arguments[0]} took over {seconds:.0f} s: {text[-1500:]}") from error
    text = done.stdout + done.stderr
    if done.returncode not in expected:
        raise RuntimeError(f"{' '.join(arguments)[:200]}: exit {done.returncode}: {text[-3000:]}")
    return text


def configure(folder: Path, *options: str) -> str:
    torch = importlib.util.find_spec("torch").submodule_search_locations[0]
    return command("cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DSPARSEGNN_TORCH={torch}",
                   f"-DSPARSEGNN_OUTPUT={folder}/lib", *options)  # fmt: skip


def stamp(folder: Path) -> None:
    """Says of what sources the libraries in a folder are."""
    from harness import suite

    (folder / "code.txt").write_text(suite.code() + "\n")


def stamped(folder: Path) -> bool:
    from harness import suite

    path = folder / "code.txt"
    return path.is_file() and path.read_text().strip() == suite.code()


# ---- stages: can it be built, is it right


def build(s: Setting):
    """Both libraries by cmake, for the GPU at hand; with libraries given or carried along, only that they are there."""

    def run() -> dict:
        if s.given:
            if not s.libraries():
                raise RuntimeError(f"SPARSEGNN_LIBRARIES={s.given} has no libsparsegnn_*.so")
            return {"libraries": s.libraries()}
        if not s.dry_run and s.libraries() and stamped(s.built):
            return {"libraries": s.libraries(), "carried": True}
        if s.dry_run:
            if not shutil.which("cmake") or not shutil.which("ninja"):
                return {"skipped": "cmake or ninja is not installed"}
            with tempfile.TemporaryDirectory() as folder:
                return {"output": configure(folder, "-DSPARSEGNN_CUDA=off")[-300:]}
        import torch

        major, minor = torch.cuda.get_device_capability()
        configure(s.built.parent, "-DSPARSEGNN_CUDA=on", f"-DCMAKE_CUDA_ARCHITECTURES={major}{minor}")
        command("cmake", "--build", s.built.parent, "-j", os.cpu_count(), seconds=s.seconds)
        stamp(s.built)
        return {"libraries": s.libraries()}

    yield {"libraries": s.given or "built here"}, run


def environment(s: Setting):
    """What this is run on."""
    import torch

    import gpu
    import sparsegnn

    def versions() -> dict:
        row = dict(torch=torch.__version__, cuda=torch.version.cuda, python=sys.version.split()[0], device=gpu.name())
        row |= dict(sparsegnn=sparsegnn.__version__, libraries=sparsegnn._native.status)
        for name in ("torch_geometric", "torch_scatter", "triton", "cupy"):
            row[name] = importlib.util.find_spec(name) is not None
        if not s.dry_run:
            query = "driver_version,clocks.max.sm,clocks.max.mem,memory.total"
            with contextlib.suppress(OSError, RuntimeError):
                row["nvidia_smi"] = command("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader").strip()
            if row["libraries"].get("cuda"):
                raise RuntimeError(f"the CUDA library is not loaded: {row['libraries']['cuda']}")
        return row

    yield {"what": "versions"}, versions


def program(s: Setting) -> list:
    return [sys.executable, ROOT / "benchmarks" / "gpu" / "smoke.py", s.device]


#: so that memcheck knows where each tensor ends
ALONE = dict(PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def smoke(s: Setting):
    """Every op on small odd shapes, forward and backward, against the CPU kernels in fp64."""
    yield {"tool": "none"}, lambda: {"output": command(*program(s), seconds=s.seconds, **ALONE)[-300:]}


def calibration(s: Setting):
    """What the cost model predicts, and beside it what is measured."""
    from gpu import calibration as stage

    yield from stage.cases(s.dry_run, s.output)


def tests(s: Setting):
    """The tests that have a GPU side: ops, layers, controllers, the rest."""
    folder = ROOT / "tests"
    groups = {name: sorted((folder / name).glob("test_*.py")) for name in ("ops", "nn", "controllers")}
    without = ("cuda_build", "gpu_check", "suite", "packaging", "isa", "sanitizers", "layout")  # these need no GPU
    others = [p for p in sorted(folder.glob("test_*.py")) if p.stem.removeprefix("test_") not in without]
    groups["others"] = [p for p in others if "cuda" in p.read_text()]
    select = "cuda"
    if s.dry_run:
        groups, select = {"ops": [folder / "ops" / "test_sddmm.py"]}, "cpu and one_node and float32"
    workers = ["-n", "8"] if not s.dry_run and importlib.util.find_spec("xdist") else []
    limit = ["--timeout", "120"] if importlib.util.find_spec("pytest_timeout") else []

    def run(files: list[Path]) -> dict:
        arguments = [sys.executable, "-m", "pytest", *files, "-q", "-rfE", "--tb", "line", "-k", select]
        # from tests/, not from ROOT, which python -m would put before an installed package; 5: there is no such test
        text = command(*arguments, "-p", "no:cacheprovider", *workers, *limit, seconds=s.seconds, expected=(0, 5),
                       folder=folder)  # fmt: skip
        return {name: int(n) for n, name in re.findall(r"(\d+) (passed|failed|errors?|skipped)", text)}

    for name, files in groups.items():
        yield {"tests": name}, lambda files=files: run(files)


def sanitizer(s: Setting):
    """The small odd shapes again, under each tool of compute-sanitizer, if there."""
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    limits = dict(seconds=s.seconds, **ALONE)

    def under(name: str) -> dict:
        options = [tool, "--tool", name, "--error-exitcode", "9"]
        ours = ["--kernel-regex", "kns=sparsegnn"]  # kernels whose mangled name has this in it
        try:
            text = command(*options, *ours, *program(s), **limits)
        except RuntimeError as error:
            if "kernel-regex" not in str(error).partition("exit")[2]:
                raise
            text = command(*options, *program(s), **limits)  # a tool without that option
        return {"output": text[-300:]}

    if not tool or s.dry_run:
        yield {"tool": "none"}, lambda: {"skipped": "a dry run" if s.dry_run else "compute-sanitizer is not installed"}
        return
    for name in ("memcheck", "racecheck", "synccheck"):
        yield {"tool": name}, lambda name=name: under(name)


FIRST = (build, environment, smoke, calibration, tests)
CHECKS = {f.__name__: f for f in (*FIRST, sanitizer)}
#: seconds on a GPU, with libraries that were carried along: guesses, until one has been there
ESTIMATES = dict(build=5, environment=10, smoke=30, calibration=60, tests=120, sanitizer=90)
AFTER = "training"  # the stage of the suite that sanitizer comes behind


# ---- stages: how fast is it


def measured(s: Setting, stages: list[str]) -> bool:
    """Stages of the suite; whether all their rows are there."""
    from harness import suite

    path = s.output / f"suite_{SUITE}.jsonl"
    groups = {name: [g for g in suite.load(SUITE, s.dry_run) if g.stage == name] for name in stages}
    left = [name for name in stages if suite.missing(groups[name], suite.earlier(path))]
    for name in stages:
        if name in left:
            print(f"{name}: {len(groups[name])} groups, about {sum(g.estimate for g in groups[name]):.0f} s on a GPU")
        else:
            print(f"{name}: complete", flush=True)
    if not left:
        return True
    rows = suite.run(SUITE, quick=s.dry_run, threads=1 if s.dry_run else 2, stages=tuple(left), folder=s.output,
                     seconds=s.seconds, table=False)  # fmt: skip
    for row in rows:
        if row["note"].startswith("failed") and any(row["group"] == g.name for name in left for g in groups[name]):
            print(f"  {row['suite_row']}: {row['note']}")
    return not any(suite.missing(groups[name], rows) for name in left)


def calibration_table(output: Path) -> str:
    from gpu import calibration as stage

    return stage.table(output)


def show(output: Path) -> None:
    from harness import suite

    path = output / f"suite_{SUITE}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    if rows:
        suite.show(SUITE, rows, 0.0)
    if beside := calibration_table(output):
        print("\n" + beside)


def names() -> list[str]:
    """All stages, in their order."""
    from suites import h200

    at = h200.STAGES.index(AFTER) + 1
    return [*(f.__name__ for f in FIRST), *h200.STAGES[:at], sanitizer.__name__, *h200.STAGES[at:]]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", help="see --list; all of them in a dry run that names none")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny sizes")
    parser.add_argument("--output", type=Path, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a stage, at most")
    parser.add_argument("--list", action="store_true", help="print the names of the stages")
    parser.add_argument("--table", action="store_true", help="print the table of the rows that are there, at the end")
    args = parser.parse_args(arguments)
    if args.list:
        print("\n".join(names()))
        return 0
    wanted = args.stages or (names() if args.dry_run else [])
    if unknown := set(args.stages) - set(names()):
        parser.error(f"unknown stage {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    setting = Setting(args.dry_run, args.output, args.seconds)
    from harness import suite

    complete = True
    for checks, group in itertools.groupby(sorted(wanted, key=names().index), key=CHECKS.__contains__):
        if not checks:
            complete &= measured(setting, list(group))
            continue
        for name in group:
            record = Record(setting.output / f"{name}.json", setting.seconds, suite.code())
            if record.content["complete"] and (name != "build" or setting.dry_run or setting.libraries()):
                print(f"{name}: complete", flush=True)
                continue
            record.content |= {} if name != "build" else {"rows": []}  # libraries that are gone are built again
            print(f"{name}: {CHECKS[name].__doc__.splitlines()[0]}", flush=True)
            complete &= record.run(CHECKS[name](setting))
    if args.table:
        show(setting.output)
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
