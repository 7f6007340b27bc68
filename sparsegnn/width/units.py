"""Units that can be trained to zero: zero-invariant groups of weights, and their norms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from sparsegnn import pattern as patterns
from sparsegnn.controllers.settings import check_number, shown
from sparsegnn.width.flow import Flow


class Member:
    """A parameter with the group of each of its entries along ``dim``, int64; ``count`` for those of none."""

    def __init__(self, parameter: nn.Parameter, dim: int, group: Tensor, count: int):
        self.parameter, self.dim = parameter, dim
        order = group.argsort(stable=True)
        offsets = torch.searchsorted(group[order], torch.arange(count + 2))
        self._index = group, order, offsets

    def index(self) -> tuple[Tensor, Tensor, Tensor]:
        """The groups, the entries group by group, and where each group begins, where the parameter is."""
        if self._index[0].device != self.parameter.device:
            self._index = tuple(t.to(self.parameter.device) for t in self._index)
        return self._index

    def spread(self, per_group: Tensor) -> Tensor:
        """A number for each group, for each entry: broadcasts against the parameter."""
        shape = [1] * self.parameter.dim()
        shape[self.dim] = -1
        return per_group.to(self.parameter.device)[self.index()[0]].view(shape)

    def sums(self, tensor: Tensor) -> Tensor:
        """[count + 1]: sums of ``tensor``, of the shape of the parameter, over each group, always in the same order."""
        others = [d for d in range(tensor.dim()) if d != self.dim]
        part = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        part = part.sum(others) if others else part
        _, order, offsets = self.index()
        return torch.segment_reduce(part[order], "sum", offsets=offsets, initial=0)


class Units:
    """The units of a model that may become zero: where all of a unit's weights are, its output is, in every layer.

    ``layers`` holds for each layer the int64 groups of its outputs; ``pools`` names the layers that share groups.
    """

    def __init__(self, op: str, model: nn.Module, held: set[int]):
        flow = Flow(op, model, zeroed=True)
        roots, kept = flow.channels.roots(), flow.kept(last=False)
        made, fixed = torch.zeros(len(roots), dtype=torch.bool), torch.zeros(len(roots), dtype=torch.bool)
        found: list[tuple[nn.Parameter, int, Tensor]] = []
        for layer in flow.layers.values():
            parts = [(getattr(x.owner, x.name), x.dim, x.ids) for x in layer.slices if x.made]
            for product in layer.sparse:
                crow, col = (t.cpu() for t in product.linear.pattern())
                rows = patterns.rows_of(crow, col)
                height, width = product.linear.block
                rows = (rows[:, None, None] * height + torch.arange(height)[:, None]).expand(-1, height, width)
                parts.append((product.linear.values, 0, product.out[rows.flatten()]))
                made[roots[product.out]] = True
            for parameter, _, ids in parts:
                made[roots[ids]] = True
                if not parameter.requires_grad or id(parameter) not in held:
                    fixed[roots[ids]] = True
            found += parts
        free = (~kept & made[roots] & ~fixed[roots]).nonzero().view(-1)
        chosen = roots[free].unique()
        self.count = chosen.numel()
        number = torch.full((len(roots),), self.count, dtype=torch.int64)
        number[chosen] = torch.arange(self.count)
        self.group = number[roots]  # of each channel
        some = [(p, dim, self.group[ids]) for p, dim, ids in found if (self.group[ids] < self.count).any()]
        self.members = [Member(p, dim, group, self.count) for p, dim, group in some]
        self.layers = {n: self.group[layer.out] for n, layer in flow.layers.items()}
        self.layers = {n: g for n, g in self.layers.items() if (g < self.count).any()}
        self.modules = {n: flow.layers[n].module for n in self.layers}
        owners: list[list[str]] = [[] for _ in range(self.count)]
        for name, groups in self.layers.items():
            for g in groups[groups < self.count].unique().tolist():
                owners[g].append(name)
        self.pools: dict[str, Tensor] = {}
        for pool in dict.fromkeys(map(tuple, owners)):
            self.pools[pool[0]] = torch.tensor([i for i, o in enumerate(owners) if tuple(o) == pool])

    def targets(
        self, op: str, sparsity: float, distribution: str | Mapping[str, float]
    ) -> dict[str, tuple[Tensor, int]]:
        """For each pool of units that compete: which these are, and how many of them shall become zero."""
        if isinstance(distribution, Mapping):
            if distribution.keys() != self.pools.keys():
                raise ValueError(f"{op}: distribution must name the layers {sorted(self.pools)}, got "
                                 f"{sorted(distribution)}")  # fmt: skip
            shares = {n: check_number(op, f"distribution[{n!r}]", s, 0, 1) for n, s in distribution.items()}
            pools = {name: (self.pools[name], share) for name, share in shares.items()}
        elif distribution == "uniform":
            pools = {name: (groups, sparsity) for name, groups in self.pools.items()}
        elif distribution == "global":
            pools = {"the model": (torch.arange(self.count), sparsity)}
        else:
            raise ValueError(f"{op}: distribution must be 'uniform', 'global' or a dict of layer name to sparsity, got "
                             f"{shown(distribution)}")  # fmt: skip
        targets = {name: (groups, round(share * groups.numel())) for name, (groups, share) in pools.items()}
        for name, (groups, n) in targets.items():
            inside = set(groups.tolist())
            whole = len({frozenset(g.tolist()) for g in self.layers.values() if inside & set(g.tolist())})
            if n > groups.numel() - whole:
                raise ValueError(f"{op}: sparsity must leave a unit of each layer, got {n} of {groups.numel()} units "
                                 f"of {name} to become zero")  # fmt: skip
        return targets

    def sums(self, tensors: Iterable[Tensor], device: torch.device) -> Tensor:
        """[count + 1]: sums over each group of one tensor per member, of the shape of its parameter."""
        parts = [m.sums(tensor).to(device) for m, tensor in zip(self.members, tensors, strict=True)]
        return torch.stack([x.to(torch.float64) for x in parts]).sum(0)

    def strongest(self, norms: Tensor) -> Tensor:
        """Of each layer all of whose outputs may go, the group of largest norm, which must not."""
        whole = [g for g in self.layers.values() if (g < self.count).all()]
        return torch.stack([g.to(norms.device)[norms[g.to(norms.device)].argmax()] for g in whole]).unique() if whole \
            else norms.new_empty(0, dtype=torch.int64)  # fmt: skip
