"""The compiled kernels of a GPU, as those of a CPU are called."""

from __future__ import annotations

from metaplastic.kernels.gpu_rows import backward, forward
from metaplastic.kernels.gpu_steps import backward_steps, forward_steps

__all__ = ["backward", "backward_steps", "forward", "forward_steps"]
