"""Take channels out of layers: parameters, buffers, attributes and the optimizer's state, all or nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsegnn import pattern as patterns
from sparsegnn.controllers.optimizers import slots
from sparsegnn.nn import SparseLinear, storage
from sparsegnn.width.layers import Layer
from sparsegnn.width.product import Product


class Edits:
    """Changes that are made together, one after the other, and can be undone."""

    def __init__(self, op: str, optimizer: torch.optim.Optimizer | None):
        self.op, self.optimizer = op, optimizer
        self.parameters: list[nn.Parameter] = []  # those that change their size
        self._changes: list[tuple] = []  # a function and its arguments, and those that take it back

    def attribute(self, owner: object, name: str, new: object) -> None:
        self._changes.append((setattr, (owner, name, new), setattr, (owner, name, getattr(owner, name))))

    def tensor(self, owner: nn.Module, name: str, keep: dict[int, Tensor]) -> None:
        """Keep the entries ``keep[dim]``, bool, of a parameter, with its state, or of a buffer."""
        old = getattr(owner, name)
        if not isinstance(old, nn.Parameter):
            self.attribute(owner, name, _select(old, keep))
            return
        self.resized(name, old)
        self._changes.append((_keep, (old, keep), _resize, (old, old.detach())))
        self.state(old, lambda t: _select(t, keep))

    def add(self, parameter: nn.Parameter, more: Tensor) -> None:
        more = more.to(parameter.device, parameter.dtype)
        self._changes.append((_write, (parameter, parameter.detach() + more), _write,
                              (parameter, parameter.detach().clone())))  # fmt: skip

    def resized(self, name: str, parameter: nn.Parameter) -> None:
        if type(parameter) is not nn.Parameter:
            raise TypeError(f"{self.op}: model must have its weights in plain tensors, got {type(parameter).__name__} "
                            f"{name!r} (FSDP, tensor parallel, quantised)")  # fmt: skip
        self.parameters.append(parameter)

    def state(self, parameter: nn.Parameter, select) -> None:
        """The optimizer's numbers for each weight follow it."""
        for key, slot in {} if self.optimizer is None else slots(self.op, self.optimizer, parameter).items():
            kept = self.optimizer.state[parameter]
            self._changes.append((kept.__setitem__, (key, select(slot)), kept.__setitem__, (key, slot)))

    def positions(self, product: Product, rows: Tensor, cols: Tensor) -> None:
        """A SparseLinear loses outputs and inputs; its weights stay in their order."""
        layer: SparseLinear = product.linear
        height, width = layer.block
        rows, cols = (mask[::size].to(layer.col.device) for mask, size in ((rows, height), (cols, width)))
        crow, col = layer.pattern()
        row = patterns.rows_of(crow, col)
        at = (rows[row] & cols[col.long()]).nonzero().view(-1)
        count = torch.zeros(rows.numel(), dtype=torch.int64, device=col.device).index_add_(
            0, row[at], torch.ones_like(at)
        )[rows]
        new_col = (cols.cumsum(0) - 1).int()[col[at].long()]
        new_crow = nn.functional.pad(count.cumsum(0), (1, 0)).int()
        structure = layer.structure
        if structure == "fan_in" and count.unique().numel() > 1:
            structure = "unstructured"
        sizes = int(rows.sum()) * height, int(cols.sum()) * width

        def select(t: Tensor) -> Tensor:
            return t.detach().reshape(col.numel(), -1)[at].flatten()

        new = (*sizes, structure, new_crow, new_col, select(layer.values))
        old = (layer.out_features, layer.in_features, layer.structure, crow.clone(), col.clone(), layer.values.detach())
        self.resized("values", layer.values)
        self._changes.append((_replace, (layer, *new), _replace, (layer, *old)))
        self.state(layer.values, select)

    def apply(self) -> None:
        done = 0
        try:
            for function, arguments, _, _ in self._changes:
                done += 1
                function(*arguments)
        except BaseException:
            self.undo(done)
            raise

    def undo(self, last: int | None = None) -> None:
        """Take the first ``last`` changes back."""
        for _, _, function, arguments in reversed(self._changes[:last]):
            function(*arguments)


def narrow(edits: Edits, layers: list[Layer], kept: Tensor) -> None:
    """Plan that ``layers`` keep the channels ``kept``, bool by channel, alone."""
    whole: dict[tuple[int, str], tuple[nn.Module, dict[int, Tensor]]] = {}
    for layer in layers:
        for part in layer.slices:
            whole.setdefault((id(part.owner), part.name), (part.owner, {}))[1][part.dim] = kept[part.ids]
        for owner, name, ids in layer.sizes:
            many = isinstance(ids, tuple)
            count = tuple(int(kept[i].sum()) for i in ids) if many else int(kept[ids].sum())
            if count != (tuple(getattr(owner, name)) if many else getattr(owner, name)):
                edits.attribute(owner, name, count)
        for product in layer.sparse:
            rows, cols = kept[product.out], kept[product.ins]
            if not (rows.all() and cols.all()):
                edits.positions(product, rows, cols)
    for (_, name), (owner, keep) in whole.items():
        if not all(mask.all() for mask in keep.values()):
            edits.tensor(owner, name, keep)


def fold(edits: Edits, layers: list[Layer], kept: Tensor) -> None:
    """Plan that constants that are removed go into the biases behind them."""
    for layer in layers:
        for product in layer.products:
            more = product.folded(~kept[product.ins]) if product.folds else None
            if more is not None and more.any():
                edits.add(product.linear.bias, more.nan_to_num(0.0))


def _select(tensor: Tensor, keep: dict[int, Tensor]) -> Tensor:
    for dim, mask in keep.items():
        tensor = tensor.detach().index_select(dim, mask.nonzero().view(-1).to(tensor.device))
    return tensor


@torch.no_grad()
def _resize(parameter: nn.Parameter, new: Tensor) -> None:
    storage.resize_(parameter, new.shape)
    parameter.copy_(new)


@torch.no_grad()
def _keep(parameter: nn.Parameter, keep: dict[int, Tensor]) -> None:
    _resize(parameter, _select(parameter.detach(), keep))


@torch.no_grad()
def _write(parameter: nn.Parameter, new: Tensor) -> None:
    parameter.copy_(new)


@torch.no_grad()
def _replace(layer: SparseLinear, rows: int, cols: int, structure: str, crow: Tensor, col: Tensor, values: Tensor):
    layer._copies, layer._link = None, None  # averages and copies are of other channels now
    layer.out_features, layer.in_features, layer.structure = rows, cols, structure
    layer.grid = patterns.block_grid(rows, cols, structure, "compact")
    layer.choose_kernel_(None)  # the verdict was one on another shape
    layer.set_pattern_(crow, col, values)
    layer.shape = layer._shape(layer.crow.device)
