"""Which kernel a sparse weight runs on: the static policy, measured verdicts, and the files that keep them."""

import contextlib
import errno
import fcntl
import json
import multiprocessing
import os
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsegnn import plans, sparsify
from sparsegnn.nn import SparseLinear


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.delenv("SPARSEGNN_PLAN", raising=False)
    monkeypatch.setenv("SPARSEGNN_CACHE", str(tmp_path))
    return plans.cache_file()


@pytest.fixture
def measured(monkeypatch):
    """Layers that were measured; the dense kernel always wins."""
    seen = []

    def measure(layer, rows):
        seen.append((layer, rows))
        return {"ratio": 1.5, "sparse_ms": 3.0, "dense_ms": 2.0}

    monkeypatch.setattr(plans, "measure", measure)
    return seen


def layer(sparsity=0.9, **kwargs):
    return SparseLinear(20, 10, sparsity=sparsity, **kwargs)


def wide(sparsity, **kwargs):
    return SparseLinear(50, 41, sparsity=sparsity, **kwargs)


def test_static_policy_is_dense_below_a_sparsity():
    assert wide(0.0).kernel == wide(0.1).kernel == "dense" and wide(0.5).kernel == layer(0.0).kernel == "sparse"
    assert "kernel='dense'" in repr(wide(0.0))


def test_the_policy_follows_dtype_and_number_of_weights():
    mine = wide(0.5)
    assert mine.bfloat16().kernel == "dense" and mine.float().kernel == "sparse"
    full = wide(0.0)
    mine.set_pattern_(*full.pattern(), full.values.detach())
    assert mine.kernel == "dense"
    mine.load_state_dict(wide(0.9).state_dict())
    assert mine.kernel == "sparse"
    with torch.device("meta"):
        meta = wide(0.05)
    assert meta.kernel == "dense" == meta.to_empty(device="cpu").kernel
    assert SparseLinear.from_dense(nn.Linear(50, 41), sparsity=0.1).kernel == "dense"


@pytest.mark.parametrize("sparsity", [0.0, 0.1])
def test_the_dense_kernel_is_equal(sparsity):
    mine, x = wide(sparsity, dtype=torch.float64), torch.randn(7, 50, dtype=torch.float64)
    mine.choose_kernel_(2.0)
    dense = mine.to_dense()
    assert dense.weight.data_ptr() != mine.values.data_ptr()
    results = []
    for ratio in (2.0, 0.0):
        mine.choose_kernel_(ratio)
        y = mine(x)
        torch.testing.assert_close(y, dense(x))
        results.append(torch.autograd.grad(y.square().sum(), (mine.values, mine.bias)))
    torch.testing.assert_close(*results)


def test_a_verdict_beats_the_policy_and_can_be_forgotten():
    mine = layer()
    for ratio, kernel in ((2.0, "dense"), (0.5, "sparse"), (1.0, "sparse"), (None, "sparse")):
        mine.choose_kernel_(ratio)
        assert mine.kernel == kernel
        other = layer()
        other.load_state_dict(mine.state_dict())
        assert other.kernel == kernel and ("dense_kernel" in mine.state_dict()) == (ratio is not None)


def test_the_dense_kernel_follows_the_pattern():
    mine, x = wide(0.1), torch.randn(3, 50)
    mine(x)
    mine.rewire_(torch.rand(mine.values.numel()), torch.rand(41, 50), 5)
    torch.testing.assert_close(mine(x), mine.to_dense()(x))
    fresh = wide(0.05)
    mine.set_pattern_(*fresh.pattern(), fresh.values.detach())
    torch.testing.assert_close(mine(x), mine.to_dense()(x))


def test_measure_alternates_and_takes_medians():
    mine, now, order = layer(), [0.0], []

    class Clock(SparseLinear):
        def forward(self, x):
            order.append(self.kernel)
            now[0] += {"sparse": 3.0, "dense": 2.0}[self.kernel] * (50 if len(order) in (1, 2, 9) else 1)
            return super().forward(x)

    mine.__class__ = Clock
    found = plans.measure(mine, rows=4, repeats=5, clock=lambda: now[0])
    assert order == ["sparse", "dense"] * 7
    assert found == {"ratio": 1.5, "sparse_ms": 3000.0, "dense_ms": 2000.0}
    assert all(p.grad is None for p in mine.parameters())


def test_verdicts_are_measured_once(cache, measured):
    first = sparsify(nn.Linear(20, 10), 0.9, only_if_faster=True, rows=8)
    assert first.kernel == "dense" and len(measured) == 1
    assert json.loads(cache.read_text())["format"] == plans.FORMAT
    assert sparsify(nn.Linear(20, 10), 0.9, only_if_faster=True, rows=8).kernel == "dense" and len(measured) == 1
    sparsify(nn.Linear(20, 10), 0.9, only_if_faster=True, rows=9)
    sparsify(nn.Linear(20, 10), 0.8, only_if_faster=True, rows=8)
    sparsify(nn.Linear(20, 10).double(), 0.9, only_if_faster=True, rows=8)
    sparsify(nn.Linear(20, 10), 0.9, pattern="fan_in", only_if_faster=True, rows=8)
    assert len(measured) == 5 == len(plans.read(cache))
    assert [p.name for p in cache.parent.iterdir()] == [cache.name]  # no temporary file stays


def test_a_new_verdict_replaces_the_old_one_alone(cache):
    assert plans.write(cache, {"a": {"ratio": 1.0}, "b": {"ratio": 2.0}}) and plans.write(cache, {"a": {"ratio": 3.0}})
    assert plans.read(cache) == {"a": {"ratio": 3.0}, "b": {"ratio": 2.0}}


def test_the_key_names_threads(monkeypatch):
    before = plans.key(layer(), 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 17)
    assert "17 threads" in plans.key(layer(), 8) != before


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": "sparsegnn-plans/1"}', '{"format": "x", "plans": {}}',
                                  '{"format": "sparsegnn-plans/1", "plans": {"a": {}}}', "\0"])  # fmt: skip
def test_a_broken_cache_is_replaced(cache, measured, text):
    cache.write_text(text)
    assert sparsify(nn.Linear(20, 10), 0.9, only_if_faster=True).kernel == "dense"
    assert len(plans.read(cache)) == 1


def test_a_cache_that_cannot_be_written_costs_nothing(monkeypatch, tmp_path, measured):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("SPARSEGNN_CACHE", str(tmp_path / "file"))
    assert sparsify(nn.Linear(20, 10), 0.9, only_if_faster=True).kernel == "dense"
    assert not plans.write(plans.cache_file(), {})


def plan_text(entries: str, form=plans.FORMAT) -> str:
    return f'{{"format": "{form}", "plans": {entries}}}'


GOOD = '"good": {"ratio": 1.5, "sparse_ms": 3, "dense_ms": 2.0}, "also": {"ratio": 0}'
BAD_ENTRIES = {
    "NaN": '{"ratio": NaN}',
    "infinite": '{"ratio": Infinity}',
    "beyond float": '{"ratio": 1e999}',
    "too many digits": '{"ratio": %s}' % ("1" * 10_000),
    "an integer beyond float": '{"ratio": %s}' % ("1" * 400),
    "beyond float32": '{"ratio": 1e300}',
    "negative": '{"ratio": -1}',
    "just negative": '{"ratio": -1e-300}',
    "true": '{"ratio": true}',
    "text": '{"ratio": "1.5"}',
    "null": '{"ratio": null}',
    "a list": '{"ratio": [1.5]}',
    "no ratio": '{"sparse_ms": 1.0}',
    "no entry": "{}",
    "a number": "1.5",
    "a list of pairs": '[["ratio", 1.5]]',
    "nothing": "null",
}


@pytest.mark.parametrize("kind", BAD_ENTRIES)
def test_good_entries_of_a_half_bad_file_are_kept(tmp_path, kind):
    path = tmp_path / "plans.json"
    path.write_text(plan_text(f'{{"bad": {BAD_ENTRIES[kind]}, {GOOD}}}'))
    kept = {"good": {"ratio": 1.5, "sparse_ms": 3, "dense_ms": 2}, "also": {"ratio": 0}}
    assert plans.read(path) == plans.read_named(str(path)) == kept
    assert plans.write(path, {"new": {"ratio": 2.0}}) and plans.read(path) == kept | {"new": {"ratio": 2}}
    json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(text))


def test_only_what_makes_sense_of_an_entry_is_kept(tmp_path):
    path = tmp_path / "plans.json"
    path.write_text(
        plan_text(
            f'{{"a": {{"ratio": 1, "sparse_ms": NaN, "more": {"[" * 500}{"]" * 500}}}, "\\ud800": {{"ratio": 2}}}}'
        )
    )
    assert plans.read(path) == {"a": {"ratio": 1}, "\ud800": {"ratio": 2}}
    assert plans.write(path, {"nan": {"ratio": float("nan")}, "b": {"ratio": 3.0, "dense_ms": float("inf")}})
    assert plans.read(path) == {"a": {"ratio": 1}, "\ud800": {"ratio": 2}, "b": {"ratio": 3}}


HOSTILE_FILES = {
    "deep": ("[" * 200_000).encode(),
    "deep in an entry": plan_text('{"a": ' + '{"b":' * 200_000).encode(),
    "deep and closed": plan_text('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}").encode(),
    "binary": bytes(range(256)) * 100,
    "latin-1": plan_text('{"\xe9": {"ratio": 1}}').encode("latin-1"),
    "plans in a list": plan_text("[]").encode(),
    "plans that are text": plan_text('"x"').encode(),
    "another format": plan_text("{}", form="sparsegnn-plans/2").encode(),
    "huge": plan_text("{}").encode() + b" " * (16 << 20),
}


@pytest.mark.parametrize("kind", HOSTILE_FILES)
def test_hostile_plan_files(tmp_path, kind):
    path = tmp_path / "plans.json"
    path.write_bytes(HOSTILE_FILES[kind])
    assert plans.read(path) == {}
    with pytest.raises(ValueError, match="SPARSEGNN_PLAN must name a plan file"):
        plans.read_named(str(path))
    assert plans.write(path, {"new": {"ratio": 2.0}}) and plans.read(path) == {"new": {"ratio": 2}}


def test_what_is_no_regular_file_is_neither_read_nor_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link to null").symlink_to("/dev/null")
    (tmp_path / "loop").symlink_to("loop")
    for path in [*tmp_path.iterdir(), "/dev/zero", "/dev/null", "/proc/new.json", "/proc/self/mem", "a\0b", "n" * 5000]:
        before = os.lstat(path).st_mode if os.path.lexists(path) else None
        assert plans.read(Path(path)) == {} and not plans.write(Path(path), {"a": {"ratio": 1.0}}), path
        with pytest.raises(ValueError, match="SPARSEGNN_PLAN must name a plan file"):
            plans.read_named(str(path))
        assert before == (os.lstat(path).st_mode if os.path.lexists(path) else None)
    assert len(list(tmp_path.iterdir())) == 4  # no temporary file stays


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "plans.json").symlink_to(tmp_path / "real" / "kept.json")
    for name in "ab":
        assert plans.write(tmp_path / "plans.json", {name: {"ratio": 1.0}})
    assert (tmp_path / "plans.json").is_symlink()
    assert plans.read(tmp_path / "real" / "kept.json") == {"a": {"ratio": 1}, "b": {"ratio": 1}}


def _add(path, start, worker, entries):
    start.wait()
    for i in range(entries):
        assert plans.write(path, {f"{worker} {i}": {"ratio": 1.0}})


@pytest.mark.parametrize("entries", [20, pytest.param(100, marks=pytest.mark.deep)])
def test_no_entry_of_eight_writers_is_lost(tmp_path, entries):
    fork, path = multiprocessing.get_context("fork"), tmp_path / "plans.json"
    start = fork.Barrier(9)
    workers = [fork.Process(target=_add, args=(path, start, w, entries)) for w in range(8)]
    for worker in workers:
        worker.start()
    start.wait()
    while any(worker.is_alive() for worker in workers):
        assert not path.exists() or plans._entries(path) is not None  # a reader never sees a part
        workers[0].join(0.01)
    assert [worker.exitcode for worker in workers] == [0] * 8
    assert plans.read(path).keys() == {f"{w} {i}" for w in range(8) for i in range(entries)}
    assert os.listdir(tmp_path) == [path.name]


def test_threads_wait_for_each_other_too(tmp_path):
    path, start = tmp_path / "plans.json", threading.Barrier(4)
    workers = [threading.Thread(target=_add, args=(path, start, w, 10)) for w in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(plans.read(path)) == 40


def test_a_lock_that_another_keeps_is_not_waited_for_forever(tmp_path, monkeypatch):
    monkeypatch.setattr(plans, "PATIENCE", 0.05)
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert not plans.write(tmp_path / "plans.json", {"a": {"ratio": 1.0}})
    fcntl.flock(handle, fcntl.LOCK_UN)
    assert plans.write(tmp_path / "plans.json", {"a": {"ratio": 1.0}})
    os.close(handle)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.EINVAL, None])
def test_a_file_system_without_locks(tmp_path, monkeypatch, code):
    def refuse(*args):
        raise OSError(code, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    if code is None:
        monkeypatch.setattr(plans, "fcntl", None)
    assert plans.write(tmp_path / "plans.json", {"a": {"ratio": 1.0}})
    assert plans.read(tmp_path / "plans.json") == {"a": {"ratio": 1}}


def test_an_interrupted_or_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "plans.json"
    plans.write(path, {"a": {"ratio": 1.0}})
    before = path.read_bytes()
    for error, raised in ((OSError(errno.ENOSPC, "full"), None), (KeyboardInterrupt(), KeyboardInterrupt)):
        for name in ("os.fdopen", "os.replace", "tempfile.mkstemp"):
            with monkeypatch.context() as m:
                m.setattr(f"sparsegnn.plans.{name}", lambda *a, error=error, **k: _raise(error))
                with pytest.raises(raised) if raised else contextlib.nullcontext():
                    assert not plans.write(path, {"b": {"ratio": 1.0}})
            assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def _raise(error):
    raise error


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("SPARSEGNN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert plans.cache_file().parent == tmp_path / "sparsegnn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert plans.cache_file().parent == tmp_path / ".cache" / "sparsegnn"


def test_a_named_plan_is_only_read(monkeypatch, tmp_path, cache):
    def measure(layer, rows):
        raise AssertionError("measured although a plan is named")

    monkeypatch.setattr(plans, "measure", measure)
    path = tmp_path / "plan.json"
    plans.write(path, {plans.key(layer(0.9), 8): {"ratio": 2.0}})
    before = path.read_bytes()
    monkeypatch.setenv("SPARSEGNN_PLAN", str(path))
    known = sparsify(nn.Linear(20, 10), 0.9, only_if_faster=True, rows=8)
    assert known.kernel == "dense" and float(known.dense_kernel) == 2
    unknown = [sparsify(nn.Linear(50, 41), s, only_if_faster=True, rows=8) for s in (0.0, 0.8)]
    assert [m.kernel for m in unknown] == ["dense", "sparse"] and all(m.dense_kernel is None for m in unknown)
    assert path.read_bytes() == before and not cache.exists() and sorted(os.listdir(tmp_path)) == ["plan.json"]


@pytest.mark.parametrize("text", [None, "{", "{}", '{"format": "other"}'])
def test_a_named_plan_must_be_one(monkeypatch, tmp_path, text):
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv("SPARSEGNN_PLAN", str(path))
    with pytest.raises(ValueError, match="sparsify: SPARSEGNN_PLAN must name a plan file"):
        sparsify(nn.Linear(20, 10), 0.9, only_if_faster=True)


# --- measured on a GPU -----------------------------------------------------------------------------------------------


class Event:
    """A CUDA event that reads a clock of the test's."""

    now, made = 0.0, 0

    def __init__(self, enable_timing):
        assert enable_timing
        Event.made += 1

    def record(self):
        self.at = Event.now

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return other.at - self.at


def test_gpu_timing_takes_samples_of_several_calls(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    for cost, wanted in ((0.5, 4), (2**-5, 64), (2**-10, 100), (4.0, 3)):
        ran = []

        def run(cost=cost, ran=ran):
            ran.append(1)
            Event.now += cost if len(ran) > 1 else 100 * cost  # the first call loads and compiles

        assert plans.on_gpu(torch.device("cuda"))(run) == pytest.approx(cost)
        assert len(ran) == 2 + wanted
