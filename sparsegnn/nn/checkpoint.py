"""Checkpoints that must fit a sparse layer: checked before anything is written."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparsegnn import pattern as patterns
from sparsegnn.nn import copies
from sparsegnn.nn.kernel_choice import KernelChoice
from sparsegnn.nn.moves import Move, check_own
from sparsegnn.nn.storage import resize_

SAVED = ("values", "crow", "col")


def load(layer, state_dict: Mapping[str, Tensor], prefix: str, metadata: dict, strict: bool, *reports) -> None:
    """``_load_from_state_dict`` of ``layer``: all that a checkpoint has of it, or nothing where anything is wrong."""
    if not is_complete(layer, state_dict, prefix) and is_strict():
        kept = with_own(layer, state_dict, prefix)  # torch says what, and changes nothing
        return nn.Module._load_from_state_dict(layer, kept, prefix, {}, strict, *reports)
    saved, crow, col = prepared(layer, state_dict, prefix, metadata.get("assign_to_params_buffers", False))
    if col.shape != layer.col.shape:
        check_own(layer)
    if layer._rewired and "values" in saved and not {"crow", "col"} <= saved.keys():
        warnings.warn(
            f"{type(layer).__name__}: checkpoint '{prefix}values' comes without crow and col, and is put at "
            "the positions of now; weights of the layer have moved, so these may be others: load a whole state_dict()",
            stacklevel=4,
        )
    derived, move = layer._derive(crow, col), Move(layer)
    move.by_position(crow, col, saved.get("values", layer.values))
    if col.shape != layer.col.shape:  # another number of weights: same Parameter object, new storage
        new = layer.col.new_empty(col.shape)
        resize_(layer.values, torch.Size([layer.weights_of(col)]))
        layer.col = new
    saved = {**state_dict, **{prefix + name: t for name, t in saved.items()}}
    KernelChoice._load_from_state_dict(layer, saved, prefix, metadata, strict, *reports)
    layer._place(layer.crow, layer.col, derived)
    move.done()
    copies.loaded(layer)


def check_saved(layer, state_dict: Mapping[str, Tensor], prefix: str, assign: bool) -> dict[str, Tensor]:
    """What a checkpoint has of ``layer``, a SparseWeight, once all of it fits; else TypeError or ValueError.

    Types and sizes are looked at before any data is: a tensor may claim more elements than anything can hold.
    """
    op, saved = type(layer).__name__, {}
    for name in sorted({*own_names(layer), "dense_kernel"}, key=lambda name: name != "shape"):
        if prefix + name in state_dict:
            t = saved[name] = state_dict[prefix + name]
            _check_tensor(layer, name, t, f"{op}: checkpoint '{prefix}{name}'")
            mine = [layer.out_features, layer.in_features]
            if name == "shape" and not t.is_meta and t.tolist() != mine:
                raise ValueError(f"{op}: checkpoint '{prefix}shape' must be {mine}, got {t.tolist()}")
    held = {name: getattr(layer, name) for name in SAVED} | saved
    if assign and len(places := {str(t.device) for t in held.values()}) > 1:
        raise ValueError(f"{op}: checkpoint '{prefix.rstrip('.')}' must be on one device, got {sorted(places)}")
    verdict = saved.get("dense_kernel")
    if verdict is not None and not verdict.is_meta and not 0 <= float(verdict) < math.inf:
        raise ValueError(f"{op}: checkpoint '{prefix}dense_kernel' must be a ratio of times, got {float(verdict)}")
    values, crow, col = (held[name] for name in SAVED)
    where = f"{op}: checkpoint '{prefix.rstrip('.')}'"
    most, want = layer.grid[0] * layer.grid[1], [layer.weights_of(col)]
    if col.numel() > most:
        raise ValueError(f"{where}: col must have at most {most} entries, got {col.numel()}")
    if list(values.shape) != want:
        raise ValueError(f"{op}: checkpoint '{prefix}values' must have shape {want}, got {list(values.shape)}")
    patterns.check_pattern(crow, col, *layer.grid, where)
    patterns.check_regular(crow, col, layer.in_features, layer.structure, where)
    return saved


def is_strict() -> bool:
    """Whether the ``load_state_dict`` that is running fails with keys missing or left over.

    torch tells each module that it is strict, and looks at what they report when all have loaded.
    """
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not nn.Module.load_state_dict.__code__:
        frame = frame.f_back
    return frame is not None and bool(frame.f_locals.get("strict"))


def own_names(layer: nn.Module) -> list[str]:
    """Names of the parameters and buffers that a checkpoint of ``layer`` has, without those of modules inside."""
    own = {**layer._parameters, **layer._buffers}
    return [name for name, t in own.items() if t is not None and name not in layer._non_persistent_buffers_set]


def is_complete(layer, state_dict: Mapping[str, Tensor], prefix: str) -> bool:
    """Whether a checkpoint has all of ``layer``, a SparseWeight, and nothing else; TypeError if it is none."""
    if strange := [key for key in state_dict if not isinstance(key, str)]:
        raise TypeError(f"{type(layer).__name__}: checkpoint must have names as keys, got {type(strange[0]).__name__}")
    names = {key[len(prefix) :] for key in state_dict if key.startswith(prefix)}
    found = {name for name in names if name.partition(".")[0] not in layer._modules}
    own = {*own_names(layer), "dense_kernel"}
    if type(layer).set_extra_state is not nn.Module.set_extra_state:
        own.add("_extra_state")
    return found | {"dense_kernel"} == own


def with_own(layer, state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A checkpoint with the tensors that ``layer`` has already in place of its own of the same names."""
    own, verdict = {prefix + name: getattr(layer, name) for name in own_names(layer)}, prefix + "dense_kernel"
    kept = {key: own.get(key, t) for key, t in state_dict.items() if key != verdict}
    return kept | {key: t for key, t in own.items() if key == verdict}


def prepared(layer, state_dict: Mapping, prefix: str, assign: bool) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The tensors of a checkpoint as ``layer`` will hold them, and its positions; nothing can fail after this.

    With ``assign`` they are copies: the layer writes to its positions, which another layer may have saved.
    """
    saved = check_saved(layer, state_dict, prefix, assign)
    device = saved.get("crow", layer.crow).device if assign else layer.crow.device
    crow, col = (saved.get(name, getattr(layer, name)).to(device).contiguous() for name in ("crow", "col"))
    if assign:
        copies = {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in saved.items()}
        return copies, crow, col
    if layer.crow.is_meta:  # nothing will be copied, of which torch warns
        return dict(saved), crow, col
    own = {name: getattr(layer, name) for name in saved if name != "dense_kernel"}
    new = {name: saved[name].detach().to(t.device, t.dtype).contiguous() for name, t in own.items()}
    return {**saved, **new}, crow, col


def _check_tensor(layer, name: str, t, where: str) -> None:
    """Raise unless type and size of ``t`` are those of tensor ``name``; ``values`` and ``col`` of any length."""
    if not isinstance(t, Tensor) or nn.parameter.is_lazy(t):
        raise TypeError(f"{where} must be a tensor, got {type(t).__name__}")
    if t.layout != torch.strided or t.is_nested:
        raise TypeError(f"{where} must be a dense tensor, got {'nested' if t.is_nested else t.layout}")
    mine = getattr(layer, name)
    floating = name == "dense_kernel" or mine.is_floating_point()
    if t.is_floating_point() != floating or t.is_complex() or t.is_quantized or t.dtype == torch.bool != mine.dtype:
        raise TypeError(f"{where} must hold {'floating-point numbers' if floating else 'integers'}, got {t.dtype}")
    shape = [] if name == "dense_kernel" else ["*"] if name in ("values", "col") else list(mine.shape)
    if t.dim() != len(shape) or (shape != ["*"] and list(t.shape) != shape):
        raise ValueError(f"{where} must have shape [{', '.join(map(str, shape))}], got {list(t.shape)}")
    if t.is_meta and not layer.crow.is_meta:
        raise ValueError(f"{where} must hold data, got a tensor on meta")
    if t.dim() == 1 and t.numel() > 1 and t.stride(0) == 0:
        raise ValueError(f"{where} must have memory of its own for {t.numel()} elements, got one that is repeated")
