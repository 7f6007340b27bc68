"""``torch.func.vmap`` of ops: one call for each example, whose own derivatives see each call."""

import torch
from torch import Tensor


def install_vmap(name: str, op, library: torch.library.Library) -> None:
    """Give an op a rule for batches; an op that writes into its arguments has none, and says so."""

    def loop(info, in_dims, *args):
        if op._schema.is_mutable:
            raise NotImplementedError(f"{name}: writes into its arguments, which vmap cannot split; call it outside")
        if info.batch_size == 0:
            raise ValueError(f"{name}: vmap must have at least one example, got a dimension of size 0")
        given = list(zip(args, in_dims, strict=True))
        each = [op(*(a if d is None else a.select(d, i) for a, d in given)) for i in range(info.batch_size)]
        if isinstance(each[0], Tensor):
            return torch.stack(each), 0
        return tuple(torch.stack(outputs) for outputs in zip(*each, strict=True)), (0,) * len(each[0])

    torch.library.register_vmap(op, loop, lib=library)
