"""The registry of methods: names, their classes, and what each class says of itself."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from sparsegnn.controllers.base import Controller
from sparsegnn.controllers.settings import shown

#: name -> class, in the order of registration
METHODS: dict[str, type[Controller]] = {}
FAMILIES = ("sparse", "pruning", "structure")


def register(name: str) -> Callable[[type[Controller]], type[Controller]]:
    """Class decorator that enters a method into :data:`METHODS`, and so into ``sparsegnn train`` and ``methods``.

    A name that is taken raises ValueError, unless the same class is defined again (a notebook cell).
    """
    op = "register"
    if not isinstance(name, str) or not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"{op}: name must be letters, digits, '-' and '_', got {name!r}")

    def enter(cls: type[Controller]) -> type[Controller]:
        if not isinstance(cls, type) or not issubclass(cls, Controller):
            raise TypeError(f"{op}: a method must be a subclass of Controller, got {shown(cls)}")
        if cls.family not in FAMILIES:
            raise ValueError(f"{op}: family of {cls.__name__} must be one of {FAMILIES}, got {cls.family!r}")
        for wanted in settings(cls).values():
            if wanted.default is inspect.Parameter.empty:
                raise TypeError(f"{op}: setting {wanted.name!r} of {cls.__name__} must have a default")
        known = METHODS.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"{op}: name must be new, got {name!r}, which is {known.__qualname__}")
        METHODS[name], cls.method = cls, name
        return cls

    return enter


def find(name: str, others: Iterable[str] = ()) -> type[Controller]:
    """The method of that name, or the class at ``"package.module:Class"``. ValueError names all that there are."""
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        raise ValueError(
            f"method must be one of {', '.join([*others, *METHODS])}, or a class as 'module:Class', got {name!r}"
        )
    module, _, attribute = name.partition(":")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as e:  # whatever a module does when it is imported
        raise ValueError(f"method must be a class that can be imported, got {name!r}: {type(e).__name__}: {e}") from e
    if not isinstance(cls, type) or not issubclass(cls, Controller):
        raise ValueError(f"method must be a subclass of sparsegnn.Controller, got {name!r}, {shown(cls)}")
    return cls


def settings(cls: type[Controller]) -> dict[str, inspect.Parameter]:
    """The keyword settings of a method, by its signature; not ``graph``, which is no setting."""
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "graph"}


def make(cls: type[Controller], model: nn.Module, optimizer: torch.optim.Optimizer, *, steps: int,
         common: Mapping | None = None, own: Mapping | None = None, graph=None) -> Controller:  # fmt: skip
    """A method, attached: its recipe for ``steps`` steps, then those of ``common`` that it has, then ``own``.

    ``own`` settings that it has not raise ValueError with the list of its settings. ``graph`` goes to methods that take
    one.
    """
    wanted = chosen(cls, steps, common, own)
    if "graph" in inspect.signature(cls.__init__).parameters:
        wanted["graph"] = graph
    return cls(model, optimizer, **wanted)


def chosen(cls: type[Controller], steps: int, common: Mapping | None = None, own: Mapping | None = None) -> dict:
    """The settings that :func:`make` gives a method; those that it leaves out have the defaults of the signature."""
    known = settings(cls)
    for name in own or ():
        check_setting(cls, name)
    return {k: v for k, v in {**cls.recipe(steps), **(common or {})}.items() if k in known} | dict(own or {})


def check_setting(cls: type[Controller], name: str) -> inspect.Parameter:
    """The setting of that name; ValueError lists those that the method has."""
    known = settings(cls)
    if name not in known:
        raise ValueError(f"method {cls.method or cls.__name__!r} must have the setting {name!r}, it has "
                         f"{', '.join(known) or 'none'}")  # fmt: skip
    return known[name]
