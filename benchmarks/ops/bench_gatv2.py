"""A layer of GATv2, its linear maps included, forward or forward and backward, against both forms of PyG's."""

from ops.bench_gat import arguments, inputs, step
from ops.bench_gat import cases as gat_cases

from sparsegnn.nn import GATv2Conv


def cases() -> list[dict]:
    return [case for case in gat_cases() if case["width"] == 8]


def ours(case: dict):
    graph, x = inputs(case)
    return step(GATv2Conv(*arguments(case), add_self_loops=False), x, graph, case["train"])


def baselines(case: dict) -> dict:
    try:
        from torch_geometric.nn import GATv2Conv as Theirs
    except ImportError:
        return {}
    from ops.bench_gat import forms

    graph, x = inputs(case)
    layers = {name: (Theirs(*arguments(case), add_self_loops=False), form) for name, form in forms(graph).items()}
    return {name: step(layer, x, form, case["train"]) for name, (layer, form) in layers.items()}


def work(case: dict) -> dict:
    """Two linear maps, the scores and the weighted sum over edges; backward three passes over the edges' rows."""
    n, e, width, passes = case["nodes"], case["edges"] + case["nodes"], case["heads"] * case["width"], 1
    flop = 4 * n * case["inputs"] * width + 5 * e * width
    if case["train"]:
        passes, flop = 4, 8 * n * case["inputs"] * width + 22 * e * width
    return dict(flop=flop, bytes=passes * (4 * n * (case["inputs"] + 3 * width) + 4 * e))
