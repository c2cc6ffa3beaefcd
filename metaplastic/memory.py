"""How much memory a meta-gradient needs, before it runs, and how it is made to fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil

import torch

from metaplastic.analysis.memory import LiveBytes
from metaplastic.episodes import Episodes
from metaplastic.errors import MemoryBudgetError
from metaplastic.inner_loop import Rollout, chunks, draw
from metaplastic.kernels import explain
from metaplastic.kernels.chain import ROOM, Descent
from metaplastic.kernels.given import SEGMENT
from metaplastic.kernels.rows import ALONE, blocks
from metaplastic.kernels.stream import Stream
from metaplastic.learner import Learner
from metaplastic.metagradient.base import gradients
from metaplastic.metagradient.unrolled import Unrolled
from metaplastic.networks import LayeredNetwork

MEGABYTE = 1e6
FIRST = 2
"""Presentations of the first measurement: from here on each more adds the same."""


@dataclass(frozen=True)
class MemoryEstimate:
    """The most bytes that a meta-gradient keeps alive at once, beside learner and episodes."""

    engine: str
    """``"plain"`` or ``"fused"``."""
    episodes: int
    """Episodes that run at once."""
    checkpoint_every: int | None
    """Presentations between kept states; None where everything is kept."""
    parts: Mapping[str, int]
    """{what: its bytes}"""

    @property
    def bytes(self) -> int:
        """All parts together."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        shown = [f"{name} {size / MEGABYTE:.1f}" for name, size in self.parts.items()]
        every = f", checkpoint_every={self.checkpoint_every}" if self.checkpoint_every else ""
        return (
            f"{self.bytes / MEGABYTE:.1f} MB ({self.engine}, {self.episodes} at once{every}): "
            f"{', '.join(shown)}"
        )


def memory_estimate(
    learner: Learner, episodes: Episodes, method: Unrolled | None = None
) -> MemoryEstimate:
    """What ``method`` (``Unrolled()`` where none is given) will need for these episodes; with a
    budget, as it will run under it.

    The plain engine is measured on one and two episodes of two and three presentations, and what
    each adds multiplied: all that autograd keeps is additive in both. The fused engine is computed
    from shapes. It is what ``analysis.LiveBytes`` counts, so what an allocator keeps in reserve
    comes on top. Nothing is mutated, and no generator is drawn from.

    Raises:
        MemoryBudgetError: where the method's budget cannot be met.
    """
    method = Unrolled() if method is None else method
    engine = explain(learner, method.engine, first_order=method.first_order)
    size = max(map(len, chunks(learner, episodes, method.batching, engine.engine)))
    kinds = {"plain": _Plain, "fused": _Fused}
    find = kinds[engine.engine](learner, episodes, method, engine.kernels).estimate
    if method.memory is None:
        return find(size, method.checkpoint_every)
    least = None
    for found in _candidates(find, size, engine.engine, episodes.presentations, method):
        if found.bytes <= method.memory:
            return found
        least = found if least is None or found.bytes < least.bytes else least
    assert least is not None
    raise MemoryBudgetError(
        f"the gradient needs {least.bytes} bytes at least, and memory={method.memory}; {least}. "
        "Give fewer episodes or batching='loop', shorter streams, truncate=, or a larger budget."
    )


_Find = Callable[[int, int | None], MemoryEstimate]
"""(episodes at once, checkpoint_every) -> estimate"""


def _candidates(
    find: _Find, size: int, engine: str, presentations: int, method: Unrolled
) -> Iterator[MemoryEstimate]:
    """Ways to run, the fastest first. Every checkpoint_every costs one more forward pass, so the
    one that needs least stands for all; kernels keep few states anyway.
    """
    kept = min(presentations, method.truncate or presentations)
    while True:
        yield find(size, None)
        if engine == "plain" and kept > 1:
            yield min((find(size, k) for k in range(1, kept)), key=lambda e: e.bytes)
        if size == 1 or method.batching != "auto":
            return
        size = ceil(size / 2)


class _Plain:
    """Estimates of the plain engine."""

    def __init__(
        self, learner: Learner, episodes: Episodes, method: Unrolled, kernels: None
    ) -> None:
        self._learner, self._episodes, self._method = learner, episodes, method
        self._measures = {
            what: _Measure(learner, episodes, method, what)
            for what in ("stream", "everything", "checkpointed")
        }

    def estimate(self, size: int, every: int | None) -> MemoryEstimate:
        total = self._episodes.presentations
        kept = min(total, self._method.truncate or total)
        stream, everything, checkpointed = self._measures.values()
        shown = stream.each(size)
        own = everything.each(size) - shown
        if every is None or every >= kept:
            base, alive, states = everything.at(size, 0), kept, 0
        else:
            # measured with every=1: one presentation is alive at a time
            base, alive = checkpointed.at(size, 0) - own, every
            states = ceil(kept / every) * (checkpointed.each(size) - shown)
        parts = {
            "stream": total * shown,
            "presentations": alive * own,
            "states": states,
            "queries and gradients": base + _outer(self._learner),
        }
        return MemoryEstimate("plain", size, every, {k: v for k, v in parts.items() if v})


class _Fused:
    """Estimates of the fused engine, from shapes: what its kernels keep, and their scratch."""

    def __init__(
        self, learner: Learner, episodes: Episodes, method: Unrolled, kernels: Stream | Descent
    ) -> None:
        self._learner, self._episodes, self._method = learner, episodes, method
        self._kernels, self._steps = kernels, isinstance(kernels, Descent)
        self._stream = _Measure(learner, episodes, method, "stream")
        assert isinstance(learner.network, LayeredNetwork)
        self._network = learner.network
        weights = learner.network.weights()
        self._like = next(iter(weights.values()))
        self._sizes = {i: weights[p.layer.names[0]].shape for i, p in kernels.layers.items()}

    def estimate(self, size: int, every: int | None) -> MemoryEstimate:
        total, examples = self._episodes.support_x.shape[1:3]
        length = min(total, self._method.truncate or total)
        piece = min(every or length, length)
        synapses = sum(n * d for n, d in self._sizes.values())
        segment = min(SEGMENT, max(4, ROOM // (synapses * self._like.itemsize)))
        segment = segment if self._steps else SEGMENT
        seen = size * length * examples
        queries = size * self._episodes.query_x.shape[1]
        counts = {
            "activity and teaching": seen * self._each()
            + 2 * queries * sum(layer.units for layer in self._network.layers),
            "kept weights": size * synapses * ceil(length / piece) * (ceil(piece / segment) + 1),
            "gradients": size * synapses + self._backward(size, size * piece * examples),
            "scratch": self._scratch(size, examples, segment, seen * synapses),
        }
        parts = {name: count * self._like.itemsize for name, count in counts.items()}
        parts["stream"] = self._stream.at(size, total)
        parts["gradients"] += _outer(self._learner)
        return MemoryEstimate("fused", size, every, parts)

    def _each(self) -> int:
        """Numbers that an example leaves behind: activity, teaching signal and error."""
        groups = self._learner.credit.groups().values()
        count = self._network.outputs if self._steps else 0
        for layer in self._network.layers[: max(self._sizes) + 1]:
            if layer.index not in self._sizes:
                count += 2 * layer.units
                continue
            n = self._sizes[layer.index][0]
            maps = [g.n_out for g in groups if g.position == layer.index and g.n_in > 1]
            count += n * (1 + len(layer.transforms)) + (n if self._steps else sum(maps))
        return count

    def _backward(self, size: int, seen: int) -> int:
        """Numbers of the way back: of the largest layer, or of all that go together."""
        trunk = self._network.trunk
        learned = trunk is not None and any(p.requires_grad for p in trunk.parameters())
        own = []
        for i, (n, d) in self._sizes.items():
            copies = 1 if self._steps else blocks(size) + 1
            gx = copies * seen * d if learned or i > 0 else 0
            if self._steps:
                gx = gx if i == min(self._sizes) else 0
                own.append(2 * size * n * d + gx)
            else:
                own.append(2 * size * n * d + gx + 2 * seen * n)
        return sum(own) if self._steps else max(own)

    def _scratch(self, size: int, examples: int, segment: int, work: int) -> int:
        """Numbers of the history of a segment, in every thread or program at once."""
        if not self._steps and self._like.device.type == "cuda":
            from metaplastic.kernels.gpu_rows import PROGRAMS

            return max(min(size * n, PROGRAMS) * segment * d for n, d in self._sizes.values())
        threads = min(torch.get_num_threads(), size) if work >= ALONE else 1
        if not self._steps:
            return threads * 2 * segment * max(d for _, d in self._sizes.values())
        synapses = sum(n * d for n, d in self._sizes.values())
        units = sum(n for n, _ in self._sizes.values())
        again = segment + 1 + (segment if examples > 1 else 1)
        return threads * (again * synapses + segment * units * (examples + 1))


class _Measure:
    """Bytes alive, as a linear function of episodes and presentations; each point once.

    ``what`` is the stream as it is prepared, or the peak of a gradient that keeps everything or
    one presentation at a time.
    """

    def __init__(self, learner: Learner, episodes: Episodes, method: Unrolled, what: str) -> None:
        self._learner, self._episodes, self._what = learner, episodes, what
        every = 1 if what == "checkpointed" else None
        self._method = replace(
            method, memory=None, truncate=None, checkpoint_every=every, engine="plain"
        )
        self._points: dict[tuple[int, int], int] = {}

    def at(self, episodes: int, presentations: int) -> int:
        """So many at once, each so long."""
        return self._line(episodes, FIRST) + (presentations - FIRST) * self.each(episodes)

    def each(self, episodes: int) -> int:
        """What one more presentation of every episode adds."""
        return self._line(episodes, FIRST + 1) - self._line(episodes, FIRST)

    def _line(self, episodes: int, presentations: int) -> int:
        one = self._point(1, presentations)
        if episodes == 1:
            return one
        return one + (episodes - 1) * (self._point(2, presentations) - one)

    def _point(self, episodes: int, presentations: int) -> int:
        key = (episodes, presentations)
        if key not in self._points:
            self._points[key] = self._count(_short(self._episodes, *key))
        return self._points[key]

    def _count(self, episodes: Episodes) -> int:
        learner, method = self._learner, self._method
        parameters = [p for p in learner.parameters() if p.requires_grad]
        with LiveBytes() as live, torch.enable_grad():
            draws = draw(learner, episodes, torch.Generator().manual_seed(0))
            every = list(range(len(episodes)))
            own, draws = episodes[every], draws[every]
            if self._what == "stream":
                rollout = Rollout(learner, own, draws, engine="plain")
                size = live.now
                del rollout
                return size
            loss, _ = method.losses(learner, own, draws)
            gradients(loss.sum(), parameters)
        return live.peak


def _short(episodes: Episodes, count: int, presentations: int) -> Episodes:
    """So many episodes with so many presentations each, repeated where there are fewer."""
    some = episodes[[i % len(episodes) for i in range(count)]]
    shown = [t % episodes.presentations for t in range(presentations)]
    names = ("support_x", "support_y", "support_task", "support_weight")
    stream = {name: getattr(some, name) for name in names}
    return replace(some, **{n: t[:, shown] for n, t in stream.items() if t is not None})


def _outer(learner: Learner) -> int:
    """The sum of the gradients so far."""
    return sum(p.nbytes for p in learner.parameters() if p.requires_grad)
