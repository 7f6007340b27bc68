"""A study of a few seconds, on a graph in a file, and what of its rows is not time or memory."""

import json
from pathlib import Path

import numpy as np

from sparsegnn import data

TOML = """\
name = "tiny"
seeds = 2
threads = 1
sparsity = [0.5, 0.9]

[common]
epochs = 6

[[data]]
name = "small"
file = "small.npz"
hidden = 16

[methods.rigl]

[methods.gmp]
sparsity = 0.5

[baselines]
small_dense = ["weights"]
masked = true
"""
#: of a run, times and memory, and when and where it was
CHANGES = ("started", "environment", "peak_memory_bytes", "run_memory_bytes", "copied_from", "match")


def write_graph(path: Path, **changes) -> None:
    """A graph of 120 nodes as an .npz file."""
    graph = data.skewed(120, 6, 3, 12, signal=1.0, seed=3)
    meta = json.dumps({"format": data.FORMAT, "name": path.stem})
    arrays = {"edge_index": graph.edge_index.numpy(), "num_nodes": np.int64(120), "meta": np.array(meta),
              "x": graph.x.numpy(), "y": graph.y.numpy(), **changes}  # fmt: skip
    np.savez(path, **{name: a for name, a in arrays.items() if a is not None})


def write(folder: Path, text: str = TOML) -> Path:
    """The study's file, with its graph beside it."""
    write_graph(folder / "small.npz")
    (folder / "tiny.toml").write_text(text)
    return folder / "tiny.toml"


def rows(path: Path) -> dict[str, dict]:
    """Rows by id; every line is whole, and none is there twice."""
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    found = {row["id"]: row for row in lines}
    assert len(found) == len(lines) and path.read_bytes().endswith(b"\n")
    return found


def settled(row: dict) -> dict:
    """What must be the same however often a study was interrupted."""
    kept = {k: v for k, v in row.items() if k not in CHANGES and not k.startswith("seconds_")}
    return kept | ({"curve": [point[:4] for point in row["curve"]]} if "curve" in row else {})
