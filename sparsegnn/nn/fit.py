"""What a sparse layer derives from its positions is theirs: made anew where others replaced or overwrote them.

A layer is built on the meta device and then given tensors one by one (``transformers``, ``accelerate``), or loaded
through ``state_dict()[name].copy_()``: none of that tells the layer.
"""

from __future__ import annotations

import torch

from sparsegnn import pattern as patterns

DERIVED = ("ccol", "row", "perm")  # not saved: the transpose


def mark(layer) -> None:
    """What ``layer``, a SparseWeight, has derived is that of its positions as they are now."""
    b = layer._buffers
    crow, col, perm = b["crow"], b["col"], b["perm"]
    counted = not (crow.is_inference() or col.is_inference() or perm.is_inference())
    # how often they were written to after perm: DDP, which broadcasts all of them before each call, changes nothing
    ages = (crow._version - perm._version, col._version - perm._version) if counted else None
    layer._fit = None if crow.is_meta else (crow, col, perm, ages)


def ensure(layer) -> None:
    """See to it that what is derived fits."""
    b, fit = layer._buffers, layer._fit
    crow, col, perm = b["crow"], b["col"], b["perm"]
    if fit is None or crow is not fit[0] or col is not fit[1] or perm is not fit[2]:
        _refit(layer)
    elif fit[3] is not None and fit[3] != (crow._version - perm._version, col._version - perm._version):
        _refit(layer)


@torch.no_grad()
def _refit(layer) -> None:
    tensors = [layer._buffers[name] for name in ("crow", "col", *DERIVED)]
    crow, col, *derived = tensors
    known = all(type(t) is torch.Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors)
    if crow.is_meta or not known or getattr(layer, "_is_replica", False):
        return
    op = type(layer).__name__
    try:
        patterns.check_pattern(crow, col, *layer.grid, op)
        patterns.check_regular(crow, col, layer.in_features, layer.structure, op)
    except (TypeError, ValueError) as problem:
        raise RuntimeError(
            f"{op}: crow and col were overwritten and are no pattern now ({problem}); average or copy floating-point "
            "tensors alone, or use load_state_dict()"
        ) from problem
    new = layer._derive(crow, col, check=False)
    if all(a.device == b.device and torch.equal(a, b) for a, b in zip(derived, new, strict=True)):
        mark(layer)
    else:
        layer._place(crow, col, new)
