"""Controllers in several processes at once: each must move the same weights, and hold them whole."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from sparsegnn.nn import SparseLinear
from sparsegnn.nn.copies import checksum


def is_alone() -> bool:
    return not (dist.is_available() and dist.is_initialized())


def check_whole(op: str, layers: Mapping[str, SparseLinear]) -> None:
    """Raise where a layer has a part of its weights only."""
    for name, layer in layers.items():
        if not issubclass(type(layer.values), (nn.Parameter, FakeTensor)):
            raise TypeError(
                f"{op}: layer {name!r} must have its values in one plain tensor, got {type(layer.values).__name__} "
                "(FSDP, tensor parallel, quantised), of which no process knows all positions: replicate the model, "
                "with DistributedDataParallel, say"
            )


def is_replicated(layers: Mapping[str, SparseLinear]) -> bool:
    """Whether a DistributedDataParallel holds values of the layers."""
    return in_replica(layer.values for layer in layers.values())


def in_replica(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether a DistributedDataParallel holds some of the parameters. Looks at all objects that there are."""
    if is_alone():
        return False
    mine = {id(p) for p in parameters}
    kind = nn.parallel.DistributedDataParallel
    found = [x for x in gc.get_objects() if issubclass(type(x), kind)]
    return any(id(p) in mine for model in found for p in model.parameters())


def check_single(op: str, layers: Mapping[str, SparseLinear]) -> None:
    """Raise where weights must not get fewer or more, or frozen."""
    if is_replicated(layers):
        raise RuntimeError(
            f"{op}: model must not be in a DistributedDataParallel, which cannot follow values that get fewer, "
            "more or frozen: use RigL or SET, or average gradients with torch.distributed.all_reduce() yourself"
        )


def check_equal(op: str, controller) -> None:
    """Raise unless all processes that train one model have the same positions and settings."""
    layers = controller.layers
    if is_alone() or dist.get_world_size() == 1 or not (controller.needs_dense_gradient or is_replicated(layers)):
        return
    settings = [("seed", controller.seed), ("update_every", controller.update_every), ("stop_at", controller.stop_at)]
    settings.append(("step", controller.step))
    device = next(iter(layers.values())).values.device
    numbers = torch.tensor([number for _, number in settings], dtype=torch.int64, device=device)
    numbers = torch.cat([numbers, torch.stack([checksum(torch.cat(x.pattern())).to(device) for x in layers.values()])])
    least, most = numbers.clone(), numbers.clone()
    dist.all_reduce(least, dist.ReduceOp.MIN)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    names = [name for name, _ in settings] + [f"the positions of layer {name!r}" for name in layers]
    if differ := [name for name, same in zip(names, (least == most).tolist(), strict=True) if not same]:
        raise RuntimeError(
            f"{op}: all processes must have the same positions and settings, got others of {', '.join(differ)}; "
            "call torch.manual_seed() with one seed before the model is made, or let DistributedDataParallel broadcast "
            "buffers (broadcast_buffers=True), and give each controller the same arguments"
        )
