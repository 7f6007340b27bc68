"""One training step of a model in parts, operator by operator, and each of its linear layers as the step uses it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparsegnn.advice.work import Candidate, Stopwatch
from sparsegnn.experiments.meter import Meter
from sparsegnn.linears import linears

#: what a step is split into; features: products of constant sparse features, and their gradients
PARTS = ("weights", "features", "aggregation", "elementwise", "optimizer")
MOST = 15  # steps that are watched
SHORT = 0.05  # seconds of a step
TRIMMED = 5  # of so many, the extremes do not count
CALL = 10e-6  # seconds around an operator at least, where it is not watched: GAT on Cora, 120 operators, Zen 3


@dataclass
class Layer:
    """A dense linear layer in a step: ``calls`` products of ``rows`` rows by its weight, and their gradients."""

    name: str
    shape: tuple[int, int]  # out, in
    rows: int = 0
    calls: int = 0
    need_dx: bool = False
    features: tuple[Tensor, Tensor, Tensor] | None = None  # crow, col, val where its input is sparse
    seconds: float = 0.0  # of the operators, forward and backward
    gradients: int = 0

    @property
    def part(self) -> str:
        return "weights" if self.features is None else "features"


@dataclass
class Trace:
    """What a step takes."""

    seconds: dict[str, float]  # of each part, and other: Python, autograd, launches
    layers: list[Layer] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)  # bytes of weights, optimizer and activations
    operators: int = 0
    plain: float = 0.0  # seconds of the step beside it, which nobody looked into
    scale: float = 1.0  # seconds of a step over those of its watched operators, where these take longer

    @property
    def step(self) -> float:
        return sum(self.seconds.values())


def trace(
    candidate: Candidate,
    watch: Stopwatch,
    activations: int,
    beside: Candidate,
    base: Trace | None = None,
    plain: float | None = None,
    enough: float = 0.3,
) -> Trace:
    """The parts of a step, in turns with steps of ``beside`` that nobody looks into: means, without both extremes.

    Without ``base`` that is the same model, and what no operator takes follows from it. Of another model it follows
    from the trace ``base`` of ``beside``, and where the machine is slower now than it was then, so are both. Where
    ``plain`` is known, what a step of ``beside`` takes, one step is watched, else as many as those beside them take
    ``enough`` seconds, but no more than ``MOST``. ``activations`` is how many bytes the step keeps.
    """
    taken, steps = ([], []) if plain is None else ([_sample(candidate, watch)], [plain])
    while plain is None and (not taken or (sum(steps) < enough and len(taken) < MOST)):
        steps.append(watch(beside.step))
        if steps[-1] < SHORT:  # what is small must find its memory again, behind the other
            candidate.step()
        taken.append(_sample(candidate, watch))
        if steps[-1] < SHORT:
            beside.step()
    pairs = sorted(zip(taken, steps, strict=True), key=lambda pair: sum(pair[0].seconds.values()) / max(pair[1], 1e-12))
    pairs = pairs[1:-1] if len(pairs) >= TRIMMED else pairs
    meter, usual = pairs[len(pairs) // 2][0], statistics.median(steps) if base is None else base.plain
    watched = sum(sum(m.seconds.values()) for m, _ in pairs)
    beside_them = max(sum(step for _, step in pairs), 1e-12)
    if base is None:
        most = 1 - min(0.5, CALL * meter.operators / max(usual, 1e-12))  # of the step, what operators may take
        kept = min(1.0, most * beside_them / max(watched, 1e-12))
    else:  # what watching costs is memory that is given back later
        kept = 1 - (1 - base.scale) * min(1.0, activations / max(1, base.memory["activations"]))
    scale = kept * usual / beside_them
    seconds = {part: scale * sum(m.seconds[part] for m, _ in pairs) for part in PARTS}
    for i, layer in enumerate(meter.layers):
        layer.seconds = scale * sum(m.layers[i].seconds for m, _ in pairs)
    operators, memory = sum(seconds.values()), candidate.state_bytes() | {"activations": activations}
    other = max(0.0, usual - operators) if base is None else other_of(base, meter.operators, memory)
    used = [layer for layer in meter.layers if layer.calls]
    return Trace({**seconds, "other": other}, used, memory, meter.operators, usual, kept)


def other_of(base: Trace, operators: int, memory: Mapping[str, int]) -> float:
    """What no operator takes: Python and autograd, for each operator, and what is left for the memory of tensors, as
    much as there is of activations and of weights with their gradients."""
    calls = min(base.seconds["other"], CALL * base.operators)
    kept, before = (m["activations"] + m["weights"] for m in (memory, base.memory))
    return calls * operators / max(1, base.operators) + (base.seconds["other"] - calls) * kept / max(1, before)


def _sample(candidate: Candidate, watch: Stopwatch) -> StepMeter:
    meter = StepMeter(candidate, watch)
    with meter:
        candidate.step(meter.optimizing)
    meter.finish()
    return meter


class StepMeter(Meter):
    """The meter of the ledger, which also knows the optimizer, sparse features, and which layer a product is of.

    A product is a layer's by the address of its weight, forward and for the gradient of its input; the gradient of its
    weight by the shape. So is the copy that autograd makes of a gradient with other strides than its weight.
    """

    def __init__(self, candidate: Candidate, watch: Stopwatch):
        super().__init__(candidate.device, watch.clock)
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.flops = dict.fromkeys(PARTS, 0)
        found = linears(candidate.model)
        self.layers = [Layer(name, tuple(m.weight.shape)) for name, m in found.items()]
        self._known = {m.weight.data_ptr(): x for m, x in zip(found.values(), self.layers, strict=True)}
        self._last: Layer | None = None  # whose weight has got its gradient
        self._optimizing = False

    @contextmanager
    def optimizing(self) -> Iterator[None]:
        self._optimizing = True
        try:
            yield
        finally:
            self._optimizing = False

    def _part(self, space: str, name: str, args, is_product: bool) -> str:
        if self._optimizing:
            return "optimizer"
        part = super()._part(space, name, args, is_product)
        sparse = part == "weights" and space == "sparsegnn" and name.startswith(("features_linear", "spmm"))
        return "features" if sparse and name != "spmm_linear" else part

    def _count(self, func, args, kwargs, out) -> list:
        shares = super()._count(func, args, kwargs, out)
        name = func._schema.name.rpartition("::")[2] if hasattr(func, "_schema") else ""
        self._follow(name, args, out)
        part = shares[-1][0]
        if part == "elementwise" and (layer := self._copied(name, out)) is not None:
            return [((layer.part, layer), 1.0)]
        layer = self._layer(name, args, out) if part in ("weights", "features") else None
        return shares if layer is None else [((part, layer) if p == part else p, share) for p, share in shares]

    def _spend(self, shares, seconds: float) -> None:
        for part, share in shares:
            if isinstance(part, tuple):
                part, layer = part
                layer.seconds += seconds * share
            self.seconds[part] += seconds * share

    def _follow(self, name: str, args, out) -> None:
        """A weight in the precision of autocast is a weight."""
        if name == "_to_copy" and isinstance(out, Tensor) and (layer := self._at(args[0])) is not None:
            self._known[out.data_ptr()] = layer

    def _at(self, t: object) -> Layer | None:
        plain = isinstance(t, Tensor) and t.layout == torch.strided and t.dim() == 2
        layer = self._known.get(t.data_ptr()) if plain else None
        return layer if layer is not None and tuple(t.shape) in (layer.shape, layer.shape[::-1]) else None

    def _layer(self, name: str, args, out) -> Layer | None:
        if name == "spmm":
            return self._features(args, out)
        if name not in ("mm", "addmm", "addmm_"):
            return None
        x, weight = args[-2:] if name == "mm" else args[1:3]
        layer = self._at(weight)
        if layer is None:
            return self._gradient(x.size(1), tuple(out.shape))
        square = layer.shape[0] == layer.shape[1]
        if weight.stride(0) == 1 if square else tuple(weight.shape) != layer.shape:  # W^T
            layer.rows, layer.calls = x.size(0), layer.calls + 1
        else:
            layer.need_dx = True
        return layer

    def _features(self, args, out) -> Layer | None:
        table, crow, col, val = args[:4]
        layer = self._at(table)
        if layer is None:
            return self._gradient(table.size(0), tuple(out[0].shape), col.numel())
        layer.rows, layer.calls = crow.numel() - 1, layer.calls + 1
        layer.features = crow, col, val
        return layer

    def _gradient(self, rows: int, shape: tuple, nonzeros: int | None = None) -> Layer | None:
        """The layer whose weight has a gradient of this ``shape``, made of so many rows, of sparse features with so
        many ``nonzeros``: that with the fewest yet."""
        found = [
            x
            for x in self.layers
            if x.calls and shape in (x.shape, x.shape[::-1]) and rows == x.rows
            and nonzeros == (None if x.features is None else x.features[1].numel())
        ]  # fmt: skip
        layer = min(found, key=lambda x: x.gradients, default=None)
        if layer is not None:
            layer.gradients += 1
        self._last = layer
        return layer

    def _copied(self, name: str, out) -> Layer | None:
        layer = self._last
        if layer is None or name not in ("copy_", "clone") or tuple(out.shape) != layer.shape:
            return None
        self._last = None
        return layer


# --- memory ----------------------------------------------------------------------------------------------------------


class _Made(TorchDispatchMode):
    """The addresses of what operators have written."""

    def __init__(self):
        super().__init__()
        self.addresses: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.layout == torch.strided:
                self.addresses.add(t.untyped_storage().data_ptr())
        return out


class Kept:
    """Around a step: ``bytes`` that it keeps for its backward pass, without what was there before."""

    def __init__(self, candidate: Candidate):
        tensors = (*candidate.model.parameters(), *candidate.model.buffers())
        known = [t for t in tensors if not nn.parameter.is_lazy(t)]
        self._own = {t.untyped_storage().data_ptr() for t in known}
        self._kept: dict[int, int] = {}
        self._made = _Made()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda t: t)

    def __enter__(self) -> Kept:
        self._made.__enter__()
        self._hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._hooks.__exit__(*error)
        self._made.__exit__(*error)

    def _pack(self, t: Tensor) -> Tensor:
        if t.layout == torch.strided and (at := t.untyped_storage().data_ptr()) in self._made.addresses - self._own:
            self._kept[at] = t.untyped_storage().nbytes()
        return t.detach()

    @property
    def bytes(self) -> int:
        return sum(self._kept.values())
