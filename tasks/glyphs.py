"""Characters drawn by the program: a few-shot image task that needs no download."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from metaplastic.episodes import Order
from metaplastic.errors import ConfigurationError
from metaplastic.sampling import LabelledPool
from tasks.base import PoolTask, Split

CLASSES: dict[Split, range] = {
    "train": range(0, 200),
    "validation": range(1000, 1040),
    "test": range(2000, 2100),
}
"""Seeds of the characters of each split."""
DRAWINGS = 20
"""Drawings of each character."""
_T = np.linspace(0, 1, 12)
_BASIS = np.stack(((1 - _T) ** 2, 2 * _T * (1 - _T), _T**2), 1)
"""Quadratic Bezier basis, (points, 3)."""


class Glyphs(PoolTask):
    """Classification of characters made of two to four random strokes, each drawn 20 times.

    A character is a seed: its strokes are quadratic Bezier curves between points of a loose
    lattice. Each drawing moves the control points, turns, stretches, slants and shifts the whole
    and changes the pen, as a hand would. Images are (1, size, size), ink 1 on 0, the same in every
    run; 200 characters for training, 40 for validation, 100 for test.

    ``size`` is 16..64 pixels; see LabelledPool.draw for the other options. Raises
    ConfigurationError for another size.
    """

    def __init__(
        self,
        order: Order,
        ways: int = 5,
        shots: int = 5,
        queries: int = 5,
        size: int = 28,
        batch: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 16 <= size <= 64:
            raise ConfigurationError(f"size must be 16..64 pixels, got {size!r}.")
        super().__init__(
            "glyphs",
            (1, size, size),
            order=order,
            ways=ways,
            shots=shots,
            queries=queries,
            batch=batch,
            device=device,
        )
        self.size = size

    def load(self, split: Split) -> LabelledPool:
        """Draw every character of ``split``, labelled by its seed."""
        seeds = CLASSES[split]
        images = _images(seeds, self.size).to(self.device)
        return LabelledPool(images, torch.tensor(seeds).repeat_interleave(DRAWINGS))


@lru_cache(maxsize=8)
def _images(seeds: range, size: int) -> Tensor:
    """(characters * DRAWINGS, 1, size, size) uint8, character by character."""
    return torch.cat([draw_character(seed, size) for seed in seeds])


def draw_character(seed: int, size: int, drawings: int = DRAWINGS) -> Tensor:
    """Draw the character of ``seed`` several times, (drawings, 1, size, size) uint8, ink 255."""
    rng = np.random.default_rng([seed, 0])
    control = _drawn_by_hand(_character(rng), drawings, rng)
    width = size * rng.uniform(0.025, 0.045, drawings)
    ink = rasterise(size / 2 + control * size * 0.36, width, size)
    return (ink * 255).round().to(torch.uint8).unsqueeze(1)


def _character(rng: np.random.Generator) -> np.ndarray:
    """Control points of a new character, (strokes, 3, 2); the strokes span -0.9..0.9."""
    strokes: list[np.ndarray] = []
    lattice = np.array([(x, y) for x in (-0.8, 0, 0.8) for y in (-0.8, 0, 0.8)])
    for _ in range(rng.integers(2, 5)):
        start, end = lattice[rng.choice(len(lattice), 2, replace=False)]
        if strokes and rng.random() < 0.5:
            # Joined to a stroke that is there, at its end or in its middle, as letters are.
            last = strokes[rng.integers(len(strokes))]
            start = last[2] if rng.random() < 0.5 else last.T @ (0.25, 0.5, 0.25)
        start, end = start + rng.normal(0, 0.1, 2), end + rng.normal(0, 0.1, 2)
        along = end - start
        bend = rng.uniform(0.4, 1.1) * rng.choice((-1, 0, 1))
        middle = (start + end) / 2 + bend * np.array((-along[1], along[0]))
        strokes.append(np.stack((start, middle, end)))
    character = np.stack(strokes)
    # Centred and of one size, by what the pen reaches rather than by the control points.
    reached = np.einsum("pk,skj->spj", _BASIS, character).reshape(-1, 2)
    low, high = reached.min(0), reached.max(0)
    return 1.8 * (character - (low + high) / 2) / (high - low).max()


def _drawn_by_hand(character: np.ndarray, drawings: int, rng: np.random.Generator) -> np.ndarray:
    """Vary (strokes, 3, 2) control points -> (drawings, strokes, 3, 2)."""
    control = character + rng.normal(0, 0.09, (drawings, *character.shape))
    angle = rng.normal(0, math.radians(9), drawings)
    cos, sin = np.cos(angle), np.sin(angle)
    slant = rng.normal(0, 0.15, drawings)
    stretch = rng.uniform(0.7, 1.1, (2, drawings))
    turn = np.array(((cos, -sin), (sin, cos))).transpose(2, 0, 1)
    shape = np.array(((stretch[0], slant), (np.zeros(drawings), stretch[1]))).transpose(2, 0, 1)
    shift = rng.uniform(-0.2, 0.2, (drawings, 1, 1, 2))
    return np.einsum("dij,dskj->dski", turn @ shape, control) + shift


def rasterise(control: np.ndarray, width: np.ndarray, size: int) -> Tensor:
    """Draw quadratic Bezier strokes with a round, anti-aliased pen.

    ``control`` (drawings, strokes, 3, 2) in pixels, x to the right and y down; ``width``
    (drawings,) is the pen's radius in pixels. Returns ink 0..1, (drawings, size, size).
    """
    curve = torch.from_numpy(np.einsum("pk,dskj->dspj", _BASIS, control)).float()
    start = curve[:, :, :-1].flatten(1, 2)
    along = curve[:, :, 1:].flatten(1, 2) - start
    # Squared distance of every pixel centre to every segment, (drawings, segments, size, size):
    # with u = (p - start) . along and t = clamp(u / |along|^2), it is
    # |p - start|^2 + t (t |along|^2 - 2 u), whose parts are sums over the two axes.
    pixel = torch.arange(size) + 0.5
    offset = pixel - start.unsqueeze(-1)
    across, down = offset[:, :, 0].unsqueeze(-2), offset[:, :, 1].unsqueeze(-1)
    length = along.square().sum(-1)[..., None, None].clamp(min=1e-9)
    u = across * along[:, :, :1, None] + down * along[:, :, 1:, None]
    t_near = (u / length).clamp_(0, 1)
    far = t_near.mul(length).sub_(u, alpha=2).mul_(t_near).add_(across.square() + down.square())
    nearest = far.amin(1).clamp_(min=0).sqrt_()
    radius = torch.from_numpy(width).float().view(-1, 1, 1)
    return (radius + 0.5 - nearest).clamp_(0, 1)
