"""Differentiable sparse ops. The raw ops, on plain tensors, are ``torch.ops.sparsegnn.*``."""

from sparsegnn.ops import (  # noqa: F401  (they register their ops)
    act_dropout_backward,
    csr,
    features_linear_backward,
    gat_backward,
    gatv2_backward,
    maxk_expand,
    maxk_spmm_backward,
    sparse_linear_backward,
    sparse_linear_out,
    sparse_linear_probe,
    spmm_arg,
    spmm_linear,
    spmm_linear_backward,
    spmm_out,  # noqa: F401  (they register their ops)
)
from sparsegnn.ops.act_dropout import act_dropout as act_dropout
from sparsegnn.ops.block_linear import block_linear as block_linear
from sparsegnn.ops.dense_weight import dense_weight as dense_weight
from sparsegnn.ops.features_linear import features_linear as features_linear
from sparsegnn.ops.gat import gat as gat
from sparsegnn.ops.gatv2 import gatv2 as gatv2
from sparsegnn.ops.maxk import maxk as maxk
from sparsegnn.ops.maxk_spmm import maxk_spmm as maxk_spmm
from sparsegnn.ops.sddmm import sddmm as sddmm
from sparsegnn.ops.sparse_linear import sparse_linear as sparse_linear
from sparsegnn.ops.spmm import spmm as spmm
from sparsegnn.ops.spmm_gcn import gcn as gcn
from sparsegnn.ops.topology import topology_ as topology_
