"""What training costs: FLOPs, seconds and memory of a run, in parts, for dense and sparse training alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from sparsegnn import _console
from sparsegnn.controllers import Controller
from sparsegnn.controllers.settings import check_int
from sparsegnn.experiments.measure import PeakMemory
from sparsegnn.experiments.meter import PARTS, Meter
from sparsegnn.nn import SparseLinear

OP = "ledger"
SETTLED = 2  # steps after which layers have kept what they keep, as GCNConv(cached=True) the aggregate of its input


@dataclass
class Kind:
    """Steps that compute the same, it seems: as many weights everywhere, the same probes, an update or none."""

    steps: int = 0
    last: int = 0  # the step of the run that was sampled last
    flops: dict[str, int] = field(default_factory=dict)  # of a step, by the last sample
    products: int = 0
    samples: list[dict[str, float]] = field(default_factory=list)  # seconds of each part
    sampled: list[float] = field(default_factory=list)  # of these steps
    plain: list[float] = field(default_factory=list)  # of all others

    def seconds(self) -> dict[str, float]:
        """Of a step: the parts as medians of the samples, the first of which warms up, and what is left as other."""
        used = self.samples[1:] or self.samples
        parts = {part: statistics.median(s[part] for s in used) for part in PARTS}
        step = statistics.median(self.plain or self.sampled[1:] or self.sampled)
        return {**parts, "other": max(0.0, step - sum(parts.values())), "step": step}


class Ledger:
    """The account of a training run::

        ledger = sparsegnn.ledger(model, optimizer)
        for x, y in batches:
            with ledger.step():
                loss(model(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
        ledger.report()

    A few steps of each kind run operator by operator, to be counted and timed (:mod:`sparsegnn.experiments.meter`): the
    first, one of the next and every ``sample_every``-th. They take about twice as long on a graph like Cora, less on a
    larger one; their own duration is left out of the account where there are others of their kind. All other steps run
    at full speed: they are timed as a whole, without waiting for a GPU. A kind of step is told by the number of weights
    of every parameter and whether it is trained, the dense gradients that are asked for, phase, edges and updates of
    the controllers; ``step(key)`` tells what else makes steps different, the size of a batch, say.

    Args:
        model, optimizer: what trains; a dense model too.
        controller: one, or several; those that are attached to ``optimizer`` are found.
        sample_every: steps of one kind between two that are sampled; 0 samples the first one only, as must be where
            steps are recorded (:class:`~sparsegnn.CapturedStep`).
        memory: a :class:`PeakMemory` that was begun before the model was made; else memory counts from here on.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None,
                 controller: Controller | Iterable[Controller] | None = None, *, sample_every: int = 50,
                 memory: PeakMemory | None = None):  # fmt: skip
        if not isinstance(model, nn.Module):
            raise TypeError(f"{OP}: model must be a torch.nn.Module, got {type(model).__name__}")
        if optimizer is not None and not hasattr(optimizer, "param_groups"):
            raise TypeError(f"{OP}: optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        self.model, self.sample_every = model, check_int(OP, "sample_every", sample_every, 0)
        self.controllers = _controllers(optimizer, controller)
        self.device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        self.memory = PeakMemory(self.device) if memory is None else memory
        self.steps = 0
        self.kinds: dict[object, Kind] = {}
        self._flops, self.products = dict.fromkeys(PARTS, 0), 0
        self._pending: list[tuple[Kind, torch.cuda.Event, torch.cuda.Event]] = []
        self._parameters: list[nn.Parameter] = []
        self._marks: list[tuple[int, dict[object, int]]] = []  # FLOPs of products, and steps of each kind

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *error) -> None:
        self._read_events()

    @contextmanager
    def step(self, key: object = None) -> Iterator[bool]:
        """Around one training step, all of it; yields whether it is sampled. One that raises is not counted."""
        kind = self.kinds.setdefault((self._signature(), key), Kind())
        if not self._samples(kind):
            yield from self._plain(kind)
        else:
            meter, start = Meter(self.device), time.perf_counter()
            with meter.controllers(self.controllers), meter:
                yield True
            meter.finish()
            if meter.operators or not kind.flops:  # a replay shows none
                kind.flops, kind.products = meter.flops, meter.products
                kind.samples.append(meter.seconds)
                kind.last = self.steps
            kind.sampled.append(time.perf_counter() - start)
        kind.steps += 1
        self.steps += 1
        self.products += kind.products
        for part, n in kind.flops.items():
            self._flops[part] += n

    def mark(self) -> None:
        """Remember this point between two steps, for :meth:`so_far`."""
        self._marks.append((self.products, {key: kind.steps for key, kind in self.kinds.items() if kind.steps}))

    def so_far(self) -> list[tuple[int, float]]:
        """Of every :meth:`mark`, FLOPs of products and aggregation and seconds up to there, in the account of now.

        A mark after the last step has what :meth:`report` has: ``flops`` in ``products``, ``seconds`` in ``total``.
        """
        self._read_events()
        seconds = {key: kind.seconds()["step"] for key, kind in self.kinds.items() if kind.steps}
        return [(flops, sum(n * seconds[key] for key, n in steps.items())) for flops, steps in self._marks]

    def report(self, *, show: bool = True) -> dict:
        """The account so far.

        Returns:
            ``steps`` and ``sampled_steps``; ``flops`` of the run in the parts ``weights``, ``aggregation``,
            ``elementwise`` and ``mask_updates``, their sum ``total``, and ``products``, those of products and
            aggregation, which ``torch.utils.flop_counter`` counts; ``flops_per_step``, the same as means; ``seconds``
            and ``seconds_per_step`` in these parts, ``other`` (Python, autograd, launches: what the operators do not
            take) and ``total``; ``peak_memory_bytes``, ``run_memory_bytes`` above the start, and
            ``memory_is_exact``.
        """
        self._read_events()
        kinds = [kind for kind in self.kinds.values() if kind.steps]
        steps = self.steps
        flops = self._flops | {"total": sum(self._flops.values()), "products": self.products}
        timed = [(kind.steps, kind.seconds()) for kind in kinds]
        seconds = {part: sum(n * s[part] for n, s in timed) for part in (*PARTS, "other")}
        seconds["total"] = sum(n * s["step"] for n, s in timed)
        peak = self.memory.peak()
        found = {
            "steps": steps,
            "sampled_steps": sum(len(k.sampled) for k in kinds),
            "flops": flops,
            "flops_per_step": {k: n / max(1, steps) for k, n in flops.items()},
            "seconds": seconds,
            "seconds_per_step": {k: t / max(1, steps) for k, t in seconds.items()},
            "peak_memory_bytes": peak,
            "run_memory_bytes": peak - self.memory.start,
            "memory_is_exact": self.memory.exact,
        }
        if show:
            _console.write(_table(found))
        return found

    def __repr__(self) -> str:
        return f"Ledger(steps={self.steps}, kinds={len(self.kinds)}, controllers={self.controllers})"

    # --- inner works ---

    def _signature(self) -> tuple:
        due = tuple(c.due(c.step + 1) for c in self.controllers if c.attached)
        if not self._parameters or any(due):  # an update may have made others
            self._parameters = list(self.model.parameters())
            self._layers = [m for m in self.model.modules() if isinstance(m, SparseLinear)]
        probes = tuple(layer.probe is not None for layer in self._layers)
        weights = tuple(p.numel() if p.requires_grad else -p.numel() for p in self._parameters)
        if self.sample_every == 0:
            return weights, probes, due
        more = tuple((c.phase, getattr(getattr(c, "graph", None), "num_edges", 0)) for c in self.controllers)
        return weights, probes, due, more, self.model.training

    def _samples(self, kind: Kind) -> bool:
        if not kind.flops:
            return True
        if self.sample_every == 0:
            return False
        settled = kind.last >= SETTLED or self.steps < SETTLED
        return not settled or (kind.steps == 2 and len(kind.samples) == 1) or kind.steps % self.sample_every == 0

    def _plain(self, kind: Kind) -> Iterator[bool]:
        if self.device.type != "cuda":
            start = time.perf_counter()
            yield False
            kind.plain.append(time.perf_counter() - start)
            return
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield False
        end.record()
        self._pending.append((kind, start, end))

    def _read_events(self) -> None:
        for kind, start, end in self._pending:
            end.synchronize()
            kind.plain.append(start.elapsed_time(end) / 1e3)
        self._pending.clear()


def _controllers(optimizer, given) -> list[Controller]:
    found = [given] if isinstance(given, Controller) else list(given or ())
    for controller in found:
        if not isinstance(controller, Controller):
            raise TypeError(f"{OP}: controller must be a sparsegnn.Controller, got {type(controller).__name__}")
    hooks = getattr(optimizer, "_optimizer_step_post_hooks", {}).values()
    owners = [getattr(hook, "__self__", None) for hook in hooks]
    return list(dict.fromkeys(found + [owner for owner in owners if isinstance(owner, Controller)]))


def _table(found: dict) -> str:
    rows = []
    for part in (*PARTS, "other", "total"):
        flops, seconds = found["flops"].get(part), found["seconds"][part]
        share = seconds / found["seconds"]["total"] if found["seconds"]["total"] else 0.0
        per_step = f"{1e3 * found['seconds_per_step'][part]:.3f}"
        rows.append((part.replace("_", " "), "-" if flops is None else f"{flops:.4g}", f"{seconds:.4g}",
                     per_step, f"{100 * share:.1f}"))  # fmt: skip
    head = ("part", "FLOPs", "seconds", "ms a step", "% of time")
    memory = f"{found['peak_memory_bytes'] / 2**20:.0f} MiB"
    title = f"sparsegnn ledger: {found['steps']} steps, {found['sampled_steps']} sampled, peak memory {memory}"
    return _console.table(title, rows, head, box="SIMPLE_HEAD", right=range(1, 5))
