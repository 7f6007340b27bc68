"""Data to train on: embedded sets, `.npz` files, and PyG's downloads, as GraphData, EventData or SignalData."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from sparsegnn.data.embedded import digits, skewed
from sparsegnn.data.events import EventData, load_events_npz, meetings
from sparsegnn.data.npz import FORMAT, load_npz
from sparsegnn.data.pyg import SETS, load_pyg
from sparsegnn.data.signals import SignalData, load_signal_npz, ringroad
from sparsegnn.data.tables import load_tables
from sparsegnn.data.types import MAX_DENSE_BYTES, GraphData, random_split

__all__ = ["EMBEDDED", "FORMAT", "MAX_DENSE_BYTES", "SETS", "EventData", "GraphData", "SignalData", "digits", "load",
           "load_events", "load_npz", "load_pyg", "load_signal", "load_tables", "meetings", "random_split", "ringroad",
           "skewed"]  # fmt: skip

EMBEDDED: dict[str, Callable[..., GraphData]] = {"digits": digits, "skewed": skewed}
EMBEDDED_EVENTS: dict[str, Callable[..., EventData]] = {"meetings": meetings}
EMBEDDED_SIGNALS: dict[str, Callable[..., SignalData]] = {"ringroad": ringroad}


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
    text = _text(name)
    if text in EMBEDDED:
        return EMBEDDED[text](split_seed=split_seed)
    if (path := _find(text)) is not None:
        return load_npz(path, split_seed, normalize)
    key = text.lower().replace("-", "_")
    if key in SETS:
        return load_pyg(key, split_seed, normalize)
    raise _unknown(text, EMBEDDED, f", not one that PyG downloads ({', '.join(SETS)})")


def load_events(name: str | Path) -> EventData:
    """Events by name or path: the embedded `meetings`, or an `.npz` file with `edge_time`, found as by :func:`load`."""
    return _load(name, EMBEDDED_EVENTS, load_events_npz)


def load_signal(name: str | Path) -> SignalData:
    """A graph with a signal by name or path: the embedded `ringroad`, or an `.npz` file with `signal`, found as by
    :func:`load`."""
    return _load(name, EMBEDDED_SIGNALS, load_signal_npz)


def _load(name: str | Path, embedded: dict[str, Callable], read: Callable):
    text = _text(name)
    if text in embedded:
        return embedded[text]()
    if (path := _find(text)) is not None:
        return read(path)
    raise _unknown(text, embedded)


def _text(name: str | Path) -> str:
    if not str(name):
        raise ValueError("data: must be a name or a path, got an empty string")
    return str(name)


def _find(text: str) -> str | Path | None:
    """The file that a path or a bare name means; None where a name has none."""
    try:
        if text.endswith(".npz") or Path(text).name != text or Path(text).is_file():
            return text
        return next((folder / f"{text}.npz" for folder in folders() if (folder / f"{text}.npz").is_file()), None)
    except OSError as e:  # a name that is too long, say
        raise ValueError(f"data: {text[:80]!r} cannot be looked up: {e.strerror}") from e


def _unknown(text: str, embedded: dict, more: str = "") -> ValueError:
    return ValueError(
        f"data: no set named {text!r}: not embedded ({', '.join(embedded)}), no {text}.npz in "
        f"{', '.join(str(f) for f in folders())}{more}"
    )
