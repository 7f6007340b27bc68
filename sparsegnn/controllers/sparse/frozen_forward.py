"""The forward of a frozen module, skipped while its inputs are those of the last call."""

from __future__ import annotations

import warnings
import weakref

import torch
from torch import Tensor, nn

from sparsegnn.graph import CSRGraph

CHANGES = 3  # calls in a row with other inputs, in training, before a warning says why nothing is skipped
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class FrozenForward:
    """In place of ``module.forward``: returns the last output again where nothing that it depends on has changed.

    That is: no parameter of the module needs a gradient, and neither does an input; parameters, buffers and inputs are
    the same tensors with the same contents. On the CPU inputs of the same bits count as the same, so a chain of frozen
    layers with an activation between is skipped as a whole; a GPU would have to wait for that, so there they must be
    the same tensors, unchanged, as constant features are. A call that draws random numbers is never skipped. Results
    are, bit for bit, those of the forward itself. Hooks of modules inside are not called where it is skipped, and
    changes through ``tensor.data`` or numpy are not noticed. Training and evaluation are kept apart, each with the
    inputs and the output of its last call; compiled and captured calls run as they are.

    Args:
        module: any. :meth:`remove` gives it its own forward back.
        name: of the module, in a warning.
    """

    def __init__(self, module: nn.Module, name: str = ""):
        self.module, self.name, self.own = module, name, module.__dict__.get("forward")
        self.skipped = self._changes = 0
        self._warned = self._gives_copies = False
        self._kept: dict[bool, _Call] = {}  # module.training -> the last call
        module.forward = self

    def remove(self) -> None:
        if self.module.__dict__.get("forward") is self:
            del self.module.forward
            if self.own is not None:
                self.module.forward = self.own
        self._kept = {}

    def __call__(self, *args, **kwargs):
        if torch.compiler.is_compiling():
            return self._run(args, kwargs)
        inputs, names = [*args, *kwargs.values()], (len(args), *kwargs)
        if not self._may_keep(inputs):
            return self._run(args, kwargs)
        mode, state = self.module.training, (names, *self._state())
        last = self._kept.pop(mode, None)
        if last is not None and last.written():
            self._gives_copies, last = True, None  # somebody writes into what it returns
        if last is not None and last.state == state and last.same(inputs, bits=not (mode and self._warned)):
            self._kept[mode] = last
            self.skipped, self._changes = self.skipped + 1, self._changes if not mode else 0
            return last.output.clone() if self._gives_copies else last.output
        if last is not None and mode:
            self._warn_of_changes()
        before = _generators(inputs)
        output = self._run(args, kwargs)
        if type(output) is not Tensor or output.requires_grad or output.is_inference():
            return output
        if all(torch.equal(a, b) for a, b in zip(before, _generators(inputs), strict=True)):  # else it is random
            self._kept[mode] = _Call(inputs, state, output)
            return output.clone() if self._gives_copies else output
        return output

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": {}}

    # --- inner works ---

    def _run(self, args, kwargs):
        if self.own is not None:
            return self.own(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def _may_keep(self, inputs: list) -> bool:
        """Whether the output depends on nothing but contents that can be compared."""
        if any(p.requires_grad for p in self.module.parameters()):
            return False
        if not all(x is None or isinstance(x, (Tensor, CSRGraph, bool, int, float, str)) for x in inputs):
            return False
        tensors = [t for x in inputs for t in _tensors(x)]
        if any(t.requires_grad or t.is_inference() or t.is_meta for t in tensors):
            return False
        return not (any(t.is_cuda for t in tensors) and torch.cuda.is_current_stream_capturing())

    def _state(self) -> tuple:
        """All that the output depends on beside the inputs."""
        held = [*self.module.parameters(), *self.module.buffers()]
        device = held[0].device.type if held else "cpu"
        low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        settings = (getattr(m, name, None) for m in self.module.modules() for name in ("p", "dropout"))
        drops = tuple(x for x in settings if isinstance(x, (int, float)))
        return tuple((id(t), *_version(t)) for t in held), low, drops

    def _warn_of_changes(self) -> None:
        self._changes += 1
        if self._changes >= CHANGES and not self._warned:
            self._warned = True
            warnings.warn(
                f"FrozenForward: layer {self.name!r} is frozen, but its inputs or weights were others in each of "
                f"{CHANGES} steps (dropout before it, or mini-batches), so that only its backward is skipped, not its "
                "forward",
                stacklevel=4,
            )


class _Call:
    """Inputs, state and output of a call."""

    def __init__(self, inputs: list, state: tuple, output: Tensor):
        self.inputs = [weakref.ref(x) if isinstance(x, Tensor) and x.is_cuda else x for x in inputs]
        self.versions = [_versions(x) for x in inputs]
        self.state, self.output, self.version = state, output, output._version

    def written(self) -> bool:
        return self.output._version != self.version

    def same(self, inputs: list, bits: bool) -> bool:
        """Whether these are its inputs: the same objects, unchanged, or (``bits``) tensors of the same bits."""
        for mine, x, version in zip(self.inputs, inputs, self.versions, strict=True):
            mine = mine() if isinstance(mine, weakref.ref) else mine
            if mine is x:
                if version != _versions(x):
                    return False
            elif not isinstance(x, Tensor):
                if isinstance(x, CSRGraph) or type(mine) is not type(x) or mine != x:
                    return False
            elif not bits or version != _versions(mine) or not _equal(mine, x):
                return False
        return True


def _equal(a, b: Tensor) -> bool:
    """Whether two tensors on the CPU have the same bits."""
    if not isinstance(a, Tensor) or a.layout != torch.strided or b.layout != torch.strided or b.is_cuda:
        return False
    if a.dtype != b.dtype or a.shape != b.shape or a.device != b.device:
        return False
    return torch.equal(*(x.contiguous().view(_BITS[x.element_size()]) if x.is_floating_point() else x for x in (a, b)))


def _tensors(x) -> tuple[Tensor, ...]:
    """The tensors that an input is made of."""
    if isinstance(x, CSRGraph):
        return (x.crow, x.col) if x.val is None else (x.crow, x.col, x.val)
    if not isinstance(x, Tensor) or x.layout == torch.strided:
        return (x,) if isinstance(x, Tensor) else ()
    if x.layout == torch.sparse_coo:
        return x._indices(), x._values()
    parts = ("crow_indices", "col_indices") if x.layout in (torch.sparse_csr, torch.sparse_bsr) else (
        "ccol_indices", "row_indices")  # fmt: skip
    return (*(getattr(x, part)() for part in parts), x.values())


def _versions(x) -> tuple:
    """Changes whenever somebody writes into an input."""
    return tuple(_version(t) for t in _tensors(x))


def _version(t: Tensor) -> tuple[int, int]:
    return t._version, t.data_ptr()


def _generators(inputs: list) -> list[Tensor]:
    """The state of torch's generators that a module could draw from."""
    devices = {t.device for x in inputs for t in _tensors(x) if t.is_cuda}
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in sorted(devices, key=str))]
