"""Channels: columns of features. Those that only go together (a residual sum, a head) are one unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Value:
    """What is known of features [..., width] somewhere in a model."""

    ids: Tensor  # int64 [width]: the channel of each column
    constant: Tensor  # float64 [width]: what a column holds in every row; NaN: that varies
    flat: bool = False  # may have one dimension only

    def with_constant(self, constant: Tensor) -> Value:
        return Value(self.ids, constant, self.flat)


def unknown(width: int) -> Tensor:
    return torch.full((width,), float("nan"), dtype=torch.float64)


def zero_or_unknown(constant: Tensor) -> Tensor:
    """What is left of constants by whatever mixes rows and keeps zeros, as aggregation does."""
    return constant.where(constant == 0, float("nan"))


class Channels:
    """Numbers for channels, and which of them are one unit (union-find)."""

    def __init__(self):
        self._parent: list[int] = []
        self._pins: list[tuple[Tensor, str]] = []

    def new(self, width: int) -> Tensor:
        first = len(self._parent)
        self._parent.extend(range(first, first + width))
        return torch.arange(first, first + width)

    def __len__(self) -> int:
        return len(self._parent)

    def find(self, i: int) -> int:
        parent = self._parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(self, a: Tensor, b: Tensor) -> None:
        """The channels of ``a`` and of ``b``, of the same length, go together, one by one."""
        for i, j in zip(a.tolist(), b.tolist(), strict=True):
            i, j = self.find(i), self.find(j)
            self._parent[max(i, j)] = min(i, j)

    def join_all(self, ids: Tensor) -> None:
        self.join(ids[1:], ids[:1].expand(ids.numel() - 1))

    def pin(self, ids: Tensor, why: str) -> None:
        """These channels must stay."""
        self._pins.append((ids, why))

    def roots(self) -> Tensor:
        """int64 [channels]: one channel of the unit that each is of."""
        return torch.tensor([self.find(i) for i in range(len(self))], dtype=torch.int64)

    def pinned(self, roots: Tensor) -> Tensor:
        """bool [channels], by root."""
        kept = torch.zeros(len(self), dtype=torch.bool)
        for ids, _ in self._pins:
            kept[roots[ids]] = True
        return kept

    def reasons(self, roots: Tensor) -> Callable[[int], str]:
        """Why the unit of that root was pinned; "" if it was not."""
        pins = [(set(roots[ids].tolist()), why) for ids, why in self._pins]
        return lambda root: next((why for found, why in pins if root in found), "")
