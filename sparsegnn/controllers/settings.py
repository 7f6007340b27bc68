"""Checks of a method's settings and of what a checkpoint says of them: one wording for all methods."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from numbers import Integral, Real

import torch
from torch import Tensor

UPDATES = 20  # without stop_at; 13 to 14 closed the gap to dense training on the graphs that were measured


def check_int(op: str, name: str, value, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{op}: {name} must be an integer, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {shown(value)}")
    if value >= 2**63:
        raise ValueError(f"{op}: {name} must be below 2^63, got a number of {value.bit_length()} bits")
    return int(value)


def check_number(op: str, name: str, value, low: float, high: float, what: str = "a number") -> float:
    """``value`` if it is a number in [low, high]; NaN is in no interval."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{op}: {name} must be {what}, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{op}: {name} must be in [{low:g}, {high:g}], got {value}")
    return value


def check_positive(op: str, name: str, value) -> float:
    """``value`` if it is a finite number above 0."""
    if check_number(op, name, value, 0, math.inf) in (0, math.inf):
        raise ValueError(f"{op}: {name} must be finite and above 0, got {value}")
    return float(value)


def check_flag(op: str, name: str, value) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be True or False, got {type(value).__name__}")
    return value


def check_schedule(op: str, name: str, value, make: Callable[[float], Callable]) -> Callable[[int], float]:
    """A callable step -> fraction as it is; a number in [0, 1] as the schedule that ``make`` makes of it."""
    if callable(value):
        return value
    return make(float(check_number(op, name, value, 0, 1, "a number or callable")))


def shown(value) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no integers of thousands of digits
        return type(value).__name__


def number(count):
    """The number in an integer tensor []; anything else as it is."""
    fits = isinstance(count, Tensor) and count.layout == torch.strided and not count.is_meta and count.dim() == 0
    return count.item() if fits else count


def sizes(shape):
    """A list of two integers as it is; of anything else its type."""
    fits = isinstance(shape, (list, tuple)) and len(shape) == 2 and all(type(n) is int for n in shape)
    return list(shape) if fits else type(shape)


def check_names(op: str, key: str, state: Mapping, names) -> Mapping:
    """``state[key]``, a dict whose keys are ``names``."""
    if not isinstance(state[key], Mapping):
        raise TypeError(f"{op}: state['{key}'] must be a dict, got {type(state[key]).__name__}")
    if state[key].keys() != set(names):
        raise ValueError(f"{op}: state['{key}'] must be of the layers {list(names)}, got {shown(list(state[key]))}")
    return state[key]


def check_tensors(op: str, key: str, state: Mapping, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state[key]``, a dict of tensors of the shapes and dtypes of ``like``; copies, on the devices of those."""
    found = check_names(op, key, state, like)
    for name, mine in like.items():
        got = found[name]
        same = isinstance(got, Tensor) and got.layout == torch.strided and not got.is_meta
        if not same or got.shape != mine.shape or got.dtype != mine.dtype:
            kind = f"{list(got.shape)} {got.dtype}" if isinstance(got, Tensor) else type(got).__name__
            raise ValueError(f"{op}: state['{key}']['{name}'] must be {list(mine.shape)} {mine.dtype}, got {kind}")
    return {name: found[name].to(mine.device, copy=True) for name, mine in like.items()}
