"""Which kernels run on a device."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor


def backend(x: Tensor) -> ModuleType:
    """The kernels of the device that x is on, which import their compiler only here."""
    if x.device.type == "cuda":
        from metaplastic.kernels import gpu

        return gpu
    from metaplastic.kernels import cpu

    return cpu
