"""Machines that lack something: a home, rights, a whole library, processors; and others' libraries beside ours."""

import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import fresh
import pytest
import torch

from sparsegnn import _native, plans
from sparsegnn.data import pyg

TESTS = Path(__file__).parent
ROOT = TESTS.parent
LIBRARY = _native.FOLDER / "libsparsegnn_cpu.so"
built = pytest.mark.skipif(not LIBRARY.is_file(), reason="needs the CPU library")


def python(*arguments: str, command=(), **variables: str) -> subprocess.CompletedProcess:
    drop = [name for name, value in variables.items() if value is None]
    env = {k: v for k, v in (os.environ | variables).items() if k not in drop}
    run = [*command, sys.executable, *arguments]
    return subprocess.run(run, env=env, capture_output=True, text=True, cwd="/", timeout=280)


# --- homes and rights ------------------------------------------------------------------------------------------------


def no_home():
    raise RuntimeError("Could not determine home directory.")


def test_without_a_home_nothing_is_cached_and_downloads_say_what_they_need(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", no_home)
    for name in ("SPARSEGNN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert plans.read(plans.cache_file()) == {}
    assert not plans.write(plans.cache_file(), {"a": {"ratio": 1.0, "sparse_ms": 1.0, "dense_ms": 1.0}})
    with pytest.raises(ValueError, match="SPARSEGNN_CACHE must name a folder"):
        pyg.cache_folder()
    monkeypatch.setenv("SPARSEGNN_CACHE", str(tmp_path))
    assert plans.cache_file().parent == pyg.cache_folder() == tmp_path


NOBODY = """
import os, warnings
import torch
from torch import nn
import sparsegnn
from sparsegnn import plans
assert os.getuid() != 0 and not os.access("/", os.W_OK)
model = sparsegnn.sparsify(nn.Sequential(nn.Linear(64, 64)), 0.9)
plans.choose(model[0], 16)
assert plans.read(plans.cache_file()) == {}
model(torch.rand(4, 64)).sum().backward()
print("trained")
"""


@pytest.mark.deep
def test_a_user_without_home_name_or_rights(tmp_path):
    """The package, and the folder that the cache would be in, can be read only."""
    if os.getuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv")
    command = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups"]
    readable = subprocess.run([*command, sys.executable, "-c", "import torch"], capture_output=True, cwd="/")
    if readable.returncode != 0:
        pytest.skip("other users cannot read this environment")
    for cache in (None, str(tmp_path)):
        done = python("-c", NOBODY, command=command, HOME=None, XDG_CACHE_HOME=None, SPARSEGNN_CACHE=cache,
                      PYTHONPATH=os.environ.get("PYTHONPATH"), SPARSEGNN_STRICT="0")  # fmt: skip
        assert done.stdout == "trained\n", done.stderr[-2000:]


# --- instruction sets and threads ------------------------------------------------------------------------------------


@built
def test_an_instruction_set_that_cannot_be_had(monkeypatch):
    for wish in ("", torch.ops.sparsegnn.isa()):
        monkeypatch.setenv("SPARSEGNN_ISA", wish)
        _native.check_isa()
    monkeypatch.setenv("SPARSEGNN_ISA", "foo")
    with pytest.raises(ValueError, match="SPARSEGNN_ISA must be one of portable, avx2, avx512, got 'foo'"):
        _native.check_isa()


INFO = "import sys; from sparsegnn.cli import main; sys.exit(main(['info']))"


@built
def test_the_command_line_says_so_in_one_line():
    missing = [isa for isa in _native.FLAGS if isa not in torch.ops.sparsegnn.isas().split(",")]
    for wish in ["foo", *missing[:1]]:
        done = fresh.python(INFO, SPARSEGNN_ISA=wish)
        assert done.returncode == 2 and not done.stdout, done.stdout + done.stderr
        assert done.stderr.startswith("sparsegnn: SPARSEGNN_ISA") and done.stderr.count("\n") == 1, done.stderr


def test_more_threads_than_a_machine_has_are_refused():
    from sparsegnn.cli.train import train

    with pytest.raises(ValueError, match="threads must be at most 1024 or the number of processors, got 100000"):
        train(threads=100_000)


# --- libraries -------------------------------------------------------------------------------------------------------


def broken_libraries(folder: Path) -> dict[str, str]:
    """File name -> what is said about it."""
    whole = LIBRARY.read_bytes()
    (folder / "half.so").write_bytes(whole[: len(whole) // 2])
    (folder / "header.so").write_bytes(whole[:64])
    (folder / "short.so").write_bytes(whole[:40])
    (folder / "empty.so").write_bytes(b"")
    (folder / "text.so").write_text("version https://git-lfs.github.com/spec/v1\n" * 3)
    (folder / "other.so").write_bytes(whole[:18] + struct.pack("<H", 183 if whole[18] != 183 else 62) + whole[20:])
    (folder / "narrow.so").write_bytes(whole[:4] + b"\1" + whole[5:])
    (folder / "folder.so").mkdir()
    os.mkfifo(folder / "pipe.so")
    (folder / "link.so").symlink_to(folder / "nowhere")
    said = dict.fromkeys(("short.so", "empty.so", "text.so", "narrow.so"), "not a library")
    said |= dict.fromkeys(("folder.so", "pipe.so"), "not a regular file")
    said |= {"other.so": "another kind of processor", "link.so": "No such file"}
    return said | {"half.so": f"cut off after {len(whole) // 2} of [0-9]+ bytes", "header.so": "cut off"}


@built
@pytest.mark.timeout(60)
def test_broken_libraries_are_not_loaded(tmp_path, monkeypatch):
    """A file that is cut off would end the process with SIGBUS, a pipe would stall it."""
    assert _native.broken(LIBRARY) == ""
    expected = broken_libraries(tmp_path)
    if os.getuid() != 0:
        shutil.copy(LIBRARY, tmp_path / "secret.so")
        (tmp_path / "secret.so").chmod(0)
        expected["secret.so"] = "Permission denied"
    monkeypatch.setattr(_native, "status", {})
    for name, words in expected.items():
        folder = tmp_path / f"as-{name}"
        folder.mkdir()
        (folder / "libsparsegnn_cpu.so").symlink_to(tmp_path / name)
        monkeypatch.setattr(_native, "FOLDER", folder)
        _native.load()
        assert _native.status["cpu"].startswith("does not load: "), name
        assert re.search(words, _native.status["cpu"]), (name, _native.status["cpu"])


FALLBACK = """
import warnings
import torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import sparsegnn
    i = torch.tensor([[0, 1, 2], [1, 2, 0]])
    graph = sparsegnn.CSRGraph.from_edge_index(i)
    for _ in range(3):
        y = sparsegnn.ops.spmm(graph, torch.eye(3))
assert torch.equal(y, torch.eye(3).roll(1, 0)), y
texts = [str(w.message) for w in caught if "compiled cpu kernel for spmm" in str(w.message)]
assert len(texts) == 1 and "does not load" in texts[0] and "pip install" in texts[0], texts
print("right")
"""


@built
def test_a_broken_library_warns_once_and_falls_back(tmp_path):
    (tmp_path / "libsparsegnn_cpu.so").write_bytes(LIBRARY.read_bytes()[:100_000])
    done = fresh.python(FALLBACK, SPARSEGNN_LIBRARIES=str(tmp_path), SPARSEGNN_STRICT="0")
    assert done.stdout == "right\n", done.stderr[-2000:]


BESIDE = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
import numpy, scipy.sparse, scipy.linalg, torch, sparsegnn
torch.set_num_threads(2)
a = scipy.sparse.random(300, 300, 0.1, format="csr", dtype="float64", random_state=0)
x = torch.rand(300, 40, dtype=torch.float64)
y = sparsegnn.ops.spmm(sparsegnn.CSRGraph.from_any(a), x)
assert numpy.allclose(y, a @ x.numpy()), "spmm"
b = numpy.random.rand(60, 60) + 60 * numpy.eye(60)
assert numpy.allclose(b @ scipy.linalg.solve(b, numpy.ones(60)), 1), "scipy"
if "torch_sparse" in sys.modules:
    t = sys.modules["torch_sparse"].SparseTensor.from_scipy(a)
    assert torch.allclose(t @ x, y), "torch_sparse"
print("right")
"""


@built
@pytest.mark.parametrize("ours_first", [True, False])
def test_import_beside_other_libraries(ours_first):
    """Whose OpenMP and BLAS come first changes no result."""
    others = ("scipy.linalg", "sklearn.linear_model", "torch_sparse", "mkl")
    others = [name for name in others if importlib.util.find_spec(name.partition(".")[0])]
    names = ["sparsegnn", *others] if ours_first else [*others, "sparsegnn"]
    done = python("-c", BESIDE, *names)
    assert done.stdout == "right\n", done.stderr[-2000:]
