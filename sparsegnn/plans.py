"""Which kernel a sparse weight runs on, measured: verdicts, and the files that keep them.

Without a verdict a layer follows the static policy (:mod:`sparsegnn.policy`). ``sparsify(only_if_faster=True)``
measures both kernels instead; verdicts are kept in ``plans-<version>.json`` in the user's cache folder, one for every
shape, number of weights, pattern, precision, device, number of rows, and on a CPU number of threads and instruction
set. ``SPARSEGNN_PLAN=<file>`` names a copy of such a file and makes the choice deterministic: then nothing is measured
or written, and what the file does not know follows the static policy.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from math import ceil
from pathlib import Path
from statistics import median

import torch

from sparsegnn import policy
from sparsegnn._version import __version__

FORMAT = "sparsegnn-plans/1"


def choose(layer, rows: int) -> None:
    """Give a SparseLinear the verdict for ``rows`` rows: of the named plan, else of the cache, else measured now."""
    name = key(layer, rows)
    named = os.environ.get("SPARSEGNN_PLAN")
    if named:
        layer.choose_kernel_(read_named(named).get(name, {}).get("ratio"))
        return
    path = cache_file()
    found = read(path).get(name)
    if found is None:
        found = measure(layer, rows)
        write(path, {name: found})
    layer.choose_kernel_(found["ratio"])


def key(layer, rows: int) -> str:
    """What a verdict depends on, as the name of its entry."""
    values, device = layer.values, layer.values.device
    where = f"{_processor()}, {torch.get_num_threads()} threads, {policy.instructions()}"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    facts = (
        f"linear {layer.out_features}x{layer.in_features}",
        f"{values.numel()} {layer.structure}",
        str(policy.precision(device.type, values.dtype)).removeprefix("torch."),
        f"{rows} rows",
        f"{device.type}: {where}",
        f"torch {torch.__version__}",
    )
    return "; ".join(facts)


def measure(layer, rows: int, repeats: int = 7, clock: Callable[[], float] = time.perf_counter) -> dict:
    """Time forward and backward with both kernels, in turns: medians in ms, and as ``ratio`` that of sparse over dense,
    turn by turn, which a machine that is slow now and then disturbs less."""
    x = torch.randn(rows, layer.in_features, device=layer.values.device, dtype=layer.values.dtype, requires_grad=True)
    dy = torch.randn(rows, layer.out_features, device=x.device, dtype=x.dtype)
    inputs = [x, *(p for p in layer.parameters() if p.requires_grad)]
    time_it = on_gpu(x.device) if x.is_cuda else on_cpu(clock)

    def ms(kernel: str) -> float:
        with policy.use_kernel(kernel):
            return time_it(lambda: torch.autograd.grad(layer(x), inputs, dy))

    pairs = [(ms("sparse"), ms("dense")) for _ in range(repeats + 2)][2:]
    sparse, dense = (median(column) for column in zip(*pairs, strict=True))
    return {"ratio": median(s / d for s, d in pairs), "sparse_ms": sparse, "dense_ms": dense}


def on_cpu(clock: Callable[[], float]) -> Callable[[Callable], float]:
    """Milliseconds of one call."""

    def time_it(run: Callable) -> float:
        start = clock()
        run()
        return 1e3 * (clock() - start)

    return time_it


def on_gpu(device: torch.device, sample_ms: float = 2.0, most: int = 100) -> Callable[[Callable], float]:
    """Milliseconds of a call between two events on the current stream, in samples of several calls that follow on.

    Two calls that do not count go before: one warms up, one says how many make a sample of about ``sample_ms``.
    """

    def between(run: Callable, launches: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(launches):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / launches

    def time_it(run: Callable) -> float:
        with torch.cuda.device(device):
            run()
            once = between(run, 1)
            return between(run, min(most, max(3, ceil(sample_ms / max(once, 1e-3)))))

    return time_it


# --- files -----------------------------------------------------------------------------------------------------------


def cache_file() -> Path:
    """Where measured verdicts are kept: in SPARSEGNN_CACHE, else in XDG_CACHE_HOME, else in ~/.cache."""
    base = os.environ.get("SPARSEGNN_CACHE")
    if not base and (cache := os.environ.get("XDG_CACHE_HOME")):
        base = Path(cache) / "sparsegnn"
    try:
        folder = Path(base or Path.home() / ".cache" / "sparsegnn")
    except RuntimeError:  # a user without a home: below what is no folder nothing is found, and nothing written
        folder = Path(os.devnull)
    return folder / f"plans-{__version__}.json"


def read(path: Path) -> dict[str, dict]:
    """The verdicts of a file; those that make sense, none of a file that is not there or broken."""
    try:
        content = json.loads(path.read_text())
        plans = content["plans"] if content["format"] == FORMAT else {}
        return {name: plan for name, plan in plans.items() if plan["ratio"] >= 0}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def read_named(path: str) -> dict[str, dict]:
    """The same of a file that the user has named, which must be a plan file."""
    try:
        if json.loads(Path(path).read_text())["format"] == FORMAT:
            return read(Path(path))
    except (OSError, ValueError, TypeError, KeyError):
        pass
    raise ValueError(f"sparsify: SPARSEGNN_PLAN must name a plan file ({FORMAT}), got {path!r}")


def write(path: Path, plans: dict[str, dict]) -> bool:
    """Add verdicts to a file, in one move, so that a reader never sees a part; False where it cannot be written."""
    content = {"format": FORMAT, "plans": read(path) | plans}
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "w") as f:
            json.dump(content, f, indent=1, sort_keys=True)
        os.replace(temporary, path)
    except OSError:  # a read-only home: measured again next time
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        return False
    return True


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            return next(line.partition(":")[2].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
