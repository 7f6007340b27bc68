"""Reads a labelled graph from an `.npz` file in the format `sparsegnn-graph-npz/1`.

Arrays: edge_index [2, E] (row 0 source, row 1 target), num_nodes, meta (JSON text with `format`), features as
`x` [N, F] or as CSR `x_data, x_indices, x_indptr, x_shape`, labels `y` [N] (-1: none), optional `train_mask,
val_mask, test_mask` [N] and `edge_weight` [E]. Nothing is unpickled. Every error is a ValueError that names the
file and the array.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np

from sparsegnn.data.types import GraphData, check_dense_size, from_numpy, normalize_rows

FORMAT = "sparsegnn-graph-npz/1"
MASKS = ("train_mask", "val_mask", "test_mask")
SPARSE = ("x_data", "x_indices", "x_indptr", "x_shape")


class _File:
    """The arrays of one archive, each checked when it is asked for."""

    def __init__(self, path: Path):
        self.path = path
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as f:
                start = f.read(2)
            raise self.error(
                "file is truncated" if start == b"PK" else "not an .npz file (a zip archive of .npy arrays)"
            )
        try:
            self.archive = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
            raise self.error(f"cannot be opened as .npz: {e}") from e
        self.names = set(self.archive.files)

    def error(self, text: str) -> ValueError:
        return ValueError(f"{self.path}: {text}")

    def require(self, condition: bool, name: str, expected: str, got: object) -> None:
        if not condition:
            raise self.error(f"array '{name}' must {expected}, got {got}")

    def get(self, name: str, shape: tuple[int | None, ...], kinds: str, what: str) -> np.ndarray:
        """Array `name`; `None` in `shape` is any size, `kinds` are numpy's dtype kinds, `what` says it in words."""
        if name not in self.names:
            raise self.error(f"array '{name}' is missing (has: {', '.join(sorted(self.names)) or 'nothing'})")
        try:
            value = self.archive[name]
        except MemoryError as e:
            raise self.error(f"array '{name}' does not fit into memory: {e}") from e
        except Exception as e:  # damage surfaces as zip, zlib, OS, tokenizer or syntax errors
            if "allow_pickle" in str(e):
                raise self.error(f"array '{name}' holds pickled objects, which are never loaded") from e
            raise self.error(f"array '{name}' is truncated or damaged: {e}") from e
        fits = len(shape) == value.ndim and all(n is None or n == m for n, m in zip(shape, value.shape, strict=True))
        wanted = "[" + ", ".join("*" if n is None else str(n) for n in shape) + "]"
        self.require(fits, name, f"have shape {wanted}", list(value.shape))
        self.require(value.dtype.kind in kinds, name, f"be {what}", value.dtype)
        return value

    def integers(self, name: str, shape: tuple[int | None, ...], low: int, high: int | None) -> np.ndarray:
        """Integers in [low, high), as int64."""
        value = self.get(name, shape, "iu", "integers")
        if value.size:
            least, most = int(value.min()), int(value.max())
            self.require(least >= low, name, f"be at least {low}", least)
            self.require(high is None or most < high, name, f"be below {high}", most)
        return value.astype(np.int64)

    def numbers(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """Finite numbers, as float32."""
        value = self.get(name, shape, "fiub", "numbers")
        with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which is refused below
            value = value.astype(np.float32)
        bad = int(value.size - np.count_nonzero(np.isfinite(value)))
        self.require(bad == 0, name, "be finite", f"{bad} NaN or infinite value(s)")
        return value


def _refuse(file: _File, meta: dict) -> None:
    """Kinds of graph this training run cannot take, each with its reason."""
    if "edge_time" in file.names or meta.get("deduplicated") is False:
        raise file.error("temporal graph (array 'edge_time'): only static graphs are supported")
    if "y_multi" in file.names:
        raise file.error("multi-label set (array 'y_multi'): only one label per node is supported")
    if "y" not in file.names:
        raise file.error("unlabelled set (no array 'y'): node classification needs labels")
    if "x" not in file.names and "x_data" not in file.names:
        part = " ('part_x_*' covers only some nodes)" if "part_rows" in file.names else ""
        raise file.error(f"set without features (no array 'x' or 'x_data'){part}: a feature matrix is needed")


def _meta(file: _File) -> dict:
    text = str(file.get("meta", (), "U", "JSON text"))
    try:
        meta = json.loads(text)
    except ValueError as e:
        raise file.error(f"array 'meta' must be JSON, got {text[:40]!r}") from e
    found = meta.get("format") if isinstance(meta, dict) else None
    file.require(found == FORMAT, "meta", f"say format {FORMAT!r}", repr(found))
    return meta


def _sparse_features(file: _File, num_nodes: int) -> np.ndarray:
    """CSR features as a dense matrix."""
    rows, width = (int(n) for n in file.integers("x_shape", (2,), 0, None))
    file.require(rows == num_nodes, "x_shape", f"start with the number of nodes {num_nodes}", rows)
    check_dense_size(rows, width, str(file.path))
    data = file.numbers("x_data", (None,))
    indptr = file.integers("x_indptr", (rows + 1,), 0, data.size + 1)
    counts = np.diff(indptr)
    ends = (int(indptr[0]), int(indptr[-1]))
    file.require(ends == (0, data.size), "x_indptr", f"run from 0 to {data.size}", f"{ends[0]} to {ends[1]}")
    file.require(bool((counts >= 0).all()), "x_indptr", "not decrease", "a decreasing step")
    indices = file.integers("x_indices", (data.size,), 0, width)
    x = np.zeros((rows, width), dtype=np.float32)
    np.add.at(x.reshape(-1), np.repeat(np.arange(rows) * width, counts) + indices, data)
    return x


def _masks(file: _File, y: np.ndarray) -> dict[str, np.ndarray]:
    if not file.names.intersection(MASKS):
        return {}
    masks = {name: file.get(name, y.shape, "b", "boolean") for name in MASKS}
    taken = np.zeros(y.shape, dtype=bool)
    for name, mask in masks.items():
        file.require(bool(mask.any()), name, "select at least one node", 0)
        file.require(bool((y[mask] >= 0).all()), name, "select labelled nodes only", "nodes with label -1")
        file.require(
            not (mask & taken).any(), name, "not overlap the other masks", f"{int((mask & taken).sum())} shared"
        )
        taken |= mask
    return masks


def load_npz(path: str | Path, split_seed: int = 0, normalize: bool | None = None) -> GraphData:
    """The graph in `path`. `normalize` divides feature rows by their sum; None does so for CSR (bag-of-words) features.

    A set without masks gets a 60/20/20 split over its labelled nodes by `split_seed`.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        file = _File(path)
    except OSError as e:
        raise ValueError(f"{path}: cannot be read: {e}") from e
    with file.archive:
        file.get("edge_index", (2, None), "iu", "integers")
        meta = _meta(file)
        _refuse(file, meta)
        num_nodes = int(file.integers("num_nodes", (), 1, 2**31))
        arrays = {"edge_index": file.integers("edge_index", (2, None), 0, num_nodes)}
        arrays["y"] = file.integers("y", (num_nodes,), -1, num_nodes)
        file.require(int(arrays["y"].max()) >= 1, "y", "hold at least two classes", int(arrays["y"].max()) + 1)
        sparse = "x_data" in file.names
        if sparse and "x" in file.names:
            raise file.error("arrays 'x' and 'x_data' are both there; exactly one of them holds the features")
        if sparse:
            arrays["x"] = _sparse_features(file, num_nodes)
        else:
            arrays["x"] = file.numbers("x", (num_nodes, None))
            check_dense_size(*arrays["x"].shape, str(path))
        file.require(arrays["x"].shape[1] > 0, "x", "have at least one column", 0)
        if "edge_weight" in file.names:
            arrays["edge_weight"] = file.numbers("edge_weight", (arrays["edge_index"].shape[1],))
            file.require(bool((arrays["edge_weight"] >= 0).all()), "edge_weight", "not be negative", "negative values")
        arrays.update(_masks(file, arrays["y"]))
    notes: tuple[str, ...] = ()
    if sparse if normalize is None else normalize:
        arrays["x"], notes = normalize_rows(arrays["x"]), ("feature rows divided by their sum",)
    return from_numpy(arrays, str(meta.get("name") or path.stem), split_seed, notes)
