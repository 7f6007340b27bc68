"""Layers with sparse weights, drop-in for those of PyTorch and PyG."""

from sparsegnn.nn.gat import GATConv as GATConv
from sparsegnn.nn.gatv2 import GATv2Conv as GATv2Conv
from sparsegnn.nn.gcn import GCNConv as GCNConv
from sparsegnn.nn.gin import GINConv as GINConv
from sparsegnn.nn.linear import SparseLinear as SparseLinear
from sparsegnn.nn.maxk import CompressedRows as CompressedRows
from sparsegnn.nn.maxk import MaxK as MaxK
from sparsegnn.nn.sage import SAGEConv as SAGEConv
