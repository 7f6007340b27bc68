"""``sparsegnn.advise``."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsegnn import _console
from sparsegnn.advice.search import Search
from sparsegnn.advice.table import as_data, as_text
from sparsegnn.advice.verdict import decide
from sparsegnn.advice.work import OP, Problem, Stopwatch
from sparsegnn.experiments.config import TrainConfig

LEAST = 1.0  # seconds


def advise(
    model: nn.Module | TrainConfig,
    loss: Callable[[nn.Module], Tensor] | None = None,
    *,
    optimizer: Optimizer | Callable | None = None,
    narrower: Callable[[float], nn.Module] | None = None,
    seconds: float = 50.0,
    show: bool = True,
    progress: bool | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict:
    """What would make a training step faster on this machine, and whether a narrower dense net is the better answer.

    Measures one training step in parts, says what weight sparsity, MaxK, bf16, a narrower net and some of them together
    are expected to make of it, measures the best ones, and compares them with dense nets that are as fast::

        sparsegnn.advise(model, lambda model: F.cross_entropy(model(x, graph)[train], y[train]))

    Only copies of the model run. Afterwards the model, its gradients and buffers, gradients of what else the loss
    depends on, and the states of random generators are what they were, whatever happens.

    Args:
        model: dense or sparse; or a TrainConfig, for a model of ``sparsegnn train``, without ``loss``.
        loss: called with a copy of the model, returns the scalar loss of one training step, forward alone.
        optimizer: an optimizer, of which another of its class with the same settings is made for each copy; or what
            makes one from parameters, ``torch.optim.AdamW`` or ``lambda parameters: ...``. None: Adam.
        narrower: makes a dense model of a share of the hidden width, 0.5 and 0.25. None: units are removed from a copy,
            by :func:`sparsegnn.compact`, where it can.
        seconds: that all of it may take, about; a single step that takes more than a fiftieth of that may need longer.
        show, progress: print the tables; a progress bar on stderr, None: on a terminal after two seconds.
        clock: what time is told by.

    Returns:
        ``answer``: ``"levers"``, ``"compare"`` (train the dense net that is as fast, too), ``"narrower"`` or
        ``"nothing"``; ``text``, the same in words; ``option``; ``step`` and ``parts`` of the model as it is, seconds;
        ``options`` with ``expected`` and ``measured`` seconds, ``speedup``, ``memory`` (bytes: ``weights`` with their
        indices and gradients, ``optimizer``, ``activations`` kept for the backward pass), ``weights``, ``accuracy``;
        ``left_out``, a reason for each lever that this model cannot have.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{OP}: seconds must be a number, got {seconds!r}")
    if not LEAST <= seconds < math.inf:
        raise ValueError(f"{OP}: seconds must be at least {LEAST:g}, got {seconds}")
    if isinstance(model, TrainConfig):
        from sparsegnn.advice.builtin import problem_of

        if loss is not None or optimizer is not None or narrower is not None:
            raise ValueError(
                f"{OP}: loss, optimizer and narrower must be left out for a TrainConfig, which has its own"
            )
        problem = problem_of(model)
    else:
        problem = _problem(model, loss, optimizer, narrower)
    return advise_on(problem, seconds=seconds, show=show, progress=progress, clock=clock)


def advise_on(problem: Problem, *, seconds: float, show: bool, progress: bool | None, clock=time.perf_counter) -> dict:
    watch = Stopwatch(problem.device, clock)
    start = clock()
    with _Bar(progress) as bar:
        findings = Search(problem, watch, seconds, bar.say).run()
    found = as_data(findings, decide(findings, problem.hidden), clock() - start)
    if show:
        _console.write(as_text(found))
    return found


def _problem(model, loss, optimizer, narrower) -> Problem:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{OP}: model must be a torch.nn.Module or a TrainConfig, got {type(model).__name__}")
    if not callable(loss):
        raise TypeError(f"{OP}: loss must be callable with a model, got {type(loss).__name__}: lambda model: "
                        "F.cross_entropy(model(x), y)")  # fmt: skip
    if narrower is not None and not callable(narrower):
        raise TypeError(f"{OP}: narrower must be callable with a share of the width, got {type(narrower).__name__}")
    return Problem(model, loss, _optimizer_of(optimizer), narrower)


def _optimizer_of(given: Optimizer | Callable | None) -> Callable[[nn.Module], Optimizer]:
    """From a model to an optimizer of all of its parameters."""
    if given is None:
        return lambda model: torch.optim.Adam(_trained(model))
    if isinstance(given, Optimizer):
        known = inspect.signature(type(given).__init__).parameters
        settings = {name: value for name, value in given.defaults.items() if name in known}
        return lambda model: type(given)(_trained(model), **settings)
    if not callable(given):
        raise TypeError(f"{OP}: optimizer must be an Optimizer or make one from parameters, got {type(given).__name__}")

    def make(model: nn.Module) -> Optimizer:
        made = given(_trained(model))
        if not isinstance(made, Optimizer):
            raise TypeError(f"{OP}: optimizer must return a torch.optim.Optimizer, got {type(made).__name__}")
        return made

    return make


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


class _Bar:
    """What is being done, on stderr."""

    STEPS = 40  # about

    def __init__(self, shown: bool | None):
        self.stream = _console.diagnostics()
        self.hidden = not (self.stream.isatty() if shown is None else shown)
        self.bar = None

    def __enter__(self) -> _Bar:
        if not self.hidden:
            from tqdm import tqdm

            self.bar = tqdm(total=self.STEPS, desc="advise", delay=2, leave=False, file=self.stream)
        return self

    def __exit__(self, *error) -> None:
        if self.bar is not None:
            self.bar.close()

    def say(self, what: str) -> None:
        if self.bar is not None:
            self.bar.total = max(self.bar.total, self.bar.n + 1)
            self.bar.set_postfix_str(_console.clean(what), refresh=False)
            self.bar.update()
