"""Noise in the apical compartments, from normal numbers that are passed in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def split(noise: Tensor, sizes: Sequence[int], scales: Sequence[float]) -> tuple[Tensor, ...]:
    """(..., S) -> (..., n_i) for each layer, times its scale."""
    parts = noise.split(list(sizes), dim=-1)
    return tuple(part * scale for part, scale in zip(parts, scales, strict=True))


def euler_maruyama(
    noise: Tensor, sizes: Sequence[int], sigmas: Sequence[float], dt: float, apical: float | None
) -> Iterator[tuple[Tensor, ...]]:
    """White noise of strength sigma_i on tau_A dv_fb/dt, sigma_i sqrt(dt) / tau_A times normal
    numbers (B, T, S), moment by moment.
    """
    scale = math.sqrt(dt) / (dt if apical is None else apical)
    for xi in noise.unbind(1):
        yield split(xi, sizes, [scale * sigma for sigma in sigmas])


def ornstein_uhlenbeck(
    noise: Tensor,
    sizes: Sequence[int],
    sigmas: Sequence[float],
    dt: float,
    tau: float,
    start: Tensor | None = None,
) -> Iterator[tuple[Tensor, ...]]:
    """White noise low-pass filtered with time constant ``tau``, from 0 or ``start`` (B, S); its
    variance in the end is sigma_i^2 / (2 tau) (Meulemans et al. 2022).
    """
    now = torch.zeros_like(noise[:, 0]) if start is None else start
    for xi in noise.unbind(1):
        now = (1 - dt / tau) * now + math.sqrt(dt) / tau * xi
        yield split(now, sizes, sigmas)
