"""What a step is expected to take: the parts of a traced step, with other layers in the place of its dense ones."""

from __future__ import annotations

from collections.abc import Mapping

from sparsegnn.advice.parts import Trace, other_of
from sparsegnn.advice.prices import moved


def expected(
    trace: Trace,
    layers: Mapping[str, tuple[float, float]],
    optimizer: tuple[float, float] | None = None,
    memory: Mapping[str, int] | None = None,
) -> dict[str, float]:
    """Seconds of each part of a step.

    Args:
        trace: of the step with all weights.
        layers: name -> what the layer takes by itself in a step, dense and as it will be.
        optimizer: the same of its step.
        memory: bytes of weights and activations, as they will be.
    """
    seconds = dict(trace.seconds)
    for use in trace.layers:
        if use.name in layers:
            seconds[use.part] += moved(use.seconds, *layers[use.name]) - use.seconds
    if optimizer is not None:
        seconds["optimizer"] = moved(seconds["optimizer"], *optimizer)
    if memory is not None:
        seconds["other"] = other_of(trace, trace.operators, memory)
    return {part: max(0.0, t) for part, t in seconds.items()}
