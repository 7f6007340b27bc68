"""SPARSEGNN_CHECK=1: every op looks at the numbers in its index arguments before it runs, on every device.

Kernels trust them: graphs and patterns are checked once, where they are made, and a kernel that is called directly
with others, or with a tensor that was written to later, reads and writes out of bounds. The check is a kernel of its
own at a dispatch key between autograd and the devices, so that nothing gets past it: eager, compiled or backward,
compiled kernel or fallback. It reads the indices, for which the host waits for a GPU; while a CUDA graph is recorded
it is left out. Without the variable nothing is registered.
"""

import os
from types import SimpleNamespace

import torch
from torch import Tensor

from sparsegnn.graph_spans import row_spans

ENABLED = os.environ.get("SPARSEGNN_CHECK", "") == "1"
_KEY = "BackendSelect"  # fallthrough for all ops that allocate no tensor from sizes alone

#: rows and columns of the matrix (crow, col), or of its transpose (ccol, row, perm), as the other arguments have them;
#: None: they do not say
MATRIX = {
    "csr_degrees": lambda a: (None, None),
    "csr_transpose": lambda a: (None, a.num_cols),
    "spmm": lambda a: (None, a.x.size(0)),
    "spmm_out": lambda a: (a.out.size(0), a.x.size(0)),
    "spmm_arg_backward": lambda a: (a.dy.size(0), a.x.size(0)),
    "sddmm": lambda a: (a.a.size(0), a.b.size(0)),
    "gat": lambda a: (a.x.size(0) if a.a_dst.dim() == 3 else a.a_dst.size(0), a.x.size(0)),
    "gat_backward": lambda a: (a.y.size(0), a.x.size(0)),
    "gatv2": lambda a: (a.x_dst.size(0), a.x_src.size(0)),
    "gatv2_backward": lambda a: (a.x_dst.size(0), a.x_src.size(0)),
    "maxk_spmm": lambda a: (None, a.values.size(0)),
    "maxk_spmm_backward": lambda a: (a.dy.size(0), a.values.size(0)),
    "spmm_linear": lambda a: (None, a.x.size(0)),
    "spmm_linear_backward": lambda a: (a.dy.size(0), a.x.size(0)),
    "features_linear": lambda a: (None, None if a.x_ccol is None else a.x_ccol.numel() - 1),
    "features_linear_backward": lambda a: (a.dy.size(0), None if a.x_ccol is None else a.x_ccol.numel() - 1),
}
#: the same of a weight, whose columns ascend strictly within rows; in blocks, where it has blocks
WEIGHT = {
    "topology_": lambda a: tuple(a.grow_score.shape),
    "dense_weight": lambda a: (None, a.cols // a.width),
    "dense_weight_values": lambda a: (a.dense.size(0) // a.height, a.dense.size(1) // a.width),
    "sparse_linear": lambda a: (None, a.x.size(1)),
    "probed_linear": lambda a: (None, a.x.size(1)),
    "sparse_linear_out": lambda a: (a.out.size(1), a.x.size(1)),
    "sparse_linear_backward": lambda a: (a.dy.size(1), a.x.size(1)),
    "block_linear": lambda a: (None, a.x.size(1) // a.width),
    "block_linear_backward": lambda a: (a.dy.size(1) // a.height, a.x.size(1) // a.width),
    "spmm_linear": lambda a: (None, a.x.size(1)),
    "spmm_linear_backward": lambda a: (a.dy.size(1), a.x.size(1)),
    "features_linear": lambda a: (a.outputs // a.height, None),
    "features_linear_backward": lambda a: (a.dy.size(1) // a.height, None),
}
#: columns of the dense rows that ``index`` [N, k] compresses
COMPRESSED = {
    "maxk_expand": lambda a: a.width,
    "maxk_gather": lambda a: a.x.size(1),
    "maxk_spmm": lambda a: a.width,
    "maxk_spmm_backward": lambda a: a.dy.size(1),
}
#: op -> {index argument that belongs to no matrix: the numbers that it may hold}
OTHERS = {
    "csr_from_edges": {"target": lambda a: (0, a.num_rows), "source": lambda a: (0, a.num_cols)},
    "topology_": {"n": lambda a: (0, a.col.numel() + 1)},
}


def install(name: str, op, library: torch.library.Library) -> None:
    """Put the check in front of an op."""
    parameters = op._schema.arguments
    behind = torch._C._dispatch_keyset_full_after(getattr(torch._C.DispatchKey, _KEY))

    def run(keyset, *args, **kwargs):
        given = {p.name: kwargs.get(p.name, p.default_value) for p in parameters}
        given |= {p.name: a for p, a in zip(parameters, args, strict=False)}
        if _readable(given.values()):
            check(name, SimpleNamespace(**given))
        return op.redispatch(keyset & behind, *args, **kwargs)

    library.impl(name, run, _KEY, with_keyset=True)


def _readable(values) -> bool:
    """Whether there are numbers: not where shapes alone are traced, nor while a CUDA graph is recorded."""
    tensors = [v for v in values if isinstance(v, Tensor)]
    plain = all(type(t) in (Tensor, torch.nn.Parameter) and not t.is_meta for t in tensors)
    return plain and not (any(t.is_cuda for t in tensors) and torch.cuda.is_current_stream_capturing())


def check(op: str, a: SimpleNamespace) -> None:
    """Raise ValueError, or TypeError for a dtype, unless every index argument of a call is one that kernels may trust.

    ``a`` has the arguments by name.
    """
    _one_device(op, vars(a))
    if op == "spmm_arg_backward" and not a.need_dx:  # the transpose is not read
        a.ccol = a.row = a.perm = None
    if op in MATRIX:
        _matrix(op, a, "x_" if hasattr(a, "x_crow") else "", *MATRIX[op](a), strict=False)
    if op in WEIGHT:
        _matrix(op, a, "w_" if hasattr(a, "w_crow") else "", *WEIGHT[op](a), strict=True)
    if op in COMPRESSED:
        _compressed(op, a.index, COMPRESSED[op](a), getattr(a, "group", 0))
    if op == "spmm_arg_backward":
        _arg(op, a.arg, a.crow)
    for name, crow in (("spans", "crow"), ("cspans", "ccol")):
        if getattr(a, name, None) is not None and getattr(a, crow) is not None:
            given, offsets = getattr(a, name), getattr(a, crow)
            same = given.dtype == torch.int32 and torch.equal(given, row_spans(offsets, int(offsets[-1])))
            _expect(same, op, name, f"be row_spans of {crow}", "others")
    for name, limits in OTHERS.get(op, {}).items():
        _in_range(op, name, getattr(a, name), *limits(a))


def _one_device(op: str, given: dict) -> None:
    """A kernel of one device cannot read the memory of another; numbers of the host are no arguments of a kernel."""
    tensors = {name: v for name, v in given.items() if isinstance(v, Tensor)}
    first = next(iter(tensors.values())).device
    for name, value in tensors.items():
        _expect(value.device == first, op, name, f"be on the device of the other arguments ({first})", value.device)


def _matrix(op: str, a: SimpleNamespace, prefix: str, rows: int | None, cols: int | None, strict: bool) -> None:
    """Compressed rows, and their transpose as far as it is given."""
    crow, col, ccol, row, perm = (getattr(a, prefix + n, None) for n in ("crow", "col", "ccol", "row", "perm"))
    crow_name, col_name, ccol_name, row_name, perm_name = (prefix + n for n in ("crow", "col", "ccol", "row", "perm"))
    for name, t in ((crow_name, crow), (col_name, col), (ccol_name, ccol), (row_name, row), (perm_name, perm)):
        if t is not None and (t.dtype != torch.int32 or t.dim() != 1):
            raise TypeError(f"{op}: {name} must be int32 of one dimension, got {t.dtype} of shape {list(t.shape)}")
    entries = ((col_name, col), (row_name, row), ("val", getattr(a, "val", None)))
    counted, held = next(((name, t.numel()) for name, t in entries if t is not None), ("", None))
    if crow is not None:
        _offsets(op, crow_name, crow, rows, counted, held)
        rows = crow.numel() - 1
    if ccol is not None:
        _offsets(op, ccol_name, ccol, cols, counted, held)
        cols = ccol.numel() - 1
    for name, t, limit in ((col_name, col, cols), (row_name, row, rows)):
        if t is not None:
            _expect(t.numel() == held, op, name, f"have {held} elements", t.numel())
            _in_range(op, name, t, 0, 2**31 if limit is None else limit)
    if col is not None and strict:
        _ascend(op, col_name, crow, col)
    if perm is not None:
        _expect(perm.numel() == held, op, perm_name, f"have {held} elements", perm.numel())
        _in_range(op, perm_name, perm, 0, held)
        every = torch.arange(held, dtype=perm.dtype, device=perm.device)
        _expect(
            torch.equal(perm.sort().values, every), op, perm_name, f"be a permutation of [0, {held})", "repetitions"
        )
    if not any(t is None for t in (crow, col, ccol, row, perm)):
        same = torch.equal(col[perm], _rows_of(ccol)) and torch.equal(_rows_of(crow)[perm], row)
        names = f"the transpose of ({crow_name}, {col_name})"
        _expect(same, op, f"({ccol_name}, {row_name}, {perm_name})", f"be {names}", "that of another matrix")


def _offsets(op: str, name: str, crow: Tensor, rows: int | None, counted: str, held: int | None) -> None:
    _expect(crow.numel() >= 1, op, name, "have at least one element", "none")
    _expect(rows is None or crow.numel() == rows + 1, op, name, f"have {rows} + 1 elements", crow.numel())
    first, last = crow[0].item(), crow[-1].item()
    end = last if held is None else held
    expected = f"rise from 0 to {end}" + (f", the number of entries of {counted}" if counted else "")
    _expect((first, last) == (0, end), op, name, expected, f"{first} to {last}")
    falls = (crow[1:] < crow[:-1]).nonzero()
    where = f"a fall behind element {falls[0].item()}" if falls.numel() else ""
    _expect(not falls.numel(), op, name, expected, where)


def _ascend(op: str, name: str, crow: Tensor, col: Tensor) -> None:
    ascends = col[1:] > col[:-1]
    rows = _rows_of(crow)
    bad = (~ascends & (rows[1:] == rows[:-1])).nonzero()
    got = f"{col[bad[0]].item()} before {col[bad[0] + 1].item()}" if bad.numel() else ""
    _expect(not bad.numel(), op, name, "ascend strictly within each row", got)


def _compressed(op: str, index: Tensor, width: int, group: int) -> None:
    _in_range(op, "index", index, 0, width)
    place = index.int()
    _expect(bool((place[:, 1:] > place[:, :-1]).all()), op, "index", "ascend strictly within each row", "others")
    if group:
        kept = index.size(1) // (width // group)
        owner = torch.arange(index.size(1), device=index.device) // max(kept, 1)
        _expect(bool((place // group == owner).all()), op, "index", f"hold {kept} of every {group} columns", "others")


def _arg(op: str, arg: Tensor, crow: Tensor) -> None:
    """The slot that each result of a maximum came from, in its own row, or -1."""
    mine = (arg >= crow[:-1, None]) & (arg < crow[1:, None])
    _expect(bool((mine | (arg == -1)).all()), op, "arg", "hold edges of its row, or -1", "others")


def _in_range(op: str, name: str, index: Tensor, low: int, end: int) -> None:
    if index.numel():
        least, most = (v.item() for v in index.aminmax())
        _expect(low <= least and most < end, op, name, f"be in [{low}, {end})", least if least < low else most)


def _rows_of(crow: Tensor) -> Tensor:
    rows = torch.arange(crow.numel() - 1, dtype=crow.dtype, device=crow.device)
    return rows.repeat_interleave(crow.diff())


def _expect(holds: bool, op: str, name: str, expected: str, got) -> None:
    if not holds:
        raise ValueError(f"{op}: {name} must {expected}, got {got} (SPARSEGNN_CHECK=1)")
