"""Layers with sparse weights, drop-in for those of PyTorch and PyG."""

from sparsegnn.nn.appnp import APPNP as APPNP
from sparsegnn.nn.gat import GATConv as GATConv
from sparsegnn.nn.gatv2 import GATv2Conv as GATv2Conv
from sparsegnn.nn.gcn import GCNConv as GCNConv
from sparsegnn.nn.gcn2 import GCN2Conv as GCN2Conv
from sparsegnn.nn.gin import GINConv as GINConv
from sparsegnn.nn.graph_conv import GraphConv as GraphConv
from sparsegnn.nn.linear import SparseLinear as SparseLinear
from sparsegnn.nn.maxk import CompressedRows as CompressedRows
from sparsegnn.nn.maxk import MaxK as MaxK
from sparsegnn.nn.sage import SAGEConv as SAGEConv
from sparsegnn.nn.sgc import SGConv as SGConv
from sparsegnn.nn.tag import TAGConv as TAGConv
