"""Models of PyG, and edges for them."""

import torch
import torch_geometric.nn as pyg

N = 30
OURS = "ours"


def edges(n=N, m=N, e=150):
    return torch.stack([torch.randint(n, (e,)), torch.randint(m, (e,))])


MODELS = {
    "gcn": lambda: pyg.GCN(6, 8, 2, 4),
    "sage": lambda: pyg.GraphSAGE(6, 8, 2, 4),
    "gin": lambda: pyg.GIN(6, 8, 2, 4),
    "gat": lambda: pyg.GAT(6, 8, 2, 4, heads=2),
    "gatv2": lambda: pyg.GAT(6, 8, 2, 4, heads=2, v2=True),
}
