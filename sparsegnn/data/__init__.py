"""Graphs to train on: embedded sets, `.npz` files, and PyG's downloads, all as one GraphData."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from sparsegnn.data.embedded import digits, skewed
from sparsegnn.data.npz import FORMAT, load_npz
from sparsegnn.data.pyg import SETS, load_pyg
from sparsegnn.data.tables import load_tables
from sparsegnn.data.types import MAX_DENSE_BYTES, GraphData, random_split

__all__ = ["EMBEDDED", "FORMAT", "MAX_DENSE_BYTES", "SETS", "GraphData", "digits", "load", "load_npz", "load_pyg",
           "load_tables", "random_split", "skewed"]  # fmt: skip

EMBEDDED: dict[str, Callable[..., GraphData]] = {"digits": digits, "skewed": skewed}


def folders() -> list[Path]:
    """Where bare names are looked up: SPARSEGNN_DATA (folders separated like PATH), then ./data."""
    given = [Path(p) for p in os.environ.get("SPARSEGNN_DATA", "").split(os.pathsep) if p]
    return [*given, Path("data")]


def load(name: str | Path, *, split_seed: int = 0, normalize: bool | None = None) -> GraphData:
    """A graph by name or path.

    Looked up in this order: an embedded set (`digits`, `skewed`), a path to an `.npz` file, `<name>.npz` in the
    folder of the environment variable SPARSEGNN_DATA or in ./data, a set that PyG can download.
    `split_seed` seeds the 60/20/20 split of sets without masks; `normalize` divides feature rows by their sum
    (None: for bag-of-words features only). Raises ValueError that names the file and array at fault.
    """
    text = str(name)
    if not text:
        raise ValueError("data: must be a name or a path, got an empty string")
    if text in EMBEDDED:
        return EMBEDDED[text](split_seed=split_seed)
    try:
        if text.endswith(".npz") or Path(text).name != text or Path(text).is_file():
            return load_npz(text, split_seed, normalize)
        for folder in folders():
            if (folder / f"{text}.npz").is_file():
                return load_npz(folder / f"{text}.npz", split_seed, normalize)
    except OSError as e:  # a name that is too long, say
        raise ValueError(f"data: {text[:80]!r} cannot be looked up: {e.strerror}") from e
    key = text.lower().replace("-", "_")
    if key in SETS:
        return load_pyg(key, split_seed, normalize)
    raise ValueError(
        f"data: no set named {text!r}: not embedded ({', '.join(EMBEDDED)}), no {text}.npz in "
        f"{', '.join(str(f) for f in folders())}, not one that PyG downloads ({', '.join(SETS)})"
    )
