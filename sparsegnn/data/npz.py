"""Reads a labelled graph from an `.npz` file in the format `sparsegnn-graph-npz/1`.

Arrays: edge_index [2, E] (row 0 source, row 1 target), num_nodes, meta (JSON text with `format`), features as
`x` [N, F] or as CSR `x_data, x_indices, x_indptr, x_shape`, labels `y` [N] (-1: none), optional `train_mask,
val_mask, test_mask` [N] and `edge_weight` [E]. Nothing is unpickled. Every error is a ValueError that names the
file and the array.
"""

from __future__ import annotations

import json
import math
import reprlib
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from sparsegnn.data.types import GraphData, available_memory, check_dense_size, from_numpy, normalize_rows

FORMAT = "sparsegnn-graph-npz/1"
MASKS = ("train_mask", "val_mask", "test_mask")
SPARSE = ("x_data", "x_indices", "x_indptr", "x_shape")
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
MOST_DEFLATED = 1032  # bytes that one byte of deflate can stand for
MOST_META = 1 << 20


class _File:
    """The arrays of one archive, each checked when it is asked for, by what its header says before it is read."""

    def __init__(self, path: Path):
        self.path = path
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as f:
                start = f.read(2)
            raise self.error(
                "file is truncated" if start == b"PK" else "not an .npz file (a zip archive of .npy arrays)"
            )
        try:
            self.archive = zipfile.ZipFile(path)
        except OSError:
            raise
        except Exception as e:  # damage surfaces as zip, struct, value or decoding errors
            raise self.error(f"cannot be opened as .npz: {e}") from e
        self.size = path.stat().st_size
        self.members = {}
        for info in self.archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in self.members:
                raise self.error(f"array {_shown(name)} is there more than once")
            self.members[name] = info
        self.names = set(self.members)

    def error(self, text: str) -> ValueError:
        return ValueError(f"{self.path}: {text}")

    def require(self, condition: bool, name: str, expected: str, got: object) -> None:
        if not condition:
            raise self.error(f"array '{name}' must {expected}, got {got}")

    def get(
        self, name: str, shape: tuple[int | None, ...], kinds: str, what: str, most: int | None = None
    ) -> np.ndarray:
        """Array `name`; `None` in `shape` is any size, `kinds` are numpy's dtype kinds, `what` says it in words.

        What its header claims must be what was asked for, no more bytes than `most`, than the archive holds, and than
        there is memory for: once as it is, and once with the eight bytes for each number that it may need later.
        """
        found, dtype, start = self.header(name)
        fits = len(shape) == len(found) and all(n is None or n == m for n, m in zip(shape, found, strict=True))
        wanted = "[" + ", ".join("*" if n is None else str(n) for n in shape) + "]"
        self.require(fits and min(found, default=0) >= 0, name, f"have shape {wanted}", list(found))
        self.require(dtype.kind in kinds, name, f"be {what}", dtype)
        size, info = math.prod(found) * dtype.itemsize, self.members[name]
        if most is not None:
            self.require(size <= most, name, f"have at most {most} bytes", size)
        got = f"{info.file_size - start} of {size} bytes"
        self.require(size == info.file_size - start, name, "be complete, not truncated or damaged", got)
        possible = MOST_DEFLATED * min(info.compress_size, self.size) + 64
        self.require(info.file_size <= possible, name, "be complete, not truncated or damaged", "a false size")
        needed, free = size + 8 * math.prod(found), available_memory()
        self.require(needed <= free, name, f"fit into {free / 2**30:.1f} GiB of memory", f"{needed / 2**30:.1f} GiB")
        return self.guarded(name, lambda f: np.lib.format.read_array(f, allow_pickle=False))

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype, int]:
        """Shape, type, and position of the data of array `name`."""
        if name not in self.names:
            raise self.error(f"array '{name}' is missing (has: {_listed(self.names)})")
        info = self.members[name]
        if info.flag_bits & 1:
            raise self.error(f"array '{name}' is encrypted, which is not supported")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self.error(f"array '{name}' must be stored or deflated, got compression {info.compress_type}")

        def read(f):
            version = np.lib.format.read_magic(f)
            if version not in HEADERS:
                raise ValueError(f"version {version} of the .npy format")
            try:
                shape, _, dtype = HEADERS[version](f)
            except MemoryError as e:  # of Python's parser
                raise ValueError("a header that is too deep") from e
            return shape, dtype, f.tell()

        shape, dtype, start = self.guarded(name, read)
        if dtype.hasobject:
            raise self.error(f"array '{name}' holds pickled objects, which are never loaded")
        return shape, dtype, start

    def guarded(self, name: str, read: Callable):
        """`read(file)` of array `name`, whose damage has many ways to show."""
        try:
            with self.archive.open(self.members[name]) as f:
                return read(f)
        except MemoryError as e:
            raise self.error(f"array '{name}' does not fit into memory: {e}") from e
        except Exception as e:  # zip, zlib, OS, tokenizer, syntax and recursion errors
            text = (str(e).splitlines() or [type(e).__name__])[0][:120]
            raise self.error(f"array '{name}' is truncated or damaged: {text}") from e

    def integers(self, name: str, shape: tuple[int | None, ...], low: int, high: int) -> np.ndarray:
        """Integers in [low, high), as int64."""
        value = self.get(name, shape, "iu", "integers")
        if value.size:
            least, most = int(value.min()), int(value.max())
            self.require(least >= low, name, f"be at least {low}", least)
            self.require(most < high, name, f"be below {high}", most)
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


def meta_of(file: _File) -> dict:
    value, text = file.get("meta", (), "U", "JSON text", MOST_META), None
    try:
        text = value.astype(value.dtype.newbyteorder("<")).tobytes().decode("utf-32-le").rstrip("\0")
        meta = json.loads(text)
    except (ValueError, RecursionError) as e:  # no characters, no JSON, or too deep
        got = "what is no text" if text is None else reprlib.repr(text)
        raise file.error(f"array 'meta' must be JSON, got {got}") from e
    found = meta.get("format") if isinstance(meta, dict) else None
    file.require(found == FORMAT, "meta", f"say format {FORMAT!r}", reprlib.repr(found))
    name = meta.get("name")
    file.require(name is None or isinstance(name, str), "meta", "have a text as name", reprlib.repr(name))
    return meta


def _shown(name: str) -> str:
    return name if name.isidentifier() else reprlib.repr(name)


def _listed(names: Iterable[str], most: int = 20) -> str:
    shown = [_shown(name) for name in sorted(names)]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "") or "nothing"


def _sparse_features(file: _File, num_nodes: int) -> np.ndarray:
    """CSR features as a dense matrix."""
    rows, width = (int(n) for n in file.integers("x_shape", (2,), 0, 2**31))
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
    with np.errstate(over="ignore"):  # of entries given twice: infinite, which is refused later
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


def open_npz(path: str | Path) -> _File:
    """The file at `path`, nothing of which has been read."""
    path = Path(path)
    try:
        if not path.is_file():
            raise ValueError(f"{path}: " + ("not a file" if path.exists() else "no such file"))
        return _File(path)
    except OSError as e:
        raise ValueError(f"{path}: cannot be read: {e}") from e


def load_npz(path: str | Path, split_seed: int = 0, normalize: bool | None = None) -> GraphData:
    """The graph in `path`. `normalize` divides feature rows by their sum; None does so for CSR (bag-of-words) features.

    A set without masks gets a 60/20/20 split over its labelled nodes by `split_seed`.
    """
    path = Path(path)
    file = open_npz(path)
    with file.archive:
        file.header("edge_index")  # that it is missing is said before all else
        meta = meta_of(file)
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
            shape, _, _ = file.header("x")
            if len(shape) == 2 and shape[0] == num_nodes:
                check_dense_size(*shape, str(path))
            arrays["x"] = file.numbers("x", (num_nodes, None))
        file.require(arrays["x"].shape[1] > 0, "x", "have at least one column", 0)
        if "edge_weight" in file.names:
            arrays["edge_weight"] = file.numbers("edge_weight", (arrays["edge_index"].shape[1],))
            file.require(bool((arrays["edge_weight"] >= 0).all()), "edge_weight", "not be negative", "negative values")
        arrays.update(_masks(file, arrays["y"]))
    notes: tuple[str, ...] = ()
    if sparse if normalize is None else normalize:
        with np.errstate(over="ignore", invalid="ignore"):
            arrays["x"], notes = normalize_rows(arrays["x"]), ("feature rows divided by their sum",)
    finite = bool(np.isfinite(arrays["x"]).all())  # still, with entries given twice added and rows divided
    file.require(finite, "x_data" if sparse else "x", "be finite in sums and quotients", "an overflow")
    return from_numpy(arrays, str(meta.get("name") or path.stem), split_seed, notes)
