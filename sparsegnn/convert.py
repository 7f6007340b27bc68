"""Swap the linear layers of a model for sparse ones, and back."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from numbers import Integral

from torch import nn

from sparsegnn import plans
from sparsegnn.controllers.distributions import DISTRIBUTIONS, allocate
from sparsegnn.linears import dense_of, linears, sparse_of, staying_dense
from sparsegnn.nn import SparseLinear
from sparsegnn.pattern import check_kind, check_sparsity
from sparsegnn.pyg.accelerate import install_all, remove_all

#: of the multiplications by weights, what may stay dense without a word
UNSAID = 0.1
Selector = Iterable[str] | Callable[[str, nn.Module], bool] | None


def sparsify(
    model: nn.Module,
    sparsity: float = 0.9,
    *,
    distribution: str | Mapping[str, float] = "erk",
    pattern: str = "unstructured",
    include: Selector = None,
    exclude: Selector = None,
    only_if_faster: bool = False,
    rows: int = 4096,
    accelerate: bool = True,
    inplace: bool = True,
) -> nn.Module:
    """Swap every linear layer, torch's and PyG's ``Linear``, for a sparse one, and accelerate PyG's convolutions.

    The weights of largest magnitude stay, with their values. PyG's modules stay what they are and call a
    :class:`~sparsegnn.nn.SparseLinear` in place of their own layer. Left alone are subclasses of ``nn.Linear`` with a
    ``forward`` of their own, layers whose weight their module uses past the call, and weights that a convolution holds
    itself; where more than a tenth of the multiplications stays dense for that, a warning names them. Call it before
    the optimizer is made: the parameters are new.

    Args:
        sparsity: fraction of zeros of all swapped layers together, in [0, 1). 0 keeps all weights, in sparse layers.
        distribution: how the layers share it. ``"erk"``, ``"er"``, ``"uniform"``, ``"global"`` (magnitudes compete
            across layers), or ``{name: sparsity}``, which swaps only the layers it names. With pattern ``"2:4"`` every
            layer has a sparsity of 0.5.
        pattern: where the weights may be, of all swapped layers; see :class:`~sparsegnn.nn.SparseLinear`.
        include, exclude: names of layers or of modules that contain them, ``*`` and ``?`` allowed, or a callable
            ``(name, module) -> bool``. ``exclude=["conv2"]`` keeps an output layer dense.
        only_if_faster: measure forward and backward on ``rows`` random inputs, and where the dense kernel wins let
            the layer multiply by its weight with the zeros filled in; the weights that do not exist stay zero either
            way. The verdict is saved with the model, ``layer.kernel`` names it, and it is kept for the next model in
            the user's cache folder (:mod:`sparsegnn.plans`). Without, a static policy takes the dense kernel where
            few weights are missing.
        accelerate: let PyG's convolutions aggregate on the kernels too, see :func:`sparsegnn.accelerate`.
        inplace: change ``model``; else a deep copy.

    Returns:
        The model; the new layer if ``model`` is a linear layer itself.
    """
    op = "sparsify"
    _check_model(op, model)
    named = isinstance(distribution, Mapping)
    check_kind(pattern, op)
    check_sparsity(sparsity, op, "unstructured" if named else pattern)
    if pattern == "2:4" and not named and distribution in DISTRIBUTIONS:
        distribution = "uniform"
    if isinstance(rows, bool) or not isinstance(rows, Integral) or rows < 1:
        raise ValueError(f"{op}: rows must be a positive integer, got {rows!r}")
    model = model if inplace else copy.deepcopy(model)
    targets = {name: m for name, m in linears(model).items() if _wanted(op, model, name, m, include, exclude)}
    if named:
        sparsities = {n: s for key, s in distribution.items() for n in _named(op, "distribution", key, targets)}
        targets, distribution = {n: m for n, m in targets.items() if n in sparsities}, sparsities
    if not targets:
        made = sum(isinstance(m, SparseLinear) for m in model.modules())
        got = f"{made} that are sparse already: densify them before another sparsity" if made else "none"
        raise ValueError(f"{op}: model must have a linear layer to make sparse, got {got}")
    _refuse_lazy_and_tied(op, model, targets)
    shapes = {name: tuple(m.weight.shape) for name, m in targets.items()}
    counts = allocate(shapes, sparsity, distribution, {n: m.weight for n, m in targets.items()}, op)
    swaps = {}
    for name, linear in targets.items():
        kept = counts[name] / linear.weight.numel()
        layer = sparse_of(linear, sparsity=1 - kept, pattern=pattern)
        if only_if_faster:
            plans.choose(layer, rows)
        swaps[id(linear)] = layer
    if not named:
        _tell_of_dense(op, model, sum(m.weight.numel() for m in targets.values()), include, exclude)
    if accelerate:
        install_all(model)
    return _swap(model, swaps)


def densify(model: nn.Module, *, inplace: bool = True) -> nn.Module:
    """Swap every sparse layer for a dense one with the same weights, and undo :func:`sparsegnn.accelerate`: the inverse
    of :func:`sparsify`."""
    _check_model("densify", model)
    model = model if inplace else copy.deepcopy(model)
    remove_all(model)
    swaps = {}
    for parent in model.modules():
        for layer in parent.children():
            if isinstance(layer, SparseLinear):
                swaps[id(layer)] = dense_of(parent, layer)
    if isinstance(model, SparseLinear):
        return dense_of(nn.Sequential(), model)
    return _swap(model, swaps)


def _check_model(op: str, model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be a torch.nn.Module, got {type(model).__name__}")


def _tell_of_dense(op: str, model: nn.Module, swapped: int, include: Selector, exclude: Selector) -> None:
    """Warn where much stays dense that was not excluded."""
    if callable(include) or callable(exclude) or include is not None:
        return
    dense = [d for d in staying_dense(model) if not any(_matches(d.name, pattern) for pattern in exclude or ())]
    share = sum(d.size for d in dense) / max(1, swapped + sum(d.size for d in dense))
    if share > UNSAID:
        dense.sort(key=lambda d: -d.size)
        named = "; ".join(f"{d.name} ({d.reason})" for d in dense[:8]) + ("; ..." if len(dense) > 8 else "")
        warnings.warn(f"{op}: {share:.0%} of the multiplications by weights stay dense: {named}", stacklevel=3)


def _matches(name: str, pattern: str) -> bool:
    """Whether the pattern names the layer, or a module around it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:i]), pattern) for i in range(1, len(parts) + 1))


def _named(op: str, argument: str, pattern: str, names: Iterable[str]) -> list[str]:
    found = [name for name in names if _matches(name, pattern)]
    if not found:
        raise ValueError(f"{op}: {argument} must name layers of {list(names)}, got {pattern!r}")
    return found


def _wanted(op, model, name, module, include, exclude) -> bool:
    def chosen(argument, selector):
        if callable(selector):
            return bool(selector(name, module))
        if isinstance(selector, str):
            raise TypeError(f"{op}: {argument} must be a list of names or callable, got the string {selector!r}")
        return any(name in _named(op, argument, pattern, linears(model)) for pattern in selector)

    return (include is None or chosen("include", include)) and not (exclude is not None and chosen("exclude", exclude))


def _refuse_lazy_and_tied(op: str, model: nn.Module, targets: dict[str, nn.Module]) -> None:
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(id(module))
    for name, linear in targets.items():
        if isinstance(linear.weight, nn.parameter.UninitializedParameter):
            raise ValueError(f"{op}: model must be initialised, got the lazy layer {name!r}: run it on a batch first")
        if len(owners.get(id(linear.weight), ())) > 1:
            raise ValueError(f"{op}: model must not share weights between modules, got {name!r}: exclude it")


def _swap(model: nn.Module, swaps: dict[int, nn.Module]) -> nn.Module:
    if id(model) in swaps:
        return swaps[id(model)]
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # every name, also of a module that has several
            if id(child) in swaps:
                setattr(parent, name, swaps[id(child)])
    return model
