"""The CUDA kernels on the host, as a module of functions over numpy arrays, and the oracles' dtypes."""

import importlib.util
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsegnn.graph_spans import row_spans

ROOT = Path(__file__).parents[2]
#: what runs the kernels: "sparsegnn_emulated" made by the host's compiler, "sparsegnn_emulated_asan" under ASan and
#: UBSan (set by test_emulator.py, which also preloads their libraries), or "sparsegnn_ptx": what nvcc made of them, on
#: the machine of tests/ptx (set by its tests)
VARIANT = os.environ.get("SPARSEGNN_EMULATED", "sparsegnn_emulated")
#: element types of that module, see CMakeLists.txt; the second is of 16 bits
TYPES = {
    "sparsegnn_emulated": ["float32", "bfloat16"],
    "sparsegnn_emulated_asan": ["float32", "float16"],
    "sparsegnn_ptx": ["float32", "bfloat16", "float16", "float64"],
}[VARIANT]
HALF = TYPES[1]
EMULATOR_BUILD = Path(os.environ.get("SPARSEGNN_EMULATOR_BUILD", ROOT / "build" / "emulator"))
CUDA_BUILD = Path(os.environ.get("SPARSEGNN_CUDA_BUILD", ROOT / "build" / "cuda"))
counts_loads = pytest.mark.skipif(VARIANT == "sparsegnn_ptx", reason="counts the loads of the source")


def locate(name: str = VARIANT) -> Path:
    """The compiled module, or a failure under SPARSEGNN_STRICT=1 (as `make test` runs), else a skip."""
    build, target = (CUDA_BUILD, "ptx") if name == "sparsegnn_ptx" else (EMULATOR_BUILD, "emulator")
    found = sorted((build / name).glob("sparsegnn_emulated*.so"))
    if not found:
        message = f"{build / name} has no module; build it with `make build-{target}`"
        (pytest.fail if os.environ.get("SPARSEGNN_STRICT") == "1" else pytest.skip)(message)
    return found[0]


def load(name: str = VARIANT):
    """The module; that of the PTX machine with the PTX of every op."""
    # a qualified name of its own: pybind11 gives a name that it has loaded the first module of that name
    spec = importlib.util.spec_from_file_location(f"{name}.sparsegnn_emulated", locate(name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if name == "sparsegnn_ptx":
        for path in sorted((CUDA_BUILD / "ptxas").glob("*.ptx")):
            module.ptx_load(path.read_text())
    return module


@pytest.fixture(scope="session")
def emulated_module():
    module = load()
    yield module
    if path := os.environ.get("SPARSEGNN_PTX_RAN"):  # a file for the names of the kernels that have run
        Path(path).write_text("\n".join(module.ptx_ran()))


ORDERS = ("forward", "reversed", "shuffled")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Where a test has many cases, each is fast in one of the orders; the other two are for the deep tests."""
    if VARIANT != "sparsegnn_emulated":
        return
    for item in items:
        given = getattr(item, "callspec", None)
        if given is None or "emulated" not in given.params or len(given.params) == 1:
            continue
        order = given.params["emulated"]
        case = item.nodeid.replace(order, "")
        if ORDERS[zlib.crc32(case.encode()) % 3] != order:
            item.add_marker(pytest.mark.deep)


@pytest.fixture(params=ORDERS)
def emulated(request, emulated_module):
    """Every CUDA kernel on the host, its threads and blocks in one of three orders."""
    emulated_module.set_schedule(request.param, 1)
    emulated_module.set_misalignment(0)
    emulated_module.set_l2_bytes(60 << 20)
    emulated_module.set_grid_rows(65535)
    emulated_module.take_warp_loads()
    return emulated_module


def _bf16(x: np.ndarray) -> np.ndarray:
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


class Dtype:
    """A floating-point type of the kernels: to and from numpy, where bfloat16 travels as its bits in uint16."""

    def __init__(self, name: str):
        self.name = name
        self.accumulator = np.float64 if name == "float64" else np.float32
        #: samples for each lane of the widest tile of sparse_linear
        self.widest = {"float64": 1, "float32": 2}.get(name, 4)
        #: bound on the relative Frobenius error against an fp64 oracle
        self.tolerance = {"float64": 1e-13, "float32": 1e-5, "float16": 1e-2, "bfloat16": 1e-2}[name]

    def pack(self, x) -> np.ndarray:
        return _bf16(x) if self.name == "bfloat16" else np.asarray(x, self.name)

    def unpack(self, x: np.ndarray) -> np.ndarray:
        """The exact values as float64."""
        wide = (x.astype(np.uint32) << 16).view(np.float32) if self.name == "bfloat16" else x
        return wide.astype(np.float64)

    def close(self, actual: np.ndarray, expected: np.ndarray) -> None:
        actual = self.unpack(actual)
        assert actual.shape == expected.shape
        assert np.isfinite(actual).all(), "unwritten or not finite"
        scale = np.linalg.norm(expected)
        error = np.linalg.norm(actual - expected)
        assert error <= self.tolerance * scale, f"relative error {error / max(scale, 1e-300):.2e}"


@pytest.fixture(params=TYPES)
def dtype(request):
    return Dtype(request.param)


class Csr:
    """A random CSR pattern: degrees, sorted columns (duplicates allowed), and its transpose."""

    def __init__(self, degrees, cols: int, seed: int = 0):
        self.rng = np.random.default_rng(seed)
        self.degrees = np.asarray(degrees, np.int64)
        self.rows, self.cols, self.edges = len(self.degrees), cols, int(self.degrees.sum())
        self.crow = np.concatenate([[0], np.cumsum(self.degrees)]).astype(np.int32)
        self.row_of = np.repeat(np.arange(self.rows), self.degrees)
        col = self.rng.integers(0, max(cols, 1), self.edges)
        self.col = col[np.lexsort((col, self.row_of))].astype(np.int32)
        self.perm = np.argsort(self.col, kind="stable").astype(np.int32)
        self.row = self.row_of[self.perm].astype(np.int32)
        self.ccol = np.concatenate([[0], np.cumsum(np.bincount(self.col, minlength=cols))]).astype(np.int32)

    @property
    def spans(self) -> dict[str, np.ndarray]:
        """The spans of the rows and of the columns."""
        both = {"spans": self.crow, "cspans": self.ccol}
        return {name: row_spans(torch.from_numpy(crow), self.edges).numpy() for name, crow in both.items()}

    def normal(self, *shape) -> np.ndarray:
        return self.rng.standard_normal(shape)


def _graphs() -> dict[str, tuple]:
    poisson = np.random.default_rng(5).poisson
    hub = poisson(3, 40)
    hub[17] = 10_000
    return {
        "empty": ([], 0),
        "no_edges": (np.zeros(5), 4),
        "one_node": ([2], 1),
        "isolated": (poisson(1, 50), 30),
        "rectangular": (poisson(4, 30), 100),
        "hub": (hub, 50),
    }


@pytest.fixture(params=list(_graphs()))
def graph(request):
    return Csr(*_graphs()[request.param])


@pytest.fixture
def csr():
    return Csr
