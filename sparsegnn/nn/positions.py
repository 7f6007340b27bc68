"""Where the weights of a sparse layer are: how that is placed, copied, loaded and taken from device to device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsegnn import pattern as patterns
from sparsegnn.nn import checkpoint, copies, duplicate, fit, storage
from sparsegnn.nn.fit import DERIVED
from sparsegnn.nn.kernel_choice import KernelChoice
from sparsegnn.nn.read_only import refuse


class Parametrizations(nn.ModuleDict):
    """As ``nn.utils.parametrize`` makes one, in which no name may be that of a method; ``values`` is."""

    def add_module(self, name: str, module: nn.Module | None) -> None:
        if name == "values":
            self._modules[name] = module
        else:
            super().add_module(name, module)


class Positions(KernelChoice):
    """Base of a layer with ``values`` at positions: buffers ``crow, col``, and ``ccol, row, perm``, derived of them."""

    block: tuple[int, int]
    grid: tuple[int, int]
    probe: Tensor | None
    _fit: tuple | None = None  # positions of which the derived ones are: see sparsegnn.nn.fit
    _rewired = False  # whether weights have ever moved
    _tag: object = None  # of these positions: copies at the same ones share it
    _link: copies.Link | None = None  # to the layer that this one was copied from
    _copies = None  # weak

    def _shape(self, device: torch.device) -> Tensor:
        return torch.tensor([self.out_features, self.in_features], dtype=torch.int32, device=device)

    def weights_of(self, col: Tensor) -> int:
        return col.numel() * self.block[0] * self.block[1]

    def _settle(self, values: bool = True) -> None:
        """Before it is used: what is derived fits, and a copy, with its ``values``, is what it should be."""
        if not torch.compiler.is_compiling():
            if self._link is not None:
                copies.check(self, values)
            fit.ensure(self)

    def __setattr__(self, name: str, value) -> None:
        if name == "weight":
            refuse(type(self).__name__, f"an assignment of {type(value).__name__}")
        super().__setattr__(name, Parametrizations() if name == "parametrizations" else value)

    def _derive(self, crow: Tensor, col: Tensor, check: bool = True) -> tuple[Tensor, ...]:
        """The transpose of positions; ``check`` waits for a GPU."""
        return torch.ops.sparsegnn.csr_transpose(crow, col, self.grid[1], check)

    def _place(self, crow: Tensor, col: Tensor, derived: tuple[Tensor, ...] | None = None) -> None:
        """Store positions and what is derived from them, in place where they fit."""
        self._follow_policy(self.weights_of(col))
        derived = derived or self._derive(crow, col)
        for name, new in zip(("crow", "col", *DERIVED), (crow, col, *derived), strict=True):
            if (old := getattr(self, name)) is not None and old.shape == new.shape and old.device == new.device:
                old.copy_(new)
            else:
                setattr(self, name, new)
        self._tag = object()
        fit.mark(self)

    def _apply(self, fn, recurse=True):
        self._settle()
        copies.moved(self, before=True)
        empty = self.crow.is_meta or getattr(fn, "__qualname__", "").startswith("Module.to_empty")
        super()._apply(fn, recurse)
        fit.mark(self)
        copies.moved(self, before=False)
        if empty and not self.crow.is_meta:  # to_empty(): positions are uninitialised memory
            size = {"nnz": self.values.numel(), "kind": self.structure, "device": self.crow.device}
            self._place(*patterns.random_pattern(self.out_features, self.in_features, **size))
            self.shape = self._shape(self.crow.device)
        self._follow_policy(self.values.numel())
        self.probe = storage.move_(self.probe, fn)
        return self

    def __getstate__(self) -> dict:
        self._settle(values=False)
        known = {"_fit": None, "_copies": None, "_link": duplicate.Origin(self)}
        return {**self.__dict__, **known, "probe": None}  # a controller that is copied along asks anew

    def __setstate__(self, state):
        super().__setstate__(state)
        fit.mark(self)
        duplicate.attach(self)

    def train(self, mode: bool = True):
        self._settle()
        return super().train(mode)

    def _save_to_state_dict(self, *args):
        self._settle()
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        checkpoint.load(self, state_dict, prefix, *args)
