"""The suite of the GPU table, on the CPU: its rows and bars, its checks before timing, what it does when it is stopped.

No test asserts a time. The dry run of all its groups is in test_gpu_check.py.
"""

import ctypes
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import scipy.sparse
import torch

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "benchmarks" / "harness" / "suite.py").is_file():
    pytest.skip("not run from a checkout", allow_module_level=True)
sys.path[:0] = [str(ROOT / "benchmarks")]

import gpu  # noqa: E402
from gpu import cusparse, machine, stages  # noqa: E402
from harness import graphs, suite  # noqa: E402
from publish import readme  # noqa: E402
from suite_in_process import in_process  # noqa: E402, F401
from suites import h200  # noqa: E402

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="is about the dry run on the CPU")

#: what the kernels are to reach: part of the row's text -> its target
TARGETS = {
    "spmm sum, arxiv, 256 features, fp32: cuSPARSE": 1.5,
    "spmm sum, reddit, 256 features, fp32: cuSPARSE": 1.5,
    "spmm sum, products in random order, 256 features, fp32: cuSPARSE": 1.15,
    "spmm sum, products in community order, 256 features, fp32: cuSPARSE": 1.8,
    "spmm sum, reddit, 256 features, bf16: our fp32": 1.9,
    "spmm max, arxiv, 256 features, forward + backward: torch": 4,
    "spmm mean, arxiv, 256 features, forward + backward: torch": 4,
    "GATConv 128 to 4x64, arxiv, forward + backward: PyG": 5,
    "sparse_linear 169,343x256x256, forward, 90 %, fp32: torch.mm fp32": 2.3,
    "sparse_linear 169,343x256x256, forward, 95 %, fp32: torch.mm fp32": 4.2,
    "groups or blocks 169,344x1024x1024, 90 %, TF32, forward: torch.mm TF32": 2.2,
    "groups or blocks 169,344x1024x1024, 90 %, bf16, forward: torch.mm bf16": 2.0,
    "maxk 256 to 32, 232,965 rows: torch.topk": 8,
    "maxk_spmm 32 of 256, reddit, forward: cuSPARSE fp32 on 256": 5,
    "maxk_spmm 32 of 256, reddit, backward: cuSPARSE fp32 on 256": 4,
    "gcn 256 to 256, 90 %, arxiv, forward: cuSPARSE + torch.mm fp32": 1.8,
    "gcn 256 to 256, 90 %, arxiv, backward: cuSPARSE + torch.mm fp32": 2.0,
    "GCN of 3 layers, 256 wide, 90 %, arxiv, step, fp32: best dense": 1.8,
    "GCN of 3 layers, 256 wide, 90 %, arxiv, step, TF32: best dense": 1.3,
    "GCN of 3 layers, 256 wide, MaxK 32, reddit, bf16, step: best dense": 2.5,
    "topology update, 1024x1024, 90 %, 30 % moved, ms": 0.2,
}


def test_every_target_is_a_row():
    groups = h200.groups(quick=False)
    rows = [(g, row) for g in groups for row in g.rows]
    assert len({row.text for _, row in rows}) == len(rows) and len({g.name for g in groups}) == len(groups)
    targets = {row.text: row.bars["gpu"][1] for _, row in rows if row.bars}
    assert {text: targets.get(text) for text in TARGETS} == TARGETS
    for group, row in rows:
        assert row.kind in suite.KINDS and group.regimes == ("gpu",) and group.stage in h200.STAGES
        assert not row.work or row.work["bytes"] > 0
    assert len([g for g in groups if g.stage == "dispatch"]) == 8 * 3 * 5


def test_two_of_four_is_a_baseline():
    """At equal sparsity beside groups and blocks, as torch has it and as our layer calls it."""
    rows = {row.text: row for g in h200.groups(quick=False) if g.name.startswith("2:4") for row in g.rows}
    for width in (1024, 2048):
        text = f"169,344x{width}x{width}, 50 %, bf16, forward"
        assert rows[f"2:4 {text}: torch.mm bf16"].against == ("torch.mm",)
        assert rows[f"groups or blocks {text}: torch's 2:4"].against == ("torch 2:4",)
        assert all(f"{name} {text}: torch.mm bf16" in rows for name in ("grouped:8", "block:16x16", "block:32x32"))


def test_constants_are_measured_first():
    """Section 7.4 of the notes on the GPU; the peers by themselves are contenders of the stages that they belong to."""
    assert "constants" in h200.STAGES
    groups = h200.groups(quick=False)
    texts = [row.text for g in groups if g.stage == "constants" for row in g.rows]
    for part in ("copy", "read", *(f"random rows of {size} bytes out of {s} MiB, read" for size in (128, 256, 1024)
                                   for s in (8, 40, 256)), "red.v4.f32", "cp.async.bulk"):  # fmt: skip
        assert any(part in text for text in texts), part
    for rate in ("fp32", "TF32", "bf16"):
        for n, widths in (("169,343", (64, 128, 256, 512, 1024)), ("2,449,029", (256,))):
            assert all(f"torch.mm {what}, {n}x{w}x{w}, {rate}" in texts for w in widths for what in ("forward", "dw"))
    peers = {name for g in groups for row in g.rows for name in row.against}
    assert {"cuSPARSE ALG1", "cuSPARSE ALG2 bf16", "torch.topk", "PyG", "torch 2:4"} <= peers


def test_the_kernels_of_the_constants(tmp_path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    command = [nvcc, "-std=c++17", "-arch=sm_90", "-cubin", "-Xptxas", "-v", "-o", tmp_path / "out", machine.SOURCE]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert set(re.findall(r"entry function '(\w+)'", text)) == {"gather", "operand", "scatter", "bulk"}
    assert text.count("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads") == 4


def test_kernels_are_compiled_and_launched_as_torch_wants(monkeypatch):
    inspect.signature(torch.cuda._compile_kernel).bind("source", "name")
    launched = []
    monkeypatch.setattr(torch.cuda, "_compile_kernel", lambda source, name: lambda **given: launched.append(given))
    machine.launcher(machine.through_torch("gather"), 3, 64, 128, "x", 5)()
    assert launched == [dict(grid=(3, 1, 1), block=(64, 1, 1), args=["x", 5], shared_mem=128)]
    monkeypatch.setattr(machine, "through_torch", lambda name: 1 / 0)
    monkeypatch.setattr(machine, "through_cupy", lambda name: launcher)
    monkeypatch.setattr(machine, "failures", [])
    launcher = object()
    assert list(machine.compiled("gather")) == [launcher]
    with pytest.raises(RuntimeError, match="bulk: .*ZeroDivisionError"):
        machine.needed("bulk")  # None on the CPU


def test_stages_fit_their_time():
    """A lease is 15 minutes, of which the start is one or more, and a command ten: what tells most is in the first."""
    seconds = dict.fromkeys(stages.names(), 0.0) | stages.ESTIMATES
    for group in h200.groups(quick=False):
        seconds[group.stage] += group.estimate
    names = stages.names()
    assert list(seconds) == names and names[:4] == ["build", "environment", "smoke", "calibration"]
    assert max(seconds.values()) < 360 and sum(seconds.values()) < 14 * 60, seconds
    first = names[: names.index(stages.AFTER) + 1]
    assert sum(seconds[n] for n in first) < 8 * 60, seconds


# --- contenders ------------------------------------------------------------------------------------------------------


def test_wrong_and_failing_contenders_take_no_part():
    x = torch.randn(5, 3)

    def contest():
        found = gpu.Contest({"degree": 2})
        want = lambda: [2 * x.double()]  # noqa: E731
        found.add("right", lambda: 2 * x, want=want)
        found.add("rounded", lambda: (2 * x).bfloat16(), precision="bf16", want=want)
        found.add("wrong", lambda: 2.01 * x, want=want)
        found.add("unwritten", lambda: torch.full_like(x, torch.nan), want=want)
        found.add("shape", lambda: x[0], want=want)
        found.add("raises", lambda: x @ x)
        found.offer("not there", lambda: __import__("no_such_module"))
        return found

    checked = gpu.check(contest())
    assert set(checked.run) == {"right", "rounded"}
    assert checked.errors["right"] == 0 and 0 < checked.errors["rounded"] < 1e-2
    assert "over 1e-05" in checked.dropped["wrong"] and "nan" in checked.dropped["unwritten"]
    assert "shape" in checked.dropped["shape"] and "ModuleNotFoundError" in checked.dropped["not there"]
    rows = (
        suite.Row("one", ("wrong", "right"), ("rounded", "raises"), {"gpu": (0.0, 1.0)}, work=dict(flop=0, bytes=8)),
        suite.Row("two", "wrong", ("right",)),
        suite.Row("three", "right", ("raises",)),
    )
    group = suite.Group("g", {"size": 5}, rows, contest, regimes=("gpu",))
    one, two, three = suite.measure_group(group, "gpu", quick=True)
    assert one["contender"] == "right" and one["several"] and one["baseline"] == "rounded" and one["error"] == 0
    assert one["case"] == {"size": 5, "degree": 2} and "raises" in one["dropped"] and len(one["percentiles"]) == 2
    assert two["passed"] is False and two["note"].startswith("failed: wrong: relative error")
    assert three["passed"] is None and three["note"].startswith("nothing to compare with: raises")
    assert one["precisions"] == {"right": "fp32", "rounded": "bf16"}
    json.dumps([one, two, three])


def test_sets_of_inputs_take_turns():
    calls = []
    run = gpu.rotate([lambda i=i: calls.append(i) for i in range(3)])
    for _ in range(6):
        run()
    assert calls == [1, 2, 0, 1, 2, 0] and gpu.sets_of(1) == 3 and gpu.sets_of(1 << 40) == 1


# --- cuSPARSE, by a library that takes the same arguments ------------------------------------------------------------


class FakeCusparse:
    """The functions of cuSPARSE that are called, over memory of the host."""

    def __init__(self):
        self.objects, self.algorithms, self.prepared = {}, [], 0

    def _new(self, place, value) -> int:
        key = len(self.objects) + 1
        self.objects[key], place._obj.value = value, key
        return 0

    def cusparseCreate(self, place):
        return self._new(place, "handle")

    def cusparseSetStream(self, handle, stream):
        return 0

    def cusparseCreateCsr(self, place, m, n, nnz, crow, col, val, kind, kind2, base, dtype):
        assert (kind.value, kind2.value, base.value, dtype.value) == (2, 2, 0, 0)
        sizes = (m.value + 1, ctypes.c_int32), (nnz.value, ctypes.c_int32), (nnz.value, ctypes.c_float)
        parts = [numpy.ctypeslib.as_array(ctypes.cast(p, ctypes.POINTER(t)), (n_,))
                 for p, (n_, t) in zip((crow, col, val), sizes, strict=True)]  # fmt: skip
        return self._new(place, scipy.sparse.csr_matrix((parts[2], parts[1], parts[0]), (m.value, n.value)))

    def cusparseCreateDnMat(self, place, rows, cols, ld, values, dtype, order):
        assert (ld.value, dtype.value, order.value) == (cols.value, 0, 2)
        return self._new(place, [values.value, rows.value, cols.value])

    def cusparseDnMatSetValues(self, matrix, values):
        self.objects[matrix.value][0] = values.value
        return 0

    def cusparseSpMM_bufferSize(self, handle, a_as, b_as, one, a, b, zero, c, compute, algorithm, size):
        assert (a_as.value, b_as.value, one._obj.value, zero._obj.value, compute.value) == (0, 0, 1, 0, 0)
        size._obj.value = 64
        return 0

    def cusparseSpMM_preprocess(self, *arguments):
        assert len(arguments) == 11
        self.prepared += 1
        return 0

    def cusparseSpMM(self, handle, a_as, b_as, one, a, b, zero, c, compute, algorithm, buffer):
        self.algorithms.append(algorithm.value)
        dense = [numpy.ctypeslib.as_array(ctypes.cast(place, ctypes.POINTER(ctypes.c_float)), (rows, cols))
                 for place, rows, cols in (self.objects[t.value] for t in (b, c))]  # fmt: skip
        dense[1][:] = self.objects[a.value] @ dense[0]
        return 0

    def cusparseDestroySpMat(self, matrix):
        return 0

    cusparseDestroyDnMat = cusparseDestroySpMat


def test_cusparse_is_called_as_it_wants(monkeypatch):
    fake = FakeCusparse()
    monkeypatch.setattr(cusparse, "library", lambda: fake)
    cusparse.handle.cache_clear()
    graph = graphs.stand_in("tiny", "cpu")
    val, x = torch.rand(graph.num_edges), torch.randn(graph.num_cols, 6)
    dense = torch.sparse_csr_tensor(graph.crow, graph.col, val, graph.shape).to_dense()
    for name, make in cusparse.contenders(graph.crow, graph.col, val, x).items():
        torch.testing.assert_close(make()(), dense @ x, msg=name)
    assert fake.algorithms == [4, 6, 12] and fake.prepared == 3
    spmm = cusparse.SpMM(graph.crow, graph.col, val, x, "ALG2")
    other = torch.randn_like(x)
    first, second = spmm.multiply(other), spmm.multiply(x)
    torch.testing.assert_close(first, dense @ other)
    torch.testing.assert_close(second, dense @ x)
    monkeypatch.setattr(fake, "cusparseSpMM", lambda *a: 10)
    with pytest.raises(RuntimeError, match="cusparseSpMM returned 10"):
        spmm()
    cusparse.handle.cache_clear()


# --- graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "tiny blocks", "flickr"])
def test_stand_ins(name):
    graph, about = graphs.stand_in(name, "cpu"), graphs.STAND_INS[name]
    assert graph.shape == (about.nodes, about.nodes) and graph.num_edges == about.edges // 2 * 2
    rows, col = graph.rows(), graph.col.long()
    keys = rows * about.nodes + col
    assert keys.unique().numel() == keys.numel() and not (rows == col).any()
    assert torch.equal(keys, (col * about.nodes + rows).sort().values)  # symmetric
    again = graphs.degrees(graphs.stand_in(name, "cpu", "community"))
    assert again == graphs.degrees(graph)  # the same graph
    if name == "flickr":  # the largest degree is about that of the real one
        assert 3_000 < again["max"] < 8_000 and again["p50"] < again["mean"]


def test_community_order_keeps_edges_near():
    def near(order: str) -> float:
        graph = graphs.stand_in("blocks", "cpu", order)
        return float(((graph.rows() // graphs.BLOCK) == (graph.col // graphs.BLOCK)).double().mean())

    graphs.STAND_INS["blocks"] = graphs.StandIn(20_000, 200_000, 1, 1, 3.3, inside=0.7)
    try:
        assert near("community") > 0.6 and near("random") < 0.2
    finally:
        del graphs.STAND_INS["blocks"]


# --- a run that is stopped goes on -----------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_was(monkeypatch, in_process, tmp_path):  # noqa: F811
    path = tmp_path / "suite_h200.jsonl"

    def run(**options):
        in_process.clear()
        rows = suite.run("h200", quick=True, threads=1, folder=tmp_path, table=False, **options)
        return list(in_process), rows

    started, rows = run(stages=("constants",))
    assert len(started) == 10 and all(row["value"] is not None for row in rows)
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert lines == rows and {row["code"] for row in rows} == {suite.code()}
    changed = [row | dict(value=None, note="failed: x") if row["group"] == "memory" else row for row in rows]
    suite.save(path, changed)
    started, rows = run(stages=("constants",))
    assert started == ["memory"] and len(rows) == len(lines)
    started, rows = run(stages=("constants",))
    assert started == [] and len(rows) == len(lines)
    started, rows = run(stages=("constants", "layer"), seconds=0)
    assert started == [] and len(rows) == len(lines)  # no time for any
    monkeypatch.setattr(suite, "code", lambda: "other sources")
    assert suite.earlier(path) == []


def test_a_process_of_its_own_measures_a_group(tmp_path):
    rows = suite.run("h200", quick=True, threads=1, folder=tmp_path, table=False, only="memory", stages=("constants",))
    assert {row["group"] for row in rows} == {"memory"} and all(row["value"] > 0 for row in rows)
    assert {row["code"] for row in rows} == {suite.code()} and {row["device"] for row in rows} == {"dry-run"}


def test_needs_a_gpu():
    with pytest.raises(ValueError, match="suite h200 needs a GPU that PyTorch sees; --quick"):
        suite.run("h200")


# --- README ----------------------------------------------------------------------------------------------------------


def test_readme_has_a_table_only_of_what_ran():
    assert "No GPU number is published" in readme.gpu_table([]) and "scripts/gpu_check.sh" in readme.gpu_table([])
    contest = gpu.Contest()
    contest.add("a", lambda: torch.ones(2), want=lambda: [torch.ones(2).double()])
    contest.add("b", lambda: torch.ones(2))
    rows = (
        suite.Row("shown", "a", ("b",), {"gpu": (1.0, 2.0)}, work=dict(flop=0, bytes=8)),
        suite.Row("not judged", "a", ("b",)),
        suite.Row("lost", "c", ("b",), {"gpu": (1.0, 2.0)}),
    )
    found = suite.measure_group(suite.Group("g", {"degree": 3}, rows, lambda: contest), "gpu", quick=False)
    about = dict(device="some-gpu", torch="2", limits=suite.limits_of("gpu"))
    text = readme.gpu_table([[about | row for row in found]])
    assert "| shown | 3 |" in text and "1 / 2" in text and "not judged" not in text
    assert "| lost | 3 | | failed: c: not there" in text and "results/some-gpu/suite_h200.jsonl" in text
    page = "a\n<!-- gpu table: x -->\nold\n<!-- /gpu table -->\nb\n"
    new = readme.between(page, readme.GPU_BEGIN, readme.GPU_END, "new")
    assert new == "a\n<!-- gpu table: x -->\n\nnew\n\n<!-- /gpu table -->\nb\n"
