"""Sparse features: X as ``torch.sparse_csr`` or ``torch.sparse_coo`` times a weight, by the kernel of aggregation.

X W^T sums rows of W^T, one for every nonzero of X: it is spmm with W^T as its table. Bag-of-words features are
1 % dense, which no sparsity of the weight can match.
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsegnn.graph_formats import check_csr, int32_copy, outside_modes
from sparsegnn.ops._autograd import inverted, transformed
from sparsegnn.ops.spmm import apply as spmm

_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
LAYOUTS = (torch.sparse_csr, torch.sparse_coo)


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


def product(table: Tensor, crow: Tensor, col: Tensor, val: Tensor, *transpose: Tensor) -> Tensor:
    """With the ``transpose`` (ccol, row, perm) differentiable in ``table``."""
    return spmm(table, crow, col, val, None, None, None, *(transpose or (None, None, None)), "sum")[0]


class _Product(torch.autograd.Function):
    """X W^T; autograd of spmm would order the values for the transpose at every step."""

    @staticmethod
    def forward(ctx, weight_t, csr, val):
        ctx.csr, ctx.dtype = csr, weight_t.dtype
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(csr.transposed(val))
        return product(weight_t, csr.crow, csr.col, val)

    @staticmethod
    def backward(ctx, dy):
        (val_t,), csr = ctx.saved_tensors, ctx.csr
        back = (csr.crow, csr.col, inverted(csr.perm)) if torch.is_grad_enabled() else ()
        return product(dy, csr.ccol, csr.row, val_t.to(dy.dtype), *back).to(ctx.dtype), None, None


_structures: dict[int, tuple[weakref.ref, Structure]] = {}  # by the id of a matrix; an entry goes with its matrix


def is_sparse(x) -> bool:
    return isinstance(x, Tensor) and x.layout in LAYOUTS


def features_linear(layer: str, x: Tensor, weight_t: Tensor) -> Tensor:
    """``x @ weight_t`` [N, M] for sparse ``x`` [N, K]; differentiable in ``weight_t`` [K, M], not in ``x``."""
    csr, val = parts(layer, x, weight_t.size(0))
    if val.dtype != weight_t.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"{layer}: x must have the dtype of the weight ({weight_t.dtype}), got {val.dtype}")
    if transformed():
        return product(weight_t, csr.crow, csr.col, val, csr.ccol, csr.row, csr.perm)
    if weight_t.requires_grad and torch.is_grad_enabled():
        return _Product.apply(weight_t, csr, val)
    return product(weight_t, csr.crow, csr.col, val)


@outside_modes
def parts(layer: str, x: Tensor, inputs: int) -> tuple[Structure, Tensor]:
    if x.dim() != 2 or x.size(1) != inputs or x.dense_dim():
        raise ValueError(f"{layer}: x must have shape [N, {inputs}] when sparse, got {list(x.shape)}")
    if x.requires_grad:
        raise ValueError(f"{layer}: x must not require a gradient when sparse, got requires_grad=True")
    csr = structure(x)
    return csr, csr.values(x)


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
