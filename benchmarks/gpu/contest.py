"""Contenders that are checked before they are timed: over memory full of NaN, against fp64."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from harness.errors import worst

from gpu.context import assert_alive, device, l2_bytes, on_gpu, synchronize, text_of, tf32

TOLERANCE = {"fp32": 1e-5, "tf32": 2e-3, "bf16": 1e-2}  # relative Frobenius error against fp64
#: of fp32 sums over all nodes, which a peer may add up in one chain: 2.5e-8 sqrt(n / 2) of 169,343 is 7e-6 already
LONG_SUM = 1e-4


@dataclass
class Entry:
    calls: Sequence[Callable]  # one per set of inputs
    precision: str
    want: Callable[[], list[torch.Tensor]] | None
    view: Callable[[object], list[torch.Tensor]]
    tolerance: float

    @functools.cached_property
    def run(self) -> Callable:
        return rotate(self.calls)


def flat(output: object) -> list[torch.Tensor]:
    return list(output) if isinstance(output, (tuple, list)) else [output]


@dataclass
class Contest:
    """Contenders by name. ``facts`` go into the rows: degrees of the graph, say; ``dropped`` why one does not run."""

    facts: dict = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, call: Callable | Sequence[Callable], *, precision: str = "fp32",
            want: Callable[[], list] | None = None, view: Callable = flat,
            tolerance: float | None = None) -> None:  # fmt: skip
        """``want`` gives the results in fp64 of what ``view`` picks from the output of the (first) call."""
        calls = [call] if callable(call) else list(call)
        limit = TOLERANCE[precision] if tolerance is None else tolerance
        self.entries[name] = Entry(calls, precision, want, view, limit)

    def offer(self, name: str, make: Callable[[], Callable | Sequence[Callable]], **options) -> None:
        """Add what ``make`` gives; where it fails the rows say why."""
        try:
            self.add(name, make(), **options)
        except Exception as e:
            self.dropped[name] = text_of(e)
            assert_alive()


@dataclass
class Checked:
    """The contenders that run and are right, their errors against fp64, and the bytes that a run needs at most."""

    run: dict[str, Callable]
    errors: dict[str, float]
    memory: dict[str, int]
    dropped: dict[str, str]


def check(contest: Contest) -> Checked:
    """Run every contender once, into memory full of NaN, and compare; drop those that fail or are wrong."""
    found = Checked({}, {}, {}, dict(contest.dropped))
    for name, entry in contest.entries.items():
        try:
            output, found.memory[name] = poisoned(entry.calls[0])
            if entry.want is not None:
                found.errors[name] = worst(entry.view(output), entry.want())
                if not found.errors[name] <= entry.tolerance:
                    found.dropped[name] = f"relative error {found.errors[name]:.1e} is over {entry.tolerance:.0e}"
            del output
        except Exception as e:
            found.dropped[name] = text_of(e)
            e.__traceback__ = None  # which holds its tensors
            assert_alive()
            if on_gpu():
                torch.cuda.empty_cache()
        if name not in found.dropped:
            found.run[name] = entry.run
    return found


def poisoned(call: Callable) -> tuple[object, int]:
    """The output of a call that got memory full of NaN, and the bytes that it took at most, outputs included."""
    sizes = [t.numel() * t.element_size() for t in flat(call()) if isinstance(t, torch.Tensor) and t.numel()]
    blocks = [torch.full((-(-size // 4),), torch.nan, device=device()) for size in sizes for _ in range(2)]
    del blocks  # the allocator hands these bytes to the next outputs: what is not written shows
    synchronize()
    if not on_gpu():
        return call(), sum(sizes)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    output = call()
    synchronize()
    return output, torch.cuda.max_memory_allocated() - before


# --- what contenders are made of --------------------------------------------------------------------------------------


def with_tf32(function: Callable) -> Callable:
    """The function, where float32 products may use the tensor cores."""

    def run():
        with tf32():
            return function()

    return run


def compiled(function: Callable) -> Callable:
    """By torch.compile; the function itself on the CPU, where a dry run does not wait for a compiler."""
    return torch.compile(function, dynamic=False) if on_gpu() else function


def sets_of(nbytes: int) -> int:
    """How many sets of inputs of that size take turns, so that none is found in the L2."""
    return 1 if nbytes > 2 * l2_bytes() else 3


def rotate(functions: Sequence[Callable]) -> Callable:
    if len(functions) == 1:
        return functions[0]
    turn = [0]

    def run():
        turn[0] = (turn[0] + 1) % len(functions)
        return functions[turn[0]]()

    return run
