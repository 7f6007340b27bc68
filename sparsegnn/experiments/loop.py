"""What training loops share, whatever the task: which step is selected, what the steps cost, and the result's keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sparsegnn._version import __version__
from sparsegnn.controllers import Controller, registry
from sparsegnn.experiments.config import DENSE
from sparsegnn.experiments.ledger import Ledger
from sparsegnn.experiments.measure import PeakMemory, StepTimer
from sparsegnn.experiments.meter import PARTS
from sparsegnn.experiments.models.shapes import counts, linears, weight_counts
from sparsegnn.nn.sparse_weight import SparseWeight


class CheckFailed(RuntimeError):
    """A run that went wrong although its input was fine: diverged, or the number of weights changed."""


def make_controller(config, model: nn.Module, optimizer: torch.optim.Optimizer, graph: object = None,
                    steps: int | None = None) -> Controller | None:  # fmt: skip
    """The method of a config, attached to the optimizer; None for a dense run.

    ``steps`` are the optimizer steps of the run, by default its epochs. ValueError where the method does not fit in.
    """
    cls, steps = config.controller, config.epochs if steps is None else steps
    if cls is None:
        return None
    made = registry.make(cls, model, optimizer, graph=graph, steps=steps, common=config.common(), own=config.set)
    if made.settled_at > steps:
        made.detach()
        raise ValueError(
            f"epochs must be at least {made.settled_at} for method {config.method!r}, whose sparsity is final only "
            f"then, got {steps}: train longer, or let it end sooner"
        )
    return made


def used_settings(config, steps: int | None = None) -> dict:
    """Every setting of the method, as the run has it."""
    cls = config.controller
    if cls is None:
        return {}
    defaults = {name: p.default for name, p in registry.settings(cls).items()}
    return defaults | registry.chosen(cls, config.epochs if steps is None else steps, config.common(), config.set)


class Selection:
    """The step that the validation set selects, and the learning curve. Nothing is ever selected on the test set.

    Args:
        metric: the metric that is compared.
        higher_is_better: whether more of it is better.
        keep_state: keep the model's state of the selected step, as :attr:`state`.
    """

    def __init__(self, metric: str, higher_is_better: bool, keep_state: bool = False):
        self.metric, self.higher_is_better, self.keep_state = metric, higher_is_better, keep_state
        self.step = 0  # steps made by then; 0: none is selected
        self.val, self.tie = math.nan, math.nan
        self.tests: dict[str, float] = {}
        self.curve: list[list] = []  # steps, validation metric then, test metric of the step that is selected by then
        self.state: dict[str, Tensor] | None = None

    def offer(self, step: int, val: float, tests: Callable[[], dict[str, float]], model: nn.Module,
              tie: float = 0.0) -> None:  # fmt: skip
        """What ``step`` steps came to: ``val`` on the validation set, ``tests()`` on the test set.

        ``tests`` gives the metrics by name, the one that is compared among them, and is called where the step is taken,
        as it is where ``val`` is better than at all steps before, or as good with a smaller ``tie``, such as a
        validation loss. CheckFailed if ``val`` or ``tie`` is not finite.
        """
        if not math.isfinite(val) or not math.isfinite(tie):
            what = f"{self.metric} {val}" if not math.isfinite(val) else f"loss {tie}"
            raise CheckFailed(f"training diverged: validation {what} after {step} steps")
        sign = 1.0 if self.higher_is_better else -1.0
        if self.step == 0 or (sign * val, -tie) > (sign * self.val, -self.tie):
            self.step, self.val, self.tie, self.tests = step, val, tie, tests()
            if self.keep_state:
                self.state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
        self.curve.append([step, val, self.tests[self.metric]])

    def result(self) -> dict:
        return {
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "val": self.val,
            "test": self.tests[self.metric],
            "tests": self.tests,
            "selected_step": self.step,
        }


class Phases:
    """What a method's layers do from which step on, and when that ends."""

    def __init__(self, controller: Controller | None):
        self.controller = controller
        self.history: list[list] = []  # [phase, first step]

    @property
    def settled_at(self) -> int:
        """Steps after which no weight comes or goes any more, from where on a step may be selected."""
        return 0 if self.controller is None else self.controller.settled_at

    def at(self, step: int) -> str:
        """The phase of a step that is about to be made."""
        now = DENSE if self.controller is None else self.controller.phase
        if not self.history or self.history[-1][0] != now:
            self.history.append([now, step])
        return now


class Account:
    """What a run costs: around each of its steps, and at each look at the validation set::

        account = Account(config, model, optimizer, controller, memory=memory)
        for step in range(steps):
            with account.step() as timer:
                with timer.phase("forward"): ...
            if account.may_select:
                selection.offer(step + 1, ...)
                account.mark()
        result = account.result(selection)

    Args:
        config: ``method`` and ``controller`` of the run.
        memory: begun before the model was made.
        counted: whether the FLOPs of these layers can be counted; else they are None in the result.
        recorded: steps are recorded and replayed: only the first of each kind is counted, and phases are not told.
    """

    def __init__(self, config, model: nn.Module, optimizer: torch.optim.Optimizer, controller: Controller | None, *,
                 memory: PeakMemory, counted: bool = True, recorded: bool = False):  # fmt: skip
        self.config, self.model, self.controller = config, model, controller
        self.counted, self.recorded, self.steps = counted, recorded, 0
        self.phases, self.timer = Phases(controller), StepTimer(memory.device)
        # A recorded step shows no operators.
        self.ledger = Ledger(model, optimizer, sample_every=0 if recorded else 50, memory=memory)
        self.weights_at_start, _ = weight_counts(model)
        self.layers: dict[str, list[list]] = {}
        self._look()

    @contextmanager
    def step(self, *key) -> Iterator[StepTimer]:
        """Around one step, whose phases are timed by what is yielded. ``key``: what else makes steps cost different."""
        now = self.phases.at(self.steps)
        # A step of a kind that was not seen must be none that is replayed.
        with self.ledger.step(None if self.recorded else (now, *key)) as sampled:
            yield self.timer
        self.timer.end_step(keep=not sampled)
        self.steps += 1
        self._look()

    @property
    def may_select(self) -> bool:
        """Whether sparsity is final, so that the step that was just made may be selected."""
        return self.steps >= self.phases.settled_at

    def mark(self) -> None:
        """Once for each step that is offered to the selection."""
        self.ledger.mark()

    def _look(self) -> None:
        """Sparsity of each linear map, where it changed."""
        for name, lin in linears(self.model).items():
            kept, size = counts(lin)
            sparsity, seen = 1 - kept / size, self.layers.setdefault(name, [])
            if not seen or seen[-1][1] != sparsity:
                seen.append([self.steps, sparsity])

    def result(self, selection: Selection) -> dict:
        """The keys of a result that all tasks share. CheckFailed where weights got lost, or no step was selected."""
        method = self.config.method
        kept, dense = weight_counts(self.model)
        if (self.controller is None or self.controller.keeps_size) and kept != self.weights_at_start:
            raise CheckFailed(f"{method}: the number of weights must not change, {self.weights_at_start} became {kept}")
        if selection.step == 0:
            raise CheckFailed(f"{method}: sparsity must be final by the last epoch, got step {self.phases.settled_at} "
                              f"of {self.steps}")  # fmt: skip
        account, seconds = self.ledger.report(show=False), self.timer.medians()
        flops = account["flops"] if self.counted else dict.fromkeys(account["flops"])
        points = zip(selection.curve, self.ledger.so_far(), strict=True)
        return {
            **selection.result(),
            "steps": self.steps,
            # steps made, validation metric then, test metric of the step selected by then, FLOPs and seconds by then
            "curve": [[*point, n if self.counted else None, spent] for point, (n, spent) in points],
            "layers": self.layers,  # of each, [step, sparsity] where it changed
            "sparsity": 1 - kept / dense,
            "weights": kept,
            "weights_dense": dense,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "model_bytes": model_bytes(self.model),
            "flops": flops["products"],
            **{f"flops_{part}": flops[part] for part in PARTS},
            "seconds_per_step": seconds["step"],
            "seconds_forward": seconds["forward"],
            "seconds_backward": seconds["backward"],
            "seconds_optimizer": seconds["optimizer"],
            **{f"seconds_{part}": account["seconds_per_step"][part] for part in (*PARTS, "other")},
            "seconds_training": account["seconds"]["total"],  # of all steps, without looks at the validation set
            "peak_memory_bytes": account["peak_memory_bytes"],
            "run_memory_bytes": account["run_memory_bytes"],  # above what the process held before the model was made
            "mask_updates": getattr(self.controller, "updates", 0),
            "phases": self.phases.history,
            "threads": torch.get_num_threads(),
            "versions": {"sparsegnn": __version__, "torch": str(torch.__version__)},
        }


def model_bytes(model: nn.Module) -> int:
    """Bytes of a model as it is trained: its parameters, and the positions of its sparse weights."""
    sparse = [m for m in model.modules() if isinstance(m, SparseWeight)]
    positions = (t for m in sparse for t in m.pattern())
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *positions))
