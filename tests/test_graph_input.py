"""Matrices and index tensors that no graph can be made of: each is refused with what is wrong, before a kernel runs."""

import pytest
import scipy.sparse
import torch

from sparsegnn import CSRGraph

CROW, COL = torch.tensor([0, 2, 3, 4]), torch.tensor([0, 2, 1, 0])


def csr(crow=CROW, col=COL, val=None, num_cols=3):
    return CSRGraph.from_csr(crow, col, val, num_cols)


def repeated(n, dtype=torch.int64):
    return torch.zeros(1, dtype=dtype).expand(n)


def compressed(layout, first, second, values=None, size=(3, 3)):
    values = torch.ones(len(second)) if values is None else values
    return torch.sparse_compressed_tensor(first, second, values, size, layout=layout, check_invariants=False)


def coo(row, col, values=None, size=(3, 3), coalesced=False):
    values = torch.ones(len(row)) if values is None else values
    made = torch.sparse_coo_tensor(torch.tensor([row, col]), values, size, check_invariants=False)
    return made._coalesced_(coalesced)


def blocks(layout):
    return compressed(layout, torch.tensor([0, 1, 9]), torch.tensor([0, 7]), torch.ones(2, 2, 2), (4, 4))


def changed(form, **arrays):
    """A scipy matrix whose arrays are written to after it has been made, as a file can have them."""
    matrix = scipy.sparse.coo_matrix(([1.0, 2.0, 3.0], ([0, 1, 2], [1, 2, 0])), shape=(3, 3)).asformat(form)
    for name, content in arrays.items():
        getattr(matrix, name)[:] = content
    return matrix


read = CSRGraph.from_any
WRAPS = torch.tensor([0, 2**31 - 1, -(2**31), -1, 4], dtype=torch.int32)
BAD = {  # name: (call, exception, message)
    "crow that wraps": (lambda: csr(WRAPS), ValueError, "crow must rise from 0 .* with a decrease"),
    "crow that wraps in int64": (
        lambda: csr(torch.tensor([0, 2**63 - 1, -(2**63), -1, 4])),
        ValueError,
        "crow must rise",
    ),
    "crow negative": (
        lambda: csr(CROW - 1),
        ValueError,
        "crow must rise from 0 to the number of edges, 4, got -1 .. 3",
    ),
    "col too large": (lambda: csr(col=COL + 1), ValueError, r"col must be in \[0, 3\), got 3"),
    "col unsorted": (lambda: csr(col=COL.flip(0) * 0 + torch.tensor([2, 0, 1, 0])), ValueError, "col must ascend"),
    "crow repeated": (lambda: csr(repeated(2**31 - 2), COL[:0], None), ValueError, "crow must have memory"),
    "crow beyond int32": (lambda: csr(repeated(2**31), COL[:0]), ValueError, "fewer than 2"),
    "col repeated": (
        lambda: csr(torch.tensor([0, 2**31 - 2]), repeated(2**31 - 2)),
        ValueError,
        "col must have memory",
    ),
    "edges repeated": (
        lambda: CSRGraph.from_edge_index(repeated(2**31 - 2).expand(2, -1), 3),
        ValueError,
        "edge_index must have memory",
    ),
    "crow on meta": (lambda: csr(CROW.to("meta"), COL.to("meta")), ValueError, "crow must hold data"),
    "col on meta": (lambda: csr(col=COL.to("meta")), ValueError, "col must hold data"),
    "edges on meta": (
        lambda: CSRGraph.from_edge_index(COL.view(2, 2).to("meta")),
        ValueError,
        "num_nodes must be given",
    ),
    "crow of numbers": (lambda: csr(CROW.float()), TypeError, "crow must be int32 or int64, got float32"),
    "col of complex": (lambda: csr(col=COL.cfloat()), TypeError, "col must be int32 or int64, got complex64"),
    "col sparse": (lambda: csr(col=COL.to_sparse()), TypeError, "col must be an integer Tensor"),
    "complex weights": (lambda: csr(val=torch.ones(4, dtype=torch.cfloat)), TypeError, "val must be a dense float"),
    "weights sparse": (lambda: csr(val=torch.ones(4).to_sparse()), TypeError, "val must be a dense .*sparse_coo"),
    "no columns": (lambda: csr(num_cols=-1), ValueError, r"num_cols must be in \[0, "),
    "many columns": (lambda: csr(num_cols=2**31), ValueError, r"num_cols must be in \[0, "),
    "a row beyond COO": (lambda: read(coo([0, 3], [1, 1])), ValueError, "valid sparse matrix, got size is"),
    "a column beyond COO": (lambda: read(coo([0, 0], [1, 3])), ValueError, "valid sparse matrix"),
    "a negative COO": (lambda: read(coo([0, -1], [1, 1])), ValueError, "valid sparse matrix, got found neg"),
    "a coalesced COO that is none": (
        lambda: read(coo([0, 9], [1, 1], coalesced=True)),
        ValueError,
        "valid sparse matrix",
    ),
    "a complex COO": (lambda: read(coo([0], [1], torch.ones(1, dtype=torch.cfloat))), TypeError, "real"),
    "a COO of vectors": (
        lambda: read(coo([0], [1], torch.ones(1, 2), (3, 3, 2))),
        ValueError,
        "sparse matrix of scalars",
    ),
    "a CSR of more rows": (
        lambda: read(compressed(torch.sparse_csr, CROW, COL, size=(9, 3))),
        ValueError,
        r"crow must have sh",
    ),
    "a CSR of fewer values": (
        lambda: read(compressed(torch.sparse_csr, CROW, COL, torch.ones(3))),
        ValueError,
        "val must have sh",
    ),
    "a CSR beyond": (lambda: read(compressed(torch.sparse_csr, CROW, COL + 5)), ValueError, "col must be in"),
    "a CSR of sparse values": (
        lambda: read(compressed(torch.sparse_csr, CROW, COL, torch.ones(4).to_sparse())),
        ValueError,
        "valid sparse matrix",
    ),
    "a CSR of sparse rows": (
        lambda: read(compressed(torch.sparse_csr, CROW.to_sparse(), COL)),
        ValueError,
        "valid sparse matrix",
    ),
    "a CSC beyond": (
        lambda: read(compressed(torch.sparse_csc, CROW, COL + 2**20)),
        ValueError,
        "valid sparse matrix",
    ),
    "a CSC of long columns": (
        lambda: read(compressed(torch.sparse_csc, torch.tensor([0, 2**40, 3, 4]), COL)),
        ValueError,
        "valid",
    ),
    "BSR": (lambda: read(blocks(torch.sparse_bsr)), ValueError, "valid sparse matrix"),
    "BSC": (lambda: read(blocks(torch.sparse_bsc)), ValueError, "valid sparse matrix"),
    "COO on meta": (lambda: read(coo([0], [1]).to("meta")), ValueError, "graph must hold data"),
    "scipy CSR beyond": (lambda: read(changed("csr", indices=2**20)), ValueError, "valid scipy matrix, got"),
    "scipy CSR of long rows": (
        lambda: read(changed("csr", indptr=[0, 2**30, 1, 3])),
        ValueError,
        "valid scipy matrix, got",
    ),
    "scipy CSC beyond": (lambda: read(changed("csc", indices=2**20)), ValueError, "valid scipy matrix"),
    "scipy CSC of long columns": (
        lambda: read(changed("csc", indptr=[0, 2**30, 1, 3])),
        ValueError,
        "valid scipy matrix",
    ),
    "scipy CSR that ends at 0": (
        lambda: read(changed("csr", indptr=[0, 2, 3, 0])),
        ValueError,
        "valid scipy matrix, got indptr must not decrease",
    ),
    "scipy CSR that wraps": (
        lambda: read(changed("csr", indptr=[0, 2**31 - 1, -(2**31), 3])),
        ValueError,
        "valid scipy matrix",
    ),
    "scipy CSC that ends at 0": (
        lambda: read(changed("csc", indptr=[0, 2, 3, 0])),
        ValueError,
        "valid scipy matrix, got indptr must not decrease",
    ),
    "scipy CSC that wraps": (
        lambda: read(changed("csc", indptr=[0, 2**31 - 1, -(2**31), 3])),
        ValueError,
        "valid scipy matrix",
    ),
    "scipy BSR that ends at 0": (
        lambda: read(changed("bsr", indptr=[0, 2, 3, 0])),
        ValueError,
        "valid scipy matrix, got indptr must not decrease",
    ),
    "scipy BSR that wraps": (
        lambda: read(changed("bsr", indptr=[0, 2**31 - 1, -(2**31), 3])),
        ValueError,
        "valid scipy matrix",
    ),
    "scipy COO beyond": (lambda: read(changed("coo", row=2**20)), ValueError, "valid scipy matrix"),
    "scipy COO negative": (lambda: read(changed("coo", col=-5)), ValueError, "valid scipy matrix"),
    "scipy complex": (lambda: read(changed("csr").astype(complex)), TypeError, "real numbers as weights"),
    "scipy vector": (lambda: read(scipy.sparse.coo_array([1.0, 0.0])), ValueError, "graph must be a matrix"),
    "a size that is none": (lambda: read(csr(), 2.5), TypeError, "num_nodes must be an int"),
    "a size of text": (lambda: read(csr(), "33"), TypeError, "num_nodes must be an int"),
    "another size": (lambda: read(csr(), (3, 4)), ValueError, r"num_nodes must be the graph's \(3, 3\)"),
    "three sizes": (lambda: read(csr(), (3, 3, 3)), ValueError, "num_nodes must be an int, or"),
}


@pytest.mark.parametrize("kind", BAD)
def test_refused(kind):
    call, error, message = BAD[kind]
    with pytest.raises(error, match=f"CSRGraph: .*{message}") as e:
        call()
    assert len(str(e.value)) < 400


def test_two_rows_may_share_their_memory():
    loops = torch.arange(4).expand(2, 4)
    assert CSRGraph.from_edge_index(loops).col.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc]
)
def test_valid_matrices_of_torch_are_taken_with_gradients(layout):
    dense = torch.tensor([[0, 1.0, 0, 2], [3, 0, 0, 0], [0, 0, 4, 0], [5, 0, 0, 6]])
    options = {"blocksize": (2, 2)} if "bs" in str(layout) else {}
    graph = CSRGraph.from_any(dense.to_sparse(layout=layout, **options))
    got = torch.zeros(4, 4)
    got[graph.rows(), graph.col.long()] = graph.val
    assert torch.equal(got, dense)
    if layout == torch.sparse_coo:
        weight = torch.rand(3, requires_grad=True)
        made = torch.sparse_coo_tensor(torch.tensor([[0, 1, 1], [1, 0, 0]]), weight, (2, 2))
        CSRGraph.from_any(made).val.square().sum().backward()
        torch.testing.assert_close(weight.grad, 2 * torch.stack([weight[0], *[weight[1] + weight[2]] * 2]).detach())
