"""SPARSEGNN_CHECK=1: every op refuses every index argument that kernels could not trust, and else changes nothing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sparsegnn
from sparsegnn.nn import SparseLinear
from sparsegnn.ops import _indices
from sparsegnn.ops._library import LIBRARY

TESTS = Path(__file__).parent
OPS = sorted(name.rpartition("::")[2].partition(".")[0] for name in LIBRARY._op_defs)
INDICES = re.compile(r"(w_)?(c?crow|col|ccol|row|perm)|target|source|index|arg|n")
inside = pytest.mark.skipif(not _indices.ENABLED, reason="run by test_every_op, with SPARSEGNN_CHECK=1")


def op_of(name: str):
    return getattr(torch.ops.sparsegnn, name).default


def index_names(name: str) -> list[str]:
    arguments = op_of(name)._schema.arguments
    return [a.name for a in arguments if "Tensor" in str(a.type) and INDICES.fullmatch(a.name)]


def compressed(rows: int, cols: int, keep) -> tuple[torch.Tensor, ...]:
    """A pattern, with its transpose, whose last row and column have entries."""
    row, col = torch.tensor([(r, c) for r in range(rows) for c in range(cols) if keep(r, c)]).T
    perm = torch.argsort(col, stable=True)
    crow, ccol = ((index.bincount(minlength=n).cumsum(0)) for index, n in ((row, rows), (col, cols)))
    crow, ccol = (torch.cat([torch.zeros(1, dtype=torch.long), t]) for t in (crow, ccol))
    return tuple(t.int() for t in (crow, col, ccol, row[perm], perm))


def arguments(name: str) -> dict:
    """A valid call."""
    crow, col, ccol, row, perm = graph = compressed(6, 5, lambda r, c: (r + 2 * c) % 3 != 1)
    weight = compressed(4, 8, lambda r, c: (3 * r + c) % 4 != 2)
    blocks = compressed(2, 3, lambda r, c: r != c)
    m, n, e, nnz = 6, 5, col.numel(), weight[1].numel()
    rand = torch.rand
    four, five = ("crow", "col", "ccol", "row", "perm")[:2], ("crow", "col", "ccol", "row", "perm")
    a_graph, a_weight, of_blocks = (dict(zip(five, t, strict=True)) for t in (graph, weight, blocks))
    w = {f"w_{k}": v for k, v in a_weight.items()}
    plain = {"val": rand(e), "row_scale": rand(m), "col_scale": rand(n), "diag": None, "reduce": "sum"}
    index = torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7]] * 3)[:n].byte()
    few = {"index": index, "values": rand(n, 4), "width": 8}
    scores = {"a_src": rand(n, 2), "a_dst": rand(m, 2), "a_edge": rand(e, 2), "x": rand(n, 2, 3), "seed": None}
    v2 = {"x_src": rand(n, 2, 3), "x_dst": rand(m, 2, 3), "att": rand(2, 3), "edge": None, "seed": None}
    slope, needs = {"negative_slope": 0.2, "dropout": 0.0}, {"need_dx": True, "need_dvalues": True, "need_dbias": True}
    only = {k: a_graph[k] for k in four}
    best = torch.stack([crow[:-1]] * 8, 1).clone()
    best[0, 0] = -1
    linear = {"x": rand(7, 8), "values": rand(nnz), "bias": rand(4), **a_weight}
    rows = compressed(m, 8, lambda r, c: (r + c) % 3 != 1)
    of_x = dict(zip((f"x_{k}" for k in ("crow", "col", "ccol", "row")), rows, strict=False))
    val = rand(rows[1].numel())
    features = {**of_x, "x_val": val, "x_val_t": val[rows[4].long()], **a_weight, "height": 1, "width": 1}
    block = {"x": rand(7, 48), "values": rand(blocks[1].numel() * 256), "height": 16, "width": 16, **of_blocks}
    made = {
        "act_dropout": {"x": rand(n, 8), "bias": rand(8), "act": "relu", "dropout": 0.5, "seed": torch.tensor([3])},
        "act_dropout_backward": {"dy": rand(n, 8), "y": rand(n, 8), "act": "elu", "dropout": 0.5,
                                 "seed": torch.tensor([3]), "need_dx": True, "need_dbias": True},
        "csr_from_edges": {"target": row, "source": torch.arange(e).int() % n, "num_rows": m, "num_cols": n},
        "csr_transpose": {**only, "num_cols": n},
        "csr_degrees": {"crow": crow, "val": rand(e)},
        "spmm": {"x": rand(n, 8), **plain, **a_graph},
        "spmm_out": {"out": rand(m, 8), "x": rand(n, 8), **plain, **only},
        "spmm_arg_backward": {"dy": rand(m, 8), "x": rand(n, 8), "arg": best, "val": rand(e), **a_graph,
                              "need_dx": True, "need_dval": True},
        "sddmm": {"a": rand(m, 8), "b": rand(n, 8), **a_graph},
        "gat": {**scores, **a_graph, **slope, "save": True},
        "gat_backward": {**scores, **slope, "dy": rand(m, 2, 3), "y": rand(m, 2, 3), "lse": rand(m, 2) + 3,
                         "tilt": rand(m, 2, 3), "ccol": ccol, "row": row, "perm": perm, "need_edge": True},
        "gatv2": {**v2, **a_graph, **slope, "save": True},
        "gatv2_backward": {**v2, **a_graph, **slope, "dy": rand(m, 2, 3), "y": rand(m, 2, 3), "lse": rand(m, 2) + 3,
                           "need_edge": False},
        "maxk": {"x": rand(n, 8), "k": 4, "group": 0},
        "maxk_expand": few,
        "maxk_gather": {"x": rand(n, 8), "index": index},
        "maxk_spmm": {**few, **plain, **a_graph, "group": 0},
        "maxk_spmm_backward": {**few, **plain, **a_graph, "dy": rand(m, 8), "need_dvalues": True, "need_dval": True},
        "topology_": {"crow": weight[0], "col": weight[1], "drop_score": rand(nnz), "grow_score": rand(4, 8),
                      "n": torch.tensor(3)},
        "dense_weight": {"values": rand(nnz), "crow": weight[0], "col": weight[1], "cols": 8},
        "dense_weight_values": {"dense": rand(4, 8), "crow": weight[0], "col": weight[1]},
        "sparse_linear": linear,
        "sparse_linear_out": {**{k: v for k, v in linear.items() if k not in ("row", "perm")}, "out": rand(7, 4)},
        "sparse_linear_backward": {**linear, **needs, "dy": rand(7, 4)},
        "probed_linear": {**linear, "probe": torch.zeros(4, 8)},
        "dense_probe": {"x": rand(7, 8), "probe": torch.zeros(4, 8)},
        "block_linear": {**block, "bias": rand(32)},
        "block_linear_backward": {**block, **needs, "dy": rand(7, 32)},
        "features_linear": features | {"values": rand(nnz), "bias": rand(4), "outputs": 4},
        "features_linear_backward": features | {"dy": rand(m, 4)} | {k: True for k in needs if k != "need_dx"},
        "spmm_linear": {"x": rand(n, 8), **plain, **a_graph, "values": rand(nnz), "bias": rand(4), **w},
        "spmm_linear_backward": {"dy": rand(m, 4), "x": rand(n, 8), "ccol": ccol, "row": row, "val": rand(e),
                                 "row_scale": rand(n), "col_scale": rand(m), "diag": None, "values": rand(nnz), **w,
                                 **needs},
    }[name]  # fmt: skip
    names = {a.name for a in op_of(name)._schema.arguments}
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in made.items() if k in names}


def corruptions(name: str, index: torch.Tensor, held: int):
    """Index arguments that are wrong in one way each."""

    def with_value(place, value):
        wrong = index.clone()
        wrong.view(-1)[place] = value
        return wrong

    if name == "n":
        return {"negative": torch.tensor(-1), "too large": torch.tensor(10**6)}
    if name == "arg":
        return {"negative": with_value(0, -2), "too large": with_value(-1, 10**6), "another row's": with_value(0, held)}
    if name == "index":
        return {"too large": with_value(-1, 200), "decreasing": index.flip(1)}
    found = {"negative": with_value(0, -1), "too large": with_value(-1, 10**6), "wrong length": index[:-1]}
    if name in ("target", "source"):
        del found["wrong length"]  # both together say how many edges there are
        return found
    found["wrong type"] = index.float()
    if name.endswith("crow") or name.endswith("ccol"):
        found["decreasing"] = with_value(1, index[-1].item() + 1)
    if name.endswith("perm"):
        found["repeating"] = with_value(0, index[1].item())
    return found


CASES = [(name, index) for name in OPS for index in index_names(name)]


@inside
@pytest.mark.parametrize("name, index", CASES)
def test_a_wrong_index_is_refused(name, index):
    given = arguments(name)
    for what, wrong in corruptions(index, given[index], 6).items():
        with pytest.raises((ValueError, TypeError, RuntimeError), match=rf"{name}: .*\b{index}\b"):
            op_of(name)(**given | {index: wrong})
            pytest.fail(f"{what} {index} was not refused")


@inside
@pytest.mark.parametrize("name", OPS)
def test_a_right_call_gives_the_same_bits(name):
    """As the kernel behind the check gives when it is called directly."""

    def tensors(results, given):
        results = results if isinstance(results, tuple) else (results,)
        written = [v for v in given.values() if isinstance(v, torch.Tensor)]
        return [t for t in (*results, *written) if isinstance(t, torch.Tensor)]

    runs = []
    cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    for call in (op_of(name), lambda **given: op_of(name).redispatch(cpu, **given)):
        torch.manual_seed(0)
        given = arguments(name)
        runs.append(tensors(call(**given), given))
    for checked, plain in zip(*runs, strict=True):
        assert torch.equal(checked, plain) or checked.isnan().any()


@inside
def test_a_transpose_of_another_graph_and_a_tensor_elsewhere_are_refused():
    given = arguments("spmm")
    moved = given["row"].clone()
    moved[:2] = moved[:2].flip(0)
    with pytest.raises(ValueError, match="must be the transpose of"):
        torch.ops.sparsegnn.spmm(**given | {"row": moved})
    with pytest.raises(ValueError, match="spmm: x must be on the device|spmm: crow must be on the device"):
        _indices.check("spmm", _indices.SimpleNamespace(**given | {"crow": given["crow"].to("meta")}))


@inside
def test_a_graph_that_was_written_to_is_refused():
    graph = sparsegnn.CSRGraph.from_edge_index(torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]))
    x = torch.rand(4, 8, requires_grad=True)
    y = sparsegnn.ops.spmm(graph, x)
    graph.transpose()[1].numpy()[0] = 10**6  # unseen by autograd; backward is spmm with the transpose
    with pytest.raises(ValueError, match=r"spmm: col must be in \[0, 4\), got 1000000"):
        y.sum().backward()
    layer = SparseLinear(16, 16)
    layer.perm.numpy()[0] = layer.perm[1]  # unseen too: else it is made anew
    with sparsegnn.use_kernel("sparse"), pytest.raises(ValueError, match="perm must be a permutation"):
        layer(torch.rand(3, 16))


@inside
def test_traced_and_compiled_calls_work():
    """Shapes have no numbers to look at."""
    given = arguments("spmm")
    meta = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    assert torch.ops.sparsegnn.spmm(**meta)[0].shape == (6, 8)
    call = torch.compile(lambda g: torch.ops.sparsegnn.spmm(**g)[0], backend="aot_eager", fullgraph=True)
    assert torch.equal(call(given), torch.ops.sparsegnn.spmm(**given)[0])


def test_every_index_argument_is_known():
    """An op with indices has a line in the tables of _indices, or its calls would go unchecked."""
    for name, index in CASES:
        if index in ("target", "source", "n"):
            assert index in _indices.OTHERS[name], (name, index)
        elif index == "index":
            assert name in _indices.COMPRESSED, name
        elif index == "arg":
            assert name == "spmm_arg_backward"
        else:
            assert name in (_indices.WEIGHT if index.startswith("w_") else _indices.MATRIX | _indices.WEIGHT), name
    assert len(CASES) > 90


@pytest.mark.skipif(_indices.ENABLED, reason="the variable is set")
def test_without_the_variable_nothing_is_in_front_of_an_op():
    for name in OPS:
        assert not torch._C._dispatch_has_kernel_for_dispatch_key(f"sparsegnn::{name}", "BackendSelect"), name


@pytest.mark.skipif(_indices.ENABLED, reason="the variable is set")
def test_every_op():
    """All tests of this file that need the variable, in a process that has it."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=os.environ | {"SPARSEGNN_CHECK": "1"}, capture_output=True, text=True, cwd=TESTS)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > len(CASES)
