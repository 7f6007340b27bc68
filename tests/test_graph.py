"""CSRGraph against scipy, PyG and torch_sparse."""

import copy
import pickle

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from sparsegnn import CSRGraph

pyg = pytest.importorskip("torch_geometric")


def random_edges(n=30, e=120, loops=6, seed=0):
    """Duplicates, self-loops (a node may have several) and isolated nodes."""
    g = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(n - 5, (2, e), generator=g)
    edge_index[:, :loops] = edge_index[0, :loops]
    edge_index = edge_index[:, torch.randperm(e, generator=g)]
    return edge_index, torch.rand(e, generator=g, dtype=torch.float64) + 0.1


def scipy_of(edge_index, weight, shape):
    return scipy.sparse.coo_matrix((weight, (edge_index[1], edge_index[0])), shape=shape)


def to_scipy(graph):
    val = np.ones(graph.num_edges) if graph.val is None else graph.val.numpy()
    return scipy.sparse.csr_matrix((val, graph.col.numpy(), graph.crow.numpy()), shape=graph.shape)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("num_nodes", [30, None, (40, 30), (26, 50)])
def test_from_edge_index(dtype, num_nodes):
    edge_index, weight = random_edges()
    graph = CSRGraph.from_edge_index(edge_index.to(dtype), num_nodes, weight)
    n = int(edge_index.max()) + 1
    assert graph.shape == {30: (30, 30), None: (n, n)}.get(num_nodes, num_nodes)
    assert (graph.num_rows, graph.num_cols) == graph.shape and graph.num_edges == 120
    assert graph.crow.dtype == graph.col.dtype == graph.perm.dtype == torch.int32
    assert abs(to_scipy(graph) - scipy_of(edge_index, weight, graph.shape)).max() < 1e-14
    assert torch.equal(edge_index[0][graph.perm.long()], graph.col.long())
    assert torch.equal(edge_index[1][graph.perm.long()], graph.rows())
    assert torch.equal(weight[graph.perm.long()], graph.val)
    assert repr(graph) == f"CSRGraph({graph.num_rows}x{graph.num_cols}, edges=120, val=float64, device=cpu)"


def test_transpose_is_scipys_and_aliased_when_symmetric():
    edge_index, weight = random_edges()
    graph = CSRGraph.from_edge_index(edge_index, (30, 40))
    slots = scipy.sparse.csr_matrix((np.arange(120), graph.col, graph.crow), shape=(30, 40))
    ccol, row, perm = graph.transpose()
    assert graph.transpose()[0] is ccol
    both = scipy.sparse.csr_matrix((graph.rows()[perm.long()], row, ccol), shape=(40, 30))
    assert (row.numpy() == both.data).all() and ccol.numel() == 41
    assert (np.sort(perm.numpy()) == np.arange(120)).all() and slots.nnz <= 120
    assert torch.equal(graph.col[perm.long()].long(), torch.repeat_interleave(torch.arange(40), ccol.diff().long()))
    assert not any(a is b for a, b in zip((ccol, row), (graph.crow, graph.col), strict=True))

    undirected = CSRGraph.from_edge_index(torch.cat([edge_index, edge_index.flip(0)], 1), 30, weight.repeat(2))
    ccol, row, perm = undirected.transpose()
    assert ccol is undirected.crow and row is undirected.col
    back = scipy.sparse.csr_matrix((undirected.val[perm.long()], row, ccol), shape=(30, 30))
    assert abs(back - to_scipy(undirected).T).max() < 1e-14


def test_equal_degrees_are_no_symmetry():
    """A directed cycle: as many edges into as out of every node, and another transpose."""
    nodes = torch.arange(5)
    graph = CSRGraph.from_edge_index(torch.stack([nodes, (nodes + 1) % 5]))
    ccol, row, _ = graph.transpose()
    assert torch.equal(ccol, graph.crow) and row.tolist() == [1, 2, 3, 4, 0] and graph.col.tolist() == [4, 0, 1, 2, 3]


def forms():
    """The same weighted graph without duplicates, in every format."""
    from torch_geometric.data import Data
    from torch_geometric.utils import coalesce

    edge_index, weight = coalesce(*random_edges())
    source, target = edge_index
    coo = torch.sparse_coo_tensor(edge_index.flip(0), weight, (30, 30))
    matrix = scipy_of(edge_index, weight, (30, 30))
    found = {
        "csr_graph": CSRGraph.from_edge_index(edge_index, 30, weight),
        "coo": coo,
        "torch_csr": coo.to_sparse_csr(),
        "torch_csc": coo.to_sparse_csc(),
        "data": Data(edge_index=edge_index, edge_weight=weight, num_nodes=30),
        "scipy_coo": matrix,
        "scipy_csr": matrix.tocsr(),
        "scipy_csc": matrix.tocsc(),
        "scipy_array": scipy.sparse.csr_array(matrix),
    }
    try:
        from torch_sparse import SparseTensor
    except ImportError:
        return found
    adj_t = SparseTensor(row=target, col=source, value=weight, sparse_sizes=(30, 30))
    return found | {"sparse_tensor": adj_t, "data_adj_t": Data(adj_t=adj_t, num_nodes=30)}


@pytest.mark.parametrize("form", forms())
def test_every_format_gives_the_same_graph(form):
    wanted, got = forms()["csr_graph"], CSRGraph.from_any(forms()[form], 30)
    for name in ("crow", "col", "val"):
        assert torch.equal(getattr(wanted, name), getattr(got, name)), name
    assert got.crow.dtype == got.col.dtype == torch.int32 and wanted.shape == got.shape


def test_formats_without_weights():
    from torch_geometric import EdgeIndex

    edge_index, _ = random_edges()
    wanted = CSRGraph.from_edge_index(edge_index, (35, 30))
    by_pyg = EdgeIndex(edge_index, sparse_size=(30, 35))
    for obj, size in ((edge_index, (35, 30)), (by_pyg, None), (by_pyg.sort_by("row")[0], None)):
        got = CSRGraph.from_any(obj, size)
        assert torch.equal(got.crow, wanted.crow) and torch.equal(got.col, wanted.col) and got.val is None
        assert got.shape == (35, 30) and type(got.col) is torch.Tensor
    assert CSRGraph.from_any(wanted) is wanted
    counts = CSRGraph.from_any(scipy.sparse.csr_matrix(np.eye(3, dtype=np.int64)))
    assert counts.val.dtype == torch.float32
    unsorted = scipy.sparse.csr_matrix((np.array([1.0, 2.0]), np.array([2, 0]), np.array([0, 2])), shape=(1, 3))
    assert CSRGraph.from_any(unsorted).val.tolist() == [2, 1]


def dense_norm(edge_index, weight, n, improved, loops):
    from torch_geometric.nn.conv.gcn_conv import gcn_norm

    index, value = gcn_norm(edge_index, weight, n, improved, loops, dtype=torch.float64)
    return scipy_of(index, value, (n, n)).toarray()


def factored(graph, improved, loops):
    scale, diag = (None if t is None else t.numpy() for t in graph.gcn_norm(improved, loops, torch.float64))
    full = to_scipy(graph).toarray() + (0 if diag is None else np.diag(diag))
    return scale[:, None] * full * scale


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("improved", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_gcn_norm_is_pygs(weighted, improved, loops):
    for seed in range(5):
        edge_index, weight = random_edges(seed=seed)
        if seed % 2:  # no node has several self-loops
            edge_index, weight = edge_index.unique(dim=1), weight[: edge_index.unique(dim=1).size(1)]
        weight = weight if weighted else None
        graph = CSRGraph.from_edge_index(edge_index, 30, weight)
        np.testing.assert_allclose(
            factored(graph, improved, loops), dense_norm(edge_index, weight, 30, improved, loops), atol=1e-12
        )
        assert graph.gcn_norm(improved, loops)[0] is graph.gcn_norm(improved, loops)[0]
        assert graph.gcn_norm(improved, loops)[0].dtype == torch.float32


@pytest.mark.parametrize("weighted", [True, False])
def test_add_and_remove_self_loops(weighted):
    from torch_geometric.utils import add_remaining_self_loops, remove_self_loops

    edge_index, weight = random_edges()
    weight = weight if weighted else None
    graph = CSRGraph.from_edge_index(edge_index, 30, weight)
    for fill in (1.0, 2.5):
        index, value = add_remaining_self_loops(edge_index, weight, fill, 30)
        got = graph.add_self_loops(fill)
        if weighted:
            assert abs(to_scipy(got) - scipy_of(index, value, (30, 30))).max() < 1e-14
        assert got.num_edges == index.size(1) and (to_scipy(got).diagonal() > 0).all()
        given = torch.cat([edge_index, torch.arange(30).expand(2, 30)], 1)  # where perm points
        assert torch.equal(given[0][got.perm.long()], got.col.long())
    index, value = remove_self_loops(edge_index, weight)
    got = graph.remove_self_loops()
    value = np.ones(index.size(1)) if value is None else value
    assert abs(to_scipy(got) - scipy_of(index, value, (30, 30))).max() < 1e-14
    assert torch.equal(edge_index[0][got.perm.long()], got.col.long())
    without = got.add_self_loops().remove_self_loops()
    assert torch.equal(without.col, got.col) and torch.equal(without.crow, got.crow)
    for g in (CSRGraph.from_edge_index(torch.empty(2, 0).long(), n) for n in (0, 3)):
        assert g.add_self_loops().num_edges == g.num_rows and g.remove_self_loops().num_edges == 0


def test_weights_are_differentiable_and_reordered():
    edge_index, weight = random_edges()
    weight.requires_grad_()
    graph = CSRGraph.from_edge_index(edge_index, 30, weight)
    flow = torch.rand(120, dtype=torch.float64)
    (graph.val * flow[graph.perm.long()]).sum().backward()
    assert torch.equal(weight.grad, flow)
    other = graph.weighted(weight.detach() * 2)
    assert torch.equal(other.val, graph.val.detach() * 2) and other.crow is graph.crow
    assert graph.weighted(None).val is None
    graph = graph.weighted(weight.detach())  # of weights that are learned no norm is kept
    before, after = (g.gcn_norm()[0] for g in (graph, graph.weighted(weight.detach() * 2)))  # each its own
    fresh = CSRGraph.from_edge_index(edge_index, 30, weight.detach() * 2).gcn_norm()[0]
    assert torch.equal(after, fresh) and not torch.equal(after, before)


CHANGED = {  # name: (how the graph is changed, the list that its weights are in the order of)
    "not": (lambda g: g, lambda e, w, n: (e, w)),
    "removed": (lambda g: g.remove_self_loops(), lambda e, w, n: (e, w * (e[0] != e[1]))),
    "added": (lambda g: g.add_self_loops(), lambda e, w, n: looped_list(e, w, n)),
    "looped": (lambda g: g.looped()[0], lambda e, w, n: looped_list(e, w, n)),
    "removed, added": (
        lambda g: g.remove_self_loops().add_self_loops(),
        lambda e, w, n: (torch.cat([e, n.expand(2, -1)], 1), torch.cat([w[:-30] * (e[0] != e[1]), w[-30:]])),
    ),
    "added, removed": (
        lambda g: g.add_self_loops().remove_self_loops(),
        lambda e, w, n: (e, w[:-30] * (e[0] != e[1])),
    ),
}


def looped_list(e, w, n):
    """The given edges and behind them a loop of every node; the last loop that was given counts, then that one."""
    loop, weight = e[0] == e[1], w.clone()
    for node in n.tolist():
        mine = (loop & (e[0] == node)).nonzero().view(-1)
        weight[mine[:-1]] = 0
        weight[len(w) - 30 + node] *= len(mine) == 0
    return torch.cat([e, n.expand(2, -1)], 1), weight


@pytest.mark.parametrize("made", ["edges", "csr"])
@pytest.mark.parametrize("how", CHANGED)
def test_weights_follow_the_list_that_a_graph_was_made_from(how, made):
    edge_index, _ = random_edges()
    graph, nodes = CSRGraph.from_edge_index(edge_index, 30), torch.arange(30)
    if made == "csr":
        graph = CSRGraph.from_csr(graph.crow, graph.col)
        edge_index = torch.stack([graph.col.long(), graph.rows()])
    change, listed = CHANGED[how]
    changed = change(graph)
    size = 150 if "added" in how or how == "looped" else 120
    assert changed.given == size
    weight = torch.rand(size, dtype=torch.float64).requires_grad_()
    index, value = listed(edge_index, weight, nodes) if how == "not" else listed(edge_index, weight.detach(), nodes)
    got = changed.weighted(weight)
    wanted = scipy_of(index, value.detach(), (30, 30))
    assert abs(to_scipy(changed.weighted(weight.detach())) - wanted).max() < 1e-14
    got.val.sum().backward()
    assert torch.equal(weight.grad[: len(value)] != 0, value.detach() != 0)
    for wrong in (size - 1, changed.num_edges if changed.num_edges != size else size + 1):
        with pytest.raises(ValueError, match=rf"edge_weight must have shape \[{size}\]"):
            changed.weighted(torch.rand(wrong))


def test_pickle_deepcopy_pytree_and_to():
    edge_index, weight = random_edges()
    graph = CSRGraph.from_edge_index(torch.cat([edge_index, edge_index.flip(0)], 1), 30, weight.repeat(2))
    graph.transpose(), graph.gcn_norm(), graph.looped()
    leaves, spec = pytree.tree_flatten(graph)
    assert len(leaves) >= 8 and all(isinstance(t, torch.Tensor) for t in leaves if t is not None)
    same = [pickle.loads(pickle.dumps(graph)), copy.deepcopy(graph), pytree.tree_unflatten(leaves, spec)]
    for other in same:
        assert other.shape == graph.shape and torch.equal(other.val, graph.val)
        assert torch.equal(other.gcn_norm()[0], graph.gcn_norm()[0])
        assert other.transpose()[0] is other.crow
    moved = graph.to("meta")
    assert moved.device.type == "meta" and moved.transpose()[1] is moved.col and moved.gcn_norm()[0].is_meta
    assert graph.to("cpu") is graph


def from_csr(crow, col, val=None, num_cols=None):
    return CSRGraph.from_csr(torch.tensor(crow), torch.tensor(col, dtype=torch.int64), val, num_cols)


def test_from_csr():
    graph = from_csr([0, 2, 2, 3], [0, 4, 1], torch.ones(3), 5)
    assert graph.shape == (3, 5) and graph.perm is None and graph.num_edges == 3
    assert torch.equal(graph.weighted(torch.arange(3.0)).val, torch.arange(3.0))
    for crow in ([0], [0, 0, 0]):
        assert from_csr(crow, []).shape == (len(crow) - 1,) * 2
    assert from_csr([0, 0, 2, 2, 3], [1, 1, 0]).num_edges == 3  # duplicates; empty rows at both ends
    assert from_csr([0, 1, 1, 1], [2]).num_edges == 1


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(-1, 7), max_size=6),
    st.lists(st.integers(-1, 5), max_size=8),
    st.none() | st.integers(-1, 6),
)
def test_any_compressed_rows_are_either_refused_or_right(crow, col, num_cols):
    """Nothing that is let through may make a kernel leave its arrays."""
    crow, col = torch.tensor(crow, dtype=torch.int64), torch.tensor(col, dtype=torch.int64)
    n = crow.numel() - 1 if num_cols is None else num_cols
    bounds = list(zip(crow[:-1].tolist(), crow[1:].tolist(), strict=True))
    right = crow.numel() > 0 and n >= 0 and int(crow[0]) == 0 and int(crow[-1]) == col.numel()
    right = right and all(a <= b and col[a:b].tolist() == sorted(col[a:b].tolist()) for a, b in bounds)
    right = right and all(0 <= c < n for c in col.tolist())
    try:
        graph = CSRGraph.from_csr(crow, col, num_cols=num_cols)
    except ValueError as error:
        assert not right and str(error).startswith("CSRGraph: ")
        return
    assert right and graph.shape == (crow.numel() - 1, n)
    ccol, row, perm = graph.transpose()
    assert torch.equal(graph.rows()[perm.long()], row.long()) and ccol.numel() == n + 1


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 6), st.integers(-2, 6)), max_size=12), st.none() | st.integers(-1, 6))
def test_any_edge_list_is_either_refused_or_right(edges, num_nodes):
    edge_index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).t()
    flat = [v for edge in edges for v in edge]
    n = num_nodes if num_nodes is not None else max(flat, default=-1) + 1
    try:
        graph = CSRGraph.from_edge_index(edge_index, num_nodes)
    except ValueError as error:
        assert n < 0 or any(not 0 <= v < n for v in flat), error
        return
    assert all(0 <= v < n for v in flat)
    wanted = scipy_of(edge_index, np.ones(len(edges)), (n, n)).toarray()
    assert (to_scipy(graph).toarray() == wanted).all() and graph.shape == (n, n)
    assert (to_scipy(graph.add_self_loops()).toarray() == np.where(np.eye(n), 1, wanted)).all()


big = torch.zeros(1, dtype=torch.int32).expand(2**31)  # no memory
pair = torch.tensor([[0, 1], [1, 2]])


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: CSRGraph.from_edge_index([[0], [1]]), TypeError, "edge_index must be an integer Tensor .* got list"),
        (lambda: CSRGraph.from_edge_index(pair.float()), TypeError, "edge_index must be int32 or int64, got float32"),
        (lambda: CSRGraph.from_edge_index(pair.bool()), TypeError, "edge_index must be int32 or int64, got bool"),
        (lambda: CSRGraph.from_edge_index(pair[0]), ValueError, r"edge_index must have shape \[2, E\], got \[2\]"),
        (lambda: CSRGraph.from_edge_index(pair.new_zeros(3, 2)), ValueError, r"shape \[2, E\], got \[3, 2\]"),
        (lambda: CSRGraph.from_edge_index(big.expand(2, -1)), ValueError, r"fewer than 2\^31 - 1 edges"),
        (lambda: CSRGraph.from_edge_index(pair - 1), ValueError, r"edge_index\[0\] must be in \[0, 2\), got -1"),
        (lambda: CSRGraph.from_edge_index(pair - 5), ValueError, r"edge_index\[0\] must be in \[0, 0\), got -5"),
        (lambda: CSRGraph.from_edge_index(pair, 2), ValueError, r"edge_index\[1\] must be in \[0, 2\), got 2"),
        (lambda: CSRGraph.from_edge_index(pair, (3, 1)), ValueError, r"edge_index\[0\] must be in \[0, 1\), got 1"),
        (lambda: CSRGraph.from_edge_index(pair, 2**31), ValueError, r"num_nodes must be in .* got 2147483648"),
        (lambda: CSRGraph.from_edge_index(pair + 2**40), ValueError, r"num_nodes must be in"),
        (lambda: CSRGraph.from_edge_index(pair, -1), ValueError, "num_nodes must be in"),
        (lambda: CSRGraph.from_edge_index(pair * 2**29), ValueError, "num_nodes must be given .* index 1073741824"),
        (lambda: CSRGraph.from_edge_index(pair * 2**25), ValueError, r"num_nodes must be given .* \(of 2 edges\)"),
        (lambda: CSRGraph.from_edge_index(pair, 3.0), TypeError, "num_nodes must be an int"),
        (lambda: CSRGraph.from_edge_index(pair, True), TypeError, "num_nodes must be an int"),
        (lambda: CSRGraph.from_edge_index(pair, (1, 2, 3)), ValueError, "num_nodes must be an int, or"),
        (lambda: CSRGraph.from_edge_index(pair, 3, torch.ones(3)), ValueError, r"edge_weight must have shape \[2\]"),
        (lambda: CSRGraph.from_edge_index(pair, 3, torch.ones(1, 2)), ValueError, r"edge_weight must have shape \[2\]"),
        (lambda: CSRGraph.from_edge_index(pair, 3, pair[0]), TypeError, "edge_weight must be a dense floating-point"),
        (lambda: CSRGraph.from_edge_index(pair, 3, torch.eye(2)[:, :1].to_sparse()), TypeError, "sparse_coo"),
        (lambda: CSRGraph.from_edge_index(pair, 3, torch.ones(2).to_sparse()), TypeError, "sparse_coo"),
        (lambda: CSRGraph.from_edge_index(pair, 3).weighted(torch.ones(2, 1).to_sparse()), TypeError, "sparse_coo"),
        (lambda: CSRGraph.from_edge_index(pair, 3, torch.ones(2, device="meta")), ValueError, "on the graph's device"),
        (lambda: from_csr([], []), TypeError, "crow must be int32 or int64, got float32"),
        (lambda: from_csr([1, 2], [0]), ValueError, r"crow must rise from 0 .* 1, got 1 .. 2"),
        (lambda: from_csr([0, 2], [0]), ValueError, "crow must rise"),
        (lambda: from_csr([0, 2, 1, 2], [0, 1]), ValueError, "crow must rise from .* with a decrease"),
        (lambda: from_csr([0, 1], [1]), ValueError, r"col must be in \[0, 1\), got 1"),
        (lambda: from_csr([0, 1], [-1]), ValueError, r"col must be in \[0, 1\), got -1"),
        (lambda: from_csr([0, 2, 2], [1, 0]), ValueError, "col must ascend within every row, got 1 before 0 at slot 0"),
        (lambda: from_csr([[0, 1]], [0]), ValueError, r"crow must have shape \[M \+ 1\]"),
        (lambda: from_csr([0, 1], [0], torch.ones(2)), ValueError, r"val must have shape \[1\]"),
        (lambda: from_csr([0, 1], [0], num_cols="3"), TypeError, "num_cols must be an int"),
        (lambda: CSRGraph.from_any("graph"), TypeError, "graph must be an edge_index .* got str"),
        (lambda: CSRGraph.from_any(None), TypeError, "got NoneType"),
        (lambda: CSRGraph.from_any(torch.zeros(2, 3)), TypeError, "edge_index must be int32 or int64"),
        (lambda: CSRGraph.from_any(torch.ones(2, 2, 2).to_sparse()), ValueError, "a sparse matrix of scalars"),
        (lambda: CSRGraph.from_any(torch.eye(3).to_sparse(), 4), ValueError, r"graph's \(3, 3\), got 4"),
        (lambda: from_csr([0, 1], [0], num_cols=3).gcn_norm(), ValueError, "graph must be square for gcn_norm"),
        (lambda: from_csr([0, 1], [0], num_cols=3).add_self_loops(), ValueError, "graph must be square"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match="CSRGraph: .*" + message):
        make()
