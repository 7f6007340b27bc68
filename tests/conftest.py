"""Fixtures shared by all tests."""

import gc
import os
import signal
import zlib
from collections import Counter
from pathlib import Path

import pytest
import torch

#: files of few tests that take long: they come first, or a worker is left alone with one at the end
LONG = ("test_soak.py", "test_sanitizers.py", "test_isa.py", "test_gpu_check.py", "test_entries.py", "test_compile.py",
        "test_suite_gpu.py", "test_report.py", "test_cli.py", "test_memory.py", "test_machines.py")  # fmt: skip


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers, whichever tests run before it."""
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():  # where not, torch.manual_seed() keeps a traceback for the day that there is one
        torch.cuda.manual_seed_all(0)


@pytest.fixture(autouse=True, scope="module")
def frozen() -> None:
    """Collections, Python's own and those of the tests, look at what the file has made, not at all that is loaded."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def graph_data_dir() -> Path:
    """The folder of real graphs: SPARSEGNN_DATA, or shared/data beside the checkout.

    It is not part of the repository, so tests that need it are skipped where it is missing; never in CI.
    """
    given = os.environ.get("SPARSEGNN_DATA", "").split(os.pathsep)[0]
    folder = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "cora.npz").is_file():
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(f"{folder} has no graph data, and CI is set")
        pytest.skip(f"{folder} has no graph data (set SPARSEGNN_DATA)")
    return folder


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="the full product of op cases instead of the pairwise sample")
    parser.addoption("--deep", action="store_true", help="what takes minutes too: sanitizers, fuzz, soak, wheels")


def pytest_configure(config):
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:  # of a job in the background, or under nohup
            signal.signal(number, handler)
    gc.set_threshold(50_000, 20, 20)  # after 700 objects, as Python would, costs a twentieth of the time
    if config.getoption("--full"):
        os.environ["SPARSEGNN_TEST_FULL"] = "1"  # for ops/harness.py, in workers too


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Cases marked `full` and `deep` run when they are asked for; files that take long come first."""
    seen = Counter()
    for item in items:
        if every := item.get_closest_marker("sampled"):
            first = zlib.crc32(item.originalname.encode())  # tests of the same parameters take turns
            if (seen[item.function] + first) % every.args[0]:
                item.add_marker("deep")
            seen[item.function] += 1
    if named := [item.nodeid for item in items if " at 0x" in item.nodeid]:  # other workers have other addresses
        raise pytest.UsageError(f"ids must be the same in every process, got {named[0]}")
    left_out = [name for name in ("full", "deep") if not config.getoption(f"--{name}")]
    kept, dropped = [], []
    for item in items:
        (dropped if any(item.get_closest_marker(name) for name in left_out) else kept).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept
    sizes = Counter(item.path for item in items)
    order = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: (order.get(item.path.name, len(LONG)), -sizes[item.path]))
