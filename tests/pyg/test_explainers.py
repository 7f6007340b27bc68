"""Explanations are the same of PyG's model, of that accelerated, and of this library's with the same weights."""

import pytest
import torch
from pyg.oracle import accelerated, paths
from pyg.pairs import KINDS, Net, both, features, graph
from torch_geometric.explain import (
    AttentionExplainer,
    CaptumExplainer,
    Explainer,
    GNNExplainer,
    GraphMaskExplainer,
    PGExplainer,  # fmt: skip
)

import sparsegnn
from sparsegnn import nn

CONFIG = dict(mode="multiclass_classification", task_level="node", return_type="raw")
MASKS = dict(node_mask_type="attributes", edge_mask_type="object")
COVERED = ["GCNConv", "SAGEConv", "SAGEConv, max", "GraphConv, mean", "GINConv", "SGConv", "TAGConv", "APPNP",
           "GATConv", "GATv2Conv"]  # fmt: skip
covered = pytest.mark.parametrize("kind", COVERED)


def three(kind):
    """PyG's model, that accelerated, and this library's."""
    ours, theirs = both(kind)
    return theirs, accelerated(theirs), ours


def single(model):
    return model.float(), features().float()


def agree(made, **tolerance):
    """Each explanation, a list of tensors, is the first one, which says something."""
    for other in made[1:]:
        for got, want in zip(other, made[0], strict=True):
            torch.testing.assert_close(got, want, **tolerance)
    assert all(t.count_nonzero() and t.unique().numel() > 1 for t in made[0])


def explained(kind, make, index=11, kind_of="model", **masks):
    made = []
    for model in three(kind):
        torch.manual_seed(0)
        explainer = Explainer(model, make(), explanation_type=kind_of, model_config=CONFIG, **masks)
        found = explainer(features(), graph(), index=index)
        made.append([mask for mask in (found.get("edge_mask"), found.get("node_mask")) if mask is not None])
        if any(paths(model)):
            model(features(), graph())
            assert set(paths(model).values()) == {"ours"}
    return made


@covered
def test_gnn_explainer(kind):
    agree(explained(kind, lambda: GNNExplainer(epochs=10), **MASKS), rtol=1e-6, atol=1e-8)


@pytest.mark.sampled(3)
@covered
@pytest.mark.parametrize("name", ["IntegratedGradients", "Saliency", "Deconvolution", "ShapleyValueSampling"])
def test_captum_explainer(kind, name):
    pytest.importorskip("captum")
    masks = dict(node_mask_type="attributes") if name == "Deconvolution" else MASKS
    if name == "ShapleyValueSampling":
        masks = dict(edge_mask_type="object")
    options = dict(n_samples=1) if name == "ShapleyValueSampling" else {}
    agree(explained(kind, lambda: CaptumExplainer(name, **options), **masks), rtol=1e-6, atol=1e-8)


@covered
def test_pg_explainer(kind):
    made = []
    for model in three(kind):
        model, x = single(model)
        edges, target = graph(), torch.arange(30) % 4
        torch.manual_seed(0)
        algorithm = PGExplainer(epochs=2, lr=0.01)
        explainer = Explainer(model, algorithm, explanation_type="phenomenon", model_config=CONFIG,
                              edge_mask_type="object")  # fmt: skip
        losses = [
            algorithm.train(epoch, model, x, edges, target=target, index=node) for epoch in range(2) for node in (3, 7)
        ]
        found = explainer(x, edges, target=target, index=5)
        made.append([torch.tensor(losses), found.edge_mask])
    agree(made, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["GATConv", "GATv2Conv", "GATConv, no loops"])
def test_attention_explainer(kind):
    agree(explained(kind, AttentionExplainer, edge_mask_type="object"))


@pytest.mark.parametrize("kind", ["GCNConv", "SAGEConv", "GraphConv, mean", "GATConv"])
def test_graph_mask_explainer(kind):
    made = []
    for model in three(kind):
        model, x = single(model)
        torch.manual_seed(0)
        explainer = Explainer(model, GraphMaskExplainer(2, epochs=2, log=False), explanation_type="model",
                              model_config=CONFIG, **MASKS)  # fmt: skip
        found = explainer(x, graph(), index=7)
        made.append([found.node_mask, found.edge_mask])
    agree(made[:1] + made[1:], rtol=1e-3, atol=1e-5)


def test_sparse_weights_are_explained_as_they_are():
    torch.manual_seed(0)
    model = sparsegnn.sparsify(Net(KINDS["GATConv"], nn), 0.5)
    dense = sparsegnn.densify(model, inplace=False)
    made = []
    for net in (model, dense):
        torch.manual_seed(1)
        explainer = Explainer(net, GNNExplainer(epochs=5), explanation_type="model", model_config=CONFIG, **MASKS)
        found = explainer(features().float(), graph(), index=3)
        made.append([found.edge_mask, found.node_mask])
    agree(made, rtol=1e-3, atol=1e-5)
