"""The linear maps of each network, by name: shapes, and the sparsity of each."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from sparsegnn.controllers import distributions
from sparsegnn.pattern import BLOCKS, block_grid

Shapes = dict[str, tuple[int, int]]


def weight_shapes(config, features: int, classes: int) -> Shapes:
    """``{name: (outputs, inputs)}`` of every linear map of the model of a TrainConfig."""
    hidden, count, model = config.hidden, config.layers, config.model
    widths = [features, *[hidden] * (count - 1), classes]
    pairs = list(zip(widths[1:], widths, strict=False))
    if model in ("mlp", "sign"):
        first = {f"inputs.{i}": pairs[0] for i in range(1 + (config.hops if model == "sign" else 0))}
        return first | {f"layers.{i}": pair for i, pair in enumerate(pairs[1:])}
    if model == "gat":
        wide = hidden * config.heads
        inputs, outputs = [features, *[wide] * (count - 1)], [*[wide] * (count - 1), classes]
        return {f"convs.{i}.lin": pair for i, pair in enumerate(zip(outputs, inputs, strict=True))}
    if model == "sage":
        return {f"convs.{i}.{name}": pair for i, pair in enumerate(pairs) for name in ("lin_l", "lin_r")}
    if model == "gin":
        first = {f"convs.{i}.nn.0": (hidden, inputs) for i, (_, inputs) in enumerate(pairs)}
        second = {f"convs.{i}.nn.2": (outputs, hidden) for i, (outputs, _) in enumerate(pairs)}
        return {name: (first | second)[name] for i in range(count) for name in (f"convs.{i}.nn.0", f"convs.{i}.nn.2")}
    return {f"convs.{i}.lin": pair for i, pair in enumerate(pairs)}


def sparsities(shapes: Shapes, sparsity: float, distribution: str | Mapping[str, float]) -> dict[str, float]:
    """Sparsity of each linear map such that the whole model has ``sparsity``."""
    counts = distributions.allocate(shapes, sparsity, distribution)
    return {name: 1 - counts[name] / (rows * cols) for name, (rows, cols) in shapes.items()}


def patterns(shapes: Shapes, pattern: str) -> dict[str, str]:
    """Of each linear map: ``pattern`` where its sizes are multiples of the blocks, as those of an output layer are not
    always, else unstructured. ValueError where no map holds it."""
    height, width = BLOCKS[pattern]
    found = {
        name: "unstructured" if rows % height or cols % width else pattern for name, (rows, cols) in shapes.items()
    }
    if pattern not in found.values():
        block_grid(*max(shapes.values()), pattern, "pattern")
    return found


def linears(model: nn.Module) -> dict[str, nn.Module]:
    """The linear maps of a model: sparse, torch's or PyG's."""
    return {
        name: m
        for name, m in model.named_modules()
        if hasattr(m, "values") or (hasattr(m, "weight") and getattr(m.weight, "ndim", 0) == 2)
    }


def counts(lin: nn.Module) -> tuple[int, int]:
    """Weights of a linear map that exist, and those that a dense one would have."""
    if hasattr(lin, "values"):
        return lin.values.numel(), lin.in_features * lin.out_features
    return lin.weight.numel(), lin.weight.numel()


def weight_counts(model: nn.Module) -> tuple[int, int]:
    """Weights that exist and weights that a dense model would have, over all linear maps."""
    each = [counts(lin) for lin in linears(model).values()]
    return sum(kept for kept, _ in each), sum(size for _, size in each)
