"""Bad luck and bad input around a GPU: streams, graph capture, memory that runs out, mixed devices, no code for it.

What needs no GPU runs everywhere: the "other" device is then ``meta``.
"""

import copy
import types

import pytest
import torch
from torch import nn

from sparsegnn import CSRGraph, _native, ops, pattern, use_kernel
from sparsegnn.nn import (
    GATConv,
    GATv2Conv,
    GCNConv,
    GraphConv,
    SAGEConv,
    SGConv,
    SparseLinear,
    TAGConv,
)

cuda = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not cuda, reason="needs a GPU")
OTHERS = ["meta", "cuda"] if cuda else ["meta"]


def edges(n=30, e=200):
    return torch.randint(n, (2, e), generator=torch.Generator().manual_seed(0))


def weight(rows, cols, height=1, width=1):
    crow, col = pattern.random_pattern(rows // height, cols // width, sparsity=0.5)
    ccol, row, perm = pattern.transpose(crow, col, cols // width)
    return dict(values=torch.randn(col.numel() * height * width), crow=crow, col=col, ccol=ccol, row=row, perm=perm)


# --- mixed devices ---------------------------------------------------------------------------------------------------


def _gcn(graph, x, values, bias, **index):
    return ops.gcn(graph, x, values, bias, pattern=tuple(index[k] for k in ("crow", "col", "ccol", "row", "perm")))


def _features(**tensors):
    return ops.features_linear(**tensors, x_ccol=None, x_row=None, x_val_t=None, height=1, width=1, outputs=6)


def _topology(crow, col, drop, grow):
    return ops.topology_(crow, col, drop, grow, 1)


def calls() -> dict:
    """Every public op of several tensors, and the tensors of one call."""
    graph = CSRGraph.from_edge_index(edges(), 30)
    x, e = torch.randn(30, 8), graph.num_edges
    heads, block = torch.randn(30, 2, 4), weight(32, 32, 16, 16)
    linear = dict(x=x, **weight(6, 8), bias=torch.randn(6))
    crow, col = linear["crow"], linear["col"]
    drop, grow = torch.rand(col.numel()), torch.rand(6, 8)
    rows = pattern.random_pattern(30, 8, sparsity=0.5)
    features = dict(x_crow=rows[0], x_col=rows[1], x_val=torch.rand(rows[1].numel()))
    kept, index = ops.maxk(x, 4)
    return {
        "spmm": (lambda graph, x, w: ops.spmm(graph, x, edge_weight=w), dict(graph=graph, x=x, w=torch.rand(e))),
        "sddmm": (ops.sddmm, dict(graph=graph, a=x, b=x)),
        "gat": (ops.gat, dict(graph=graph, x=heads, a_src=heads[..., 0], a_dst=heads[..., 1], a_edge=torch.rand(e, 2),
                              bias=torch.randn(8))),
        "gatv2": (ops.gatv2, dict(graph=graph, x_src=heads, x_dst=heads, att=heads[0], edge=torch.rand(e, 2, 4))),
        "maxk_spmm": (lambda graph, values, index, w: ops.maxk_spmm(graph, values, index, 8, edge_weight=w),
                      dict(graph=graph, values=kept, index=index, w=torch.rand(e))),
        "sparse_linear": (ops.sparse_linear, linear),
        "block_linear": (lambda **t: ops.block_linear(height=16, width=16, **t),
                         dict(x=torch.randn(30, 32), **block, bias=torch.randn(32))),
        "dense_weight": (lambda **t: ops.dense_weight(cols=8, **t), {n: linear[n] for n in ("values", "crow", "col")}),
        "features_linear": (_features, dict(values=linear["values"], bias=linear["bias"], **features,
                                            **{n: linear[n] for n in ("ccol", "row", "perm")})),
        "gcn": (_gcn, dict(graph=graph, **linear)),
        "act_dropout": (lambda **t: ops.act_dropout(act="relu", dropout=0.5, **t),
                        dict(x=x, bias=torch.randn(8), seed=torch.tensor([1]))),
        "topology_": (_topology, dict(crow=crow, col=col, drop=drop, grow=grow)),
    }  # fmt: skip


def test_every_public_op_is_here():
    public = {n for n, f in vars(ops).items() if isinstance(f, types.FunctionType)}
    assert public == calls().keys() | {"maxk"}  # which has one tensor


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("op", calls())
def test_mixed_devices_are_refused(op, other):
    call, arguments = calls()[op]
    call(**arguments)
    for name in arguments:
        moved = arguments | {name: arguments[name].to(other)}
        with pytest.raises((ValueError, TypeError), match=rf"^{op}: \w+ must be on the device of|{op}: seed must be"):
            call(**moved)


@pytest.mark.parametrize("other", OTHERS)
def test_out_on_another_device_is_refused(other):
    graph, x = CSRGraph.from_edge_index(edges(), 30), torch.randn(30, 8)
    with pytest.raises(ValueError, match="spmm: out must be on the device"):
        ops.spmm(graph, x, out=torch.empty(30, 8, device=other))
    tensors = weight(6, 8)
    with pytest.raises(ValueError, match="sparse_linear: out must be on the device"):
        ops.sparse_linear(x, tensors["values"], None, *list(tensors.values())[1:], out=torch.empty(30, 6, device=other))


LAYERS = {
    "linear": lambda: SparseLinear(64, 48),
    "fan_in": lambda: SparseLinear(64, 48, pattern="fan_in"),
    "grouped:8": lambda: SparseLinear(64, 48, pattern="grouped:8", sparsity=0.5),
    "block:16x16": lambda: SparseLinear(64, 48, pattern="block:16x16", sparsity=0.5),
    "2:4": lambda: SparseLinear(64, 48, pattern="2:4", sparsity=0.5),
    "odd": lambda: SparseLinear(63, 47, sparsity=0.5),
    "gcn": lambda: GCNConv(64, 32, sparsity=0.5),
    "gcn fused": lambda: GCNConv(32, 64, sparsity=0.5, act="relu"),
    "gcn max": lambda: GCNConv(64, 32, aggr="max", normalize=False, sparsity=0.5),
    "sage": lambda: SAGEConv(64, 32, sparsity=0.5),
    "sgc": lambda: SGConv(64, 32, K=2, sparsity=0.5),
    "tag": lambda: TAGConv(64, 32, sparsity=0.5),
    "graph conv": lambda: GraphConv(64, 96, sparsity=0.5),
    "gat": lambda: GATConv(64, 8, heads=4, sparsity=0.5),
    "gatv2": lambda: GATv2Conv(64, 8, heads=4, sparsity=0.5),
}


def on_gpu(name):
    """A layer, its input and its graph (None), on the GPU."""
    layer = LAYERS[name]().cuda()
    x = torch.randn(3000, getattr(layer, "in_features", None) or layer.in_channels, device="cuda")
    if isinstance(layer, SparseLinear):
        return layer, x, ()
    graph = CSRGraph.from_edge_index(edges(3000, 20_000), 3000).to("cuda")
    layer(x, graph)  # the graph keeps what it derives
    return layer, x, (graph,)


def run(layer, x, *graph):
    x = x.detach().requires_grad_()
    y = layer(x, *graph)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]


@needs_gpu
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_and_its_input_on_different_devices(name):
    layer, x, graph = on_gpu(name)
    with pytest.raises((ValueError, RuntimeError), match="device"):
        layer(x.cpu(), *graph)
    if graph:
        with pytest.raises((ValueError, RuntimeError), match="device"):
            layer(x, graph[0].to("cpu"))
    with pytest.raises((ValueError, RuntimeError), match="device"):
        layer.cpu()(x, *graph)


# --- streams, graphs -------------------------------------------------------------------------------------------------


@needs_gpu
@pytest.mark.parametrize("kernel", ["sparse", "dense"])
@pytest.mark.parametrize("name", LAYERS)
def test_work_goes_to_the_current_stream(name, kernel):
    """The input is written on that stream, late: work on another one would read NaN."""
    layer, x, graph = on_gpu(name)
    with use_kernel(kernel):
        wanted, late, stream = run(layer, x, *graph), torch.full_like(x, torch.nan), torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            late.copy_(x)
            got = run(layer, late, *graph)
        stream.synchronize()
    for g, w in zip(got, wanted, strict=True):
        assert torch.equal(g, w)


@needs_gpu
def test_graphs_are_made_on_the_current_stream():
    late, stream = torch.zeros(2, 20_000, dtype=torch.long, device="cuda"), torch.cuda.Stream()
    source = edges(3000, 20_000)
    wanted = CSRGraph.from_edge_index(source, 3000)
    there = source.cuda()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(there)
        graph = CSRGraph.from_edge_index(late, 3000)
        transpose = graph.transpose()
    stream.synchronize()
    assert torch.equal(graph.crow.cpu(), wanted.crow) and torch.equal(graph.col.cpu(), wanted.col)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(transpose, wanted.transpose(), strict=True))


@needs_gpu
@pytest.mark.parametrize("kernel", ["sparse", "dense"])
@pytest.mark.parametrize("name", LAYERS)
def test_forward_and_backward_are_captured(name, kernel):
    layer, x, graph = on_gpu(name)
    held, stream = x.clone(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with use_kernel(kernel):
        with torch.cuda.stream(stream):
            for _ in range(2):
                run(layer, held, *graph)
        torch.cuda.current_stream().wait_stream(stream)
        recording = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recording):
            got = run(layer, held, *graph)
        for _ in range(2):
            new = torch.randn_like(x)
            held.copy_(new)
            recording.replay()
            for g, w in zip(got, run(layer, new, *graph), strict=True):
                assert torch.equal(g, w)


@needs_gpu
def test_the_first_dense_call_may_be_a_captured_one():
    """Nothing that is computed during capture may be kept for eager calls: it is not there yet."""
    layer, x = SparseLinear(64, 48, bias=False).cuda(), torch.randn(100, 64, device="cuda")
    torch.nn.functional.linear(x, torch.randn(48, 64, device="cuda"))  # cuBLAS has its workspace
    with use_kernel("dense"), torch.no_grad():
        recording = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recording):
            layer(x)
        torch.testing.assert_close(layer(x), x @ layer.dense_weight().T)


# --- memory ----------------------------------------------------------------------------------------------------------


@needs_gpu
@pytest.mark.parametrize("kernel", ["sparse", "dense"])
def test_memory_that_runs_out_in_a_step_harms_nothing(kernel):
    """With ever more memory a step fails at ever later places, and works in the end as if nothing had happened.

    Updates of the topology that fail: tests/controllers/test_out_of_memory.py.
    """
    layers = [SparseLinear(256, 256), nn.ReLU(), SparseLinear(256, 256, pattern="fan_in"), nn.ReLU(),
              SparseLinear(256, 64, pattern="block:16x16")]  # fmt: skip
    model, x = nn.Sequential(*layers).cuda(), torch.randn(40_000, 256, device="cuda")
    twin = copy.deepcopy(model)
    total, failures = torch.cuda.get_device_properties(0).total_memory, 0

    def optimizer_of(model):  # in place: the others of torch's can fail half-way
        return torch.optim.Adam(model.parameters(), fused=True)

    def step(model, optimizer):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    def snapshot(model, optimizer) -> list:
        slots = [t for state in optimizer.state.values() for t in state.values()]
        return [t.clone() for t in (*model.state_dict().values(), *slots)]

    with use_kernel(kernel):
        runs = [(m, optimizer_of(m)) for m in (model, twin)]
        for run_ in runs:
            step(*run_)
        before = snapshot(*runs[0])
        step(*runs[1])
        wanted = snapshot(*runs[1])
        runs[1][1].zero_grad()
        try:
            for mib in range(2, 1000, 6):
                runs[0][1].zero_grad()
                torch.cuda.empty_cache()
                torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + mib * 2**20) / total)
                try:
                    step(*runs[0])
                    break
                except RuntimeError as error:
                    assert "memory" in str(error)
                    failures += 1
                torch.cuda.set_per_process_memory_fraction(1.0)
                assert all(torch.equal(a, b) for a, b in zip(snapshot(*runs[0]), before, strict=True))
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    assert failures > 3
    assert all(torch.equal(a, b) for a, b in zip(snapshot(*runs[0]), wanted, strict=True))


@needs_gpu
def test_more_than_two_to_the_31_elements():
    rows, width = 2**21 + 3, 1024  # 4 GiB in bfloat16
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GiB of free GPU memory")
    sample = torch.tensor([0, 5, 2**20, 2**21 - 1, 2**21, rows - 1], device="cuda")  # both sides of element 2^31
    x = torch.zeros(rows, width, dtype=torch.bfloat16, device="cuda")
    x[sample] = torch.randn(len(sample), width, device="cuda").bfloat16()

    def close(got, want):
        assert (got.double() - want).norm() <= 1e-2 * want.norm()

    graph = CSRGraph.from_edge_index(torch.stack([sample, torch.arange(len(sample), device="cuda") % 3]), (3, rows))
    close(ops.spmm(graph, x), x[sample].double().view(2, 3, width).sum(0))
    y = ops.spmm(CSRGraph.from_edge_index(torch.stack([sample % 3, sample]), (rows, 3)), x[:3])
    assert torch.equal(y[sample], x[:3][sample % 3])
    del y
    for structure in ("unstructured", "block:16x16"):
        layer = SparseLinear(width, 16, sparsity=0.5, pattern=structure, bias=False, device="cuda").bfloat16()
        dense = layer.dense_weight().detach().double()
        x.requires_grad_()
        with use_kernel("sparse"):
            y = layer(x)
        close(y.detach()[sample], x.detach()[sample].double() @ dense.T)
        dy = torch.zeros_like(y)
        dy[sample] = torch.randn(len(sample), 16, device="cuda").bfloat16()
        dx, dvalues = torch.autograd.grad(y, [x, layer.values], dy)
        close(dx[sample], dy[sample].double() @ dense)
        expected = dy[sample].double().T @ x.detach()[sample].double()
        close(dvalues, pattern.gather(expected, *layer.pattern(), structure))
        del y, dy, dx
        x = x.detach()


# --- no code for this GPU --------------------------------------------------------------------------------------------

DEFAULT = frozenset({("SASS", 80), ("SASS", 90), ("PTX", 90)})


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((8, 0), DEFAULT, True),
        ((8, 6), DEFAULT, True),  # machine code of the same major version
        ((9, 0), DEFAULT, True),
        ((10, 0), DEFAULT, True),  # by PTX
        ((12, 0), DEFAULT, True),
        ((8, 0), frozenset({("SASS", 90), ("PTX", 90)}), False),
        ((8, 0), frozenset({("SASS", 86)}), False),
        ((10, 0), frozenset({("SASS", 80), ("SASS", 90)}), False),
        ((8, 9), frozenset({("PTX", 80)}), True),
        ((9, 0), frozenset(), False),
    ],
)
def test_which_gpus_a_build_is_for(capability, built, runs):
    found = _native.missing_architecture(capability, built)
    version = ".".join(map(str, capability))
    assert (found == "") == runs
    if not runs:
        assert f"no kernels for compute capability {version}" in found
        assert f"TORCH_CUDA_ARCH_LIST={version} pip install" in found


@pytest.mark.parametrize("capability", [(3, 5), (6, 1), (7, 0), (7, 5)])
def test_a_gpu_that_is_too_old(capability):
    assert "too old, the kernels need 8.0" in _native.missing_architecture(capability, DEFAULT)


@pytest.fixture
def foreign_gpu(monkeypatch):
    """A machine whose GPU the library, which is loaded, has no code for."""
    monkeypatch.setitem(_native.status, "cuda", "")
    monkeypatch.setattr(_native, "architectures", lambda library: frozenset({("SASS", 80)}))
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H200")


def test_a_gpu_that_the_build_is_not_for(foreign_gpu):
    import sparsegnn
    from sparsegnn.experiments.config import check_device

    wanted = (
        r"NVIDIA H200: this build has no kernels for compute capability 9.0 \(it has sm_80\); to rebuild: TORCH_CUDA"
    )
    with pytest.raises(RuntimeError, match=f"sparsegnn: {wanted}"):
        _native.check_gpu()
    with pytest.raises(ValueError, match=f"device must be one that the kernels run on, got 'cuda': {wanted}"):
        check_device("cuda")
    content = sparsegnn.info(show=False)
    assert content["libraries"]["cuda"].startswith("NVIDIA H200: this build has no kernels")
    assert {row["cuda"].partition(":")[0] for row in content["ops"]} <= {"fallback", "PyTorch"}
    assert sparsegnn.report.kernel_of("spmm", "cuda") == "reference"


@pytest.mark.parametrize(
    "count, words",
    [
        (0, "Found no NVIDIA driver on your system."),
        (1, "The NVIDIA driver on your system is too old (found version 11040).\n Update it."),
        (2, ""),
    ],
)
def test_no_gpu_that_cuda_can_use(monkeypatch, count, words):
    """The library is loaded, and management sees GPUs, but CUDA does not start: each op says why."""
    import sparsegnn
    from sparsegnn.experiments.config import check_device

    def fail(device=None):
        raise RuntimeError(words)

    monkeypatch.setitem(_native.status, "cuda", "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    for name in ("init", "get_device_name", "get_device_capability"):
        monkeypatch.setattr(torch.cuda, name, fail)
    monkeypatch.setattr(_native, "has_kernel", lambda op, key: True)
    said = " ".join(words.split()) or "RuntimeError"
    content = sparsegnn.info(show=False)
    assert content["libraries"]["cuda"] == f"loaded, but no GPU can be used: {said}"
    assert content["machine"]["gpus"] == ([f"{count} that CUDA cannot use: {said}"] if count else [])
    wanted = {f"fallback: loaded, but no GPU can be used: {said}", "PyTorch"}
    assert {row["cuda"] for row in content["ops"]} <= wanted and {row["cpu"] for row in content["ops"]} == {"compiled"}
    assert sparsegnn.report.kernel_of("spmm", "cuda") == "reference"
    with pytest.raises(ValueError, match="is not there" if count == 0 else "device 'cuda' cannot be used: "):
        check_device("cuda")


def test_a_library_that_is_not_loaded_is_not_asked(monkeypatch):
    monkeypatch.setitem(_native.status, "cuda", "not built")
    monkeypatch.setattr(_native, "unsupported_gpu", lambda device=None: 1 / 0)
    _native.check_gpu()
    assert _native.reason("cuda") == "not built"
