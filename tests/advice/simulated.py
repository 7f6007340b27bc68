"""A machine whose time is counted, not measured: so much for a call, an operation of a product, an element.

Our operators cost eight calls: their nodes of autograd are in Python.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Machine(TorchDispatchMode):
    """``Machine(product=1)``: an operation of a product by weights takes a second. ``now()`` is its clock."""

    def __init__(self, call=1e-6, product=0.0, edge=0.0, element=0.0):
        super().__init__()
        self.call, self.product, self.edge, self.element = call, product, edge, element
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.rpartition("::")[2]
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            edges = name.startswith(("spmm", "gat", "maxk_spmm"))
            self.time += (self.edge if edges else self.product) * formula(*args, **kwargs, out_val=out)
        elif name not in ("t", "view", "detach", "transpose", "alias", "as_strided", "expand"):
            tensors = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.layout == torch.strided]
            self.time += self.element * sum(t.numel() for t in tensors)
        self.time += self.call * (8 if func.namespace == "sparsegnn" else 1)
        return out
