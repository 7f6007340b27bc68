"""Whether a graph convolution runs as one op, spmm_linear, or as spmm and sparse_linear one after the other."""

import torch
from torch import Tensor

#: Types of devices on which spmm_linear has a kernel of its own; elsewhere it is the two ops, and nothing is gained.
DEVICES = {"cuda"}
#: Of a weight: beyond, its packed entries (8 bytes each in fp32) would be as many bytes as a tile gathers.
MOST_WEIGHTS = 1 << 16
# As in csrc/cuda/spmm_linear.cuh: shared memory of a block, what pieces of rows take of it, samples of a narrow tile.
_SHARED, _PIECES, _SAMPLES = 96 * 1024, 8 * 1024, 32
#: Bytes of a gathered table that the L2 keeps: 3/5 of an H200's 60 MB, as csrc/common/segments.cuh asks the device for.
CACHED = 36 << 20
# Expected of an H200, to be measured: bytes a second from memory and from the L2, the widest and narrowest slices of
# rows that spmm gathers by themselves, and multiply-adds a second by size of a number.
_MEMORY, _L2, _SLICES, _MULTIPLY = 4.3e12, 9.7e12, (512, 128), {2: 1e13, 4: 6e12, 8: 3e12}


def fits(width: int, dtype: torch.dtype, beside: int | None = None) -> bool:
    """Whether a tile of 32 rows of this width fits a block: of x, or of dy ``beside`` panels of an x of that width."""
    column = _SAMPLES * dtype.itemsize + 16
    outputs = 64 * (8 * min(16, 4 * dtype.itemsize) + 16)  # on their way to memory
    rest = _SHARED - (width + 1) * column
    return rest >= max(_PIECES, outputs) + 144 and (beside is None or rest // column >= min(beside, 32))


def fused(x: Tensor, edges: int, outputs: int, weights: int) -> bool:
    """Whether ``L x W.T``, aggregation first, should run as one op: where it can, and is expected to be faster."""
    if x.device.type not in DEVICES or x.layout != torch.strided or weights > MOST_WEIGHTS:
        return False
    train = torch.is_grad_enabled()
    nodes, inputs = x.shape
    if not fits(inputs, x.dtype) or (train and not fits(outputs, x.dtype, inputs)):
        return False
    one, two = expected(nodes, edges, inputs, outputs, weights, x.dtype.itemsize, train, train and x.requires_grad)
    return one < two


def _again(nodes: int, edges: int, row: int, piece: int) -> int:
    """Bytes of indices and values that slices of a row read beyond the first."""
    return (-(-row // piece) - 1) * (8 * edges + 4 * nodes)


def slice_bytes(nodes: int, edges: int, width: int, size: int) -> int:
    """Bytes of the slices in which spmm gathers rows, as segment_lanes of csrc/common/segments.cuh; 0: whole rows."""
    row, piece = width * size, _SLICES[0]
    table = nodes * row
    while piece > _SLICES[1] and nodes * piece > CACHED:
        piece //= 2
    if table <= CACHED or nodes * piece > CACHED:
        return 0
    saved = edges * row * (1 - CACHED / table) * 5 / 9
    return piece if saved > table + _again(nodes, edges, row, piece) else 0


def expected(nodes: int, edges: int, inputs: int, outputs: int, weights: int, size: int, train: bool,
             need_dx: bool) -> tuple[float, float]:  # fmt: skip
    """Seconds of one op and of two, forward and with ``train`` backward. A model, not measured.

    One op gathers while it multiplies, never writes L x or its gradient, and gathers dy at the width of the output. Two
    gather at the width of the input, the second time only where x needs a gradient, and may gather slices of rows that
    stay in the L2.
    """

    def gather(width, sliced):
        table, moved = nodes * width * size, edges * width * size
        if table <= CACHED:
            return moved / _L2
        if sliced and (piece := slice_bytes(nodes, edges, width, size)):
            return moved / _L2 + (table + _again(nodes, edges, width * size, piece)) / _MEMORY
        hits = CACHED / table
        return moved * (hits / _L2 + (1 - hits) / _MEMORY)

    def rows(*widths):
        return nodes * sum(widths) * size / _MEMORY

    product = nodes * weights / _MULTIPLY[size]
    one = max(gather(inputs, False), product) + rows(outputs)
    two = gather(inputs, True) + product + rows(inputs, inputs, outputs)
    if train:
        one += max(gather(outputs, False), product * (1 + need_dx)) + rows(inputs, inputs * need_dx)
        two += product * (1 + need_dx) + rows(inputs, outputs)
        two += gather(inputs, True) + rows(inputs, inputs, outputs) if need_dx else 0
    return one, two
