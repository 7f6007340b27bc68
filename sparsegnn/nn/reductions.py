"""How a graph layer reduces over the edges of a node: one reduction, or several whose results are concatenated."""

from __future__ import annotations

from sparsegnn.nn.watched import is_unwatched

REDUCTIONS = {"add": "sum", "sum": "sum", "mean": "mean", "max": "max", "min": "min"}
#: where PyG has its modules that do one of these, and the one that concatenates several
BASIC, MULTIPLE = "torch_geometric.nn.aggr.basic", "torch_geometric.nn.aggr.multi"


def reduction_of(layer: str, aggr) -> str | list[str]:
    """The names of what ``aggr`` says, as PyG understands it: a name, a module of PyG that does the same, or a list of
    these. A list of one is that one."""
    names = _names(aggr)
    if not names:
        raise ValueError(
            f"{layer}: aggr must be one of {', '.join(REDUCTIONS)}, or a list of these or of PyG's modules of them, "
            f"got {' '.join(repr(aggr).split())}: for others use torch_geometric.nn.{layer} and sparsegnn.accelerate"
        )
    return names if len(names) > 1 else names[0]


def _names(aggr) -> list[str]:
    """Empty where something in it is unknown."""
    kind, place = type(aggr).__name__, type(aggr).__module__
    if isinstance(aggr, str):
        name = aggr.lower().replace("-", "").replace("_", "").replace(" ", "").removesuffix("aggregation")
        return [name] if name in REDUCTIONS else []
    if place == BASIC and is_unwatched(aggr):
        return _names(kind)
    if place == MULTIPLE and is_unwatched(aggr) and getattr(aggr, "mode", None) == "cat":
        aggr = aggr.aggrs
    elif not isinstance(aggr, (tuple, list)):
        return []
    each = [_names(a) for a in aggr]
    return [name for names in each for name in names] if all(each) else []


def is_one(aggr: str | list[str], reduce: str) -> bool:
    """Whether ``aggr`` is this reduction alone."""
    return isinstance(aggr, str) and REDUCTIONS[aggr] == reduce


def commutes(aggr: str | list[str]) -> bool:
    """Whether A (x W) = (A x) W, of the same width as x W."""
    return isinstance(aggr, str) and aggr not in ("max", "min")


def refuse_several(layer: str, aggr: str | list[str], why: str) -> None:
    if not isinstance(aggr, str):
        raise ValueError(f"{layer}: aggr must be one reduction where {why}, got {aggr}")
