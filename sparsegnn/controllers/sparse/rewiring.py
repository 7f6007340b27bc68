"""Methods that move weights: drop some, grow as many elsewhere; their number never changes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sparsegnn.controllers.attachment import Accumulation, check_even, check_held
from sparsegnn.controllers.base import Controller
from sparsegnn.controllers.initialisers import random_positions, source_of, start_counts
from sparsegnn.controllers.processes import check_single
from sparsegnn.controllers.schedules import Cosine
from sparsegnn.controllers.settings import check_int, check_names, check_schedule, number
from sparsegnn.nn import SparseLinear


@dataclass
class Static:
    """What a recorded update reads besides weights and gradients: tensors that stay, filled before every update."""

    moves: dict[str, Tensor]  # entries that each layer moves, int64 []
    scores: dict[str, Tensor] = field(default_factory=dict)  # random numbers, of the layers that asked for some
    probes: dict[str, Tensor] = field(default_factory=dict)
    step: int = -1  # whose moves and scores these are


class Rewiring(Controller):
    """Base of methods that drop and grow: they define :meth:`grow_scores`, and :meth:`drop_scores` where it is not |w|.

    At every update each layer drops the fraction ``drop_fraction`` of its weights with the lowest :meth:`drop_scores`
    and grows as many where :meth:`grow_scores` is highest. The step of an update has been taken before it. Grown
    weights start at zero, their optimizer state (momentum, Adam moments; see :func:`register_state` for optimizers that
    are not torch's) at what the optimizer gives a new parameter, all others keep theirs. So do the weights of averages,
    ``AveragedModel`` or a copy that is averaged by hand (:meth:`move_along`). Indices, values and state are rewritten
    in place, without reallocation, recompilation or host synchronisation, so that :class:`~sparsegnn.CapturedStep` can
    replay an update within a CUDA graph. It replays own scores too: what changes in them from update to update must
    come from tensors or :meth:`random_scores`, not from Python numbers.

    Layers with a pattern keep it: blocks and groups move as a whole, by the sums of their scores, and a layer with
    constant fan-in moves as many inputs of every output (rounded down).

    Args:
        model, optimizer, update_every, start_at, stop_at, seed: as for :class:`Controller`.
        drop_fraction: a number, which then falls to zero at ``stop_at`` along a cosine, or a callable step -> fraction.
        sparsity: of all layers together: they are made that sparse now, at random, whatever they hold
            (``sparsify(model, 0.0)``, say). Weights that stay keep their values. None: the model is as it shall be.
        distribution: of that sparsity, see :func:`~sparsegnn.sparsify`.

    With ``torch.distributed`` initialised, dense gradients are summed over the ranks, so every rank moves the same
    weights.
    """

    family = "sparse"
    ablates = False  # whether outputs of a layer with constant fan-in may be without inputs

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, update_every: int = 100,
                 start_at: int = 0, stop_at: int | None = None,
                 drop_fraction: float | Callable[[int], float] = 0.3, sparsity: float | None = None,
                 distribution: str | Mapping[str, float] = "erk", seed: int = 0):  # fmt: skip
        self._fraction, self._wanted = drop_fraction, (sparsity, distribution)  # checked by begin()
        super().__init__(model, optimizer, update_every=update_every, start_at=start_at, stop_at=stop_at, seed=seed)

    @classmethod
    def recipe(cls, steps: int) -> dict:
        return {**super().recipe(steps), "drop_fraction": 0.5}  # updates are few

    def begin(self) -> None:
        super().begin()
        if not self.ablates:
            check_even(self._name, self.layers)
        self.drop_fraction = check_schedule(self._name, "drop_fraction", self.__dict__.pop("_fraction"), self.schedule)
        self._begins_with = self._start_counts(*self.__dict__.pop("_wanted"))
        self._moved: set[str] = set()  # layers that an update has moved which then failed
        self.grown = {name: torch.zeros((), dtype=torch.int64, device=x.col.device) for name, x in self.layers.items()}
        self._static: Static | None = None
        self._accumulations: list[Accumulation] = []
        self._armed: int | None = None  # the step whose dense gradients are collected
        self._warned = False

    def place(self) -> None:
        for name, count in self.__dict__.pop("_begins_with").items():
            layer = self.layers[name]
            positions = random_positions(layer, count, self.generator(f"{name}: start", layer.col.device))
            self.relocate(name, *positions, source_of(layer, *positions))

    # --- to override ---

    def schedule(self, start: float) -> Callable[[int], float]:
        """How a ``drop_fraction`` that is a number goes on."""
        return Cosine(start, max(self.stop_at, 1))

    def drop_scores(self, name: str, layer: SparseLinear) -> Tensor:
        """[nnz]: the weights with the lowest score go."""
        return layer.values.abs()

    def grow_scores(self, name: str, layer: SparseLinear) -> Tensor | None:
        """[out, in]: weights come where it is highest; None leaves the layer alone this time."""
        raise NotImplementedError(f"{self._name} must define grow_scores()")

    @torch.no_grad()
    def update(self) -> None:
        """Drop and grow now. Where memory runs out in between, every layer is as it was or has moved.

        Another call then moves the layers that have not.
        """
        check_held(self._name, self.layers, self.optimizer)
        if self._static is not None and self._static.step != self.step:
            self.prepare(self.step)
        moves = self.moves(self.step) if self._static is None else self._static.moves
        for name, n in moves.items():
            layer = self.layers[name]
            if name in self._moved or not layer.values.requires_grad:
                continue
            grow = self.grow_scores(name, layer)
            if grow is None:
                continue
            source = self.rewire(name, self.drop_scores(name, layer), grow, n)
            self._moved.add(name)  # before memory is needed again
            self._count_grown(name, source)
        self._moved.clear()

    # --- for methods ---

    def rewire(self, name: str, drop: Tensor, grow: Tensor, n: int | Tensor) -> Tensor:
        """Drop the ``n`` entries of a layer with the lowest ``drop``, grow as many where ``grow`` is highest.

        Returns where each entry was before, -1 for a new one.
        """
        layer = self.layers[name]
        carried = self.carried(layer.values)
        return layer.rewire_(drop, grow, n, carried, self.fresh(layer.values, carried))

    @torch.no_grad()
    def move(self, name: str, crow: Tensor, col: Tensor) -> Tensor:
        """Give a layer these positions, of any number, and return what :meth:`rewire` returns."""
        source = source_of(self.layers[name], crow, col)
        self.relocate(name, crow, col, source)
        return source

    def fraction(self, step: int) -> float:
        """``drop_fraction``, as it is after ``step``."""
        fraction = self.drop_fraction(step)
        if not 0 <= fraction <= 1:
            raise ValueError(f"{self._name}: drop_fraction must be in [0, 1], got {fraction} at step {step}")
        return fraction

    def moves(self, step: int) -> dict[str, int]:
        """How many entries of its pattern each layer moves at an update after ``step``; no layers that move none."""
        fraction = self.fraction(step)
        counts = {name: int(fraction * layer.col.numel()) for name, layer in self._movable().items()}
        return {name: n for name, n in counts.items() if n > 0}

    def dense_gradient(self, layer: SparseLinear) -> Tensor | None:
        """Gradient [out, in] of the loss with respect to the weight with its zeros, of the step just taken.

        Summed over ranks; None if the layer had no part in the step. Scaled if the loss was (GradScaler).
        """
        gradient = None if layer.probe is None else layer.probe.grad
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gradient = layer.probe.new_zeros(layer.probe.shape) if gradient is None else gradient
            torch.distributed.all_reduce(gradient)
        return gradient

    def random_scores(self, name: str, layer: SparseLinear) -> Tensor:
        """[out, in] uniform numbers that depend on seed, step and name only: the same on every rank and resume."""
        static = self._static
        if static is None or static.step != self.step:
            return self._draw(name, layer, self.step)
        if name not in static.scores:
            static.scores[name] = self._draw(name, layer, self.step)
        return static.scores[name]

    # --- for steps that are recorded once and replayed ---

    def make_static(self) -> None:
        if self._static is None and self.keeps_size:  # else no update is replayed
            counts = {name: x.col.new_zeros((), dtype=torch.int64) for name, x in self._movable().items()}
            self._static = Static(counts)
            self.arm()

    @torch.no_grad()
    def prepare(self, step: int) -> None:
        static, moves = self._static, self.moves(step)
        for name, n in static.moves.items():
            n.fill_(moves.get(name, 0))
        for name, scores in static.scores.items():
            self._draw(name, self.layers[name], step, scores)
        static.step = step

    def undo(self, step: int, updates: int) -> None:
        self._moved.clear()  # recording moves nothing
        super().undo(step, updates)

    # --- the dense gradient of the next step ---

    def arm(self) -> None:
        """Ask for dense gradients if the next step is an update, and for none otherwise."""
        self._armed = None  # where memory runs out
        due = self.needs_dense_gradient and self.due(self.step + 1)
        wanted = [name for name, layer in self.layers.items() if due and layer.values.requires_grad]
        probes = {name: self._probe(name, self.layers[name]) for name in wanted}
        self._forget_gradients()
        for name, layer in self.layers.items():
            layer.probe = probes.get(name)
        recorded = self._static is not None
        self._accumulations = [Accumulation(self.layers[name].values, p, recorded) for name, p in probes.items()]
        self._armed = self.step + 1 if due else None

    def prepared(self) -> bool:
        """False where there was no memory for probes, or the step is now due after all."""
        if self.needs_dense_gradient and self._armed != self.step:
            return False
        self._warn_of_unknown_gradients()
        return True

    def before_step(self) -> None:
        for accumulation in self._accumulations:
            accumulation.settle()

    def detach(self) -> None:
        if self._handle is not None:
            self._forget_gradients()
        super().detach()

    # --- checkpoints ---

    def extra_state(self) -> dict:
        return {"grown": {name: count.clone() for name, count in self.grown.items()}}

    def read_state(self, state: Mapping) -> Callable[[], None]:
        found = check_names(self._name, "grown", state, self.grown)
        grown = {k: check_int(self._name, f"grown[{k!r}]", number(v), 0) for k, v in found.items()}

        def apply() -> None:
            for name, count in self.grown.items():
                count.fill_(grown[name])
            self._moved.clear()
            if self._static is not None:
                self._static.step = -1

        return apply

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_accumulations": []}

    # --- inner works ---

    def _failed(self) -> None:
        for layer in self.layers.values():
            if layer.probe is not None:
                layer.probe.grad = None

    def _was_skipped(self, optimizer: torch.optim.Optimizer) -> bool:
        if self._static is not None and getattr(optimizer, "found_inf", None) is not None:
            raise RuntimeError(
                f"{self._name}: a captured step must be without a GradScaler, as only the GPU knows which steps that "
                "skips; use bfloat16, which needs none"
            )
        return super()._was_skipped(optimizer)

    def _forget_gradients(self) -> None:
        for accumulation in self._accumulations:
            accumulation.remove()
        self._accumulations = []
        for layer in self.layers.values():
            layer.probe = None

    def _warn_of_unknown_gradients(self) -> None:
        """Once, of layers whose gradients did not come through the probe: RigL would count an update and move none."""
        if self._warned or not self.needs_dense_gradient:
            return
        movable = self._movable().items()
        discarded = {id(a.values) for a in self._accumulations if a.discarded}
        given = [name for name, x in movable if x.values.requires_grad and x.values.grad is not None]
        given = [name for name in given if id(self.layers[name].values) not in discarded]
        if lost := [name for name in given if (probe := self.layers[name].probe) is None or probe.grad is None]:
            self._warned = True
            warnings.warn(
                f"{self._name}: no weight of the layers {lost} moves, as their gradients were not made by "
                "loss.backward() (torch.autograd.grad, backward(inputs=...), gradients set by hand), so that those of "
                "the weights that do not exist are not known: call loss.backward(), or use SET",
                stacklevel=2,
            )

    def _count_grown(self, name: str, source: Tensor) -> None:
        layer = self.layers[name]
        self.grown[name] = self.grown[name].to(source.device)  # the model may have gone to another
        self.grown[name] += (source < 0).sum() * (layer.values.numel() // layer.col.numel())

    def _start_counts(self, sparsity: float | None, distribution: str | Mapping[str, float]) -> dict[str, int]:
        """The layers that are to begin with another number of weights, and that number."""
        if sparsity is None:
            if isinstance(distribution, Mapping):
                raise ValueError(f"{self._name}: distribution must come with a sparsity, got none: pass sparsity too")
            return {}
        counts = start_counts(self.layers, sparsity, distribution, self._name)
        counts = {name: n for name, n in counts.items() if n != self.layers[name].values.numel()}
        if counts:
            check_single(self._name, self.layers)
        return counts

    def _movable(self) -> dict[str, SparseLinear]:
        """The layers that lack some weights."""
        return {name: x for name, x in self.layers.items() if x.values.numel() < x.in_features * x.out_features}

    def _draw(self, name: str, layer: SparseLinear, step: int, out: Tensor | None = None) -> Tensor:
        device = layer.values.device
        size, where = (layer.out_features, layer.in_features), {"device": device, "dtype": torch.float32}
        return torch.rand(size, generator=self.generator(name, device, step), out=out, **where)

    def _probe(self, name: str, layer: SparseLinear) -> Tensor:
        """Zeros [out, in], one in memory, that collect the dense gradient."""
        kept = {} if self._static is None else self._static.probes
        if name not in kept or kept[name].dtype != layer.values.dtype or kept[name].device != layer.values.device:
            zero = layer.values.new_zeros(())
            kept[name] = zero.expand(layer.out_features, layer.in_features).requires_grad_()
        kept[name].grad = None
        return kept[name]
