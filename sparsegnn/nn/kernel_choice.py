"""Which kernel multiplies by the weight of a sparse layer, at each call: see :mod:`sparsegnn.policy`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsegnn import policy
from sparsegnn.nn import semi_structured
from sparsegnn.nn.exported import exporting


class KernelChoice(nn.Module):
    """Base of layers with ``values`` [nnz] of a weight [out_features, in_features] that may run a dense kernel too."""

    values: nn.Parameter
    dense_kernel: Tensor | None
    in_features: int
    out_features: int
    structure: str

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("dense_kernel", None)  # sparse over dense time, once measured: goes into checkpoints
        self._ratio: float | None = None  # its value
        self._ratio_of: tuple | None = None  # type of device and precision that it holds for; None: any
        self._static: dict = {}

    @property
    def kernel(self) -> str:
        """The kernel that a call would run now, ``"sparse"`` or ``"dense"``; ``"2:4"`` for torch's own product.

        The first that has something to say of :func:`sparsegnn.use_kernel`, ``SPARSEGNN_KERNEL``,
        :meth:`choose_kernel_` and the static policy. The last two speak of a type of device and a precision: those of
        the layer, of autocast, and on a GPU of torch's TF32 setting, as they are at the call. torch's product counts as
        a sparse kernel: it runs instead of ours where a layer of pattern "2:4" can use it. ONNX gets the dense one.
        """
        if exporting():
            return "dense"
        forced, two_of_four = policy.forced(), self.structure == "2:4" and self._device == "cuda"
        if forced is not None and not (two_of_four and forced == "sparse"):
            return forced
        precision = policy.precision(self._device, self._dtype)
        if forced is not None:
            chosen = forced
        elif self._ratio is not None and self._ratio_of in (None, (self._device, precision)):
            chosen = "dense" if self._ratio > 1 else "sparse"
        else:
            chosen = self._static.get(precision, "sparse")
        if two_of_four and chosen == "sparse":
            return semi_structured.choose(self, precision, forced is not None)
        return chosen

    def choose_kernel_(self, ratio: float | None) -> None:
        """Run the dense kernel if ``ratio``, sparse over dense time, is above 1; None: follow the static policy.

        For the device and the precision of this moment.
        """
        self._ratio = ratio
        self._ratio_of = self._device, policy.precision(self._device, self._dtype)
        self.dense_kernel = None if ratio is None else torch.tensor(float(ratio), device=self.values.device)

    def _follow_policy(self, nnz: int) -> None:
        """Look up the kernels that the static policy gives to so many weights here, in each precision."""
        policy.read_environment()
        self._device, self._dtype = self.values.device.type, self.values.dtype
        shape, structures = (self.out_features, self.in_features), dict.fromkeys(policy.PRECISIONS, self.structure)
        if self.structure == "2:4":  # ours take it for unstructured
            device = self.values.device
            structures = {p: "unstructured" if semi_structured.reason(device, shape, p) else "2:4" for p in structures}
        static = {p: policy.static_kernel(nnz, shape, p, self._device, kind) for p, kind in structures.items()}
        if static != self._static:  # or compiled code that looked at it would be compiled again
            self._static = static

    def _load_from_state_dict(self, state_dict, prefix, *args):
        verdict = state_dict.get(prefix + "dense_kernel")
        self.choose_kernel_(None if verdict is None or verdict.is_meta else float(verdict))
        self._ratio_of = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __setstate__(self, state):
        super().__setstate__(state)
        self._follow_policy(self.values.numel())  # on this machine
