"""Checks of the data that a CSRGraph is made from, and the graph formats of other libraries."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from numbers import Integral

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils import _pytree as pytree

LIMIT = 2**31 - 1  # edges and nodes are counted in int32
FEW_NODES = 1 << 24  # an index that is one by mistake may ask for 8 GiB of row offsets
COMPRESSED = (torch.sparse_csr, torch.sparse_bsr, torch.sparse_csc, torch.sparse_bsc)


def fail(expected: str, got, error: type[Exception] = ValueError):
    raise error(f"CSRGraph: {expected}, got {got}")


def outside_modes(function: Callable) -> Callable:
    """``function``, of ordinary tensors under ``torch.inference_mode`` and the transforms of torch.func too: what is
    kept must serve later. Where a transform wraps the tensors that it is given, so it does the results."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        transformed = torch._C._functorch.peek_interpreter_stack() is not None and not _are_wrapped(args, kwargs)
        if not transformed and not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with contextlib.ExitStack() as outside:
            if transformed:
                outside.enter_context(temporarily_clear_interpreter_stack())
            if torch.is_inference_mode_enabled():
                outside.enter_context(torch.inference_mode(False))
                outside.enter_context(torch.no_grad())
            return function(*args, **kwargs)

    return run


def _are_wrapped(*values) -> bool:
    tensors = (t for t in pytree.tree_leaves(values) if isinstance(t, Tensor))
    return any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors)


def _describe(value) -> str:
    if isinstance(value, Tensor):
        layout = "" if value.layout == torch.strided else f", {value.layout}"
        return f"{str(value.dtype).removeprefix('torch.')} of shape {list(value.shape)}{layout}"
    return type(value).__name__


def check_index(name: str, t, shape: str, ok) -> None:
    if not isinstance(t, Tensor) or t.layout != torch.strided:
        fail(f"{name} must be an integer Tensor of shape {shape}", _describe(t), TypeError)
    if t.dtype not in (torch.int32, torch.int64):
        fail(f"{name} must be int32 or int64", str(t.dtype).removeprefix("torch."), TypeError)
    if not ok(t):
        fail(f"{name} must have shape {shape}", list(t.shape))
    if t.shape[-1] >= LIMIT:
        fail(f"{name} must have fewer than 2^31 - 1 edges or rows", list(t.shape))
    if t.shape[-1] > 1 and t.stride(-1) == 0:  # it may claim more than there is memory for
        fail(f"{name} must have memory for its elements (make it contiguous())", "one that is repeated")


def check_edge_index(edge_index) -> None:
    check_index("edge_index", edge_index, "[2, E]", lambda t: t.dim() == 2 and t.size(0) == 2)


def check_weight(name: str, weight, col: Tensor, given: int | None = None) -> None:
    """One floating-point number per edge, or per edge of the ``given``, on the device of the graph, or None."""
    if weight is None:
        return
    size = col.shape[0] if given is None else given
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.layout != torch.strided:
        fail(f"{name} must be a dense floating-point Tensor of shape [{size}]", _describe(weight), TypeError)
    if weight.shape != (size,):
        fail(f"{name} must have shape [{size}]", list(weight.shape))
    if weight.device != col.device:
        fail(f"{name} must be on the graph's device {col.device}", weight.device)


def flat_weight(weight):
    """Edge weights ``[E, 1]`` as ``[E]``; anything else as it is."""
    if not isinstance(weight, Tensor) or weight.layout != torch.strided or weight.dim() != 2 or weight.size(1) != 1:
        return weight
    return weight.squeeze(1)


def count(name: str, n) -> int:
    if isinstance(n, bool) or not isinstance(n, (Integral, torch.SymInt)):
        fail(f"{name} must be an int, or (targets, sources)", repr(n), TypeError)
    if not 0 <= n < LIMIT:
        fail(f"{name} must be in [0, 2^31 - 1)", n)
    return n if isinstance(n, torch.SymInt) else int(n)


def size_of(num_nodes, edge_index: Tensor) -> tuple[int, int]:
    """(targets, sources)."""
    if num_nodes is None:
        if edge_index.is_meta:
            fail("num_nodes must be given for an edge_index on meta", None)
        num_nodes = int(edge_index.max()) + 1 if edge_index.numel() else 0
        num_nodes = max(num_nodes, 0)  # a negative index is reported as such
        if LIMIT > num_nodes > max(FEW_NODES, 100 * edge_index.size(1)):
            fail(f"num_nodes must be given where almost no node has an edge (of {edge_index.size(1)} edges)",
                 f"None and the largest index {num_nodes - 1}")  # fmt: skip
    if isinstance(num_nodes, (tuple, list)):
        if len(num_nodes) != 2:
            fail("num_nodes must be an int, or (targets, sources)", repr(num_nodes))
        return count("num_nodes", num_nodes[0]), count("num_nodes", num_nodes[1])
    return (count("num_nodes", num_nodes),) * 2


def sort_edges(edge_index: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor, Tensor]:
    """(crow, col, perm); the op checks every index, and only when it fails the indices are read again to say why."""
    source, target = edge_index
    if torch.compiler.is_compiling():
        return torch.ops.sparsegnn.csr_from_edges(target, source, rows, cols)
    try:
        return torch.ops.sparsegnn.csr_from_edges(target, source, rows, cols)
    except RuntimeError:
        for name, index, size in (("edge_index[0]", source, cols), ("edge_index[1]", target, rows)):
            if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size:
                bad = index[(index < 0) | (index >= size)][0]
                raise ValueError(f"CSRGraph: {name} must be in [0, {size}), got {int(bad)}") from None
        raise


def check_csr(crow, col, num_cols) -> None:
    """``crow`` and ``col`` of well-formed compressed rows."""
    check_index("crow", crow, "[M + 1]", lambda t: t.dim() == 1 and t.numel() >= 1)
    check_index("col", col, "[E]", lambda t: t.dim() == 1)
    for name, t in (("crow", crow), ("col", col)):
        if t.is_meta:
            fail(f"{name} must hold data", "a tensor on meta")
    if crow.device != col.device:
        fail(f"col must be on the device of crow, {crow.device}", col.device)
    n = crow.numel() - 1 if num_cols is None else count("num_cols", num_cols)
    falls = (crow[1:] < crow[:-1]).any()  # not by differences, which wrap
    if crow[0] != 0 or falls or crow[-1] != col.numel():
        where = f"{int(crow[0])} .. {int(crow[-1])}" + (" with a decrease" if falls else "")
        fail(f"crow must rise from 0 to the number of edges, {col.numel()}", where)
    if col.numel() and not 0 <= int(col.min()) <= int(col.max()) < n:
        fail(f"col must be in [0, {n})", int(col[(col < 0) | (col >= n)][0]))
    falls = col.diff() < 0
    starts = crow[1:-1].long()
    falls[starts[(starts > 0) & (starts < col.numel())] - 1] = False  # from one row to the next it may fall
    if falls.any():
        e = int(falls.nonzero()[0])
        fail("col must ascend within every row", f"{int(col[e])} before {int(col[e + 1])} at slot {e}")


def int32_copy(t: Tensor) -> Tensor:
    return t.to(torch.int32, copy=True, memory_format=torch.contiguous_format)


def check_loaded(crow, col, val, num_cols, perm, num_given) -> None:
    """The parts of a graph that was loaded."""
    for name, t in (("crow", crow), ("col", col)) + (() if perm is None else (("perm", perm),)):
        check_index(name, t, "[E]", lambda t: t.dim() == 1)
        if t.dtype != torch.int32 or not t.is_contiguous():
            fail(f"{name} must be int32 and contiguous", _describe(t), TypeError)
    count("num_cols", num_cols)
    if num_given is not None:
        count("num_given", num_given)
    if not crow.is_meta:
        check_csr(crow, col, num_cols)
    check_weight("val", val, col)
    if perm is not None and (perm.shape != col.shape or perm.device != col.device):
        fail(f"perm must have shape {list(col.shape)} on {col.device}", f"{list(perm.shape)} on {perm.device}")


def convert(cls, obj, num_nodes):
    """A CSRGraph (``cls``) from the formats that :meth:`CSRGraph.from_any` names."""
    if isinstance(obj, Tensor) and obj.layout != torch.strided:
        return _from_torch_sparse(cls, obj)
    if hasattr(obj, "get_sparse_size") and isinstance(obj, Tensor):  # torch_geometric.EdgeIndex
        size = obj.sparse_size()
        if num_nodes is None and None not in size:
            num_nodes = (size[1], size[0])
        return cls.from_edge_index(obj.as_tensor(), num_nodes)
    if isinstance(obj, Tensor):
        return cls.from_edge_index(obj, num_nodes)
    if hasattr(obj, "sparse_sizes") and hasattr(obj, "csr"):  # torch_sparse.SparseTensor
        crow, col, val = obj.csr()
        return cls.from_csr(crow, col, val, obj.sparse_size(1))
    if hasattr(obj, "tocsr") and hasattr(obj, "shape"):  # scipy.sparse
        return _from_scipy(cls, obj)
    if getattr(obj, "adj_t", None) is not None:  # torch_geometric Data after ToSparseTensor
        return cls.from_any(obj.adj_t, num_nodes)
    if getattr(obj, "edge_index", None) is not None:  # torch_geometric Data
        nodes = obj.num_nodes if num_nodes is None else num_nodes
        if isinstance(obj.edge_index, Tensor) and obj.edge_index.layout == torch.strided:
            edge_index = getattr(obj.edge_index, "as_tensor", lambda: obj.edge_index)()
            return cls.from_edge_index(edge_index, nodes, getattr(obj, "edge_weight", None))
        return cls.from_any(obj.edge_index, nodes)
    expected = "graph must be an edge_index Tensor [2, E], a CSRGraph, PyG Data or EdgeIndex, a SparseTensor, "
    return fail(expected + "torch.sparse or scipy.sparse", type(obj).__name__, TypeError)


def _from_torch_sparse(cls, a: Tensor):
    if a.layout not in COMPRESSED and a.layout != torch.sparse_coo:
        fail("graph must be torch.sparse in COO, CSR, CSC, BSR or BSC format", a.layout, TypeError)
    if a.dim() != 2 or a.dense_dim() != 0:
        fail("graph must be a sparse matrix of scalars", list(a.shape))
    if a.is_meta:
        fail("graph must hold data", "a tensor on meta")
    try:  # torch's conversions trust the indices, and its parts may be anything
        if a.layout == torch.sparse_csr:
            crow, col, val = a.crow_indices(), a.col_indices(), a.values()
        else:
            _check_indices(a.detach())
    except RuntimeError as e:
        fail("graph must be a valid sparse matrix", str(e).splitlines()[0])
    if a.layout == torch.sparse_csr:
        if crow.shape != (a.size(0) + 1,):
            fail(f"crow must have shape [{a.size(0) + 1}]", list(crow.shape))
        return cls.from_csr(crow, col, as_weight(val), a.size(1))
    a = (a if a.layout == torch.sparse_coo else a.to_sparse_coo()).coalesce()
    return cls.from_edge_index(a.indices().flip(0), tuple(a.shape), as_weight(a.values()))


def _check_indices(a: Tensor) -> None:
    """RuntimeError unless a matrix made anew from the parts of ``a`` is valid to torch."""
    if a.layout == torch.sparse_coo:
        torch.sparse_coo_tensor(a._indices(), a._values(), a.shape, check_invariants=True)
        return
    names = ("crow_indices", "col_indices") if a.layout == torch.sparse_bsr else ("ccol_indices", "row_indices")
    indices = (getattr(a, name)() for name in names)
    torch.sparse_compressed_tensor(*indices, a.values(), a.shape, layout=a.layout, check_invariants=True)


def _from_scipy(cls, a):
    if len(a.shape) != 2:
        fail("graph must be a matrix", list(a.shape))
    try:  # its conversions trust the indices
        if hasattr(a, "check_format"):
            a.check_format(full_check=True)
            if (a.indptr[1:] < a.indptr[:-1]).any():  # which scipy does not see of an empty matrix, nor where it wraps
                raise ValueError("indptr must not decrease")
        elif hasattr(a, "row") and not all(
            i.size == a.data.size and (not i.size or 0 <= i.min() <= i.max() < n)
            for i, n in zip((a.row, a.col), a.shape, strict=True)
        ):
            raise ValueError("indices must be in the matrix")
    except ValueError as e:
        fail("graph must be a valid scipy matrix", e)
    a = a.tocsr()
    if not a.has_sorted_indices:
        a = a.sorted_indices()
    if a.data.dtype.kind not in "fiub" or a.data.dtype.itemsize > 8:
        fail("graph must have real numbers as weights", a.data.dtype, TypeError)
    crow, col, val = (torch.as_tensor(v) for v in (a.indptr, a.indices, a.data))
    return cls.from_csr(crow, col, as_weight(val), a.shape[1])


def as_weight(val: Tensor) -> Tensor:
    if val.is_complex() or val.is_quantized:
        fail("graph must have real numbers as weights", val.dtype, TypeError)
    return val if val.is_floating_point() else val.float()
