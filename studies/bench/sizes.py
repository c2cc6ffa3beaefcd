"""What is timed: shapes of networks and streams, by name and preset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from metaplastic.errors import ConfigurationError, UnknownNameError
from studies.presets import PRESETS

Credit = Literal["target", "error", "backprop"]


@dataclass(frozen=True)
class Size:
    """A chain of Linear layers with ReLU between them, and E streams for it.

    ``credit`` says what reaches the synapses: the target or the error by direct feedback, for
    bounded Oja, or the error by backpropagation, for the delta rule.
    """

    name: str
    widths: tuple[int, ...]
    presentations: int
    episodes: int
    credit: Credit = "target"
    batch: int = 1
    """B examples in each presentation."""
    queries: int = 100
    regression: bool = False

    @property
    def layers(self) -> list[tuple[int, int]]:
        """(n_out, n_in) of each layer."""
        return [(n_out, n_in) for n_in, n_out in pairwise(self.widths)]

    @property
    def synapses(self) -> int:
        """Plastic weights of one episode."""
        return sum(math.prod(layer) for layer in self.layers)

    @property
    def work(self) -> int:
        """Synapses times examples shown, of all episodes."""
        return self.synapses * self.presentations * self.episodes * self.batch

    def graph_bytes(self, together: int, itemsize: int) -> int:
        """About what a graph of so many episodes takes, its fragmentation of the heap included:
        three times the 2.1 copies of the weights and the 8 of the activity that each presentation
        leaves behind.
        """
        each = 2.1 * self.synapses + 8 * self.batch * sum(self.widths)
        return int(3 * each * self.presentations * together * itemsize)

    def __str__(self) -> str:
        shape = "-".join(map(str, self.widths))
        shown = f", B={self.batch}" if self.batch > 1 else ""
        how = {
            "target": "Oja, the target fed back",
            "error": "Oja, the error fed back",
            "backprop": "delta rule, backpropagation",
        }[self.credit]
        return f"{shape}, T={self.presentations}{shown}, E={self.episodes}; {how}"

    def record(self) -> dict[str, Any]:
        """For ``result.json``."""
        return {**asdict(self), "synapses": self.synapses}


_CHAIN = (576, 300, 300, 20)
SIZES: dict[str, Size] = {
    size.name: size
    for size in (
        Size("small", (64, 64, 64, 5), 25, 16, queries=25),
        Size("middle", _CHAIN, 100, 8),
        Size("long", _CHAIN, 600, 1),
        Size("sinusoid", (11, 300, 300, 300, 1), 400, 1, "error", 32, 160, True),
        Size("error", _CHAIN, 100, 1, "error"),
        Size("oml", _CHAIN, 100, 1, "backprop"),
        Size("stream", _CHAIN, 2000, 1),
    )
}
"""As the presets ``acceptance`` and ``full`` take them."""


@dataclass(frozen=True)
class Scaling:
    """What varies along one axis of the scaling study while the others stay at ``base``."""

    base: Size
    presentations: tuple[int, ...]
    episodes: tuple[int, ...]
    widths: tuple[int, ...]

    def axes(self) -> dict[str, dict[int, Size]]:
        """{axis: {value: size}}"""
        outputs = self.base.widths[-1]
        return {
            "T": {n: replace(self.base, presentations=n) for n in self.presentations},
            "E": {n: replace(self.base, episodes=n) for n in self.episodes},
            "width": {n: replace(self.base, widths=(n, n, n, outputs)) for n in self.widths},
        }


def _base(width: int, presentations: int, outputs: int, queries: int) -> Size:
    shape = (width, width, width, outputs)
    return Size("scaling", shape, presentations, 2, queries=queries)


_LARGE = Scaling(
    _base(256, 100, 20, 20),
    (25, 50, 100, 200, 400, 800),
    (1, 2, 4, 8, 16),
    (32, 64, 128, 256, 512),
)
SCALING: dict[str, Scaling] = {
    "smoke": Scaling(_base(8, 4, 3, 3), (2, 4), (1, 2), (4, 8)),
    "quick": Scaling(_base(64, 40, 5, 10), (10, 20, 40, 80), (1, 2, 4, 8), (16, 32, 64, 128)),
    "acceptance": _LARGE,
    "full": _LARGE,
}
REPEATS = {"smoke": 2, "quick": 5, "acceptance": 9, "full": 9}


def resized(size: Size, preset: str) -> Size:
    """The size as a preset takes it: a tenth or so for ``smoke``, and for ``quick`` half the
    width, a quarter of the stream and four episodes at most.
    """
    if preset == "smoke":
        few = tuple(max(1, min(n, 8) - 2 * (i > 0)) for i, n in enumerate(size.widths[:-1]))
        return replace(
            size,
            widths=(*few, min(size.widths[-1], 3)),
            presentations=max(4, size.presentations // 100),
            episodes=min(size.episodes, 2),
            batch=min(size.batch, 3),
            queries=4,
        )
    if preset == "quick":
        inner = tuple(max(11, n // 2) for n in size.widths[:-1])
        return replace(
            size,
            widths=(*inner, size.widths[-1]),
            presentations=size.presentations // 4 if size.presentations > 25 else 25,
            episodes=min(size.episodes, 4),
        )
    return size


def chosen(names: Sequence[str] | None, preset: str) -> list[Size]:
    """The sizes asked for, all of them for None, as a preset takes them.

    Raises UnknownNameError for a size or preset that there is not, and ConfigurationError for an
    empty list.
    """
    if preset not in PRESETS:
        raise UnknownNameError("preset", preset, PRESETS)
    return [resized(SIZES[n], preset) for n in pick(names, SIZES, "size")]


def pick(
    names: Sequence[str] | None, known: Sequence[str] | dict[str, Any], kind: str
) -> list[str]:
    """Names in the order of ``known``; all for None. Raises as ``chosen`` does."""
    if names is None:
        return list(known)
    for name in names:
        if name not in known:
            raise UnknownNameError(kind, name, known)
    if not names:
        raise ConfigurationError(f"no {kind} is named; there are {', '.join(known)}.")
    return [name for name in known if name in names]
