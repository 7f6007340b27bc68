"""Node-classification sets that PyTorch Geometric can download."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from sparsegnn.data.types import GraphData, check_dense_size, from_numpy, normalize_rows

# name: (class in torch_geometric.datasets, its name argument, bag-of-words features)
SETS = {
    "cora": ("Planetoid", "Cora", True),
    "citeseer": ("Planetoid", "CiteSeer", True),
    "pubmed": ("Planetoid", "PubMed", True),
    "amazon_photo": ("Amazon", "Photo", True),
    "amazon_computers": ("Amazon", "Computers", True),
    "coauthor_cs": ("Coauthor", "CS", True),
    "coauthor_physics": ("Coauthor", "Physics", True),
    "roman_empire": ("HeterophilousGraphDataset", "Roman-empire", False),
    "amazon_ratings": ("HeterophilousGraphDataset", "Amazon-ratings", False),
    "flickr": ("Flickr", None, False),
    "reddit": ("Reddit", None, False),
}


def cache_folder() -> Path:
    """Where downloads are kept: SPARSEGNN_CACHE, or the user's cache folder."""
    try:
        return Path(os.environ.get("SPARSEGNN_CACHE") or Path.home() / ".cache" / "sparsegnn")
    except RuntimeError:
        raise ValueError("data: SPARSEGNN_CACHE must name a folder for downloads: this user has no home") from None


def load_pyg(name: str, split_seed: int = 0, normalize: bool | None = None) -> GraphData:
    """The set `name` of SETS, downloaded by PyG on first use."""
    kind, argument, bag_of_words = SETS[name]
    try:
        from torch_geometric import datasets
    except ImportError as e:
        raise ValueError(
            f"data: {name!r} is no local file; downloading it needs PyG: pip install torch-geometric"
        ) from e
    folder = cache_folder() / name
    try:
        dataset = getattr(datasets, kind)(str(folder), *([argument] if argument else []))
        graph = dataset[0]
    except Exception as e:  # urllib, requests, fsspec, zip and ssl errors: PyG does not say which
        reason = str(e).splitlines()[0] if str(e) else ""
        raise ValueError(
            f"data: {name!r} is no local file and downloading it failed ({type(e).__name__}: {reason}); "
            f"put {name}.npz into ./data or set SPARSEGNN_DATA"
        ) from e
    check_dense_size(*graph.x.shape, name)
    arrays = {"x": graph.x.numpy(), "edge_index": graph.edge_index.numpy(), "y": graph.y.view(-1).numpy()}
    for mask in ("train_mask", "val_mask", "test_mask"):
        value = getattr(graph, mask, None)
        if value is not None:
            arrays[mask] = (value[:, split_seed % value.size(1)] if value.dim() == 2 else value).numpy().astype(bool)
    notes = (f"downloaded by PyG ({kind})",)
    if bag_of_words if normalize is None else normalize:
        arrays["x"] = normalize_rows(np.array(arrays["x"], dtype=np.float32))
        notes = (*notes, "feature rows divided by their sum")
    return from_numpy(arrays, name, split_seed, notes)
