"""Which kernel multiplies by the weight of a sparse layer, at each call: see :mod:`sparsegnn.policy`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsegnn import policy


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
        """The kernel that a call would run now, ``"sparse"`` or ``"dense"``.

        The first that has something to say of :func:`sparsegnn.use_kernel`, ``SPARSEGNN_KERNEL``,
        :meth:`choose_kernel_` and the static policy. The last two speak of a type of device and a precision: those of
        the layer, of autocast, and on a GPU of torch's TF32 setting, as they are at the call.
        """
        forced = policy.forced()
        if forced is not None:
            return forced
        precision = policy.precision(self._device, self._dtype)
        if self._ratio is not None and self._ratio_of in (None, (self._device, precision)):
            return "dense" if self._ratio > 1 else "sparse"
        return self._static.get(precision, "sparse")

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
        shape = self.out_features, self.in_features
        static = {p: policy.static_kernel(nnz, shape, p, self._device, self.structure) for p in policy.PRECISIONS}
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
