"""Whether a graph convolution runs as one op, spmm_linear, or as spmm and sparse_linear one after the other."""

import torch
from torch import Tensor

#: Types of devices on which spmm_linear has a kernel of its own; elsewhere it is the two ops, and nothing is gained.
DEVICES = {"cuda"}
#: Of a weight: beyond, its packed entries (8 bytes each in fp32) would be as many bytes as a tile gathers.
MOST_WEIGHTS = 1 << 16
# As in csrc/cuda/spmm_linear.cuh: shared memory of a block, what the gather takes of it, the stride of a narrow tile.
_SHARED, _GATHER, _STRIDE = 96 * 1024, 8 * 1024 + 144, 34


def fits(width: int, dtype: torch.dtype, beside: int | None = None) -> bool:
    """Whether a tile of 32 rows of this width fits a block: of x, or of dy ``beside`` panels of an x of that width."""
    column = _STRIDE * dtype.itemsize
    rest = _SHARED - (width + 1) * column
    if beside is None:
        return rest >= _GATHER
    return rest // 16 * 16 >= _GATHER and rest // 16 * 16 // column >= min(beside, 32)


def fused(x: Tensor, edges: int, outputs: int, weights: int) -> bool:
    """Whether ``L x W.T``, aggregation first, should run as one op.

    Without gradients: always. With them the one op gathers the gradient at the width of the output where the two
    gather at that of the input, but spares five passes over the nodes: L x and its gradient, written and read, and a
    second time the gradient of the output. Where x needs no gradient, as in a first layer, the two ops gather once in
    all, the one op twice. In bytes of memory: an estimate, not measured.
    """
    if x.device.type not in DEVICES or x.layout != torch.strided or weights > MOST_WEIGHTS:
        return False
    nodes, inputs = x.shape
    if not fits(inputs, x.dtype):
        return False
    if not torch.is_grad_enabled():
        return True
    more, spared = edges * (outputs - inputs), nodes * (3 * inputs + 2 * outputs)
    return x.requires_grad and fits(outputs, x.dtype, inputs) and more <= spared
