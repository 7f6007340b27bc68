"""Errors against fp64: the Frobenius norm of the difference over that of the result."""

from collections.abc import Sequence

import torch


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    if got.shape != want.shape:
        raise RuntimeError(f"the result has shape {list(got.shape)}, wanted {list(want.shape)}")
    return float((got.detach().double() - want).norm() / want.norm().clamp_min(1e-300))


def worst(got: Sequence[torch.Tensor], want: Sequence[torch.Tensor]) -> float:
    return max(relative(a, b) for a, b in zip(got, want, strict=True))
