"""Does the installed sparsegnn work here? `python -I check_install.py` prints one JSON object, or fails.

Every op has a compiled CPU kernel, layers and their gradients agree with formulas in plain PyTorch, and a short sparse
training learns with its number of weights fixed. Nothing here needs a checkout, so that it can judge any installation.
"""

import json
import os
import platform
import sys

os.environ["SPARSEGNN_STRICT"] = "1"  # a missing kernel is an error
import torch  # noqa: E402

import sparsegnn
from sparsegnn._info import info
from sparsegnn.experiments.config import TrainConfig
from sparsegnn.experiments.train import train
from sparsegnn.nn import GATConv, GCNConv, SparseLinear


def compare(name: str, parameters: list, got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Outputs and gradients of a layer and of its formula, which share their parameters."""
    flow = torch.randn_like(got)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5, msg=lambda m: f"{name}: {m}")
    pairs = zip(torch.autograd.grad(got, parameters, flow), torch.autograd.grad(wanted, parameters, flow), strict=True)
    for i, (ours, theirs) in enumerate(pairs):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=lambda m, i=i: f"{name}, gradient {i}: {m}")


def dense(layer: SparseLinear) -> torch.Tensor:
    """The weight with its zeros, differentiable in `values`."""
    crow, col = layer.pattern()
    rows = torch.arange(layer.out_features).repeat_interleave(crow.diff())
    return torch.zeros(layer.out_features, layer.in_features).index_put((rows, col.long()), layer.values)


def check_layers() -> None:
    torch.manual_seed(0)
    nodes, edges, width, heads = 300, 3000, 48, 4
    edge_index = torch.stack([torch.randint(nodes, (edges,)), torch.randint(nodes - 9, (edges,))])
    edge_index = torch.unique(edge_index[:, edge_index[0] != edge_index[1]], dim=1)
    graph = sparsegnn.CSRGraph.from_edge_index(edge_index, nodes)
    x = torch.randn(nodes, 70, requires_grad=True)
    source, target = torch.cat([edge_index, torch.arange(nodes).expand(2, -1)], 1)
    degree = torch.bincount(target, minlength=nodes).float()

    linear = SparseLinear(70, width, sparsity=0.9)
    formula = torch.nn.functional.linear(x, dense(linear), linear.bias)
    compare("SparseLinear", [x, linear.values, linear.bias], linear(x), formula)

    gcn = GCNConv(70, width, sparsity=0.9)
    messages = (x @ dense(gcn.lin).T)[source] * (degree[source] * degree[target]).rsqrt()[:, None]
    formula = torch.zeros(nodes, width).index_add(0, target, messages) + gcn.bias
    compare("GCNConv", [x, gcn.lin.values, gcn.bias], gcn(x, graph), formula)

    gat = GATConv(70, width // heads, heads=heads, sparsity=0.9)
    h = (x @ dense(gat.lin).T).view(nodes, heads, -1)
    scores = (h * gat.att_src).sum(-1)[source] + (h * gat.att_dst).sum(-1)[target]
    scores = torch.nn.functional.leaky_relu(scores, 0.2).exp()
    alpha = scores / torch.zeros(nodes, heads).index_add(0, target, scores)[target]
    formula = torch.zeros_like(h).index_add(0, target, alpha[..., None] * h[source]).flatten(1) + gat.bias
    compare("GATConv", [x, gat.lin.values, gat.att_src, gat.att_dst, gat.bias], gat(x, graph), formula)


def check_training() -> float:
    graph = sparsegnn.data.load("digits")
    config = TrainConfig(data="digits", model="gcn", method="rigl", sparsity=0.9, hidden=64, epochs=30)
    result = train(config, graph)
    assert result["test_accuracy"] > 0.8, result["test_accuracy"]
    assert abs(result["sparsity"] - 0.9) < 0.01, result["sparsity"]
    return result["test_accuracy"]


def main() -> None:
    content = info()
    fallbacks = {row["op"]: row["cpu"] for row in content["ops"] if row["cpu"].startswith("fallback")}
    assert not fallbacks, fallbacks
    compiled = sum(row["cpu"] == "compiled" for row in content["ops"])  # the others are PyTorch by design
    check_layers()
    facts = dict(
        python=platform.python_version(),
        torch=str(torch.__version__),
        package=os.path.dirname(sparsegnn.__file__),
        isa=torch.ops.sparsegnn.isa(),
        compiled=compiled,
        accuracy=round(check_training(), 3),
        build=content["build"],
        libraries=content["libraries"],
    )
    json.dump(facts, sys.stdout)


if __name__ == "__main__":
    main()
