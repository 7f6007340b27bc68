"""What can be done to a model to make its step faster, and copies of the model to which it was done."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from sparsegnn.advice.parts import Layer
from sparsegnn.advice.work import OP, Candidate, Problem, model_copy
from sparsegnn.compaction import compact
from sparsegnn.controllers.distributions import allocate
from sparsegnn.controllers.structure.maxk import MaxKGNN
from sparsegnn.convert import densify, sparsify
from sparsegnn.linears import linears
from sparsegnn.nn import SparseLinear
from sparsegnn.pattern import block_grid
from sparsegnn.width.activations import Activations
from sparsegnn.width.trace import inside
from sparsegnn.width.units import Units

SPARSITIES = (0.8, 0.9, 0.95, 0.98)
PATTERNS = ("unstructured", "grouped:8")
WIDTHS = (0.5, 0.25)
WORDS = {0.5: "half the width", 0.25: "a quarter of the width"}
LEAST_K = 16  # below, MaxK costs accuracy, and an edge of the graph reads no less


class LeftOut(ValueError):
    """A lever that this model cannot have, or that is not worth a measurement; the message says why."""


@dataclass(frozen=True)
class Option:
    """Levers together. Without any it is the dense model."""

    sparsity: float = 0.0
    pattern: str = "unstructured"
    maxk: int = 0
    bf16: bool = False
    width: float = 1.0

    @property
    def kinds(self) -> tuple[str, ...]:
        used = {"weights": self.sparsity, "maxk": self.maxk, "bf16": self.bf16, "narrower": self.width != 1}
        return tuple(kind for kind, value in used.items() if value)

    @property
    def dense(self) -> Option:
        """The same with all weights."""
        return replace(self, sparsity=0.0, pattern="unstructured")

    def __str__(self) -> str:
        words = [WORDS.get(self.width, f"{self.width:g} of the width")] * (self.width != 1)
        words += [f"{round(100 * self.sparsity)} % sparse weights ({self.pattern})"] * bool(self.sparsity)
        words += [f"MaxK {self.maxk}"] * bool(self.maxk) + ["bf16"] * self.bf16
        return " + ".join(words) or "dense"


def make(problem: Problem, option: Option, layers: Sequence[Layer]) -> Candidate:
    """A copy of the model with the levers of ``option``; of the ``layers``, those that can hold the pattern are sparse.

    ValueError or TypeError where that is not possible.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a lever cannot do shows in what it gains
        known = option.maxk and problem.with_maxk is not None
        model = problem.with_maxk(option.width, option.maxk) if known else _of_width(problem, option.width)
        if option.sparsity:
            sparsify(model, distribution=sparsities(option, layers), pattern=option.pattern)
        if option.maxk and not known:
            MaxKGNN(model, torch.optim.SGD(model.parameters()), k=option.maxk).finalize()
    return Candidate(problem, model, option.bf16)


def sparsities(option: Option, layers: Sequence[Layer]) -> dict[str, float]:
    """Of each layer that will be sparse: what ERK gives to all that can hold the pattern."""
    fitting = {x.name: x.shape for x in layers if fits(x.shape, option.pattern)}
    if not fitting:
        shapes = ", ".join(f"{x.name} {x.shape[0]}x{x.shape[1]}" for x in layers)
        raise LeftOut(f"no layer can hold pattern {option.pattern!r}: {shapes}" if layers else
                      "no linear layer was used whose weight could be sparse")  # fmt: skip
    counts = allocate(fitting, option.sparsity, "erk", op=OP)
    sizes = {name: m * k for name, (m, k) in fitting.items()}
    return {name: 1 - n / sizes[name] for name, n in counts.items() if n < sizes[name]}


def fits(shape: tuple[int, int], pattern: str) -> bool:
    try:
        block_grid(*shape, pattern, OP)
    except ValueError:
        return False
    return True


def dense_model(model: nn.Module) -> nn.Module:
    """A copy, with all weights."""
    model = model_copy(model)
    return densify(model) if any(isinstance(m, SparseLinear) for m in model.modules()) else model


def _of_width(problem: Problem, width: float) -> nn.Module:
    if width == 1:
        return dense_model(problem.model)
    if width not in problem.narrow:
        model = problem.narrower(width) if problem.narrower is not None else narrowed(problem.model, width)
        if not isinstance(model, nn.Module):
            raise TypeError(f"{OP}: narrower must return a torch.nn.Module, got {type(model).__name__}")
        problem.narrow[width] = model
    return model_copy(problem.narrow[width])


def narrowed(model: nn.Module, width: float) -> nn.Module:
    """A dense copy of which each hidden layer keeps that share of its units, by :func:`sparsegnn.compact`."""
    model = dense_model(model)
    before = sum(p.numel() for p in model.parameters())
    units = Units(OP, inside(model), {id(p) for p in model.parameters()})
    dead = torch.zeros(units.count + 1, dtype=torch.bool)
    for groups, n in units.targets(OP, 1 - width, "uniform").values():
        dead[groups[groups.numel() - n :]] = True
    with torch.no_grad():
        for p in model.parameters():  # or units that are dead already would go, too
            p.masked_fill_(p == 0, 1e-3)
        for member in units.members:
            member.parameter.masked_fill_(member.spread(dead), 0)
    compact(model)
    if sum(p.numel() for p in model.parameters()) >= before:
        raise LeftOut("no hidden units that sparsegnn.compact() can remove: pass narrower=, which makes a narrower one")
    return model


def maxk_of(problem: Problem) -> int:
    """Features to keep: an eighth of the narrowest activation, as the paper's 32 of 256."""
    if problem.with_maxk is not None:
        width = problem.hidden
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sites = Activations(OP, inside(dense_model(problem.model))).sites
        width = min((site.width for site in sites if site.width is not None), default=256)
    k = max(LEAST_K, width // 8)
    if 2 * k > width:
        raise LeftOut(f"MaxK keeps at least {LEAST_K} features, which of {width} is hardly fewer")
    return k


def weights_of(model: nn.Module) -> int:
    """Weights that exist in linear layers, dense or sparse."""
    sparse = [m.values.numel() for m in model.modules() if isinstance(m, SparseLinear)]
    return sum(sparse) + sum(m.weight.numel() for m in linears(model).values())
