"""The static policy of every device, forcing a kernel, and who has the last word."""

import contextlib
import copy
import pickle
import threading
from types import SimpleNamespace

import fresh
import pytest
import torch
import torch._dynamo.testing
from nn.twins import Initial
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import sparsegnn
from sparsegnn import CSRGraph, pattern, plans, policy, sparsify, use_kernel
from sparsegnn.nn import (
    GATConv,
    GATv2Conv,
    GCN2Conv,
    GCNConv,
    GraphConv,
    SAGEConv,
    SGConv,
    SparseLinear,
    TAGConv,
)
from sparsegnn.nn.kernel_choice import KernelChoice
from sparsegnn.policy import TF32, static_kernel

GRAPH = CSRGraph.from_edge_index(torch.randint(30, (2, 200), generator=torch.Generator().manual_seed(0)), 30)
HALVES = torch.bfloat16, torch.float16
ALWAYS = torch.float32, torch.float64, *HALVES, TF32


@pytest.fixture(autouse=True)
def unforced(monkeypatch):
    monkeypatch.delenv("SPARSEGNN_KERNEL", raising=False)
    policy.read_environment()
    yield
    monkeypatch.undo()
    policy.read_environment()


@pytest.fixture
def tf32():
    before = torch.get_float32_matmul_precision()
    yield lambda allowed: torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.set_float32_matmul_precision(before)


def layer(sparsity=0.9, **kwargs):
    return SparseLinear(50, 41, sparsity=sparsity, **kwargs)


def least(width: int, precision, structure="unstructured", device="cuda") -> float | None:
    """The least sparsity, in steps of 0.5 %, from which on the static policy is for the sparse kernel."""
    steps = [s / 200 for s in range(200)]
    chosen = [static_kernel(round(width**2 * (1 - s)), (width, width), precision, device, structure) for s in steps]
    assert "sparse" not in chosen or "dense" not in chosen[chosen.index("sparse") :]  # one threshold
    return next((s for s, kernel in zip(steps, chosen, strict=True) if kernel == "sparse"), None)


# --- the static policy -----------------------------------------------------------------------------------------------


def test_the_table_of_the_cpu_has_every_instruction_set_and_dtype():
    assert policy.LEAST_SPARSITY.keys() == {"avx512", "avx512x2", "avx2", "portable", "reference"}
    assert all(t.keys() == set(ALWAYS) - {TF32} for t in policy.LEAST_SPARSITY.values())


@pytest.mark.parametrize("isa", ["avx512", "avx512x2", "avx2", "portable", "reference"])
def test_the_cpu_is_dense_below_a_sparsity(monkeypatch, isa):
    monkeypatch.setattr(policy, "instructions", lambda: isa)
    for dtype, threshold in policy.LEAST_SPARSITY[isa].items():
        found = least(100, dtype, device="cpu")
        assert found == pytest.approx(threshold, abs=0.005)
    monkeypatch.setitem(policy.LEAST_SPARSITY[isa], torch.float32, 0.5)
    assert least(100, torch.float32, device="cpu") == 0.5
    assert static_kernel(4000, (100, 40)) == static_kernel(400, (4, 100)) == "sparse"


def test_instructions_are_those_of_the_library(monkeypatch):
    twice = torch.ops.sparsegnn.two_wide_fmas()
    assert policy.instructions() == torch.ops.sparsegnn.isa() + ("x2" if twice else "")
    assert not twice or torch.ops.sparsegnn.isa() == "avx512"
    monkeypatch.setitem(sparsegnn._native.status, "cpu", "not built")
    assert policy.instructions() == "reference"


@pytest.mark.parametrize("width", [64, 128, 256, 512, 1024])
def test_strict_float32_on_a_gpu_breaks_even_between_80_and_82_percent(width):
    for structure in ("unstructured", "fan_in", "2:4"):
        assert 0.80 <= least(width, torch.float32, structure) <= 0.82
    for structure in set(pattern.PATTERNS) - {"unstructured", "fan_in", "2:4"}:  # limited by the FMAs, as cuBLAS is
        assert 0.15 <= least(width, torch.float32, structure) <= (0.65 if structure == "grouped:4" else 0.4)


def step(density, forward, backward, sampled, dense):
    """A step's three products where arithmetic limits all, sparse over dense time; dW by the cheaper kernel."""
    return (density / forward + density / backward + min(density / sampled, 1 / dense)) * dense / 3


@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.80, 0.81, 0.82, 0.85, 0.9, 0.99])
def test_a_step_is_priced_and_not_its_forward_product(sparsity):
    """At 80 % the forward product alone is expected to be 1.1 times as fast as the dense one, the step is not."""
    gain = 1 / step(1 - sparsity, 11, 11, 9, 50)
    chosen = static_kernel(round((1 - sparsity) * 1024**2), (1024, 1024), torch.float32, "cuda")
    assert chosen == ("sparse" if gain >= policy.MARGIN else "dense")
    if sparsity == 0.80:
        assert 11 / (1 - sparsity) / 50 > policy.MARGIN > gain


def test_float64_on_a_gpu_has_half_the_rate_of_float32():
    """Words are twice as wide and FMAs half as many, against tensor cores: from 92 or 93 % on, not 81."""
    assert 0.92 <= least(1024, torch.float64) <= 0.93


@pytest.mark.parametrize("precision", [TF32, *HALVES])
@pytest.mark.parametrize("structure", pattern.PATTERNS)
def test_nothing_beats_tensor_cores_on_narrow_layers(precision, structure):
    for shape in ((64, 64), (256, 256), (384, 384), (256, 602), (256, 100), (16, 1433), (40, 256)):
        assert static_kernel(1, shape, precision, "cuda", structure) == "dense"


@pytest.mark.parametrize("width", [512, 1024, 2048])
def test_wide_layers_against_tensor_cores(width):
    for precision in (TF32, *HALVES):
        assert least(width, precision) >= 0.97
        for structure in ("grouped:16", "block:16x16", "block:32x32"):
            assert least(width, precision, structure) <= 0.91
    assert least(width, TF32, "grouped:8") <= 0.91 < least(width, torch.bfloat16, "grouped:8") <= 0.96


def test_gains_of_the_notes():
    """Section 2.3, 90 % and 1024 wide: the policy is for the patterns that are said to be faster there."""
    gains = {
        ("unstructured", torch.float32): 2.4,
        ("unstructured", TF32): 0.32,
        ("unstructured", torch.bfloat16): 0.25,
        ("grouped:8", torch.float32): 8.4,
        ("grouped:16", TF32): 2.6,
        ("block:32x32", torch.bfloat16): 2.5,
    }
    for (structure, precision), gain in gains.items():
        chosen = static_kernel(round(0.1 * 1024**2), (1024, 1024), precision, "cuda", structure)
        assert chosen == ("sparse" if gain > 1 else "dense")


def test_every_pattern_and_precision_has_a_rate():
    assert policy.SPARSE_RATE.keys() >= set(pattern.PATTERNS) and policy.DENSE_RATE.keys() == set(policy.PRECISIONS)
    for structure in pattern.PATTERNS:
        for precision in policy.PRECISIONS:
            assert static_kernel(4096, (64, 64), precision, "cuda", structure) == "dense"  # nothing is missing


# --- the precision of a call -----------------------------------------------------------------------------------------


def test_tf32_by_either_setting(tf32):
    assert policy.precision("cuda", torch.float32) == torch.float32
    tf32(True)
    assert policy.precision("cuda", torch.float32) == TF32 and policy.precision("cpu", torch.float32) == torch.float32
    assert [policy.precision("cuda", t) for t in (torch.float64, torch.bfloat16)] == [torch.float64, torch.bfloat16]
    code = """
import torch
from sparsegnn import policy
for setting in ("tf32", "ieee", "tf32"):  # without a legacy setting: the two do not mix
    torch.backends.cuda.matmul.fp32_precision = setting
    assert policy.tf32_allowed() == (setting == "tf32")
"""
    fresh.output(code)


def test_autocast_is_what_counts():
    mine = layer(0.5)
    assert mine.kernel == "sparse" == layer(0.5, dtype=torch.float16).kernel
    with torch.autocast("cpu", torch.bfloat16):
        assert mine.kernel == "dense" == layer(0.5, dtype=torch.bfloat16).kernel
        assert mine.double().kernel == "sparse"  # which autocast leaves alone
        with torch.autocast("cpu", enabled=False):
            assert mine.float().kernel == "sparse"
    with autocast_on_a_gpu():
        assert policy.precision("cuda", torch.float32) == torch.bfloat16
        assert policy.precision("cpu", torch.float32) == torch.float32


def on_a_gpu(nnz: int, width: int, structure="unstructured") -> SimpleNamespace:
    """What a layer on a GPU consists of, as far as its choice goes: no GPU is needed."""
    values = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32, numel=lambda: nnz)
    return SimpleNamespace(values=values, in_features=width, out_features=width, structure=structure, _static={},
                           _ratio=None, _ratio_of=None)  # fmt: skip


def kernel(layer) -> str:
    return KernelChoice.kernel.fget(layer)


def test_a_layer_on_a_gpu_follows_dtype_device_and_settings(tf32):
    mine = on_a_gpu(26_214, 512)  # 90 % sparse
    KernelChoice._follow_policy(mine, 26_214)
    found = {"strict": kernel(mine)}
    tf32(True)
    found["tf32"] = kernel(mine)
    with use_kernel("sparse"):
        found["forced"] = kernel(mine)
    tf32(False)
    with autocast_on_a_gpu():
        found["autocast"] = kernel(mine)
    found["strict again"] = kernel(mine)
    mine._ratio, mine._ratio_of = 2.0, ("cuda", torch.float32)
    found["verdict"] = kernel(mine)
    tf32(True)
    mine._ratio_of = "cuda", TF32
    mine._ratio = 0.5
    found["verdict in tf32"] = kernel(mine)
    tf32(False)
    mine._ratio = None
    KernelChoice._follow_policy(mine, 131_072)  # 50 %
    found["50 %"] = kernel(mine)
    mine.values.device = torch.device("cpu")
    KernelChoice._follow_policy(mine, 131_072)
    found["50 %, cpu"] = kernel(mine)
    assert found == {
        "strict": "sparse", "tf32": "dense", "forced": "sparse", "autocast": "dense", "strict again": "sparse",
        "verdict": "dense", "verdict in tf32": "sparse", "50 %": "dense", "50 %, cpu": "sparse",
    }  # fmt: skip
    grouped = on_a_gpu(26_224, 512, "grouped:16")
    KernelChoice._follow_policy(grouped, 26_224)
    tf32(True)
    assert kernel(grouped) == "sparse"


@contextlib.contextmanager
def autocast_on_a_gpu():
    """torch.autocast("cuda", torch.bfloat16), which switches itself off where there is no GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    yield
    torch.set_autocast_enabled("cuda", before[0])
    torch.set_autocast_dtype("cuda", before[1])


def test_compiled_code_follows_the_tf32_setting(tf32):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(lambda x: x + policy.tf32_allowed(), fullgraph=True, backend=counter)
    found = []
    for allowed in (False, True, False, True):
        tf32(allowed)
        found.append(compiled(torch.zeros(2))[0].item())
    assert found == [0, 1, 0, 1] and counter.frame_count == 2


def test_a_layer_can_be_made_under_fake_tensor_mode():
    policy._isa.cache_clear()
    with FakeTensorMode():
        assert layer(0.5).kernel == "sparse" and layer(0.0).kernel == "dense"


# --- force one -------------------------------------------------------------------------------------------------------


def test_contexts_nest_and_restore():
    sparse, dense = layer(0.9), layer(0.0)
    with use_kernel("dense"):
        assert sparse.kernel == dense.kernel == "dense"
        with use_kernel("sparse"):
            assert sparse.kernel == dense.kernel == "sparse"
            with use_kernel("auto"):
                assert (sparse.kernel, dense.kernel) == ("sparse", "dense")
        assert sparse.kernel == "dense"
        with pytest.raises(ZeroDivisionError), use_kernel("sparse"):
            raise ZeroDivisionError
        assert sparse.kernel == "dense"
    assert (sparse.kernel, dense.kernel) == ("sparse", "dense")

    @use_kernel("dense")
    def decorated():
        return sparse.kernel

    assert decorated() == decorated() == "dense" and sparse.kernel == "sparse"


@pytest.mark.parametrize("bad", ["Dense", "", "cuda", None, 1])
def test_names_that_are_none(monkeypatch, bad):
    with pytest.raises(ValueError, match="use_kernel: kernel must be one of sparse, dense, auto, got"), use_kernel(bad):
        pass
    if isinstance(bad, str) and bad:
        monkeypatch.setenv("SPARSEGNN_KERNEL", bad)
        with pytest.raises(ValueError, match=f"SPARSEGNN_KERNEL must be one of sparse, dense, auto, got '{bad}'"):
            layer()


def test_a_context_belongs_to_its_thread():
    mine, seen = layer(), []
    with use_kernel("dense"):
        thread = threading.Thread(target=lambda: seen.append(mine.kernel))
        thread.start()
        thread.join()
    assert seen == ["sparse"]


def test_precedence(monkeypatch):
    mine = layer(0.9)
    assert mine.kernel == "sparse"  # the static policy
    mine.choose_kernel_(2.0)
    assert mine.kernel == "dense"  # a verdict
    monkeypatch.setenv("SPARSEGNN_KERNEL", "sparse")
    other = layer(0.0)  # reads the environment, for all layers
    assert mine.kernel == other.kernel == "sparse"
    with use_kernel("dense"):
        assert mine.kernel == other.kernel == "dense"
    with use_kernel("auto"):
        assert mine.kernel == other.kernel == "dense"
        mine.choose_kernel_(0.5)
        assert mine.kernel == "sparse"
    monkeypatch.setenv("SPARSEGNN_KERNEL", "auto")
    assert layer(0.0).kernel == "dense"


def test_the_environment_of_a_process():
    code = """
from sparsegnn import summary, use_kernel
from sparsegnn.nn import SparseLinear
mine = SparseLinear(50, 41)
assert mine.kernel == "dense" and "kernel='dense'" in repr(mine)
assert summary(mine, show=False)[0]["kernel"] == "dense (forced)"
"""
    fresh.output(code, SPARSEGNN_KERNEL="dense")


def test_a_verdict_holds_for_its_device_and_precision():
    mine = layer(0.9)
    mine.choose_kernel_(2.0)
    assert mine.kernel == "dense"
    with torch.autocast("cpu", torch.float16):
        assert mine.kernel == "sparse"  # nobody measured that
    assert mine.double().kernel == "sparse" and mine.float().kernel == "dense"
    other = layer(0.5)
    other.load_state_dict(mine.state_dict())
    assert other.kernel == other.double().kernel == "dense"  # a checkpoint does not say what it was measured in
    for twin in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        assert twin.kernel == "dense" == twin.float().kernel and twin.double().kernel == "sparse"


def test_an_unpickled_layer_follows_the_policy_here(monkeypatch):
    stored = pickle.dumps(layer(0.5))
    monkeypatch.setitem(policy.LEAST_SPARSITY[policy.instructions()], torch.float32, 0.6)
    assert pickle.loads(stored).kernel == "dense"


def run(model, *args):
    y = model(*args)
    return [y, *torch.autograd.grad(y.square().sum(), [*model.parameters()])]


KEEP = dict(sparsity=0.7)
MODELS = {
    "linear": lambda: SparseLinear(16, 16, **KEEP),
    "fan_in": lambda: SparseLinear(16, 16, pattern="fan_in", **KEEP),
    "grouped:4": lambda: SparseLinear(16, 16, pattern="grouped:4", **KEEP),
    "block:16x16": lambda: SparseLinear(32, 32, pattern="block:16x16", sparsity=0.5),
    "gcn": lambda: GCNConv(16, 8, **KEEP),
    "gcn relu": lambda: GCNConv(16, 32, act="relu", **KEEP),
    "gcn max": lambda: GCNConv(16, 8, aggr="max", normalize=False, **KEEP),
    "sage": lambda: SAGEConv(16, 8, **KEEP),
    "sgc": lambda: SGConv(16, 8, **KEEP),
    "tag": lambda: TAGConv(16, 8, **KEEP),
    "graph conv": lambda: GraphConv(16, 8, **KEEP),
    "gcn2": lambda: Initial(GCN2Conv(16, 0.1, **KEEP)),
    "gat": lambda: GATConv(16, 4, heads=2, residual=True, **KEEP),
    "gatv2": lambda: GATv2Conv(16, 4, heads=2, **KEEP),
}


@pytest.mark.parametrize("name", MODELS)
def test_forcing_reaches_every_layer(monkeypatch, name):
    """No sparse product is made when dense is forced, and the results agree; with sparse forced, no dense one."""
    model = MODELS[name]().double()
    x = torch.randn(30, 32 if name == "block:16x16" else 16, dtype=torch.float64)
    args = (x,) if isinstance(model, SparseLinear) else (x, GRAPH)
    inner = [m for m in model.modules() if isinstance(m, SparseLinear)]
    results, called = {}, {}
    for kernel in ("sparse", "dense"):
        with use_kernel(kernel):
            assert {m.kernel for m in inner} == {kernel} and all(m.fusible <= (kernel == "sparse") for m in inner)
            called[kernel], results[kernel] = operators(run, model, *args)
    for a, b in zip(*results.values(), strict=True):
        torch.testing.assert_close(a, b)
    products = {op for op in called["sparse"] if "linear" in op}
    assert products and not {op for op in called["dense"] if "linear" in op and "sparsegnn" in op}
    forward = {op for op in called["dense"] if op in ("aten.mm", "aten.addmm", "aten.linear")}
    assert forward


def operators(run, *args) -> tuple[set[str], object]:
    """The operators that ``run(*args)`` calls, and its result."""
    seen = set()

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.add(str(func).rpartition(".")[0])
            return func(*args, **(kwargs or {}))

    with Names():
        return seen, run(*args)


def test_backward_uses_the_kernel_of_its_forward():
    mine, x = layer(), torch.randn(4, 50)
    with use_kernel("dense"):
        y = mine(x)
    ops, _ = operators(lambda: y.sum().backward())
    assert not [op for op in ops if "sparse_linear" in op]


def test_pyg_layers_are_reached():
    pyg = pytest.importorskip("torch_geometric.nn")
    model = sparsify(pyg.GCN(16, 32, num_layers=2, out_channels=3), 0.8)
    args = torch.randn(30, 16), torch.randint(30, (2, 90))
    with use_kernel("dense"):
        ops, _ = operators(model, *args)
    assert not [op for op in ops if "linear" in op and "sparsegnn" in op]


def test_compiled_models_follow_contexts_environment_and_updates(monkeypatch):
    torch._dynamo.reset()
    model, x = nn.Sequential(layer(0.5), nn.ReLU(), SparseLinear(41, 3)), torch.randn(6, 50)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)

    def nodes() -> int:
        """Sparse products in the graph compiled last."""
        return sum("sparse_linear" in str(n.target) for n in counter.graphs[-1].graph.nodes)

    wanted = model(x)
    assert torch.equal(compiled(x), wanted) and nodes() == 2 and counter.frame_count == 1
    with use_kernel("dense"):
        torch.testing.assert_close(compiled(x), wanted)
        assert nodes() == 0 and counter.frame_count == 2
    assert torch.equal(compiled(x), wanted) and counter.frame_count == 2
    model[0].rewire_(torch.rand(model[0].values.numel()), torch.rand(41, 50), 5)
    assert torch.equal(compiled(x), model(x)) and counter.frame_count == 2  # an update compiles nothing again
    monkeypatch.setenv("SPARSEGNN_KERNEL", "dense")
    policy.read_environment()
    compiled(x)
    monkeypatch.delenv("SPARSEGNN_KERNEL")
    policy.read_environment()
    compiled(x)
    assert counter.frame_count <= 3
    model.bfloat16()
    assert model[0].kernel == "dense"
    torch.testing.assert_close(compiled(x.bfloat16()), model(x.bfloat16()))


def test_summary_names_a_forced_kernel():
    model = nn.Sequential(layer(), nn.Linear(41, 3), GCNConv(3, 4))
    isa = sparsegnn.report.kernel_of("sparse_linear", "cpu")

    def rows():
        return {row["layer"]: row for row in sparsegnn.summary(model, show=False)}

    assert rows()["0"]["kernel"] == isa
    with use_kernel("dense"):
        forced = rows()
        assert forced["0"]["kernel"] == "dense (forced)" and forced["0"]["flops_per_row"] == 2 * 50 * 41
        assert forced["1"]["kernel"] == "dense" and forced["2"]["kernel"] == isa  # which cannot be forced
    with use_kernel("sparse"):
        assert rows()["0"]["kernel"] == f"{isa} (forced)"
        assert rows()["0"]["flops_per_row"] == 2 * model[0].values.numel()
    with use_kernel("auto"):
        assert rows()["0"]["kernel"] == isa


def test_it_is_documented(capsys):
    assert "SPARSEGNN_KERNEL" in sparsegnn.info(show=False)["environment"]
    assert sparsegnn.use_kernel is use_kernel and "SPARSEGNN_KERNEL" in use_kernel.__doc__


def test_the_key_of_a_gpu_names_it_and_the_precision(monkeypatch, tf32):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    mine = on_a_gpu(200, 50)
    strict = plans.key(mine, 8)
    tf32(True)
    allowed = plans.key(mine, 8)
    tf32(False)
    with autocast_on_a_gpu():
        lower = plans.key(mine, 8)
    assert all("cuda: NVIDIA H200" in k and "threads" not in k for k in (strict, allowed, lower))
    assert ["float32;" in strict, "tf32;" in allowed, "bfloat16;" in lower] == [True] * 3
