"""One GATConv layer, forward and backward (and forward alone), against PyG's in both of its forms."""

import torch
from graphs import lognormal

from sparsegnn.nn import GATConv


def cases() -> list[dict]:
    size = dict(nodes=170_000, edges=2_300_000)
    return [dict(nodes=20_000, edges=200_000, heads=8, channels=8, mode="train", quick=True)] + [
        size | dict(heads=8, channels=channels, mode=mode) for channels in (8, 32) for mode in ("train", "inference")
    ]


def closure(conv, case: dict, graph):
    x = torch.randn(case["nodes"], 64, generator=torch.Generator().manual_seed(2), requires_grad=True)

    def train():
        conv(x, graph).sum().backward()
        x.grad = None
        conv.zero_grad()

    def inference():
        with torch.no_grad():
            conv(x, graph)

    return train if case["mode"] == "train" else inference


def ours(case: dict):
    graph = lognormal(case["nodes"], case["edges"])
    return closure(GATConv(64, case["channels"], case["heads"], add_self_loops=False), case, graph)


def baselines(case: dict) -> dict:
    from torch_geometric.nn import GATConv as PyG

    graph = lognormal(case["nodes"], case["edges"])
    target = torch.repeat_interleave(torch.arange(graph.num_rows), graph.crow.diff().long())
    forms = {"PyG edge_index": torch.stack([graph.col.long(), target])}
    try:
        from torch_sparse import SparseTensor

        forms["PyG torch_sparse"] = SparseTensor(
            rowptr=graph.crow.long(), col=graph.col.long(), sparse_sizes=graph.shape
        )
    except ImportError:
        pass
    make = lambda: PyG(64, case["channels"], case["heads"], add_self_loops=False)  # noqa: E731
    return {name: closure(make(), case, form) for name, form in forms.items()}


def work(case: dict) -> dict:
    """Forward: the linear, and 2 FLOPs per edge and column; backward: twice that. Bytes: features in and out."""
    n, e, width = case["nodes"], case["edges"], case["heads"] * case["channels"]
    passes = 3 if case["mode"] == "train" else 1
    return dict(flop=passes * (2 * n * 64 * width + 2 * e * width), bytes=passes * (4 * e + 4 * n * (64 + 2 * width)))
