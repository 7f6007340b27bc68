"""Which optimizers keep what for each weight: only state that is known to belong to one weight can move with it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from numbers import Real

import torch
from torch import Tensor, nn, optim

#: class -> what it keeps for each weight -> what a new weight has: a number, or the name of a setting that holds it
STATES: dict[type[optim.Optimizer], dict[str, float | str]] = {
    optim.SGD: {"momentum_buffer": 0.0},
    optim.Adam: {"exp_avg": 0.0, "exp_avg_sq": 0.0, "max_exp_avg_sq": 0.0},
    optim.AdamW: {"exp_avg": 0.0, "exp_avg_sq": 0.0, "max_exp_avg_sq": 0.0},
    optim.Adamax: {"exp_avg": 0.0, "exp_inf": 0.0},
    optim.NAdam: {"exp_avg": 0.0, "exp_avg_sq": 0.0},
    optim.RAdam: {"exp_avg": 0.0, "exp_avg_sq": 0.0},
    optim.Adadelta: {"square_avg": 0.0, "acc_delta": 0.0},
    optim.Adagrad: {"sum": "initial_accumulator_value"},
    optim.ASGD: {"ax": 0.0},
    optim.RMSprop: {"square_avg": 0.0, "momentum_buffer": 0.0, "grad_avg": 0.0},
    optim.Rprop: {"prev": 0.0, "step_size": "lr"},
    optim.Adafactor: {"variance": 0.0},
}
_STEP = optim.Optimizer.profile_hook_step(lambda optimizer: None).__code__  # what runs the hooks of any step


def register_state(optimizer: type[optim.Optimizer], state: Mapping[str, float | str]) -> None:
    """Let controllers move the state of an optimizer that is not torch's.

    Args:
        optimizer: the class; its subclasses inherit this.
        state: for each key of ``optimizer.state[parameter]`` with a number for each weight, what a new weight has: a
            number (a moment: 0), or the name of a setting of the parameter group that holds it. All else that the
            optimizer keeps for a parameter must be single numbers. ``{}``: it keeps nothing for each weight.
    """
    op = "register_state"
    if not isinstance(optimizer, type) or not issubclass(optimizer, optim.Optimizer):
        raise TypeError(f"{op}: optimizer must be a class of torch.optim.Optimizer, got {optimizer!r}")
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise TypeError(f"{op}: state must be a dict of names, got {state!r}")
    if wrong := [key for key, start in state.items() if isinstance(start, bool) or not isinstance(start, (Real, str))]:
        raise TypeError(f"{op}: state must hold numbers or names of settings, got another kind for {wrong}")
    STATES[optimizer] = dict(state)


def known(op: str, optimizer: optim.Optimizer) -> dict[str, float | str]:
    """What the optimizer keeps for each weight; TypeError if that is not known."""
    for kind in type(optimizer).__mro__:
        if kind in STATES:
            return STATES[kind]
    kind, inside = type(optimizer).__name__, [k for k, v in vars(optimizer).items() if isinstance(v, optim.Optimizer)]
    hint = f" Or pass the optimizer inside, .{inside[0]}, if {kind} keeps nothing for each weight." if inside else ""
    raise TypeError(
        f"{op}: optimizer must be one whose state is known to move with the weights, {', '.join(_names())} or a "
        f"subclass, got {kind}; if all that it keeps for each weight is a number, say which with "
        f"sparsegnn.controllers.register_state({kind}, {{'exp_avg': 0.0, ...}}).{hint}"
    )


def unwrapped(op: str, optimizer, moves: bool = True) -> optim.Optimizer:
    """The optimizer that makes the steps: without what accelerate and Lightning put around it, which holds no state."""
    for name in ("optimizer", "_optimizer"):
        inner = getattr(optimizer, "__dict__", {}).get(name)
        if isinstance(inner, optim.Optimizer) and inner is not optimizer:
            if all(getattr(optimizer, part, None) is getattr(inner, part) for part in ("state", "param_groups")):
                return unwrapped(op, inner, moves)
    if not isinstance(optimizer, optim.Optimizer):
        raise TypeError(f"{op}: optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if moves:
        known(op, optimizer)
    return optimizer


def slots(op: str, optimizer: optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The optimizer's state per weight. Single numbers are not; anything else could not move and raises TypeError."""
    found, keys = {}, known(op, optimizer)
    for key, slot in optimizer.state.get(parameter, {}).items():
        mine = isinstance(slot, Tensor) and slot.shape == parameter.shape
        if mine and key in keys and slot.is_floating_point() and type(slot) in (Tensor, nn.Parameter):
            found[key] = slot
        elif slot.numel() > 1 if isinstance(slot, Tensor) else isinstance(slot, (list, tuple, Mapping)) and slot:
            got, kind = type(slot).__name__, type(optimizer).__name__
            got = f"a {got} of shape {list(slot.shape)} and {slot.dtype}" if isinstance(slot, Tensor) else f"a {got}"
            raise TypeError(
                f"{op}: optimizer must keep its state per weight, {list(parameter.shape)} floating-point numbers that "
                f"are known ({', '.join(keys) or 'none'}), or in single numbers, got {key!r}, {got}, in "
                f"{kind}, which could not follow the weights that move; if it holds a number for each weight, call "
                f"sparsegnn.controllers.register_state({kind}, ...)"
            )
    return found


def fresh(op: str, optimizer: optim.Optimizer, parameter: nn.Parameter) -> dict[str, float]:
    """What a new weight's state starts at."""
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    return {k: group[start] if isinstance(start, str) else start for k, start in known(op, optimizer).items()}


def is_inner_step(optimizer: optim.Optimizer) -> bool:
    """Whether the hooks that run now are those of ``super().step()``: a subclass runs them once more after its own."""
    frame, steps = sys._getframe(1), 0
    while frame is not None and steps < 2:
        steps += frame.f_code is _STEP and frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return steps > 1


def check_backward(op: str) -> None:
    """Raise within a backward pass: gradients of other layers are not computed yet, with the weights of this step."""
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            f"{op}: optimizer must step after the backward pass, got a step within it (optimizer-in-backward): call "
            "step() after backward()"
        )


def _names() -> list[str]:
    return sorted({kind.__name__ for kind in STATES})
