"""What is derived from a sparse feature matrix, once: where its nonzeros are, in int32, and its transpose."""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsegnn.graph_formats import check_csr, int32_copy, outside_modes

_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


@dataclass(eq=False)
class Structure:
    """Where the nonzeros of a feature matrix are, in int32, and of its transpose: constants of the matrix, copied."""

    key: tuple
    crow: Tensor
    col: Tensor
    ccol: Tensor
    row: Tensor
    perm: Tensor
    order: Tensor | None  # position of every slot in the values of a COO matrix; None: the same
    seen: Tensor | None = None  # values, and ...
    val_t: Tensor | None = None  # ... these in the order of the transpose

    def values(self, x: Tensor) -> Tensor:
        val = x.values() if x.layout == torch.sparse_csr else x._values()
        return val if self.order is None else val.index_select(0, self.order)

    def transposed(self, val: Tensor) -> Tensor:
        """Compares the bits, a tenth of the time of a gather: writes through ``.data`` or numpy are not counted."""
        if self.seen is None or not same_bits(val, self.seen):
            self.seen, self.val_t = val.clone(), val.index_select(0, self.perm)
        return self.val_t


_structures: dict[int, tuple[weakref.ref, Structure]] = {}  # by the id of a matrix; an entry goes with its matrix


def structure(x: Tensor) -> Structure:
    """The structure of ``x``, kept for the next call; made again when its indices (of COO: anything) have changed."""
    if x.layout == torch.sparse_csr:
        crow, col = x.crow_indices(), x.col_indices()
        key = (crow.data_ptr(), version(crow), col.data_ptr(), version(col))
    else:
        key = (version(x), x._nnz(), x.is_coalesced())
    name = id(x)
    matrix, found = _structures.get(name, (None, None))
    if matrix is None or matrix() is not x:
        matrix, found = weakref.ref(x, lambda gone: _forget(name, gone)), None
    if found is None or found.key != key:
        found = make_structure(x, key)
        _structures[name] = matrix, found
    return found


def _forget(name: int, gone: weakref.ref) -> None:
    if name in _structures and _structures[name][0] is gone:  # or its id belongs to another matrix by now
        del _structures[name]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether the host can see that they are: for a GPU it would have to wait."""
    if a.dtype != b.dtype or a.shape != b.shape or a.device.type != "cpu" or not a.is_contiguous():
        return False
    return _memcmp(a.data_ptr(), b.data_ptr(), a.nbytes) == 0


def version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version  # those have none


@outside_modes
def make_structure(x: Tensor, key: tuple) -> Structure:
    rows, cols = x.shape
    order = None
    if x.layout == torch.sparse_csr:
        crow, col = x.crow_indices(), x.col_indices()
        check_csr(crow, col, cols)
        crow, col = int32_copy(crow), int32_copy(col)
    else:
        row, col = x._indices()
        crow, col, order = torch.ops.sparsegnn.csr_from_edges(row, col, rows, cols)
        if torch.equal(order, torch.arange(order.numel(), dtype=order.dtype, device=order.device)):
            order = None
    return Structure(key, crow, col, *torch.ops.sparsegnn.csr_transpose(crow, col, cols), order)


def multiplies(crow: Tensor) -> bool:
    """Whether an ``spmm`` over these rows is a product with sparse features, or its gradient, and no aggregation."""
    return any(crow is found.crow or crow is found.ccol for _, found in list(_structures.values()))
