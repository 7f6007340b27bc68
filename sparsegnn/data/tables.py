"""A graph of one's own in tables: an edge list, features and labels of the nodes, as CSV or Parquet.

The first line of a CSV names the columns. Edges: ``source, target`` and perhaps ``weight``. Features: numbers, and
perhaps ``id`` (any text; else nodes are 0, 1, ... in the order of the rows), ``label`` and ``split``. Labels: ``id``,
``label`` and perhaps ``split``. A label that is empty is none; a split is train, val, test or empty.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from sparsegnn.data.types import GraphData, check_dense_size, from_numpy, normalize_rows

TEXTS = ("id", "label", "split", "source", "target")
SPLITS = ("train", "val", "test")
SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": ","}


class _Table:
    """Columns of a file by name: those in TEXTS as text, the others as float32."""

    def __init__(self, path: str | Path, need: Sequence[str], may: Sequence[str] | None):
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{path}: " + ("not a file" if self.path.exists() else "no such file"))
        self.need, self.may = need, may
        try:
            read = self._parquet if self.path.suffix in (".parquet", ".pq") else self._csv
            self.names, self.texts, self.numbers = read()
        except OSError as e:
            raise ValueError(f"{path}: cannot be read: {e.strerror or e}") from e

    def _check(self, names: list[str]) -> None:
        """Of the columns, before they are read."""
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise self.error(f"columns must have names of their own, got {', '.join(doubled)} twice")
        if missing := [name for name in self.need if name not in names]:
            raise self.error(f"column {missing[0]!r} is missing (has: {', '.join(names[:20])})")
        known = (*self.need, *(self.may or ()))
        if self.may is not None and (extra := [name for name in names if name not in known]):
            raise self.error(f"columns must be among {', '.join(known)}, got {extra[0]!r}")

    def error(self, text: str) -> ValueError:
        return ValueError(f"{self.path}: {text}")

    def __len__(self) -> int:
        return len(next(iter(self.texts.values()))) if self.texts else len(self.numbers)

    def text(self, name: str) -> np.ndarray | None:
        return self.texts.get(name)

    def _csv(self):
        if self.path.suffix not in SEPARATORS:
            raise self.error(f"must be .csv, .tsv, .txt or .parquet, got {self.path.suffix or 'no ending'!r}")
        separator = SEPARATORS[self.path.suffix]
        try:
            with open(self.path, newline="", encoding="utf-8-sig") as f:
                names = [name.strip() for name in next(csv.reader(f, delimiter=separator), [])]
        except (UnicodeDecodeError, csv.Error) as e:
            raise self.error(f"must be text in UTF-8: {e}") from None
        if not names or any(_is_number(name) or not name for name in names):
            raise self.error(f"the first line must name the columns, got {', '.join(names[:5]) or 'nothing'}")
        self._check(names)
        at = {kind: [i for i, name in enumerate(names) if (name in TEXTS) == (kind == "texts")]
              for kind in ("texts", "numbers")}  # fmt: skip
        read = {"delimiter": separator, "skiprows": 1, "comments": None, "quotechar": '"', "ndmin": 2,
                "encoding": "utf-8-sig"}  # fmt: skip
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of a file without rows, which is refused below
                texts = np.loadtxt(self.path, str, usecols=at["texts"], **read) if at["texts"] else None
                numbers = np.loadtxt(self.path, np.float32, usecols=at["numbers"], **read) if at["numbers"] else None
        except ValueError as e:
            raise self.error(
                f"must be a table of {len(names)} columns, numbers but in {', '.join(TEXTS)}: {e}"
            ) from None
        found = {names[i]: np.char.strip(texts[:, j]) for j, i in enumerate(at["texts"])} if texts is not None else {}
        return names, found, np.zeros((0, 0), np.float32) if numbers is None else numbers

    def _parquet(self):
        try:
            from pyarrow import ArrowException, parquet
        except ImportError as e:
            raise self.error("Parquet needs pyarrow: pip install pyarrow, or write the table as CSV") from e
        try:
            names = parquet.read_schema(self.path).names
        except ArrowException as e:
            raise self.error(f"must be a Parquet table: {e}") from None
        self._check(names)
        try:
            table = parquet.read_table(self.path)
            columns = {name: table[i].to_numpy() for i, name in enumerate(table.column_names)}
            texts = {n: np.array(["" if _is_none(v) else str(v).strip() for v in c]) for n, c in columns.items()
                     if n in TEXTS}  # fmt: skip
            rest = [np.asarray(c, dtype=np.float32) for n, c in columns.items() if n not in TEXTS]
        except (ArrowException, ValueError, TypeError) as e:
            raise self.error(f"must be a Parquet table of numbers but in {', '.join(TEXTS)}: {e}") from None
        return table.column_names, texts, np.stack(rest, 1) if rest else np.zeros((0, 0), np.float32)


def load_tables(edges: str | Path, features: str | Path, labels: str | Path | None = None, *, name: str = "",
                directed: bool = False, split_seed: int = 0, normalize: bool = False) -> GraphData:  # fmt: skip
    """The graph of an edge list and tables of its nodes, in the columns that :mod:`sparsegnn.data.tables` tells.

    Args:
        edges, features, labels: files; labels may be a column of the features instead.
        name: of the graph; that of the edges' file if empty.
        directed: edges hold from source to target only; else both directions are made of each.
        split_seed: seeds the 60/20/20 split where there is no column ``split``.
        normalize: divide feature rows by their sum.

    Self-loops and edges given twice are dropped, with a note. Classes are numbered in the order of their names, by
    value where all are whole numbers. Raises ValueError that names the file, the column and what is wrong.
    """
    nodes = _Table(features, (), None)
    ids = nodes.text("id")
    width = nodes.numbers.shape[1]
    if width == 0 or len(nodes) == 0:
        raise nodes.error(f"must hold a row for each node and a column of numbers, got {len(nodes)} rows of {width}")
    check_dense_size(len(nodes), width, str(nodes.path))
    bad = int(nodes.numbers.size - np.isfinite(nodes.numbers).sum())
    if bad:
        raise nodes.error(f"features must be finite, got {bad} NaN or infinite value(s)")
    ids = np.arange(len(nodes)).astype(str) if ids is None else ids
    order = np.argsort(ids, kind="stable")
    if (same := ids[order][1:] == ids[order][:-1]).any():
        raise nodes.error(f"ids must be different, got {str(ids[order][1:][same][0])!r} twice")
    arrays: dict[str, np.ndarray] = {"x": nodes.numbers}
    arrays |= _edges(_Table(edges, ("source", "target"), ("weight",)), ids, order, directed, notes := [])
    told = nodes
    if labels is not None:
        if nodes.text("label") is not None:
            raise nodes.error("labels must be here or in a file of their own, got both")
        told = _Table(labels, ("id", "label"), ("split",))
    elif nodes.text("label") is None:
        raise nodes.error("labels must be a column 'label' here, or in a file of their own: node classification needs "
                          "them")  # fmt: skip
    at = np.arange(len(ids)) if told is nodes else _find(told, "id", ids, order)
    if np.unique(at).size != at.size:
        raise told.error("ids must be different, got one twice")
    arrays["y"] = _classes(told, at, len(ids))
    arrays |= _masks(told, at, arrays["y"])
    if normalize:
        arrays["x"], notes = normalize_rows(arrays["x"]), [*notes, "feature rows divided by their sum"]
    return from_numpy(arrays, name or Path(edges).stem, split_seed, tuple(notes))


def _find(table: _Table, column: str, ids: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Where the ids of a column are among the nodes."""
    wanted = table.text(column)
    place = np.minimum(np.searchsorted(ids, wanted, sorter=order), ids.size - 1)
    found = order[place]
    missing = ids[found] != wanted
    if missing.any():
        raise table.error(f"column {column!r} must hold ids of the features' table, got {int(missing.sum())} others, "
                          f"such as {str(wanted[missing][0])!r}")  # fmt: skip
    return found


def _edges(table: _Table, ids: np.ndarray, order: np.ndarray, directed: bool, notes: list[str]) -> dict:
    source, target = (_find(table, column, ids, order) for column in ("source", "target"))
    weight = table.numbers[:, 0] if "weight" in table.names else None
    if weight is not None and not (np.isfinite(weight) & (weight >= 0)).all():
        raise table.error("column 'weight' must hold finite numbers that are not negative")
    loops = source == target
    if not directed:
        source, target = np.concatenate([source, target]), np.concatenate([target, source])
        weight = None if weight is None else np.concatenate([weight, weight])
    keep = np.flatnonzero(source != target)
    pairs, first, inverse = np.unique(source[keep] * ids.size + target[keep], return_index=True, return_inverse=True)
    if weight is not None and (weight[keep] != weight[keep][first][inverse]).any():
        raise table.error(
            "an edge that is given twice must have the same weight" + " in both directions" * (not directed)
        )
    if pairs.size == 0:
        raise table.error("must hold an edge between two nodes, got none")
    if loops.any():
        notes.append(f"{int(loops.sum())} self-loops left out")
    if directed and keep.size > pairs.size:
        notes.append(f"{keep.size - pairs.size} edges given twice left out")
    if not directed:
        notes.append("both directions of every edge")
    found = {"edge_index": np.stack([pairs // ids.size, pairs % ids.size])}
    return found if weight is None else found | {"edge_weight": weight[keep][first]}


def _classes(table: _Table, at: np.ndarray, count: int) -> np.ndarray:
    labels = table.text("label")
    names = [name for name in np.unique(labels) if name]
    with suppress(ValueError):
        names = sorted(names, key=int)
    if len(names) < 2:
        raise table.error(f"column 'label' must hold at least two classes, got {len(names)}")
    number = {name: i for i, name in enumerate(names)} | {"": -1}
    y = np.full(count, -1, dtype=np.int64)
    y[at] = [number[label] for label in labels.tolist()]
    return y


def _masks(table: _Table, at: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    split = table.text("split")
    if split is None:
        return {}
    if strange := sorted(set(split.tolist()) - {*SPLITS, ""}):
        raise table.error(f"column 'split' must hold train, val, test or nothing, got {strange[0]!r}")
    masks = {}
    for name in SPLITS:
        mask = np.zeros(y.size, dtype=bool)
        mask[at[split == name]] = True
        if not mask.any():
            raise table.error(f"column 'split' must give {name} at least one node, got none")
        if (y[mask] < 0).any():
            raise table.error(f"column 'split' must be empty where there is no label, got {name}")
        masks[f"{name}_mask"] = mask
    return masks


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_none(value: object) -> bool:
    return value is None or value != value
