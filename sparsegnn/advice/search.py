"""The measurements behind an advice: the step as it is, what each lever is expected to make of it, and the best ones.

Levers that change the whole step (MaxK, bf16, width) are made in a copy, one step of which runs operator by operator.
Sparse weights are priced layer by layer, at the shapes of these steps, and put in the place of the dense layers there.
The best options of different levers then run, in turns with the model as it is given.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch

from sparsegnn.advice import levers
from sparsegnn.advice.expect import expected
from sparsegnn.advice.levers import PATTERNS, SPARSITIES, WIDTHS, LeftOut, Option, make
from sparsegnn.advice.parts import Kept, Trace, trace
from sparsegnn.advice.prices import LONGEST, Prices
from sparsegnn.advice.work import Candidate, Problem, Stopwatch, Surroundings, model_copy
from sparsegnn.nn import SparseLinear

BEST = 3  # options with levers that are measured, beside narrower nets
NEAR = 1.1  # as fast, when the milder of two sparsities is looked for
MILD = (0.9,)  # sparsities in a narrower net
SLOW = 2.0  # a lever that makes the step so much slower is not combined with others
LONG = 25  # steps that fit into the time: with fewer, one of an option is watched, and none beside it
EACH = 50  # times that the steps beside those of one option fit into the time
SAMPLE = 0.03  # seconds that a measured sample takes at least
ROUNDS = 3, 15  # of measurements: as many as there is time for, but at least, at most
REFUSALS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
PRICING = 0.65  # of the time, what measurements before the last ones may take


@dataclass
class Found:
    """An option, and what is known of it. Seconds of a step, bytes."""

    option: Option
    seconds: dict[str, float]
    memory: dict[str, int]
    weights: int
    measured: float | None = None

    @property
    def expected(self) -> float:
        return sum(self.seconds.values())

    @property
    def step(self) -> float:
        return self.expected if self.measured is None else self.measured


@dataclass
class Findings:
    """Of the model as it is given, of all options, and which levers were left out, and why."""

    given: Found
    options: list[Found] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    strangers: int = 0
    rounds: int = 0

    def get(self, option: Option) -> Found | None:
        return next((found for found in self.options if found.option == option), None)


def mildest(options: list[Found]) -> Found:
    """Of those that are about as fast as the fastest, that with fewest levers, and most weights."""
    fastest = min(x.step for x in options)
    near = [x for x in options if x.step <= NEAR * fastest]
    return min(near, key=lambda x: (len(x.option.kinds), x.option.sparsity, x.step))


class Search:
    """One advice. ``seconds`` is what all of it may take, ``say`` is told what is done."""

    def __init__(self, problem: Problem, watch: Stopwatch, seconds: float, say: Callable[[str], None]):
        self.problem, self.watch, self.say = problem, watch, say
        self.begin, self.seconds = watch.clock(), seconds
        self.prices = Prices(watch, min(LONGEST, seconds / 400))
        self.traces: dict[Option, Trace] = {}
        self._changed: dict[tuple[float, bool], dict] = {}

    def run(self) -> Findings:
        with Surroundings(self.problem.model) as around, torch.enable_grad():
            self.around = around
            self.say("the step as it is")
            self.findings = self._given()
            findings = self.findings
            findings.strangers = around.strangers
            for whole_steps, bf16 in ((self._in_full_precision, False), (self._in_bf16, True)):
                for option in whole_steps():
                    self._try(option, self._trace_of)
                for option in self._sparse(bf16):
                    self._try(option, self._price)
            self._measure()
        return findings

    def left(self) -> float:
        return self.seconds - (self.watch.clock() - self.begin)

    def _need_time(self) -> None:
        """For what is measured before the last measurements."""
        if self.left() < (1 - PRICING) * self.seconds:
            raise LeftOut(f"no time was left in {self.seconds:g} seconds")

    # --- one option ---

    def _given(self) -> Findings:
        self.given = candidate = Candidate(self.problem, model_copy(self.problem.model))
        self.begin = self.watch.clock()  # torch's first optimizer imports its compiler
        kept = self._first_steps(candidate)
        once = self.watch(candidate.step)
        self.long = once > self.seconds / LONG
        plain = once if self.long else None
        found = trace(candidate, self.watch, kept, candidate, None, plain, self.seconds / EACH)
        self.base = self.given_trace = found
        findings = Findings(Found(Option(), found.seconds, found.memory, levers.weights_of(candidate.model)))
        if any(isinstance(m, SparseLinear) for m in candidate.model.modules()):
            dense = make(self.problem, Option(), ())
            self.base = self._traced(dense)
            findings.options.append(
                Found(Option(), self.base.seconds, self.base.memory, levers.weights_of(dense.model))
            )
        self.traces[Option()] = self.base
        return findings

    def _first_steps(self, candidate: Candidate) -> int:
        """Until layers have kept what they keep; returns the bytes of what a step keeps for its backward pass.

        That is the third step where a layer keeps what comes twice, with ``cached=True`` the aggregate of its input.
        """
        if not any(getattr(m, "cached", False) for m in candidate.model.modules()):
            with Kept(candidate) as kept:
                self.around.first_step(candidate)
            return kept.bytes
        self.around.first_step(candidate)
        candidate.step()
        with Kept(candidate) as kept:
            candidate.step()
        return kept.bytes

    def _traced(self, candidate: Candidate) -> Trace:
        kept, base = self._first_steps(candidate), self.given_trace
        if not self.long:
            candidate.step()
        plain = base.plain if self.long else None
        return trace(candidate, self.watch, kept, self.given, base, plain, self.seconds / EACH)

    def _try(self, option: Option, price: Callable[[Option], Found]) -> None:
        """Add what an option is expected to be, or why it cannot be."""
        self.say(str(option))
        try:
            self.findings.options.append(price(option))
        except REFUSALS as e:
            self.findings.left_out[str(option)] = " ".join(str(e).split()) or type(e).__name__

    def _trace_of(self, option: Option) -> Found:
        self._need_time()
        if option.bf16 and not option.maxk:
            self._refuse_slow_bf16()
        candidate = make(self.problem, option, self.base.layers)
        found = self.traces[option] = self._traced(candidate)
        return Found(option, found.seconds, found.memory, levers.weights_of(candidate.model))

    def _refuse_slow_bf16(self) -> None:
        """Where a processor has no bf16 instructions, a product may take ten times as long: one layer tells."""
        largest = max(self.base.layers, key=lambda use: use.seconds, default=None)
        if largest is None or largest.features is not None:
            return
        module = levers.dense_model(self.problem.model).get_submodule(largest.name)
        quick = Prices(self.watch, self.prices.longest / 20)
        half, full = (quick.layers(largest, {0: module}, low)[0] for low in (True, False))
        if half > SLOW * full:
            raise LeftOut(f"a product in bf16 takes {half / full:.1f} times as long on this machine ({largest.name})")

    def _price(self, option: Option) -> Found:
        traced = self.traces[option.dense]
        name = option.sparsity, option.pattern
        found = self._sparse_weights(option.width, option.bf16)[name]
        if isinstance(found, Exception):
            raise found
        layers, optimizer, memory, weights = found
        memory = {**memory, "activations": traced.memory["activations"]}
        return Found(option, expected(traced, layers, optimizer, memory), memory, weights)

    def _sparse_weights(self, width: float, bf16: bool) -> dict[tuple[float, str], tuple | Exception]:
        """For each sparsity and pattern what the layers and the optimizer take, dense and sparse, bytes and weights."""
        if (width, bf16) in self._changed:
            return self._changed[width, bf16]
        self._need_time()
        uses = self.traces[Option(bf16=bf16, width=width)].layers
        made: dict = {None: make(self.problem, Option(bf16=bf16, width=width), ())}
        found: dict = {}
        for pattern in PATTERNS:
            names = [(sparsity, pattern) for sparsity in (SPARSITIES if width == 1 else MILD)]
            try:
                those = {name: make(self.problem, Option(*name, bf16=bf16, width=width), uses) for name in names}
                if not self.long:
                    self.around.first_step(those[names[-1]])  # a layer by itself does not show what the model refuses
                made |= those
            except REFUSALS as e:
                found |= dict.fromkeys(names, e)
        layers: dict = {name: {} for name in made}
        for use in uses:
            modules = {name: x.model.get_submodule(use.name) for name, x in made.items()}
            modules = {n: m for n, m in modules.items() if n is None or isinstance(m, SparseLinear)}
            if len(modules) > 1:
                taken = self.prices.layers(use, modules, bf16)
                for name in modules:
                    layers[name][use.name] = taken[None], taken[name]
        steps = self.prices.optimizers(made)
        for name, candidate in made.items():
            memory, weights = candidate.state_bytes(), levers.weights_of(candidate.model)
            found[name] = layers[name], (steps[None], steps[name]), memory, weights
        self._changed[width, bf16] = found
        return found

    # --- which options ---

    def _in_full_precision(self) -> Iterator[Option]:
        """Options without sparse weights, one after the other is traced."""
        for width in WIDTHS:
            yield Option(width=width)
        try:
            yield Option(maxk=levers.maxk_of(self.problem))
        except (ValueError, TypeError) as e:
            self.findings.left_out["MaxK"] = str(e).removeprefix("advise: ")

    def _in_bf16(self) -> Iterator[Option]:
        yield Option(bf16=True)
        for option in [x for x in self.traces if x.kinds == ("maxk",)]:
            if self._gains(option) and self._gains(Option(bf16=True)):
                yield replace(option, bf16=True)

    def _gains(self, option: Option) -> bool:
        return option in self.traces and self.traces[option].step < self.base.step

    def _sparse(self, bf16: bool) -> Iterator[Option]:
        """Sparse weights, with what else was traced and is worth it."""
        for traced in [x for x in self.traces if x.bf16 == bf16]:
            if self.traces[traced].step > (1 / NEAR if bf16 else SLOW) * self.base.step:
                continue
            for pattern in PATTERNS:
                for sparsity in SPARSITIES if traced.width == 1 else MILD if traced.width == 0.5 else ():
                    yield Option(sparsity, pattern, traced.maxk, traced.bf16, traced.width)

    def best(self) -> list[Found]:
        """The fastest options, of different levers, and none whose gain fewer of its levers have already."""
        families: dict[tuple, list[Found]] = {}
        for found in self.findings.options:
            if found.option.kinds not in ((), ("narrower",)):
                families.setdefault(found.option.kinds, []).append(found)
        chosen: list[Found] = []
        for family in sorted(families.values(), key=lambda family: len(family[0].option.kinds)):
            mild = mildest(family)
            fewer = [x.expected for x in chosen if set(x.option.kinds) < set(mild.option.kinds)]
            if not fewer or NEAR * mild.expected < min(fewer):
                chosen.append(mild)
        return sorted(chosen, key=lambda x: x.expected)[:BEST]

    # --- measuring ---

    def _measure(self) -> None:
        """Steps of the best options, of narrower nets and of the model as it is, in turns: medians."""
        findings = self.findings
        narrower = [x for x in findings.options if x.option.kinds == ("narrower",)]
        chosen: list[tuple[Found, Candidate]] = []
        self.say("measuring")
        given = Candidate(self.problem, model_copy(self.problem.model))
        for found in [findings.given, *self.best(), *narrower]:
            first = found is findings.given
            try:
                candidate = given if first else make(self.problem, found.option, self._uses(found.option))
                self._first_steps(candidate)
            except Exception as e:
                if first:
                    raise
                findings.left_out[str(found.option)] = " ".join(str(e).split()) or type(e).__name__
                findings.options.remove(found)
                continue
            chosen.append((found, candidate))
        times = [max(1, math.ceil(SAMPLE / max(found.expected, 1e-6))) for found, _ in chosen]
        taken: list[list[float]] = [[] for _ in chosen]
        while findings.rounds < ROUNDS[0] or (findings.rounds < ROUNDS[1] and self.left() > 0):
            for n, (_, candidate), samples in zip(times, chosen, taken, strict=True):
                if n > 1:  # what is small must find its memory again, behind what is not
                    candidate.step()
                samples.append(self.watch(candidate.step, n))
            findings.rounds += 1
            self.say("measuring")
            if self.left() < -0.2 * self.seconds:
                break
        for (found, _), samples in zip(chosen, taken, strict=True):
            found.measured = statistics.median(samples)
        now = findings.given.measured / findings.given.expected if findings.given.expected else 1.0
        for found in (findings.given, *findings.options):  # what was expected, on the machine as it was just now
            found.seconds = {part: t * now for part, t in found.seconds.items()}

    def _uses(self, option: Option) -> list:
        return self.traces[option.dense].layers if option.dense in self.traces else self.base.layers
