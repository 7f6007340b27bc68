"""A training step that can be made with copies of a model, and what is put back afterwards."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

OP = "advise"


@dataclass
class Problem:
    """What is to become faster.

    model       as it is given: only copies of it run
    loss        model -> the scalar loss of a training step
    optimizer   model -> its optimizer
    narrower    share of the hidden width -> a dense model of that width; None: units are removed from a copy
    with_maxk   (share of the width, k) -> such a model with MaxK; None: it is put in the place of ReLUs
    loss_in_bf16  as loss; None: the same under autocast
    hidden      the width of a hidden layer, to speak of; None: not known
    """

    model: nn.Module
    loss: Callable[[nn.Module], Tensor]
    optimizer: Callable[[nn.Module], Optimizer]
    narrower: Callable[[float], nn.Module] | None = None
    with_maxk: Callable[[float, int], nn.Module] | None = None
    loss_in_bf16: Callable[[nn.Module], Tensor] | None = None
    hidden: int | None = None
    narrow: dict[float, nn.Module] = field(default_factory=dict)  # models that are made already

    @property
    def device(self) -> torch.device:
        return next((t.device for t in (*self.model.parameters(), *self.model.buffers())), torch.device("cpu"))


class Candidate:
    """A model of its own, with an optimizer: what a step of it takes is measured."""

    def __init__(self, problem: Problem, model: nn.Module, low_precision: bool = False):
        self.model = model if model.training else model.train()
        self.device, self.autocast = problem.device, low_precision and problem.loss_in_bf16 is None
        self.loss = problem.loss_in_bf16 if low_precision and not self.autocast else problem.loss
        self.optimizer = problem.optimizer(model)

    def forward(self) -> Tensor:
        if not self.autocast:
            return checked(self.loss(self.model))
        with torch.autocast(self.device.type, torch.bfloat16):
            return checked(self.loss(self.model))

    def step(self, around_optimizer: Callable = contextlib.nullcontext) -> None:
        self.forward().backward()
        with around_optimizer():
            self.optimizer.step()
            self.optimizer.zero_grad()

    def state_bytes(self) -> dict[str, int]:
        """Of weights with their indices and gradients, and of the optimizer, after a step."""
        parameters = sum(p.nbytes for p in self.model.parameters())
        gradients = sum(p.nbytes for p in self.model.parameters() if p.requires_grad)
        buffers = sum(b.nbytes for b in self.model.buffers())
        kept = [t for slots in self.optimizer.state.values() for t in slots.values() if isinstance(t, Tensor)]
        return {"weights": parameters + gradients + buffers, "optimizer": sum(t.nbytes for t in kept)}


def checked(loss: object) -> Tensor:
    if not isinstance(loss, Tensor):
        raise TypeError(f"{OP}: loss must return a Tensor, got {type(loss).__name__}")
    if loss.numel() != 1:
        raise ValueError(f"{OP}: loss must return a scalar, got shape {list(loss.shape)}: take its mean or sum")
    if not loss.requires_grad:
        raise ValueError(f"{OP}: loss must return what depends on parameters that require a gradient, got a loss that "
                         "requires none")  # fmt: skip
    return loss


def model_copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as e:
        raise ValueError(f"{OP}: model must be one that copy.deepcopy can copy, since only copies run, got "
                         f"{type(model).__name__}: {e}") from e  # fmt: skip


# --- what is put back ------------------------------------------------------------------------------------------------


class Surroundings:
    """While this holds anything may run; then the model, random numbers, and gradients of others are what they were."""

    def __init__(self, model: nn.Module):
        self.model, self.device = model, None
        self._gradients: dict[int, tuple[Tensor, Tensor | None]] = {}  # of leaves that are not of the copies

    def __enter__(self) -> Surroundings:
        buffers = [b for b in self.model.buffers() if not nn.parameter.is_lazy(b) and not b.is_inference()]
        self._buffers = [(b, b.clone()) for b in buffers]
        self._modes = [(m, m.training) for m in self.model.modules()]
        cuda = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
        self._torch = torch.random.fork_rng(cuda)
        self._torch.__enter__()
        self._python = random.getstate()
        self._numpy = sys.modules["numpy"].random.get_state() if "numpy" in sys.modules else None
        return self

    def __exit__(self, *error) -> None:
        for leaf, gradient in self._gradients.values():
            leaf.grad = gradient
        for m, training in self._modes:
            m.training = training
        with torch.no_grad():
            for b, before in self._buffers:  # batch_norm writes without counting it as a version
                if not torch.equal(b, before):
                    b.copy_(before)
        self._torch.__exit__(*error)
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)

    def first_step(self, candidate: Candidate) -> None:
        """A step that looks at what the loss depends on: gradients of others than the copy are kept for later."""
        loss = candidate.forward()
        own = {id(p) for p in candidate.model.parameters()}
        found = {id(leaf): leaf for leaf in leaves(loss)}
        if not own & found.keys():
            raise ValueError(f"{OP}: loss must depend on the model that it is called with, a copy of yours, got a loss "
                             "that does not: write it as lambda model: ...")  # fmt: skip
        for name, leaf in found.items():
            if name not in own and name not in self._gradients:
                self._gradients[name] = leaf, leaf.grad
                leaf.grad = None
        loss.backward()
        candidate.optimizer.step()
        candidate.optimizer.zero_grad()

    @property
    def strangers(self) -> int:
        """Tensors outside of the model that require a gradient."""
        return len(self._gradients)


def leaves(loss: Tensor) -> Iterator[Tensor]:
    """The tensors that ``backward`` leaves gradients in."""
    todo, seen = [loss.grad_fn], set()
    if loss.grad_fn is None:
        yield loss
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            yield variable
        todo += [following for following, _ in node.next_functions]


# --- the clock -------------------------------------------------------------------------------------------------------


class Stopwatch:
    """Seconds that a call takes, by ``clock``; waits for a GPU before and after."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter):
        self.device, self.clock = device, clock

    def __call__(self, run: Callable[[], object], times: int = 1) -> float:
        self._wait()
        start = self.clock()
        for _ in range(times):
            run()
        self._wait()
        return (self.clock() - start) / times

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
