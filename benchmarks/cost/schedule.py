"""How rows fill lanes, warps and blocks, by the launchers' own plans: ``plans.cpp``, compiled for the host."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from cost import cubin
from cost.degrees import Graph

SOURCE = Path(__file__).with_name("plans.cpp")
EMULATOR = cubin.ROOT / "tests" / "csrc"
WARP = 32


@cache
def program() -> Path:
    """``plans``, compiled where it is not there yet."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if not compiler:
        raise cubin.Missing("no C++ compiler (c++): the launchers' plans cannot be asked for")
    folders = (EMULATOR, cubin.CSRC / "common", cubin.CSRC / "cuda")
    parts = [SOURCE, EMULATOR / "fiber.cpp", *(p for f in folders for p in f.glob("*h") if p.suffix in (".h", ".cuh"))]
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(parts))).hexdigest()[:20]
    path = cubin.folder() / f"plans-{digest}"
    if not path.is_file():
        cubin.folder().mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        cubin.run(compiler, "-std=c++17", "-O0", "-w", f"-I{cubin.CSRC}", f"-I{EMULATOR}", SOURCE,
                  EMULATOR / "fiber.cpp", "-o", temporary)  # fmt: skip
        temporary.replace(path)
    return path


@cache
def plan(question: str, *numbers: int) -> dict[str, float]:
    """An answer of ``plans.cpp``, which says what is asked for."""
    line = " ".join([question, *(str(int(n)) for n in numbers)])
    done = subprocess.run([program()], input=line + "\n", capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip() or f"plans ended with {done.returncode} at {line}")
    return json.loads(done.stdout)


@cache
def quarters(inputs: int, outputs: int, nnz: int, chunk: int, together: int) -> int:
    """Entries that the longest of every four neighbouring outputs has in a chunk, added up: a warp makes four outputs
    at once, and takes ``together`` entries of each. Nonzeros are anywhere."""
    places = np.random.default_rng(0).choice(inputs * outputs, nnz, replace=False)
    chunks = -(-inputs // chunk)
    counted = np.bincount(places // inputs * chunks + places % inputs // chunk, minlength=outputs * chunks)
    counted = -(-counted // together) * together
    counted = np.concatenate([counted, np.zeros(-outputs % 4 * chunks, counted.dtype)])
    return int(counted.reshape(-1, 4, chunks).max(1).sum())


@cache
def passes_table(header: str) -> bool:
    """Whether the launchers of ``csrc/cuda/<header>`` say what is gathered, so that slices of it may stay in the L2."""
    return re.search(r"\btable\s*=", (cubin.CSRC / "cuda" / header).read_text()) is not None


@cache
def listed() -> bool:
    """Whether the kernels walk a list of spans, longest first, which a graph keeps; else rows as they come."""
    return "struct SpanList" in (cubin.CSRC / "common" / "segments.cuh").read_text()


def occupancy(registers: int, shared: float, threads: int, sms_shared: int = 228 * 1024) -> int:
    """Warps that an SM of an H200 holds: 64 warps, 65,536 registers in steps of 256 a warp, 228 KiB with 1 KiB a
    block."""
    warps = threads // WARP
    of_registers = 65536 // (-(-max(registers, 1) * WARP // 256) * 256) // warps
    return warps * min(64 // warps, 32, of_registers, int(sms_shared // (shared + 1024)))


@dataclass(frozen=True)
class Filled:
    """One slice of columns of all rows. ``lanes``: iterations of groups by those that their warps take; ``alive``: of
    warps by those of the longest in their block; both of rows that are not cut into windows. ``warps``, and how many
    full iterations (``bodies``), single units left over (``tails``) and waits for memory (``steps``) they take."""

    lanes: float
    alive: float
    warps: float
    bodies: float
    tails: float
    steps: float


def fill(degrees: np.ndarray, groups: int, block: int, unroll: int, masked: bool, setup: float = 2.0) -> Filled:
    """``groups`` rows in a warp, ``block`` rows in a block, in this order. A row takes ``setup`` waits and one for
    every iteration: of ``unroll`` edges, and one each for those left over, or of them together if ``masked``."""
    d = np.asarray(degrees, dtype=np.int64)
    body, tail = (-(-d // unroll), np.zeros_like(d)) if masked else (d // unroll, d % unroll)
    pad = -len(d) % block

    def by_warp(a: np.ndarray) -> np.ndarray:
        return np.concatenate([a, np.zeros(pad, a.dtype)]).reshape(-1, block // groups, groups)

    steps = by_warp(setup + body + tail)
    if pad:
        steps.reshape(-1)[-pad:] = 0
    warp = steps.max(2)
    blocks = warp.max(1)
    return Filled(
        lanes=float(steps.sum() / (warp.sum() * groups)),
        alive=float(warp.sum() / (blocks.sum() * warp.shape[1])),
        warps=float((warp > 0).sum()),
        bodies=float(by_warp(body).max(2).sum()),
        tails=float(by_warp(tail).max(2).sum()),
        steps=float(warp.sum()),
    )


def cut(degrees: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that a group takes whole, the others empty; and the edges of the others in every window of edges."""
    d = np.asarray(degrees, dtype=np.int64)
    ends = np.cumsum(d)
    pieces = np.zeros(-(-int(ends[-1]) // window) if len(d) and ends[-1] > window else 0, dtype=np.int64)
    for r in np.flatnonzero(d > window):
        first, last = int(ends[r] - d[r]), int(ends[r])
        spans = np.arange(first // window, (last - 1) // window + 1)
        pieces[spans] += np.minimum((spans + 1) * window, last) - np.maximum(spans * window, first)
    return np.where(d > window, 0, d), pieces


def spans(degrees: np.ndarray, window: int) -> np.ndarray:
    """Edges of every span of a list: rows, and of longer ones the fewest pieces of a window at most, equally long."""
    d = np.asarray(degrees, dtype=np.int64)
    pieces = np.maximum(1, -(-d // window))
    number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    lengths = np.repeat(d // pieces, pieces) + (number < np.repeat(d % pieces, pieces))
    return np.sort(lengths)[::-1]


def walked(degrees: np.ndarray, window: int, groups: int, block: int, unroll: int, masked: bool,
           in_list: bool | None = None) -> Filled:  # fmt: skip
    """How a slice of columns of all rows is walked: by a list of spans, or rows, and windows of those that are longer.
    Without a list what is filled is that of the rows alone."""
    if listed() if in_list is None else in_list:
        return fill(spans(degrees, window), groups, block, unroll, masked)
    whole, pieces = cut(degrees, window)
    rows = fill(whole, groups, block, unroll, masked)
    if not len(pieces):
        return rows
    windows = fill(pieces, groups, block, unroll, masked)
    return replace(rows, **{k: getattr(rows, k) + getattr(windows, k) for k in ("warps", "bodies", "tails", "steps")})


@cache
def segments(graph: Graph, width: int, size: int, vector: int, unroll: int, masked: bool,
             sliced: bool) -> tuple[dict[str, float], Filled]:  # fmt: skip
    """The plan of ``common/segments.cuh`` and how it fills one of the plan's ``slices`` of columns."""
    p = plan("segments", graph.nodes, graph.nodes, graph.edges, width, size, vector, sliced)
    lanes, block = int(p["lanes"]), int(p["groups"])
    groups = max(1, WARP // lanes)
    filled = walked(graph.degrees, int(p["window"]), groups, max(block, groups), unroll, masked)
    several = max(1, lanes // WARP)  # warps of a row
    return p, replace(filled, **{k: several * getattr(filled, k) for k in ("warps", "bodies", "tails", "steps")})
