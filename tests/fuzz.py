"""Hostile input for all that reads: `python tests/fuzz.py [reader ...]` prints counts and writes results/fuzz.json.

100,000 inputs: valid ones, mutated, from a seed; each reader in a process of its own, so that a crash is counted and
named. Where atheris is installed it chooses the bytes that the mutations are drawn from. A reader may refuse with the
exceptions that it documents, must then have changed nothing, and what it accepts must be consistent.
"""

from __future__ import annotations

import argparse
import collections
import copy
import importlib.util
import io
import json
import multiprocessing
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from torch import nn

from sparsegnn import CSRGraph, GradualMagnitude, RigL, data, pattern, plans
from sparsegnn.nn import SparseLinear

RESULT = Path(__file__).parent / "results" / "fuzz.json"
SECONDS = 30  # of one input; more is a hang
MEMORY = 6 << 30
INTEGERS = (0, 1, -1, 2, 3, 7, 100, 2**31 - 1, 2**31, -(2**31), 2**32, 2**63 - 1, 2**63, -(2**63), 2**64, 10**400)
FLOATS = (0.0, -0.0, 0.5, 1.0, -1.0, 1e300, 1e-320, float("nan"), float("inf"), -float("inf"))
TYPES = (torch.int32, torch.int64, torch.float32, torch.float64, torch.bool, torch.uint8, torch.bfloat16, torch.cfloat)

# --- hostile values --------------------------------------------------------------------------------------------------


class FromBytes(random.Random):
    """Draws from the bytes that a fuzzer has chosen, then zeros."""

    def __init__(self, content: bytes):
        super().__init__(0)
        self.content, self.at = content, 0

    def getrandbits(self, k: int) -> int:
        n = (k + 7) // 8
        taken, self.at = self.content[self.at : self.at + n], self.at + n
        return int.from_bytes(taken.ljust(n, b"\0"), "little") >> (8 * n - k)

    def random(self) -> float:
        return self.getrandbits(53) / 2**53


def value(rng, depth: int = 0):
    """Anything that JSON can say, and Python's other constants."""
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind < 6:
        return (rng.choice(INTEGERS), rng.choice(FLOATS), None, rng.random() < 0.5, text(rng), rng.randrange(20))[kind]
    if kind == 6:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {text(rng): value(rng, depth + 1) for _ in range(rng.randrange(4))}
    nested = []
    for _ in range(rng.choice((5, 50, 900))):
        nested = [nested]
    return nested


def text(rng) -> str:
    return rng.choice(("", "ratio", "x", "[/red]", "\x1b[31m", "\ud800", "\0", "a" * 300, "plans", "∂"))


def mutated(rng, content: bytes) -> bytes:
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(content) + 1)
        n = rng.choice((1, 2, 4, 8, 30))
        kind = rng.randrange(5)
        if kind == 0:
            content[at : at + n] = bytes(rng.getrandbits(8) for _ in range(n))
        elif kind == 1:
            content[at : at + n] = rng.choice((b"\0", b"\xff", b"(", b"[", b"-", b"9", b'"')) * n
        elif kind == 2:
            del content[at : at + n]
        elif kind == 3:
            content[at:at] = content[at : at + n] * rng.choice((1, 2, 50))
        else:
            del content[at:]
    return bytes(content)


def tensor(rng, like: torch.Tensor | None = None) -> torch.Tensor:
    """One of any type, shape and memory; or something near ``like``."""
    if like is not None and rng.random() < 0.6:
        t = like.detach().clone()
        kind = rng.randrange(8)
        if kind == 0 and t.numel():
            t.view(-1)[rng.randrange(t.numel())] = (
                float(rng.choice(INTEGERS[:10]))
                if t.is_floating_point()
                else rng.choice((0, 1, -1, 5, 2**31 - 1, -(2**31)))
            )
        return (t, t.flip(0) if t.dim() else t, t[1:] if t.dim() else t, torch.cat([t, t]) if t.dim() else t,
                t.to(rng.choice(TYPES)), t.to("meta"), t.unsqueeze(rng.randrange(2) - 1), t - 1)[kind]  # fmt: skip
    shape = tuple(rng.choice((0, 1, 2, 3, 9, 64)) for _ in range(rng.choice((0, 1, 1, 1, 2, 3))))
    t = torch.full(shape, rng.choice((0, 1, 2, 100))).to(rng.choice(TYPES))
    kind = rng.randrange(6)
    if kind == 0:
        return t.to("meta")
    if kind == 1 and t.dim():
        return t.to_sparse()
    if kind == 2:
        return torch.zeros(1, dtype=t.dtype).expand(rng.choice((5, 2**20, 2**31 - 2, 2**31, 2**40)))
    if kind == 3 and t.dtype == torch.float32 and t.dim():
        return torch.quantize_per_tensor(t, 0.1, 0, torch.quint8)
    if kind == 4 and t.dim():
        return torch.stack([t, t], -1)[..., 0]
    return t


# --- readers: each returns a function of a random generator that says "accepted" or "refused" ------------------------


def npz(folder: Path):
    from test_data import csr, tiny

    path, sets = folder / "graph.npz", [tiny(), csr()]
    files = []
    for arrays in sets:
        for save in (np.savez, np.savez_compressed):
            buffer = io.BytesIO()
            save(buffer, **arrays)
            files.append(buffer.getvalue())

    def case(rng) -> str:
        kind = rng.randrange(4)
        if kind == 0:
            path.write_bytes(mutated(rng, rng.choice(files)))
        else:
            with zipfile.ZipFile(io.BytesIO(rng.choice(files))) as source:
                members = {name: source.read(name) for name in source.namelist()}
            for _ in range(rng.choice((1, 1, 2))):
                name = rng.choice(sorted(members))
                members[name] = mutated(rng, members[name]) if kind == 1 else member(rng, kind)
            with zipfile.ZipFile(path, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as target:
                for name, content in members.items():
                    target.writestr(name, content)
        try:
            g = data.load_npz(path, normalize=rng.choice((None, True, False)))
        except ValueError as e:
            assert str(path) in str(e) or "split" in str(e), e
            return "refused"
        ends = g.edge_index
        assert g.x.isfinite().all() and (not ends.numel() or 0 <= int(ends.min()) <= int(ends.max()) < g.num_nodes)
        assert g.x.shape[0] == g.y.shape[0] and int(g.y.max()) < g.num_classes
        return "accepted"

    def member(rng, kind: int) -> bytes:
        if kind == 2:
            shape = tuple(rng.choice((0, 1, 2, 3, 10, -1, 2**31, 2**62)) for _ in range(rng.randrange(4)))
            descr = rng.choice(("<i4", ">i8", "<u8", "<f4", "|b1", "<f2", "<c8", "|O", "<U9", "<M8[s]", "|V4", "|S3"))
            fields = repr({"descr": descr, "fortran_order": rng.random() < 0.3, "shape": shape}).encode() + b"\n"
            head = b"\x93NUMPY\1\0" + len(fields).to_bytes(2, "little") + fields
            return head + bytes(rng.choice((0, 4, 40, 80, 120)))
        buffer = io.BytesIO()
        content = np.array(json.dumps(value(rng))) if rng.random() < 0.5 else np.array(rng.choice(INTEGERS[:12]))
        np.save(buffer, content, allow_pickle=False)
        return buffer.getvalue()

    return case


def plan_files(folder: Path):
    plans.PAUSE, path = 0.0, folder / "plans.json"
    good = {f"linear {i}": {"ratio": 1.0 + i, "sparse_ms": 3.0} for i in range(4)}
    assert plans.write(path, good)
    file = path.read_bytes()

    def case(rng) -> str:
        if rng.random() < 0.5:
            path.write_bytes(mutated(rng, file))
        else:
            content = {"format": plans.FORMAT, "plans": {**good, text(rng): value(rng), "b": {"ratio": value(rng)}}}
            content[rng.choice(("plans", "more", "format"))] = value(rng) if rng.random() < 0.1 else content["plans"]
            path.write_text(json.dumps(content) if rng.random() < 0.9 else str(content), errors="replace")
        found = plans.read(path)
        for plan in found.values():
            assert "ratio" in plan and all(type(x) is float and 0 <= x <= plans.MOST_RATIO for x in plan.values()), plan
        try:
            assert plans.read_named(str(path)) == found
        except ValueError as e:
            assert "SPARSEGNN_PLAN must name" in str(e) and not found
        if rng.random() < 0.1:
            assert plans.write(path, {"new": {"ratio": 2.0}})
            assert plans.read(path) == {**found, "new": {"ratio": 2.0}}
        return "accepted" if found else "refused"

    return case


def _layers() -> nn.Module:
    kinds = ("unstructured", "fan_in", "2:4", "grouped:8", "block:16x16")
    return nn.Sequential(*(SparseLinear(32, 32, sparsity=0.5, pattern=kind) for kind in kinds))


def _snapshot(layer) -> list:
    return [(k, t, None if t is None else t.clone()) for k, t in {**layer._parameters, **layer._buffers}.items()]


def checkpoints(folder: Path):
    model, good, x = _layers(), [_layers().state_dict() for _ in range(3)], torch.randn(2, 32)

    def case(rng) -> str:
        i, whole = rng.randrange(len(model)), rng.choice(good)
        state = copy.copy(whole)
        for _ in range(rng.choice((1, 1, 2))):
            key = f"{i}." + rng.choice(("values", "crow", "col", "bias", "shape", "dense_kernel", "perm", "more"))
            kind = rng.randrange(8)
            if kind == 0:
                state.pop(key, None)
            else:
                state[key] = value(rng) if kind == 1 else tensor(rng, whole.get(key))
        before, layer = _snapshot(model[i]), model[i]
        try:
            model.load_state_dict(state, assign=rng.random() < 0.3, strict=rng.random() < 0.8)
        except (TypeError, ValueError, RuntimeError) as e:
            assert str(e).startswith("SparseLinear: checkpoint") or "Error(s) in loading state_dict" in str(e), e
            for (name, t, old), (other, now, _) in zip(before, _snapshot(layer), strict=True):
                assert name == other and t is now and (t is None or (t.shape == old.shape and _equal(t, old))), name
            result = "refused"
        else:
            result = "accepted"
        pattern.check_pattern(*layer.pattern(), *layer.grid)
        derived = pattern.transpose(*layer.pattern(), layer.grid[1])
        assert all(torch.equal(a, b) for a, b in zip((layer.ccol, layer.row, layer.perm), derived, strict=True))
        if layer.values.dtype not in (torch.float32, torch.float64) or layer.bias.dtype != layer.values.dtype:
            model.load_state_dict(good[0], assign=True)  # of another type, as assign=True says
        assert layer(x.to(layer.values.dtype)).shape == (2, 32)
        return result

    return case


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def controllers(folder: Path):
    made = []
    for method in (RigL, GradualMagnitude):
        model = nn.Sequential(SparseLinear(16, 16, sparsity=0.5), SparseLinear(16, 8, sparsity=0.5))
        made.append(method(model, torch.optim.SGD(model.parameters(), lr=0.1), update_every=2))

    def case(rng) -> str:
        controller = rng.choice(made)
        before = controller.state_dict()
        state = {**before, "shapes": dict(before["shapes"])}
        state |= {"grown": dict(before["grown"])} if "grown" in before else {}
        for _ in range(rng.choice((1, 1, 2))):
            where = rng.choice((state, state, state.get("grown", state), state["shapes"]))
            key = rng.choice((*where, "more")) if isinstance(where, dict) else None
            kind = rng.randrange(10)
            if key is None or kind == 0:
                state.pop(rng.choice(sorted(state)), None)
                break
            where[key] = rng.randrange(100) if kind < 4 else tensor(rng) if kind == 4 else value(rng)
        try:
            controller.load_state_dict(state if rng.random() < 0.98 else value(rng))
        except (TypeError, ValueError) as e:
            assert str(e).startswith(type(controller).__name__) and len(str(e)) < 1000, e
            assert controller.state_dict() == before
            return "refused"
        after = controller.state_dict()
        assert all(after[k] == state[k] for k in ("step", "seed", "updates"))
        controller.step = 0
        return "accepted"

    return case


def graphs(folder: Path):
    crow, col = torch.tensor([0, 2, 3, 3, 6]), torch.tensor([0, 3, 1, 0, 1, 2])
    sizes = (None, None, 4, 5, 0, -1, 2**31 - 1, 2**40, True, 2.5, "4", (4, 4), (4, 5), (1, 2, 3), (4, None))

    def case(rng) -> str:
        n, kind = rng.choice(sizes), rng.randrange(4)
        a, b = (tensor(rng, t) if rng.random() < 0.6 else t for t in (crow, col))
        val = None if rng.random() < 0.5 else tensor(rng, torch.ones(6))
        try:
            if kind == 0:
                graph = CSRGraph.from_csr(a, b, val, n)
            elif kind == 1:
                edges = torch.stack([col, col.flip(0)])
                graph = CSRGraph.from_edge_index(tensor(rng, edges) if rng.random() < 0.8 else edges, n or 4, val)
            elif kind == 2:
                obj = matrix(rng, a, b, val)
                graph = None if obj is None else CSRGraph.from_any(obj, n)
            else:
                graph = CSRGraph.from_any(rng.choice((a, b, val, value(rng), changed(rng))), n or 4)
        except (TypeError, ValueError) as e:
            assert str(e).startswith("CSRGraph: "), e
            return "refused"
        if graph is None or graph.crow.is_meta:  # sizes alone, of indices on meta
            return "refused"
        ends, sources = graph.crow.numpy(), graph.col.numpy()
        assert ends[0] == 0 and ends[-1] == len(sources) and (np.diff(ends) >= 0).all()
        assert not len(sources) or 0 <= sources.min() <= sources.max() < graph.num_cols
        if len(sources) < 1000 and graph.num_cols < 1000:
            graph.transpose()
        return "accepted"

    def matrix(rng, a, b, val):
        """One that torch makes without looking at its indices, if it makes one at all."""
        val = torch.ones(6) if val is None else val
        layout = rng.choice((torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc, torch.sparse_coo))
        size = rng.choice(((4, 4), (4, 4), (5, 4), (4, 9), (0, 0)))
        if any(t.numel() > 10**6 for t in (a, b, val)):
            return None
        try:
            if layout == torch.sparse_coo:
                rows = torch.tensor([0, 0, 1, 3, 3, 3])
                made = torch.sparse_coo_tensor(torch.stack([rows, b]), val, size, check_invariants=False)
                return made._coalesced_(rng.random() < 0.3)
            if "bs" in str(layout):
                val = val.reshape(-1, 1, 1)
            return torch.sparse_compressed_tensor(a, b, val, size, layout=layout, check_invariants=False)
        except (RuntimeError, TypeError, IndexError):  # torch itself
            return None

    def changed(rng):
        made = scipy.sparse.coo_matrix((np.ones(6), ([0, 0, 1, 3, 3, 3], col.numpy())), shape=(4, 4))
        made = made.asformat(rng.choice(("csr", "csc", "coo", "bsr", "lil", "dok", "dia")))
        names = [k for k in ("indices", "indptr", "row", "col") if hasattr(made, k)]
        if names and rng.random() < 0.8:
            array = getattr(made, rng.choice(names))
            array[rng.randrange(len(array))] = rng.choice((0, 1, 3, 4, -1, 100, 2**30, 2**31 - 1, -(2**31)))
        return made

    return case


READERS = {  # name: (maker of cases, inputs in a full run)
    "npz": (npz, 8_000),
    "plans": (plan_files, 25_000),
    "checkpoints": (checkpoints, 7_000),
    "controllers": (controllers, 25_000),
    "graphs": (graphs, 35_000),
}

# --- runs ------------------------------------------------------------------------------------------------------------


class Hang(Exception):
    pass


def _hangs(*args):
    raise Hang(f"more than {SECONDS} s")


def run(name: str, count: int, seed: int, note=lambda i: None) -> dict:
    """Counts of one reader, in this process; what it did wrong as text, at most ten."""
    found, wrong = collections.Counter(), []
    warnings.simplefilter("ignore")
    torch.manual_seed(seed)
    signal.signal(signal.SIGALRM, _hangs)
    with tempfile.TemporaryDirectory() as folder:
        case = READERS[name][0](Path(folder))

        def one(rng, label: object) -> None:
            signal.alarm(SECONDS)
            try:
                found[case(rng)] += 1
            except Exception:
                found["wrong"] += 1
                wrong.append(f"{label}: {traceback.format_exc(limit=-4)[:1500]}")
            finally:
                signal.alarm(0)

        for i in range(count):
            note(i)
            one(random.Random(f"{name} {seed} {i}"), i)
    return {"inputs": count, "accepted": 0, "refused": 0, "wrong": 0, **found, "examples": wrong[:10]}


def guided(name: str, count: int, note) -> dict:
    """The same, with atheris; it ends the process, so that the counts are noted from within."""
    import atheris

    found, wrong = collections.Counter(), []
    warnings.simplefilter("ignore")
    case = READERS[name][0](Path(tempfile.mkdtemp()))

    def one(content: bytes) -> None:
        try:
            found[case(FromBytes(content))] += 1
        except Exception:
            found["wrong"] += 1
            wrong.append(traceback.format_exc(limit=-4))
        if found.total() == count:
            note({"inputs": count, "accepted": 0, "refused": 0, "wrong": 0, **found, "examples": wrong[:10]})

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], f"-runs={count}", f"-timeout={SECONDS}", "-max_len=512"], one)
    atheris.Fuzz()


def alone(name: str, count: int, seed: int) -> dict:
    """One reader in a process of its own."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        process = multiprocessing.get_context("fork").Process(target=child, args=(name, folder, count, seed))
        process.start()
        process.join()
        progress, result = Path(folder, "progress"), Path(folder, "result")
        if result.is_file():
            found = json.loads(result.read_text())
        else:
            last = progress.read_text() if progress.is_file() else "the first"
            found = {"inputs": count, "wrong": 1, "examples": [f"exit code {process.exitcode} at input {last}"]}
    return {**found, "seconds": round(time.perf_counter() - started, 1)}


def child(name: str, folder: Path, count: int, seed: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    write = Path(folder, "result").write_text
    if importlib.util.find_spec("atheris"):
        guided(name, count, lambda found: write(json.dumps(found)))
        return
    with open(Path(folder, "progress"), "w") as progress:

        def note(i: int) -> None:
            progress.seek(0)
            progress.write(str(i))
            progress.flush()

        write(json.dumps(run(name, count, seed, note)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*", choices=[*READERS, []], help="all by default")
    parser.add_argument("--count", type=int, help="inputs for each reader, instead of the full run")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.readers or list(READERS)
    found = {name: alone(name, options.count or READERS[name][1], options.seed) for name in names}
    total = {key: sum(row.get(key, 0) for row in found.values()) for key in ("inputs", "accepted", "refused", "wrong")}
    for name, row in {**found, "all": total}.items():
        counts = (f"{key} {row.get(key, 0):>7,}" for key in ("inputs", "accepted", "refused", "wrong"))
        print(f"{name:>12}: " + "  ".join(counts))
        for example in row.get("examples", []):
            print(example)
    if options.count is None and len(names) == len(READERS):
        RESULT.parent.mkdir(exist_ok=True)
        content = {"seed": options.seed, "torch": torch.__version__, "readers": found, "all": total}
        RESULT.write_text(json.dumps(content, indent=1) + "\n")
    return int(total["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
