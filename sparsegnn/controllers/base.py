"""The frame of all sparse-training methods: when to move weights, which, and what moves with them."""

from __future__ import annotations

import hashlib
import reprlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real

import torch
from torch import Tensor, nn

from sparsegnn.controllers.attachment import Accumulation, check_held, check_own, take, twins
from sparsegnn.controllers.interrupt import uninterrupted
from sparsegnn.controllers.optimizers import check_backward, fresh, is_inner_step, slots, unwrapped
from sparsegnn.controllers.processes import check_equal, check_whole
from sparsegnn.controllers.schedules import Cosine
from sparsegnn.controllers.strangers import watch, without_gone
from sparsegnn.nn import SparseLinear
from sparsegnn.nn.copies import link, unlink

UPDATES = 20  # without stop_at; 13 to 14 closed the gap to dense training on the graphs that were measured


def check_int(op: str, name: str, value, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{op}: {name} must be an integer, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {_shown(value)}")
    if value >= 2**63:
        raise ValueError(f"{op}: {name} must be below 2^63, got a number of {value.bit_length()} bits")
    return value


def _shown(value) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no integers of thousands of digits
        return type(value).__name__


def _number(count):
    """The number in an integer tensor []; anything else as it is."""
    fits = isinstance(count, Tensor) and count.layout == torch.strided and not count.is_meta and count.dim() == 0
    return count.item() if fits else count


def _sizes(shape):
    """A list of two integers as it is; of anything else its type."""
    fits = isinstance(shape, (list, tuple)) and len(shape) == 2 and all(type(n) is int for n in shape)
    return list(shape) if fits else type(shape)


@dataclass
class Static:
    """What a recorded update reads besides weights and gradients: tensors that stay, filled before every update."""

    moves: dict[str, Tensor]  # entries that each layer moves, int64 []
    scores: dict[str, Tensor] = field(default_factory=dict)  # random numbers, of the layers that asked for some
    probes: dict[str, Tensor] = field(default_factory=dict)
    step: int = -1  # whose moves and scores these are


class Controller:
    """Moves the weights of the sparse layers of ``model`` while ``optimizer`` trains them; their number never changes.

    It attaches to ``optimizer.step()``, so the training loop stays as it is. After every ``update_every``-th step that
    the optimizer really made (steps that a GradScaler skips do not count) each layer drops the fraction
    ``drop_fraction`` of its weights with the lowest :meth:`drop_scores` and grows as many where :meth:`grow_scores` is
    highest. The step of an update has been taken before it. Grown weights start at zero, their optimizer state
    (momentum, Adam moments; see :func:`register_state` for optimizers that are not torch's) at what the optimizer gives
    a new parameter, all others keep theirs. So do the weights of averages, ``AveragedModel`` or a copy that is averaged
    by hand (:meth:`move_along`). Layers whose values are frozen (``requires_grad=False``) rest. Indices, values and
    state are rewritten in place, without reallocation, recompilation or host synchronisation, so that
    :class:`~sparsegnn.CapturedStep` can replay an update within a CUDA graph. It replays own scores too: what changes
    in them from update to update must come from tensors or :meth:`random_scores`, not from Python numbers.

    Layers with a pattern keep it: blocks and groups move as a whole, by the sums of their scores, and a layer with
    constant fan-in moves as many inputs of every output (rounded down).

    Args:
        model: with at least one :class:`~sparsegnn.nn.SparseLinear` anywhere inside, trainable.
        optimizer: holds the ``values`` of these layers; the one that makes the steps, or accelerate's or Lightning's.
        update_every: steps between updates. Full-batch training of 200 steps wants about 10.
        stop_at: no update at this step or later; about 0.75 of the training leaves the last weights time to train.
            The default is ``20 * update_every``.
        drop_fraction: a number, which then falls to zero at ``stop_at`` along a cosine, or a callable step -> fraction.
        seed: of random growth, which depends on nothing but the seed, the step and the name of the layer.

    With ``torch.distributed`` initialised, dense gradients are summed over the ranks, so every rank moves the same
    weights if the ranks start from the same model; with other positions or settings the first step raises.
    """

    needs_dense_gradient = False  # whether grow_scores() reads dense_gradient()
    moves_weights = True  # whether it ever does, and so must know the state of the optimizer
    keeps_size = True  # whether an update leaves every tensor its size, so that a recorded one can be replayed

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        update_every: int = 100,
        stop_at: int | None = None,
        drop_fraction: float | Callable[[int], float] = 0.3,
        seed: int = 0,
    ):
        op = self._name
        self.update_every = check_int(op, "update_every", update_every, 1)
        self.stop_at = check_int(op, "stop_at", UPDATES * update_every if stop_at is None else stop_at, 0)
        self.seed = check_int(op, "seed", seed, 0)
        if not callable(drop_fraction):
            if isinstance(drop_fraction, bool) or not isinstance(drop_fraction, Real):
                raise TypeError(f"{op}: drop_fraction must be a number or callable, got {type(drop_fraction).__name__}")
            if not 0 <= drop_fraction <= 1:
                raise ValueError(f"{op}: drop_fraction must be in [0, 1], got {drop_fraction}")
            drop_fraction = Cosine(float(drop_fraction), max(self.stop_at, 1))
        self.drop_fraction = drop_fraction
        if not isinstance(model, nn.Module):
            raise TypeError(f"{op}: model must be a torch.nn.Module, got {type(model).__name__}")
        self.optimizer = unwrapped(op, optimizer, self.moves_weights)
        self.layers = self._find_layers(model, self.optimizer)
        self._check_state_of_optimizer()
        self.step = 0  # optimizer steps seen
        self.updates = 0
        self._moved: set[str] = set()  # layers that an update has moved which then failed
        self.grown = {name: torch.zeros((), dtype=torch.int64, device=x.col.device) for name, x in self.layers.items()}
        self._static: Static | None = None
        self._seen = False  # the state that the optimizer makes at its first step
        self._along: dict[str, list[Tensor]] = {}  # what else moves with the values of a layer
        self._accumulations: list[Accumulation] = []
        self._armed: int | None = None  # the step whose dense gradients are collected
        self._warned = False
        self._handle = self._before = None
        self._attach()

    # --- to override ---

    def drop_scores(self, name: str, layer: SparseLinear) -> Tensor:
        """[nnz]: the weights with the lowest score go."""
        return layer.values.abs()

    def grow_scores(self, name: str, layer: SparseLinear) -> Tensor | None:
        """[out, in]: weights come where it is highest; None leaves the layer alone this time."""
        raise NotImplementedError(f"{self._name} must define grow_scores()")

    def due(self, step: int) -> bool:
        """Whether the weights move after this step (the first is 1)."""
        return 0 < step < self.stop_at and step % self.update_every == 0

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
            carried = self.carried(layer.values)
            source = layer.rewire_(self.drop_scores(name, layer), grow, n, carried, self._fresh(layer.values, carried))
            self._moved.add(name)
            self.grown[name] = self.grown[name].to(source.device)  # the model may have gone to another
            self.grown[name] += (source < 0).sum() * (layer.values.numel() // layer.col.numel())
        self._moved.clear()

    def move_along(self, copies: nn.Module | Iterable[tuple[nn.Parameter, Tensor]]) -> None:
        """From now on the weights of running averages move with those of the layers; a new one begins with their value.

        Otherwise numbers of different weights would be averaged. ``AveragedModel`` and copies whose values are averaged
        from before the first update on are found without this.

        Args:
            copies: a copy of the model, as it is now, or pairs ``zip(model.parameters(), averages)``.
        """
        if isinstance(copies, nn.Module):
            for name, copy in twins(self._name, self.layers, copies).items():
                link(copy, self.layers[name], True)
            return
        names = {id(layer.values): name for name, layer in self.layers.items()}
        found = [(names[id(p)], t) for p, t in copies if id(p) in names]
        for name, t in found:
            if not isinstance(t, Tensor) or t.shape != self.layers[name].values.shape:
                shape = list(self.layers[name].values.shape)
                got = list(t.shape) if isinstance(t, Tensor) else type(t).__name__
                raise ValueError(f"{self._name}: copies must have a tensor {shape} for layer {name!r}, got {got}")
        if not found:
            raise ValueError(
                f"{self._name}: copies must have pairs with the values of {list(names.values())}, got none"
            )
        for name, t in found:
            self._along.setdefault(name, []).append(t)

    # --- for methods ---

    def moves(self, step: int) -> dict[str, int]:
        """How many entries of its pattern each layer moves at an update after ``step``; no layers that move none."""
        fraction = self.drop_fraction(step)
        if not 0 <= fraction <= 1:
            raise ValueError(f"{self._name}: drop_fraction must be in [0, 1], got {fraction} at step {step}")
        counts = {name: int(fraction * layer.col.numel()) for name, layer in self._movable().items()}
        return {name: n for name, n in counts.items() if n > 0}

    def dense_gradient(self, layer: SparseLinear) -> Tensor | None:
        """Gradient [out, in] of the loss with respect to the weight with its zeros, of the step just taken.

        Summed over ranks; None if the layer had no part in the step. Scaled if the loss was (GradScaler).
        """
        gradient = None if layer.probe is None else layer.probe.grad
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gradient = torch.zeros_like(layer.probe) if gradient is None else gradient
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

    def carried(self, parameter: nn.Parameter) -> list[Tensor]:
        """What moves with a parameter: gradient, state of the optimizer, averages. Other state raises TypeError."""
        gradient = [] if parameter.grad is None else [parameter.grad]
        along = [
            t for name, layer in self.layers.items() if layer.values is parameter for t in self._along.get(name, ())
        ]
        return gradient + list(slots(self._name, self.optimizer, parameter).values()) + along

    # --- for steps that are recorded once and replayed; see sparsegnn.capture ---

    def make_static(self) -> None:
        """From now on let updates read their counts, random scores and probes from tensors that stay."""
        if self._static is None:
            counts = {name: x.col.new_zeros((), dtype=torch.int64) for name, x in self._movable().items()}
            self._static = Static(counts)
            self.arm()

    @torch.no_grad()
    def prepare(self, step: int) -> None:
        """Write what the update after ``step`` will read into these tensors."""
        static, moves = self._static, self.moves(step)
        for name, n in static.moves.items():
            n.fill_(moves.get(name, 0))
        for name, scores in static.scores.items():
            self._draw(name, self.layers[name], step, scores)
        static.step = step

    def follow(self) -> None:
        """Count a step that a replay has made, with its update if one was due."""
        self.step += 1
        self.updates += int(self.due(self.step))
        self.arm()

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

    # --- checkpoints ---

    def state_dict(self) -> dict:
        """Step, seed and statistics. The positions are in the model's ``state_dict``, the settings in your code."""
        return {
            "controller": self._name,
            "step": self.step,
            "seed": self.seed,
            "updates": self.updates,
            "grown": {name: count.clone() for name, count in self.grown.items()},
            "shapes": {name: [x.out_features, x.in_features] for name, x in self.layers.items()},
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Continue from :meth:`state_dict`, bit for bit, once model and optimizer are loaded too, in any order."""
        step, seed, updates, grown = self._check_state(state)
        before = self.step, self.seed, self.updates
        self.step, self.seed, self.updates = step, seed, updates
        try:
            self.arm()
        except BaseException:  # no memory for the probes, say
            self.step, self.seed, self.updates = before
            raise
        for name, count in self.grown.items():
            count.fill_(grown[name])
        self._moved.clear()
        self._seen = False
        if self._static is not None:
            self._static.step = -1

    def _check_state(self, state: Mapping) -> tuple[int, int, int, dict[str, int]]:
        """What to continue from, once all of ``state`` is what :meth:`state_dict` could have returned."""
        op, mine = self._name, self.state_dict()
        if not isinstance(state, Mapping):
            raise TypeError(f"{op}: state must be a dict, got {type(state).__name__}")
        if missing := sorted(mine.keys() - state.keys()):
            raise ValueError(f"{op}: state must have the keys {sorted(mine)}, got none of {missing}")
        for key in ("shapes", "grown"):
            if not isinstance(state[key], Mapping):
                raise TypeError(f"{op}: state['{key}'] must be a dict, got {type(state[key]).__name__}")
        kind, shapes = state["controller"], {k: _sizes(v) for k, v in state["shapes"].items()}
        for key, got in (("controller", kind if isinstance(kind, str) else type(kind)), ("shapes", shapes)):
            if got != mine[key]:
                raise ValueError(f"{op}: state must have {key} {mine[key]}, got {_shown(state[key])}")
        if state["grown"].keys() != self.grown.keys():
            names = _shown(list(state["grown"]))
            raise ValueError(f"{op}: state['grown'] must be of the layers {list(self.grown)}, got {names}")
        counts = (check_int(op, key, state[key], 0) for key in ("step", "seed", "updates"))
        return *counts, {k: check_int(op, f"grown[{k!r}]", _number(v), 0) for k, v in state["grown"].items()}

    def detach(self) -> None:
        """Leave the optimizer alone from now on."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
            if self._before is not None:
                self._before.remove()
                self._before = None
            self._forget_gradients()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_handle": self._handle is not None, "_before": None, "_accumulations": []}

    def __setstate__(self, state: dict) -> None:
        """A copy made together with model and optimizer, by deepcopy or pickle, controls the copies."""
        self.__dict__.update(state)
        self._handle = None
        if state["_handle"]:
            self._attach()

    def __repr__(self) -> str:
        return (
            f"{self._name}(layers={len(self.layers)}, update_every={self.update_every}, stop_at={self.stop_at}, "
            f"step={self.step}, updates={self.updates})"
        )

    # --- inner works ---

    @property
    def attached(self) -> bool:
        """Whether steps of the optimizer still reach this controller."""
        return self._handle is not None and self._handle.id in self.optimizer._optimizer_step_post_hooks

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _attach(self) -> None:
        take(self._name, self, self.layers)
        watch(self)
        for layer in self.layers.values():
            unlink(layer)
        self._handle = self.optimizer.register_step_post_hook(self._after_step)
        if self.needs_dense_gradient:
            self._before = self.optimizer.register_step_pre_hook(self._before_step)
        self.arm()

    def _forget_gradients(self) -> None:
        for accumulation in self._accumulations:
            accumulation.remove()
        self._accumulations = []
        for layer in self.layers.values():
            layer.probe = None

    def _fresh(self, parameter: nn.Parameter, carried: list[Tensor]) -> list[float]:
        """What each tensor that moves with a parameter holds for a new weight."""
        state, start = self.optimizer.state.get(parameter, {}), fresh(self._name, self.optimizer, parameter)
        return [next((start[key] for key in start if state.get(key) is t), 0.0) for t in carried]

    def _find_layers(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, SparseLinear]:
        op = self._name
        layers = {name: m for name, m in model.named_modules() if isinstance(m, SparseLinear)}
        check_own(op, {name: m for name, m in layers.items() if any(p.requires_grad for p in m.parameters())})
        layers = {name: m for name, m in layers.items() if m.values.requires_grad}
        if not layers:
            raise ValueError(f"{op}: model must have a trainable SparseLinear (see sparsegnn.sparsify), got none")
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not held:
            raise ValueError(f"{op}: optimizer must have parameters, got none")
        for name, layer in layers.items():
            if id(layer.values) not in held:
                raise ValueError(f"{op}: optimizer must hold the values of layer {name!r}; make it after the model")
        return layers

    @torch._disable_dynamo  # torch.compiler.disable, which loads all of the compiler when this is imported
    @torch.no_grad()
    @uninterrupted
    def _after_step(self, optimizer, args, kwargs) -> None:
        if is_inner_step(optimizer):
            return
        skipped = getattr(optimizer, "found_inf", None)  # fused optimizers skip inside step()
        if skipped is not None and self._static is not None:
            raise RuntimeError(
                f"{self._name}: a captured step must be without a GradScaler, as only the GPU knows which steps that "
                "skips; use bfloat16, which needs none"
            )
        if skipped is not None and skipped.item():
            return
        if not self._seen:  # state that is made at the first step
            check_held(self._name, self.layers, optimizer)
            self._check_state_of_optimizer()
            check_equal(self._name, self)
            self._seen = True
        self.step += 1
        if self.due(self.step):
            if self.needs_dense_gradient and self._armed != self.step:  # no memory for probes, or now due after all
                self.step -= 1
                self.arm()
                return
            try:
                check_backward(self._name)
                self._warn_of_unknown_gradients()
                self._along = without_gone(self._name, self._along)
                self.update()
            except BaseException:  # out of memory, say: the next step tries again
                self.step -= 1
                for layer in self.layers.values():
                    if layer.probe is not None:
                        layer.probe.grad = None
                raise
            self.updates += 1
        self.arm()

    @torch._disable_dynamo
    def _before_step(self, optimizer, args, kwargs) -> None:
        for accumulation in self._accumulations:
            accumulation.settle()

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

    def _check_state_of_optimizer(self) -> None:
        check_whole(self._name, self.layers)
        for layer in self.layers.values() if self.moves_weights else ():
            slots(self._name, self.optimizer, layer.values)

    def _movable(self) -> dict[str, SparseLinear]:
        """The layers that lack some weights."""
        return {name: x for name, x in self.layers.items() if x.values.numel() < x.in_features * x.out_features}

    def _draw(self, name: str, layer: SparseLinear, step: int, out: Tensor | None = None) -> Tensor:
        digest = hashlib.blake2b(f"{self.seed}/{step}/{name}".encode(), digest_size=7).digest()
        generator = torch.Generator(layer.values.device).manual_seed(int.from_bytes(digest, "little"))
        size, where = (layer.out_features, layer.in_features), {"device": layer.values.device, "dtype": torch.float32}
        return torch.rand(size, generator=generator, out=out, **where)

    def _probe(self, name: str, layer: SparseLinear) -> Tensor:
        """Zeros [out, in] that collect the dense gradient."""
        kept = {} if self._static is None else self._static.probes
        if name not in kept or kept[name].dtype != layer.values.dtype or kept[name].device != layer.values.device:
            kept[name] = layer.values.new_zeros(layer.out_features, layer.in_features).requires_grad_()
        kept[name].grad = None
        return kept[name]
