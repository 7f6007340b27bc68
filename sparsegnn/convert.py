"""Swap the linear layers of a model for sparse ones, and back."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

from torch import nn

from sparsegnn import plans
from sparsegnn.controllers.distributions import DISTRIBUTIONS, allocate
from sparsegnn.nn import GCN2Conv, SparseLinear
from sparsegnn.nn.inner import Linear as InnerLinear
from sparsegnn.pattern import check_kind, check_sparsity

#: attributes of PyG's GCNConv, SAGEConv, GATConv and GATv2Conv that hold the weight of the nodes
INNER = ("lin", "lin_src", "lin_dst", "lin_l", "lin_r")
#: modules of PyG that use the weights of their linear layers themselves, as its other convolutions may
PAST_THE_CALL = ("HeteroDictLinear", "PMLP")
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
    inplace: bool = True,
) -> nn.Module:
    """Swap every linear layer, torch's and PyG's ``Linear``, for a sparse one.

    The weights of largest magnitude stay, with their values. PyG's GCNConv, SAGEConv, GATConv and GATv2Conv stay what
    they are and call a :class:`~sparsegnn.nn.SparseLinear` in place of their own ``lin``; what its other convolutions
    hold themselves is left alone, as are subclasses of ``nn.Linear``. Call it before the optimizer is made: the
    parameters are new.

    Args:
        sparsity: fraction of zeros of all swapped layers together, in [0, 1). 0 keeps all weights, in sparse layers.
        distribution: how the layers share it. ``"erk"``, ``"uniform"``, ``"global"`` (magnitudes compete across
            layers), or ``{name: sparsity}``, which swaps only the layers it names. With pattern ``"2:4"`` every layer
            has a sparsity of 0.5.
        pattern: where the weights may be, of all swapped layers; see :class:`~sparsegnn.nn.SparseLinear`.
        include, exclude: names of layers or of modules that contain them, ``*`` and ``?`` allowed, or a callable
            ``(name, module) -> bool``. ``exclude=["conv2"]`` keeps an output layer dense.
        only_if_faster: measure forward and backward on ``rows`` random inputs, and where the dense kernel wins let
            the layer multiply by its weight with the zeros filled in; the weights that do not exist stay zero either
            way. The verdict is saved with the model, ``layer.kernel`` names it, and it is kept for the next model in
            the user's cache folder (:mod:`sparsegnn.plans`). Without, a static policy takes the dense kernel where
            few weights are missing.
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
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise ValueError(f"{op}: rows must be a positive integer, got {rows!r}")
    model = model if inplace else copy.deepcopy(model)
    targets = {name: m for name, m in linear_layers(model).items() if _wanted(op, model, name, m, include, exclude)}
    if named:
        sparsities = {n: s for key, s in distribution.items() for n in _named(op, "distribution", key, targets)}
        targets, distribution = {n: m for n, m in targets.items() if n in sparsities}, sparsities
    if not targets:
        raise ValueError(f"{op}: model must have a linear layer to make sparse, got none")
    _refuse_lazy_and_tied(op, model, targets)
    shapes = {name: tuple(m.weight.shape) for name, m in targets.items()}
    counts = allocate(shapes, sparsity, distribution, {n: m.weight for n, m in targets.items()}, op)
    swaps = {}
    for name, linear in targets.items():
        kept = counts[name] / linear.weight.numel()
        layer = SparseLinear.from_dense(linear, sparsity=1 - kept, pattern=pattern)
        if only_if_faster:
            plans.choose(layer, rows)
        swaps[id(linear)] = layer
    return _swap(model, swaps)


def densify(model: nn.Module, *, inplace: bool = True) -> nn.Module:
    """Swap every sparse layer for a dense one with the same weights: the inverse of :func:`sparsify`."""
    _check_model("densify", model)
    model = model if inplace else copy.deepcopy(model)
    swaps = {}
    for parent in model.modules():
        for layer in parent.children():
            if isinstance(layer, SparseLinear):
                swaps[id(layer)] = _dense_like(parent, layer)
    if isinstance(model, SparseLinear):
        return model.to_dense()
    return _swap(model, swaps)


def _check_model(op: str, model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be a torch.nn.Module, got {type(model).__name__}")


def _pyg():
    """PyG's (convolutions that can become sparse, Linear) if the program has imported it, as a model of its must."""
    if "torch_geometric.nn" not in sys.modules:
        return (), None
    pyg = sys.modules["torch_geometric.nn"]
    return (pyg.GCNConv, pyg.SAGEConv, pyg.GATConv, pyg.GATv2Conv), pyg.Linear


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that can become sparse, by the first of their names."""
    convolutions, pyg_linear = _pyg()
    left = {id(m) for x in model.modules() if type(x).__name__ in PAST_THE_CALL for m in x.modules()}
    for conv in (x for x in model.modules() if hasattr(x, "propagate")):
        known = INNER if isinstance(conv, convolutions) else ()
        left |= {id(m) for name, m in conv.named_children() if name not in known}
    kinds = (nn.Linear, InnerLinear, nn.LazyLinear)
    return {
        name: m
        for name, m in model.named_modules()
        if type(m) in kinds or isinstance(m, nn.LazyLinear) or (type(m) is pyg_linear and id(m) not in left)
    }


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
        return any(name in _named(op, argument, pattern, linear_layers(model)) for pattern in selector)

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


def _dense_like(parent: nn.Module, layer: SparseLinear) -> nn.Module | nn.Parameter:
    """A dense copy of the class that ``parent`` is made with."""
    dense, (convolutions, pyg_linear) = layer.to_dense(), _pyg()
    if isinstance(parent, GCN2Conv):
        return nn.Parameter(dense.weight.detach().t().contiguous(), requires_grad=dense.weight.requires_grad)
    if isinstance(parent, convolutions):
        other = pyg_linear(1, 1, bias=dense.bias is not None, weight_initializer="glorot")
        other.in_channels, other.out_channels = layer.in_features, layer.out_features
    elif type(parent).__module__.startswith("sparsegnn.nn."):
        other = nn.utils.skip_init(InnerLinear, layer.in_features, layer.out_features, dense.bias is not None)
    else:
        return dense
    other.weight, other.bias = dense.weight, dense.bias
    return other.train(dense.training)
