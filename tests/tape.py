"""A stand-in for CUDA graphs on the CPU: operators are recorded with their arguments and replayed on the same tensors.

As in a CUDA graph no Python runs at a replay: numbers are those of the recording, and only what is in tensors, and the
state of torch's generator, can change. Operators whose result decides what the host does next are refused, as are
generators of one's own: with a GPU the first must wait for it and the others are unknown to the graph.
"""

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)

INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


def tensors(tree) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, Tensor)]


class Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.check(op, args, kwargs)
        out = op(*args, **kwargs)
        self.calls.append((op, *pytree.tree_map(lambda x: x, (args, kwargs, out))))  # lists are copied
        return out

    def check(self, op, args, kwargs) -> None:
        if op in INDEXING:  # dynamic for the sake of masks only
            waits = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        else:
            sized = op is torch.ops.aten.repeat_interleave.Tensor and kwargs.get("output_size") is not None
            waits = any(tag in op.tags for tag in WAITS) and not sized
        if waits:
            raise RuntimeError(f"{op} needs the host to wait for its result")
        if any(isinstance(x, torch.Generator) for x in pytree.tree_leaves((args, kwargs))):
            raise RuntimeError(f"{op} draws from a generator that the recording does not know")

    def replay(self) -> None:
        for op, args, kwargs, out in self.calls:
            given = {x.untyped_storage().data_ptr() for x in tensors((args, kwargs))}
            for old, new in zip(tensors(out), tensors(op(*args, **kwargs)), strict=True):
                if old.untyped_storage().data_ptr() not in given:  # else a view, or changed in place
                    assert old.shape == new.shape and old.stride() == new.stride()
                    old.untyped_storage().copy_(new.untyped_storage())


class TapeGraphs:
    """In place of ``sparsegnn.capture.CudaGraphs``."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def run(self, work) -> None:
        work()

    def record(self, work):
        tape, made = Tape(), True
        with tape:
            work()  # a GPU would not work now, but at the first replay
        self.recorded += 1

        def replay() -> None:
            nonlocal made
            if not made:
                with torch.no_grad():
                    tape.replay()
            made = False
            self.replayed += 1

        return replay

    def forget(self) -> None:
        pass
