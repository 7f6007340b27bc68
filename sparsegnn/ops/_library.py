"""The torch.library handle, and the few lines that every op would otherwise repeat."""

import functools
import inspect
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from sparsegnn import _native
from sparsegnn.ops._indices import ENABLED, install
from sparsegnn.ops._vmap import install_vmap

LIBRARY = torch.library.Library("sparsegnn", "FRAGMENT")
COMPOSITE: set[str] = set()  # ops that are plain PyTorch by design
REFERENCES: dict[str, Callable] = {}
_warned: set[str] = set()


def define(schema: str, reference: Callable, fake: Callable, *, cast: tuple[str, ...] = (), composite: bool = False):
    """Register an op: its schema, its plain-PyTorch ``reference``, and its shape function ``fake``.

    The reference runs wherever no compiled kernel is registered for the device: once with a warning, or as an error
    under SPARSEGNN_STRICT=1. ``cast`` names the floating-point arguments that autocast converts. A ``composite`` op
    has no compiled kernel by design: its reference is the implementation.
    """
    name = schema.partition("(")[0]
    REFERENCES[name] = reference
    if composite:
        COMPOSITE.add(name)
    LIBRARY.define(schema)
    op = getattr(torch.ops.sparsegnn, name).default
    LIBRARY.impl(name, reference if composite else _fallback(name, reference), "CompositeExplicitAutograd")
    torch.library.register_fake(op, _on_one_device(op, fake), lib=LIBRARY)
    for device in ("cpu", "cuda") if cast else ():
        LIBRARY.impl(name, _autocast(op, device, cast, reference), f"Autocast{device.upper()}", with_keyset=True)
    install_vmap(name, op, LIBRARY)
    if op._schema.is_mutable:
        LIBRARY.impl(name, _counted(op), "ADInplaceOrView", with_keyset=True)
    if ENABLED:
        install(name, op, LIBRARY)
    return op


def _on_one_device(op, fake: Callable) -> Callable:
    """``fake``, which also runs where one argument alone is on meta: it would return uninitialised memory then."""
    name, names = op.name().partition("::")[2], [a.name for a in op._schema.arguments]

    @functools.wraps(fake)
    def run(*args, **kwargs):
        pairs = (*zip(names, args, strict=False), *kwargs.items())
        given = {argument: a for argument, a in pairs if isinstance(a, Tensor)}
        device = next(iter(given.values())).device if given else None
        for argument, value in given.items():
            check_device(name, argument, value, device)
        return fake(*args, **kwargs)

    return run


def _fallback(name: str, reference: Callable) -> Callable:
    @functools.wraps(reference)
    def run(*args, **kwargs):
        device = next((a.device.type for a in args if isinstance(a, Tensor)), "cpu")
        reason = _native.status.get(device, f"no kernels for device {device}")
        message = (
            f"sparsegnn: no compiled {device} kernel for {name} ({reason or 'not in this build'}); using plain "
            f"PyTorch, which is slower. To build it: {_native.BUILD_HINT}"
        )
        if _native.strict():
            raise RuntimeError(message + " (an error because SPARSEGNN_STRICT=1)")
        if name + device not in _warned:
            _warned.add(name + device)
            warnings.warn(message, UserWarning, stacklevel=3)
        return reference(*args, **kwargs)

    return run


def _counted(op) -> Callable:
    """An op that tells autograd what it writes to, so that a backward pass that needs what was there raises."""
    places = [i for i, a in enumerate(op._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]

    def run(keyset, *args):
        torch.autograd.graph.increment_version([args[i] for i in places])
        return op.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *args)

    return run


def _autocast(op, device: str, cast: tuple[str, ...], reference: Callable) -> Callable:
    places = {i for i, name in enumerate(inspect.signature(reference).parameters) if name in cast}
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
        torch._C.DispatchKey.AutocastCUDA
    )

    def convert(value, dtype):
        eligible = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(dtype) if eligible else value

    def run(_, *args, **kwargs):
        dtype = torch.get_autocast_dtype(device)
        args = [convert(a, dtype) if i in places else a for i, a in enumerate(args)]
        kwargs = {k: convert(a, dtype) if k in cast else a for k, a in kwargs.items()}
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*args, **kwargs)

    return run


def check(op: str, name: str, value, shape: tuple, beside=None) -> None:
    """Raise ``TypeError`` unless ``value`` is a tensor, ``ValueError`` unless it has this shape, and the device of
    ``beside``, a tensor or a graph.

    A string in ``shape`` stands for any size; ``"..."`` in front of it for any number of sizes.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor of shape {_text(shape)}, got {type(value).__name__}")
    if value.layout is not torch.strided:
        raise TypeError(f"{op}: {name} must be dense, got layout {value.layout}: use {name}.to_dense()")
    sizes = shape[1:] if shape[0] == "..." else shape
    got = value.shape[max(0, value.dim() - len(sizes)) :] if shape[0] == "..." else value.shape
    if len(got) != len(sizes) or not all(isinstance(s, str) or s == g for s, g in zip(sizes, got, strict=True)):
        raise ValueError(f"{op}: {name} must have shape {_text(shape)}, got {list(value.shape)}")
    if beside is not None:
        check_device(op, name, value, beside.device)


def check_device(op: str, name: str, value: Tensor | None, device: torch.device) -> None:
    """Raise unless ``value``, if given, is on this device, that of the other arguments."""
    if value is not None and value.device != device:
        raise ValueError(f"{op}: {name} must be on the device of the other arguments ({device}), got {value.device}")


def check_pattern_device(op: str, device: torch.device, *pattern: Tensor) -> None:
    """Raise unless ``(crow, col, ccol, row, perm)`` are on this device."""
    for name, value in zip(("crow", "col", "ccol", "row", "perm"), pattern, strict=False):
        check_device(op, name, value, device)


def _text(shape: tuple) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"


def check_like(op: str, name: str, value: Tensor, like: Tensor, like_name: str = "x") -> None:
    """Raise unless ``value`` has the dtype and device of ``like``."""
    if value.dtype != like.dtype:
        raise TypeError(f"{op}: {name} must have the dtype of {like_name} ({like.dtype}), got {value.dtype}")
    if value.device != like.device:
        raise ValueError(f"{op}: {name} must be on the device of {like_name} ({like.device}), got {value.device}")


def check_epilogue(op: str, act, dropout, seed, device: torch.device) -> None:
    """Raise unless ``act``, ``dropout`` and ``seed`` are what an epilogue takes."""
    if act not in ("none", "relu"):
        raise ValueError(f"{op}: act must be 'none' or 'relu', got {act!r}")
    if not 0 <= dropout <= 1:
        raise ValueError(f"{op}: dropout must be in [0, 1], got {dropout}")
    if dropout > 0:
        check(op, "seed", seed, (1,))
        if seed.dtype != torch.int64 or seed.device != device:
            raise TypeError(f"{op}: seed must be int64 on {device}, got {seed.dtype} on {seed.device}")


def rows_of(crow: Tensor, edges: int) -> Tensor:
    """int64 row index of every edge of a CSR pattern."""
    rows = torch.arange(crow.numel() - 1, device=crow.device)
    return torch.repeat_interleave(rows, crow.diff().long(), output_size=edges)


def index_dtype(width: int) -> torch.dtype:
    """Of the columns of compressed rows: the narrowest that holds them."""
    return torch.uint8 if width <= 256 else torch.int16
