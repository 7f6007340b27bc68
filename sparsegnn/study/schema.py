"""What a configuration file of a study may hold, for pydantic: types and ranges of each value alone."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from sparsegnn.controllers import registry
from sparsegnn.study import tasks

#: sparsities by a name: that of the link predictors of train-and-prune against sparse training
GRIDS = {"twelve": (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 0.90625, 0.9375, 0.96875, 0.984375, 0.9921875)}
MATCHES = ("weights", "time", "memory")


def _listed(value: Any) -> Any:
    """One value stands for a list of it."""
    return value if isinstance(value, list) else [value]


def _grid(value: Any) -> Any:
    if isinstance(value, str):
        if value not in GRIDS:
            raise ValueError(f"must be sparsities in [0, 1) or the name of a grid, {', '.join(GRIDS)}, got {value!r}")
        return list(GRIDS[value])
    return _listed(value)


def _seeds(value: Any) -> Any:
    """A number of seeds stands for 0, 1, ..."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= 10_000:
            raise ValueError(f"must be a number of seeds from 1 to 10000, or a list of seeds, got {value}")
        return list(range(value))
    return value


def _task(value: Any) -> Any:
    if isinstance(value, str):
        tasks.find(value)
    return value


def _method(value: Any) -> Any:
    if isinstance(value, str):
        registry.find(value)
    return value


def _different(value: list) -> list:
    """A run that is asked for twice is a mistake."""
    if len(set(value)) != len(value):
        raise ValueError(f"must be different values, got {value}")
    return value


def _listing(kind: Any, before=_listed) -> Any:
    return Annotated[list[kind], Field(min_length=1), BeforeValidator(before), AfterValidator(_different)]


Text = Annotated[str, Field(min_length=1)]
Sparsity = Annotated[float, Field(ge=0, lt=1)]
Grid = _listing(Sparsity, _grid)
Seeds = _listing(Annotated[int, Field(ge=0, lt=2**63)], _seeds)
Width = Annotated[int, Field(ge=1)]


class Table(BaseModel):
    """Values must have their types: no text is a number."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Open(Table):
    """Further keys are settings of a run."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    def settings(self) -> dict:
        return dict(self.__pydantic_extra__ or {})


class Data(Open):
    """One set, ``[[data]]``: where it is from, and the nets that are trained on it."""

    name: Text
    title: Text | None = None  # in place of the name, where a set is there twice
    kind: Literal["name", "npz", "pyg", "edges"] | None = None
    file: Text | None = None
    edges: Text | None = None
    features: Text | None = None
    labels: Text | None = None
    directed: bool = False
    model: _listing(Text) = ["gcn"]
    hidden: _listing(Width) | None = None
    seeds: Seeds | None = None

    def source(self) -> str:
        """The kind of data, where it is not said what."""
        return self.kind or ("edges" if self.edges else "npz" if self.file else "name")


class Method(Open):
    """``[methods.NAME]``: the name is that of a method, or any where ``method`` says it."""

    method: Annotated[Text, BeforeValidator(_method)]
    sparsity: Grid | None = None
    models: _listing(Text) | None = None  # that it is for; all


class Baselines(Table):
    """What the methods are compared with: dense nets of the same and of smaller width, masked dense, one-shot."""

    dense: bool = True
    small_dense: Annotated[list[Literal[MATCHES]], BeforeValidator(_listed)] = []
    masked: bool = False
    oneshot: bool = False
    of: _listing(Text) | None = None  # methods that small dense nets are made for; all


class Top(Table):
    """All but ``data``, ``methods`` and ``common``."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]
    task: Annotated[Literal[tuple(tasks.TASKS)], BeforeValidator(_task)] = "nodes"
    seeds: Seeds = [0]
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    curve_points: Annotated[int, Field(ge=2)] | None = None
    sparsity: Grid | None = None
    baselines: Baselines = Baselines()
