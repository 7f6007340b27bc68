"""Layers with sparse weights, drop-in for those of PyTorch and PyG."""

from sparsegnn.nn.gat import GATConv as GATConv
from sparsegnn.nn.gcn import GCNConv as GCNConv
from sparsegnn.nn.linear import SparseLinear as SparseLinear
