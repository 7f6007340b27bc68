"""What a layer takes, dense or sparse, and what an optimizer takes: short timings at the shapes of the step."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Hashable, Mapping

import torch
from torch import Tensor, nn

from sparsegnn.advice.parts import Layer
from sparsegnn.advice.work import Candidate, Stopwatch

Key = Hashable
LONGEST = 0.25  # seconds of a timed call, by what the layer takes in the step: of more, a part of the rows is timed
ENOUGH = 0.03  # seconds of all calls of one, ...
FEWEST, MOST = 3, 15  # ... after so many
SHORT = 0.005  # seconds of a call
BOUND = 1.5  # times that a layer by itself may be faster or slower than within the step


class Prices:
    """Timings of what may take each other's place, in turns: a machine that is slow now and then disturbs them less."""

    def __init__(self, watch: Stopwatch, longest: float = LONGEST):
        self.watch, self.longest = watch, longest
        self._inputs: dict[tuple, Tensor] = {}

    def layers(self, use: Layer, modules: Mapping[Key, nn.Module], low_precision: bool = False) -> dict[Key, float]:
        """Seconds of all calls of each module in a step, forward and backward, as ``use`` describes them."""
        rows = timed_rows(use, self.longest)
        found = self.together({k: self._call(use, module, rows, low_precision) for k, module in modules.items()})
        return {key: t * use.calls * use.rows / max(1, rows) for key, t in found.items()}

    def optimizers(self, candidates: Mapping[Key, Candidate]) -> dict[Key, float]:
        """Seconds of their steps, on gradients that change nothing much."""
        for candidate in candidates.values():
            for p in candidate.model.parameters():
                p.grad = torch.full_like(p, 1e-6) if p.requires_grad else None
        return self.together({key: candidate.optimizer.step for key, candidate in candidates.items()})

    def together(self, runs: Mapping[Key, Callable[[], object]]) -> dict[Key, float]:
        """Medians of some calls of each, after one that does not count; what is short must find its memory again,
        behind what is not, before every one."""
        taken: dict[Key, list[float]] = {key: [] for key in runs}
        short = {key: self.watch(run) < SHORT for key, run in runs.items()}
        rounds = total = 0
        while rounds < FEWEST or (total < ENOUGH * len(runs) and rounds < MOST):
            for key, run in runs.items():
                if short[key]:
                    run()
                taken[key].append(self.watch(run))
            rounds, total = rounds + 1, sum(map(sum, taken.values()))
        return {key: statistics.median(each) for key, each in taken.items()}

    def _call(self, use: Layer, module: nn.Module, rows: int, low_precision: bool) -> Callable[[], object]:
        x, weights = self._input(use, rows, module), [p for p in module.parameters(recurse=False) if p.requires_grad]
        inputs = [*weights, *([x] if use.need_dx else [])]
        dtype = torch.bfloat16 if low_precision else next(module.parameters()).dtype
        dy = torch.randn(rows, use.shape[0], device=self.watch.device).to(dtype)

        def run() -> None:
            with torch.autocast(self.watch.device.type, torch.bfloat16, enabled=low_precision):
                y = module(x)
            if inputs:
                torch.autograd.backward(y, dy.to(y.dtype), inputs=inputs)
            for t in inputs:
                t.grad = None

        return run

    def _input(self, use: Layer, rows: int, module: nn.Module) -> Tensor:
        key = _input_key(use, rows, module)
        if key not in self._inputs:
            if use.features is None:
                x = torch.randn(rows, use.shape[1], device=self.watch.device, dtype=key[-1])
                x.requires_grad_(use.need_dx)
            else:
                x = _first_rows(use, rows)
            self._inputs[key] = x
        return self._inputs[key]


def _input_key(use: Layer, rows: int, module: nn.Module) -> tuple:
    nonzeros = None if use.features is None else use.features[1].numel()
    return rows, use.shape[1], use.need_dx, nonzeros, next(module.parameters()).dtype


def timed_rows(use: Layer, longest: float = LONGEST) -> int:
    """All rows, or as many as take no ``longest`` seconds in the step."""
    each = use.seconds / max(1, use.calls)
    return use.rows if each <= longest else max(1, min(use.rows, int(use.rows * longest / each)))


def _first_rows(use: Layer, rows: int) -> Tensor:
    crow, col, val = use.features
    crow = crow[: rows + 1]
    n = int(crow[-1])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse (CSR|invariant)")  # torch's: its layout is in beta
        return torch.sparse_csr_tensor(crow, col[:n], val[:n], (rows, use.shape[1]))


def moved(within: float, before: float, after: float) -> float:
    """What takes ``within`` a step, when by itself it takes ``after`` instead of ``before``.

    The difference counts at the speed of the step, as far as the two speeds are alike: what is small is mostly the
    call, which the operators of the step do not show.
    """
    speed = min(BOUND, max(1 / BOUND, within / before)) if before > 0 else 1.0
    return max(0.0, within + speed * (after - before))
