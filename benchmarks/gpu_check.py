"""The stages of scripts/gpu_check.sh: build, test, measure; each a JSON file, and one that was stopped goes on.

A stage yields rows. Each is written as soon as it is there, under the key of what it measured, and skipped next time;
a stage that runs out of time stops between two rows. The file's ``complete`` says whether all are there.
"""

import argparse
import contextlib
import importlib.util
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

sys.path.insert(0, str(Path(__file__).parent))
import gpu_speed  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 420  # of a stage


class Setting:
    """How this run goes: where, and how large."""

    def __init__(self, dry_run: bool, output: Path | None):
        os.environ["SPARSEGNN_STRICT"] = "1"  # a fallback to plain PyTorch must not pass for a kernel
        self.dry_run, self.device = dry_run, "cpu" if dry_run else "cuda"
        self.given = os.environ.get("SPARSEGNN_LIBRARIES")
        self.built = ROOT / "build" / "gpu" / "lib"
        if dry_run:  # with the package that is installed
            gpu_speed.torch.set_num_threads(1)
        else:  # with this checkout
            os.environ.setdefault("SPARSEGNN_LIBRARIES", str(self.built))
            os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
            sys.path.insert(0, str(ROOT))
        self.output = output or (ROOT / "benchmarks" / "results" / self.name())
        self.output.mkdir(parents=True, exist_ok=True)

    def name(self) -> str:
        if self.dry_run:
            return "dry-run"
        cuda = gpu_speed.torch.cuda
        if not cuda.is_available():
            sys.exit("gpu_check: no GPU is visible to PyTorch; --dry-run runs every stage on the CPU")
        return cuda.get_device_name().replace(" ", "-").lower()


class Record:
    """The rows of a stage in its JSON file, by key."""

    def __init__(self, path: Path, seconds: float):
        self.path, self.deadline = path, time.monotonic() + seconds
        self.content = json.loads(path.read_text()) if path.is_file() else {"complete": False, "rows": []}

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
                row = {"case": case, "error": f"{type(error).__name__}: {error}"[:2000]}
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


def command(*arguments, seconds: float = SECONDS) -> dict:
    """Run a program; its exit status and the end of what it printed."""
    arguments = [str(a) for a in arguments]
    try:
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{arguments[0]} took over {seconds:.0f} s") from error
    text = done.stdout + done.stderr
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)[:200]}: exit {done.returncode}: {text[-1500:]}")
    return {"output": text[-300:]}


# ---- stages: can it be built, is it right


def build(s: Setting):
    """Both libraries by cmake, for the GPU at hand; with libraries given, only that they are there."""

    def configure(folder, *options):
        torch = importlib.util.find_spec("torch").submodule_search_locations[0]
        return command("cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DSPARSEGNN_TORCH={torch}",
                       f"-DSPARSEGNN_OUTPUT={folder}/lib", *options)  # fmt: skip

    def run() -> dict:
        if s.given:
            return {"libraries": sorted(p.name for p in Path(s.given).glob("libsparsegnn_*.so"))}
        if s.dry_run:
            if not shutil.which("cmake") or not shutil.which("ninja"):
                return {"skipped": "cmake or ninja is not installed"}
            with tempfile.TemporaryDirectory() as folder:
                return configure(folder, "-DSPARSEGNN_CUDA=off")
        import torch

        major, minor = torch.cuda.get_device_capability()
        configure(s.built.parent, "-DSPARSEGNN_CUDA=on", f"-DCMAKE_CUDA_ARCHITECTURES={major}{minor}")
        return command("cmake", "--build", s.built.parent, "-j", os.cpu_count())

    yield {"libraries": s.given or "built here"}, run


def environment(s: Setting):
    """What this was measured on, and the machine's limits: copies and matrix products."""
    import torch

    import sparsegnn

    def versions() -> dict:
        row = dict(torch=torch.__version__, cuda=torch.version.cuda, python=sys.version.split()[0])
        row |= dict(sparsegnn=sparsegnn.__version__, libraries=sparsegnn._native.status, device=s.name())
        if not s.dry_run:
            query = "driver_version,clocks.max.sm,clocks.max.mem,memory.total"
            with contextlib.suppress(OSError, RuntimeError):
                row["nvidia_smi"] = command("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")["output"]
        return row

    def copy() -> dict:
        x = torch.randn(1 << (16 if s.dry_run else 28), device=s.device)
        y = torch.empty_like(x)
        ms = gpu_speed.measure(s, {"copy": lambda: y.copy_(x)})["copy"]["ms"]
        return {"gbytes_per_second": 2 * x.nbytes / ms / 1e6}

    def product(precision: str) -> dict:
        n = 64 if s.dry_run else 8192
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        a, b = (torch.randn(n, n, device=s.device, dtype=dtype) for _ in range(2))
        with gpu_speed.tf32(precision == "tf32"):
            ms = gpu_speed.measure(s, {"mm": lambda: a @ b})["mm"]["ms"]
        return {"tflops": 2 * n**3 / ms / 1e9}

    yield {"what": "versions"}, versions
    yield {"what": "copy"}, copy
    for precision in ("fp32", "tf32", "bf16"):
        yield {"what": "mm", "precision": precision}, lambda precision=precision: product(precision)


def tests(s: Setting):
    """The tests that have a GPU side, file by file."""
    select = "cpu and one_node and float32" if s.dry_run else "cuda"
    folders = ["ops/test_sddmm.py"] if s.dry_run else ["ops/test_*.py", "nn/test_*.py", "controllers/test_*.py", "*.py"]
    files = [p for pattern in folders for p in sorted((ROOT / "tests").glob(pattern))]
    workers = ["-n", "8"] if not s.dry_run and importlib.util.find_spec("xdist") else []

    def run(path: Path) -> dict:
        arguments = [sys.executable, "-m", "pytest", path, "-q", "-k", select, "-p", "no:cacheprovider", *workers]
        folder = ROOT / "tests"  # not ROOT, which python -m would put before an installed package
        done = subprocess.run(list(map(str, arguments)), cwd=folder, capture_output=True, text=True, timeout=SECONDS)
        counts = {name: int(n) for n, name in re.findall(r"(\d+) (passed|failed|errors?|skipped)", done.stdout)}
        if done.returncode not in (0, 5):  # 5: the file has no such test
            raise RuntimeError(f"{counts}: {done.stdout[-1500:]}{done.stderr[-300:]}")
        return counts

    for path in files:
        if path.stem in ("test_cuda_build", "test_gpu_check"):
            continue  # these need no GPU
        if s.dry_run or "cuda" in path.read_text() or "devices" in path.read_text():
            yield {"file": str(path.relative_to(ROOT))}, lambda path=path: run(path)


def sanitizer(s: Setting):
    """Small odd shapes of every op against the CPU kernels in fp64; under each tool of compute-sanitizer, if there."""
    program = [sys.executable, str(Path(__file__)), "--smoke", s.device]
    tool = (
        None
        if s.dry_run
        else shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    )
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # so that memcheck knows where each tensor ends
    yield {"tool": "none"}, lambda: command(*program)
    for name in ("memcheck", "racecheck", "synccheck") if tool else ():
        options = ["--tool", name, "--error-exitcode", "9"]
        yield {"tool": name}, lambda options=options: command(tool, *options, *program)


def smoke(device: str) -> None:
    """Every op once on small odd shapes, forward and backward, against the CPU kernels in fp64."""
    import torch

    from sparsegnn import CSRGraph, ops, pattern

    def both(function, *arguments):
        """Outputs and gradients on the device in fp32, and on the CPU in fp64."""
        results = []
        for place, dtype in ((device, torch.float32), ("cpu", torch.float64)):
            moved = [a.to(place, dtype if a.is_floating_point() else a.dtype, copy=True) for a in arguments]
            leaves = [a.requires_grad_(a.is_floating_point()) for a in moved]
            y = function(*leaves)
            wanted = [a for a in leaves if a.is_floating_point()]
            results.append([y, *torch.autograd.grad(y.square().sum(), wanted)])
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got.cpu().double(), want, rtol=2e-4, atol=2e-4)

    g = torch.Generator().manual_seed(0)
    edge_index = torch.randint(40, (2, 900), generator=g)
    edge_index[1, :600] = 7  # a hub longer than a window
    for width in (8, 7):
        x = torch.randn(40, width, generator=g)
        for reduce in ("sum", "mean", "max", "min"):
            both(lambda x, e, r=reduce: ops.spmm(CSRGraph.from_edge_index(e, 40), x, reduce=r), x, edge_index)
        both(lambda a, b, e: ops.sddmm(CSRGraph.from_edge_index(e, 40), a, b), x, x + 1, edge_index)
        scores = torch.randn(2, 40, 3, generator=g)
        both(lambda x, s, t, e: ops.gat(CSRGraph.from_edge_index(e, 40), x, s, t),
             torch.randn(40, 3, width, generator=g), *scores, edge_index)  # fmt: skip
        crow, col = pattern.random_pattern(13, width, sparsity=0.5, generator=g)
        index = (crow, col, *pattern.transpose(crow, col, width))
        values, bias = torch.randn(col.numel(), generator=g), torch.randn(13, generator=g)
        both(ops.sparse_linear, torch.randn(70, width, generator=g), values, bias, *index)
        drop, grow = torch.randn(col.numel(), generator=g), torch.randn(13, width, generator=g)
        found = []
        for place in (device, "cpu"):
            p, c = crow.to(place, copy=True), col.to(place, copy=True)
            source = torch.ops.sparsegnn.topology_(p, c, drop.to(place), grow.to(place), torch.tensor(5, device=place))
            found.append([t.cpu().tolist() for t in (p, c, source)])
        assert found[0] == found[1], found
    print("smoke: all ops agree with the CPU")


STAGES = {f.__name__: f for f in (build, environment, tests, sanitizer, *gpu_speed.STAGES)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny sizes")
    parser.add_argument("--output", type=Path, help="folder of the results")
    parser.add_argument("--list", action="store_true", help="print the names of the stages")
    parser.add_argument("--smoke", metavar="DEVICE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.list:
        print("\n".join(STAGES))
        return 0
    if args.smoke:
        smoke(args.smoke)
        return 0
    if unknown := set(args.stages) - STAGES.keys():
        parser.error(f"unknown stage {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    setting = Setting(args.dry_run, args.output)
    complete = True
    for name in args.stages:
        record = Record(setting.output / f"{name}.json", SECONDS)
        if record.content["complete"]:
            print(f"{name}: complete")
            continue
        print(f"{name}: {STAGES[name].__doc__.splitlines()[0]}", flush=True)
        complete &= record.run(STAGES[name](setting))
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
