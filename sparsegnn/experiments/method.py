"""The method of a training run and its settings, as the configurations of all tasks have them, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from sparsegnn.controllers import Controller, registry
from sparsegnn.controllers.distributions import DISTRIBUTIONS
from sparsegnn.controllers.settings import shown
from sparsegnn.pattern import PATTERNS

DENSE = "dense"  # the method that is none
#: settings that methods share, which have an option each
COMMON = ("sparsity", "distribution", "update_every", "stop_at", "drop_fraction")


class MethodSettings:
    """Base of configurations, with the fields ``method``, ``pattern``, ``set``, ``seed``, ``epochs``, :data:`COMMON`.

    ``steps`` are the optimizer steps of the run: its epochs, where a batch is the whole graph; None if not known yet.
    """

    @property
    def steps(self) -> int | None:
        return self.epochs

    @property
    def controller(self) -> type[Controller] | None:
        """The class of the method, None for a dense run."""
        if not isinstance(self.method, str):
            raise TypeError(f"method must be a name or 'module:Class', got {type(self.method).__name__}")
        return None if self.method == DENSE else registry.find(self.method, others=(DENSE,))

    def common(self) -> dict:
        """What the options say of the settings that methods share; the rest is the method's recipe."""
        given = {name: value for name in COMMON if (value := getattr(self, name)) is not None}
        start = self.controller.recipe(self.steps or self.epochs).get("start_at", 0)
        stop = self.set.get("stop_at", self.stop_at)
        if isinstance(stop, int) and start > stop:
            given["start_at"] = stop
        return {**given, "seed": self.seed}

    def _check_numbers(self, *counts: str, shares: tuple[str, ...] = ("dropout",)) -> None:
        """Those of the training: what is counted, seeds, Adam's settings or SGD's, and what is dropped out."""
        for name in counts:
            check(name, getattr(self, name), int, 1, math.inf, "a positive integer")
        for name in ("seed", "split_seed"):
            check(name, getattr(self, name), int, 0, 2**63, "an integer in [0, 2^63)")
        for name in ("lr", "weight_decay"):
            check(name, getattr(self, name), float, 0.0, 1e31, "in [0, 1e31)")
        for name in shares:
            check(name, getattr(self, name), float, 0.0, 1.0, "in [0, 1)")

    def _check_choice(self, cls: type[Controller] | None) -> None:
        """The method, None for a dense run, and all of its settings."""
        self._check_common()
        self._check_set(cls)
        if cls is None:
            self._check_dense()
        else:
            self._check_method(cls)

    def _check_common(self) -> None:
        if self.update_every is not None:
            check("update_every", self.update_every, int, 1, math.inf, "a positive integer")
        self._check_stop()
        if self.sparsity is not None:
            check("sparsity", self.sparsity, float, 0.0, 1.0, "in [0, 1)")
        if self.drop_fraction is not None:
            check("drop_fraction", self.drop_fraction, float, 0.0, 1.0 + 1e-9, "in [0, 1]")
        if self.distribution is not None and not isinstance(self.distribution, Mapping):
            one_of("distribution", self.distribution, DISTRIBUTIONS)
        if self.pattern is not None:
            one_of("pattern", self.pattern, PATTERNS)

    def _check_stop(self) -> None:
        if self.stop_at is not None:
            check("stop_at", self.stop_at, int, 1, self.epochs + 1, f"in [1, {self.epochs}], the number of epochs")

    def _check_set(self, cls: type[Controller] | None) -> None:
        if not isinstance(self.set, Mapping):
            raise TypeError(f"set must be a dict of settings, got {type(self.set).__name__}")
        if cls is None and self.set:
            raise ValueError(f"set must be empty for method 'dense', which has no settings, got {shown(self.set)}")
        for name, value in self.set.items():
            registry.check_setting(cls, name)
            if not is_plain(value):
                raise TypeError(f"set must have numbers, texts, lists and dicts, got {name}={shown(value)}")
        for name in {"sparsity", "distribution"} & self.set.keys():  # of which the model is made too
            if getattr(self, name) not in (None, self.set[name]):
                raise ValueError(f"{name} must be given once, got {getattr(self, name)} and, in set, {self.set[name]}")
            setattr(self, name, self.set[name])
        self._check_common()

    def _check_dense(self) -> None:
        self.sparsity = 0.0 if self.sparsity is None else self.sparsity
        if self.sparsity:
            raise ValueError(f"sparsity must be 0 for method 'dense', got {self.sparsity}: choose another method")
        if self.pattern not in (None, "unstructured"):
            raise ValueError(f"pattern must be 'unstructured' for method 'dense', got {self.pattern!r}")

    def _check_method(self, cls: type[Controller]) -> None:
        known = registry.settings(cls)
        builds = ("sparsity", "distribution") if cls.start == "sparse" else ()  # of which the model is made
        for name in COMMON:
            if getattr(self, name) is not None and name not in (*known, *builds):
                has = ", ".join(n for n in COMMON if n in known) or "none of the others"
                raise ValueError(f"{name} must be left out for method {self.method!r}, which has no such setting (of "
                                 f"these it has {has}; all: sparsegnn methods {self.method})")  # fmt: skip
        if self.sparsity == 0:
            raise ValueError(f"sparsity must be above 0 for method {self.method!r}, got {self.sparsity}")
        if self.pattern is not None and cls.start == "plain":
            raise ValueError(f"pattern must be left out for method {self.method!r}, which takes the model as it is")
        if self.pattern is None and cls.start != "plain":
            self.pattern = cls.patterns if cls.patterns in PATTERNS else "unstructured"
        if cls.start == "sparse":
            if self.distribution == "global":
                raise ValueError(f"distribution must not be 'global' for method {self.method!r}, which starts sparse, "
                                 "without magnitudes to compare: use erk, er or uniform")  # fmt: skip
            own = {n: p.default for n, p in known.items()} | cls.recipe(self.steps or self.epochs)
            default = 0.5 if self.pattern == "2:4" else own.get("sparsity") or 0.9
            self.sparsity = default if self.sparsity is None else self.sparsity
            self.distribution = own.get("distribution") or "erk" if self.distribution is None else self.distribution


class BatchSettings(MethodSettings):
    """Base of configurations of tasks that train in batches, whose ``epochs`` are passes over the training set.

    How many steps that makes follows from the data: :meth:`in_batches`. Methods whose recipe changes the weights after
    every step of full-batch training, which is an epoch, do so once an epoch here.
    """

    batches: ClassVar[int | None] = None  # of an epoch
    backend = "sparsegnn"  # whose layers these models have

    @property
    def steps(self) -> int | None:
        return None if self.batches is None else self.epochs * self.batches

    def in_batches(self, batches: int):
        """The same settings for so many steps an epoch."""
        made = replace(self)
        made.batches = batches
        return made

    def common(self) -> dict:
        given = super().common()
        once_an_epoch = self.controller.recipe(10**6).get("update_every") == 1
        if once_an_epoch and self.batches and "update_every" not in given:
            given["update_every"] = self.batches
        return given

    def _check_stop(self) -> None:
        if self.stop_at is not None:
            check("stop_at", self.stop_at, int, 1, math.inf, "a positive integer")

    def check_shared(self) -> None:
        """What all tasks have, last of all checks."""
        self._check_numbers("hidden", "layers", "epochs", "batch", "eval_every")
        self._check_choice(self.controller)


def is_plain(value: object) -> bool:
    """Whether a value can be written down: in JSON, and in a checkpoint that is loaded as weights only."""
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and is_plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def check(name: str, value: object, kind: type, low: float, high: float, expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
        raise TypeError(f"{name} must be {expected}, got {value!r}")
    if not low <= value < high:  # False for NaN
        raise ValueError(f"{name} must be {expected}, got {value}")
