"""The frame of all methods: how one attaches to an optimizer, when it acts, what moves with a weight, checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsegnn import pattern as patterns
from sparsegnn.controllers.attachment import check_held, check_own, take, twins
from sparsegnn.controllers.interrupt import uninterrupted
from sparsegnn.controllers.optimizers import check_backward, fresh, is_inner_step, slots, unwrapped
from sparsegnn.controllers.processes import check_equal, check_whole
from sparsegnn.controllers.settings import UPDATES, check_int, shown, sizes
from sparsegnn.controllers.strangers import watch, without_gone
from sparsegnn.nn import SparseLinear
from sparsegnn.nn.copies import link, unlink


class Controller:
    """What sparsifies ``model`` while ``optimizer`` trains it; a method is a subclass (``docs/adding_a_method.md``).

    It attaches to ``optimizer.step()``, so the training loop stays as it is. It counts the steps that the optimizer
    really made (steps that a GradScaler skips do not count) and calls, in this order: :meth:`before_step` between the
    gradients and the step, of methods that change gradients; :meth:`update` after each step that is :meth:`due`;
    :meth:`after_step` after every one. Layers whose values are frozen (``requires_grad=False``) rest.

    Args:
        model: with at least one :class:`~sparsegnn.nn.SparseLinear` anywhere inside, trainable; with all of its weights
            (``sparsify(model, 0.0)``) for a method that starts dense.
        optimizer: holds the ``values`` of these layers; the one that makes the steps, or accelerate's or Lightning's.
        update_every: steps between updates. Full-batch training of 200 steps wants about 10.
        start_at: no update before this step.
        stop_at: no update at this step or later; about 0.75 of the training leaves the last weights time to train.
            The default is ``start_at + 20 * update_every``.
        seed: of random choices, which depend on nothing but the seed, the step and the name of the layer.

    With ``torch.distributed`` initialised every rank does the same if the ranks start from the same model; with other
    positions or settings the first step raises.
    """

    # what the table of methods says of it
    method: ClassVar[str] = ""  # its name in the registry
    family: ClassVar[str] = ""  # "sparse", "pruning" or "structure"
    target: ClassVar[str] = "weights"
    patterns: ClassVar[str] = "any"
    dense_gradient_need: ClassVar[str] = "never"  # or "at updates", "every step"
    start: ClassVar[str] = "sparse"  # or "dense": SparseLinear with all weights; "plain": the model as it is
    paper: ClassVar[str] = ""

    # what the frame asks
    needs_dense_gradient = False  # whether an update reads dense gradients
    moves_weights = True  # whether it ever does, and so must know the state of the optimizer
    keeps_size = True  # whether an update leaves every tensor its size, so that a recorded one can be replayed
    every_step = False  # whether before_step() or after_step() act, which no recorded step would call
    changes_activations = False  # whether it replaces or keeps what comes behind layers: then it must not be fused

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, update_every: int = 100,
                 start_at: int = 0, stop_at: int | None = None, seed: int = 0):  # fmt: skip
        op = self._name
        self.update_every = check_int(op, "update_every", update_every, 1)
        self.start_at = check_int(op, "start_at", start_at, 0)
        stop_at = start_at + UPDATES * update_every if stop_at is None else stop_at
        self.stop_at = check_int(op, "stop_at", stop_at, self.start_at)
        self.seed = check_int(op, "seed", seed, 0)
        if not isinstance(model, nn.Module):
            raise TypeError(f"{op}: model must be a torch.nn.Module, got {type(model).__name__}")
        self.optimizer = unwrapped(op, optimizer, self.moves_weights)
        self.model = model
        self.layers = self._find_layers(model, self.optimizer)
        self._check_state_of_optimizer()
        self.step = 0  # optimizer steps seen
        self.updates = 0
        self._seen = False  # the state that the optimizer makes at its first step
        self._along: dict[str, list[Tensor]] = {}  # what else moves with the values of a layer
        self._handle = self._before = None
        take(op, self, self.layers)
        self.begin()
        self.place()
        self._attach()

    # --- to override ---

    def begin(self) -> None:
        """Make what the method needs besides its settings; ``layers`` are known and checked."""

    def place(self) -> None:
        """Put the weights where the method wants them at the start, once all that it was given has been checked."""

    def due(self, step: int) -> bool:
        """Whether the method updates after this step (the first is 1)."""
        return 0 < step < self.stop_at and step >= self.start_at and (step - self.start_at) % self.update_every == 0

    def update(self) -> None:
        """Change what has to change after the current step."""
        raise NotImplementedError(f"{self._name} must define update()")

    def before_step(self) -> None:
        """Between the gradients, unscaled but for :meth:`gradient_scale`, and the optimizer's step."""

    def after_step(self) -> None:
        """After each step, and its update if it had one."""

    def skipped(self) -> None:
        """In place of these two after a step that the optimizer did not make, for which before_step() was called."""

    def prepared(self) -> bool:
        """Whether an update that is due can be made; else the step is not counted, and the next one is asked."""
        return True

    def arm(self) -> None:
        """Get ready for the next step."""

    def finalize(self) -> nn.Module:
        """End the method and return the model, with sparse layers of the same function; the optimizer goes on."""
        self.detach()
        return self.model

    @property
    def settled_at(self) -> int:
        """The step from which on the model is as sparse as it will be: before it no epoch is selected."""
        return self.stop_at

    @property
    def phase(self) -> str:
        """What its layers do now: ``"dense"`` where all weights exist, and dense kernels run, else ``"sparse"``."""
        whole = all(x.values.numel() == x.in_features * x.out_features for x in self.layers.values())
        return "dense" if whole else "sparse"

    @classmethod
    def recipe(cls, steps: int) -> dict:
        """Settings for a full-batch training of so many steps."""
        return {"update_every": max(1, steps // 20), "stop_at": max(1, int(0.75 * steps))}

    @classmethod
    def start_sparsity(cls, sparsity: float) -> float:
        """The sparsity that a model begins with that shall end with ``sparsity``."""
        return sparsity if cls.start == "sparse" else 0.0

    def extra_state(self) -> dict:
        """What :meth:`state_dict` holds beside steps, seed and shapes: tensors, numbers, texts, and dicts of them."""
        return {}

    def read_state(self, state: Mapping) -> Callable[[], None]:
        """Check what a checkpoint has for the keys of :meth:`extra_state`; returns what then makes that its own."""
        return lambda: None

    # --- for methods ---

    def carried(self, parameter: nn.Parameter) -> list[Tensor]:
        """What moves with a parameter: gradient, state of the optimizer, averages. Other state raises TypeError."""
        gradient = [] if parameter.grad is None else [parameter.grad]
        along = [
            t for name, layer in self.layers.items() if layer.values is parameter for t in self._along.get(name, ())
        ]
        return gradient + list(slots(self._name, self.optimizer, parameter).values()) + along

    def fresh(self, parameter: nn.Parameter, carried: list[Tensor]) -> list[float]:
        """What each tensor that moves with a parameter holds for a new weight."""
        state, start = self.optimizer.state.get(parameter, {}), fresh(self._name, self.optimizer, parameter)
        return [next((start[key] for key in start if state.get(key) is t), 0.0) for t in carried]

    @torch.no_grad()
    def relocate(self, name: str, crow: Tensor, col: Tensor, source: Tensor) -> None:
        """Give a layer other positions, of any number, and its optimizer state and averages with it.

        ``source`` [len(col)] int64 says which entry of the layer's ``col`` each one is, -1 for a new one, which starts
        at zero with the state of a new weight. The Parameter object stays; with another number of weights it loses its
        gradient. Where memory runs out nothing has changed.
        """
        layer, start = self.layers[name], fresh(self._name, self.optimizer, self.layers[name].values)

        def moved(tensor: Tensor, new: float = 0.0) -> Tensor:
            found = tensor.detach().view(layer.col.numel(), -1)[source.clamp(min=0)]
            return found.masked_fill_((source < 0)[:, None], new).flatten()

        state = slots(self._name, self.optimizer, layer.values)
        others = [(slot, moved(slot, start[key])) for key, slot in state.items()]
        others += [(t, moved(t)) for t in self._along.get(name, ())]
        if layer.values.grad is not None and source.numel() == layer.col.numel():
            others.append((layer.values.grad, moved(layer.values.grad)))
        layer.set_pattern_(crow, col, moved(layer.values))
        for tensor, new in others:  # last: where memory runs out nothing has changed
            if tensor.shape == new.shape:
                tensor.copy_(new)
            else:
                tensor.data = new

    def expand(self, name: str) -> None:
        """Let all weights of a layer exist; new ones are zero."""
        layer = self.layers[name]
        rows, cols = layer.grid
        crow = torch.arange(0, rows * cols + 1, cols, dtype=torch.int32, device=layer.col.device)
        col = torch.arange(cols, dtype=torch.int32, device=layer.col.device).repeat(rows)
        source = layer.col.new_full((rows * cols,), -1, dtype=torch.int64)
        source[patterns.flat(*layer.pattern(), cols)] = torch.arange(layer.col.numel(), device=layer.col.device)
        self.relocate(name, crow, col, source)

    def gradient_scale(self) -> float | Tensor:
        """What the gradients that before_step() sees are too large by: 1 but for fused optimizers with a GradScaler."""
        scale = getattr(self.optimizer, "grad_scale", None)
        return 1.0 if scale is None else scale

    def generator(self, name: str, device: torch.device | str = "cpu", step: int | None = None) -> torch.Generator:
        """Of random numbers that depend on seed, step and name only: the same on every rank and resume."""
        step = self.step if step is None else step
        digest = hashlib.blake2b(f"{self.seed}/{step}/{name}".encode(), digest_size=7).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest, "little"))

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

    # --- for steps that are recorded once and replayed; see sparsegnn.capture ---

    def make_static(self) -> None:
        """From now on let updates read what changes from one to the next from tensors that stay."""

    def prepare(self, step: int) -> None:
        """Write what the update after ``step`` will read into these tensors."""

    def follow(self) -> None:
        """Count a step that a replay has made, with its update if one was due."""
        self.step += 1
        self.updates += int(self.due(self.step))
        self.arm()

    def undo(self, step: int, updates: int) -> None:
        """After recording a step has failed, which changes nothing."""
        self.step, self.updates = step, updates
        self.arm()

    # --- checkpoints ---

    def state_dict(self) -> dict:
        """Steps, seed and what the method keeps. Positions are in the model's ``state_dict``, settings in your code."""
        return {
            "controller": self._name,
            "step": self.step,
            "seed": self.seed,
            "updates": self.updates,
            "shapes": {name: [x.out_features, x.in_features] for name, x in self.layers.items()},
            **self.extra_state(),
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Continue from :meth:`state_dict`, bit for bit, once model and optimizer are loaded too, in any order."""
        (step, seed, updates), apply = self._check_state(state), self.read_state(state)
        before = self.step, self.seed, self.updates
        self.step, self.seed, self.updates = step, seed, updates
        try:
            self.arm()
        except BaseException:  # no memory for the probes, say
            self.step, self.seed, self.updates = before
            raise
        apply()
        self._seen = False

    def _check_state(self, state: Mapping) -> tuple[int, int, int]:
        """Steps, seed and updates, once all else of ``state`` is what :meth:`state_dict` could have returned."""
        op, mine = self._name, self.state_dict()
        if not isinstance(state, Mapping):
            raise TypeError(f"{op}: state must be a dict, got {type(state).__name__}")
        if missing := sorted(mine.keys() - state.keys()):
            raise ValueError(f"{op}: state must have the keys {sorted(mine)}, got none of {missing}")
        if not isinstance(state["shapes"], Mapping):
            raise TypeError(f"{op}: state['shapes'] must be a dict, got {type(state['shapes']).__name__}")
        kind, shapes = state["controller"], {k: sizes(v) for k, v in state["shapes"].items()}
        for key, got in (("controller", kind if isinstance(kind, str) else type(kind)), ("shapes", shapes)):
            if got != mine[key]:
                raise ValueError(f"{op}: state must have {key} {mine[key]}, got {shown(state[key])}")
        return tuple(check_int(op, key, state[key], 0) for key in ("step", "seed", "updates"))

    def detach(self) -> None:
        """Leave the optimizer alone from now on."""
        for handle in (self._handle, self._before):
            if handle is not None:
                handle.remove()
        self._handle = self._before = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_handle": self._handle is not None, "_before": None}

    def __setstate__(self, state: dict) -> None:
        """A copy made together with model and optimizer, by deepcopy or pickle, controls the copies."""
        self.__dict__.update(state)
        self._handle = None
        if state["_handle"]:
            take(self._name, self, self.layers)
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
        watch(self)
        for layer in self.layers.values():
            unlink(layer)
        self._handle = self.optimizer.register_step_post_hook(self._after_step)
        if self.needs_dense_gradient or self.every_step:
            self._before = self.optimizer.register_step_pre_hook(self._before_step)
        self.arm()

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
    def _before_step(self, optimizer, args, kwargs):
        if is_inner_step(optimizer):
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer
        if closure is None:
            self._at_gradients()
            return None

        def run():  # gradients are made within the step
            loss = closure()
            self._at_gradients()
            return loss

        return ((args[0], run, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": run})

    @torch.no_grad()
    def _at_gradients(self) -> None:
        if self.every_step:
            check_backward(self._name)
        self.before_step()

    @torch._disable_dynamo
    @torch.no_grad()
    @uninterrupted
    def _after_step(self, optimizer, args, kwargs) -> None:
        if is_inner_step(optimizer):
            return
        if self._was_skipped(optimizer):
            self.skipped()
            return
        if not self._seen:  # state that is made at the first step
            check_held(self._name, self.layers, optimizer)
            self._check_state_of_optimizer()
            check_equal(self._name, self)
            self._seen = True
        self.step += 1
        due = self.due(self.step)
        try:
            if due or self.every_step:
                check_backward(self._name)
            if due and not self.prepared():
                self.step -= 1
                self.skipped()
                self.arm()
                return
            if due:
                self._along = without_gone(self._name, self._along)
                self.update()
            self.after_step()
        except BaseException:  # out of memory, say: the next step tries again
            self.step -= 1
            self._failed()
            raise
        self.updates += int(due)
        self.arm()

    def _was_skipped(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether the optimizer, a fused one with a GradScaler, made no step."""
        found = getattr(optimizer, "found_inf", None)
        return found is not None and bool(found.item())

    def _failed(self) -> None:
        """An update was not made."""

    def _check_state_of_optimizer(self) -> None:
        check_whole(self._name, self.layers)
        for layer in self.layers.values() if self.moves_weights else ():
            slots(self._name, self.optimizer, layer.values)
