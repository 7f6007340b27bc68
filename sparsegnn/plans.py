"""Which kernel a sparse weight runs on, measured: verdicts, and the files that keep them.

Without a verdict a layer follows the static policy (:mod:`sparsegnn.policy`). ``sparsify(only_if_faster=True)``
measures both kernels instead; verdicts are kept in ``plans-<version>.json`` in the user's cache folder, one for every
shape, number of weights, pattern, precision, device, number of rows, and on a CPU number of threads and instruction
set. ``SPARSEGNN_PLAN=<file>`` names a copy of such a file and makes the choice deterministic: then nothing is measured
or written, and what the file does not know follows the static policy.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from math import ceil
from pathlib import Path
from statistics import median

import torch

from sparsegnn import policy
from sparsegnn._version import __version__

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None

FORMAT = "sparsegnn-plans/1"
FIELDS = ("ratio", "sparse_ms", "dense_ms")
MOST_RATIO = 1e9  # a ratio or a time beyond this was not measured
MOST_BYTES = 16 << 20  # of a file: some 50,000 verdicts
PATIENCE = 20.0  # seconds that a writer waits for the others
PAUSE = 0.02  # that it leaves to them after it has written, or it would always be the first
_released = 0.0


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
    return _entries(path) or {}


def read_named(path: str) -> dict[str, dict]:
    """The same of a file that the user has named, which must be a plan file."""
    found = _entries(Path(path))
    if found is None:
        raise ValueError(f"sparsify: SPARSEGNN_PLAN must name a plan file ({FORMAT}), got {path!r}")
    return found


def write(path: Path, plans: dict[str, dict]) -> bool:
    """Add verdicts to a file, in one move, so that a reader never sees a part; False where it cannot be written.

    Writers wait for each other, so that none loses what another has added. A link is followed, and what is there but
    no regular file stays.
    """
    temporary = None
    try:
        path = Path(os.path.realpath(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone_in(path.parent):
            if os.path.lexists(path) and not path.is_file():
                return False
            entries = sorted((read(path) | _sensible(plans)).items())
            lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(plan, allow_nan=False)}" for name, plan in entries)
            handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            with os.fdopen(handle, "w") as f:
                f.write(f'{{"format": "{FORMAT}", "plans": {{\n{lines}\n}}}}\n')
            os.replace(temporary, path)
            temporary = None
    except (OSError, ValueError):  # a read-only home, a full disk, a NUL in a name: measured again next time
        return False
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
    return True


def _entries(path: Path) -> dict[str, dict] | None:
    """The sensible verdicts of a plan file; None of anything else, however large, deep or endless."""
    try:
        if not path.is_file():  # before it is opened, which a device may notice
            return None
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as f:  # a pipe would wait
            text = f.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            return None
        content = json.loads(text, parse_int=float)  # so that one number of too many digits spoils one entry only
        return _sensible(content["plans"]) if content["format"] == FORMAT else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _sensible(plans: dict[str, dict]) -> dict[str, dict]:
    """The entries whose ratio is a number that time can have, with their times; nothing else that they hold."""
    found = {}
    for name, plan in plans.items():
        if isinstance(plan, dict):
            numbers = {key: plan[key] for key in FIELDS if _is_measure(plan.get(key))}
            if "ratio" in numbers:
                found[name] = numbers
    return found


def _is_measure(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= MOST_RATIO


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process writes plans into the folder; not where the system or the folder knows no locks.

    The folder itself is locked, which leaves no file behind. OSError where another keeps it for ``PATIENCE`` seconds.
    """
    handle = None
    with contextlib.suppress(OSError):  # a folder that cannot be listed
        handle = os.open(folder, os.O_RDONLY)
    if fcntl is None or handle is None:
        yield
        return
    global _released
    try:
        time.sleep(max(0.0, _released + PAUSE - time.monotonic()))
        last = time.monotonic() + PATIENCE
        while not _locked(handle):
            if time.monotonic() > last:
                raise TimeoutError(f"{folder} is locked")
            time.sleep(0.001 + 0.01 * random.random())
        yield
    finally:
        _released = time.monotonic()
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing does not, where a forked child has the handle too
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            return next(line.partition(":")[2].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
