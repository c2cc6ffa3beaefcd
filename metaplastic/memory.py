"""How much memory a meta-gradient needs, before it runs, and how it is made to fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

import torch

from metaplastic.analysis.memory import LiveBytes
from metaplastic.episodes import Episodes
from metaplastic.errors import MemoryBudgetError
from metaplastic.inner_loop import Rollout, chunks, draw
from metaplastic.kernels import explain
from metaplastic.kernels.chain import Descent, segment
from metaplastic.kernels.given import SEGMENT, coefficients
from metaplastic.kernels.rows import ALONE, blocks
from metaplastic.kernels.stream import Stream
from metaplastic.learner import Learner
from metaplastic.metagradient.base import gradients
from metaplastic.metagradient.unrolled import Unrolled
from metaplastic.networks import LayeredNetwork

FIRST = 2
"""Presentations from which on each more adds the same."""


@dataclass(frozen=True)
class MemoryEstimate:
    """The most bytes that a meta-gradient keeps alive at once, beside learner and episodes."""

    engine: str
    """``"plain"``, ``"compiled"`` or ``"fused"``."""
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
        shown = ", ".join(f"{name} {size / 1e6:.3g}" for name, size in self.parts.items())
        every = f", checkpoint_every={self.checkpoint_every}" if self.checkpoint_every else ""
        how = f"{self.engine}, episodes at once: {self.episodes}{every}"
        return f"{self.bytes / 1e6:.3g} MB ({how}): {shown}"


def memory_estimate(
    learner: Learner, episodes: Episodes, method: Unrolled | None = None
) -> MemoryEstimate:
    """What ``method`` (``Unrolled()`` where none is given) needs for these episodes, and under a
    budget how it runs.

    For the plain engine, one and two episodes of two and three presentations are measured: what
    autograd keeps is additive in both. The compiled engine is told to need the same, and keeps a
    little less. For the fused engine, the stream is measured as it is prepared, and the rest
    follows from shapes. It is what ``analysis.LiveBytes`` counts; what an allocator keeps in
    reserve comes on top. To measure needs the memory of these short episodes.

    Raises:
        MemoryBudgetError: where the method's budget cannot be met.
    """
    method = Unrolled() if method is None else method
    choice = explain(learner, method.engine, first_order=method.first_order)
    size = max(map(len, chunks(learner, episodes, method.batching, choice.engine)))
    kernels, given = choice.kernels, (learner, episodes, method)
    case = _Plain(*given) if kernels is None else _Fused(*given, kernels)
    if method.memory is None:
        return case.estimate(size, method.checkpoint_every)
    least = case.estimate(size, None)
    for way in _ways(case, size, shrink=method.batching == "auto"):
        if way.bytes <= method.memory:
            return way
        least = min(least, way, key=lambda way: way.bytes)
    raise MemoryBudgetError(
        f"this gradient needs {least.bytes} bytes at least and memory={method.memory}. {least}. "
        "Give a larger budget, shorter streams, truncate=, fewer examples at a time, or fewer "
        "episodes (batching='loop' runs them one by one)."
    )


def _ways(case: _Plain | _Fused, size: int, shrink: bool) -> Iterator[MemoryEstimate]:
    """Ways to run, the fastest first."""
    while True:
        yield case.estimate(size, None)
        if isinstance(case, _Plain) and case.length > 1:  # any costs one more forward pass
            every = (case.estimate(size, k) for k in range(1, case.length))
            yield min(every, key=lambda way: way.bytes)
        if size == 1 or not shrink:
            return
        size = ceil(size / 2)


class _Case:
    """A gradient to be estimated."""

    def __init__(self, learner: Learner, episodes: Episodes, method: Unrolled) -> None:
        self.learner, self.episodes = learner, episodes
        self.total = total = episodes.presentations
        self.length = min(total, method.truncate or total)
        """Presentations that the gradient goes back through."""
        self.engine = "compiled" if method.engine == "compiled" else "plain"
        self.method = replace(method, memory=None, truncate=None, engine="plain")
        self.parameters = [p for p in learner.parameters() if p.requires_grad]
        self.outer = sum(p.nbytes for p in self.parameters)
        self._points: dict[tuple[str, int, int], int] = {}

    def at(self, what: What, episodes: int) -> int:
        """Bytes alive with so many episodes of FIRST presentations."""
        return self._line(what, episodes, FIRST)

    def each(self, what: What, episodes: int) -> int:
        """What one more presentation of every episode adds."""
        return self._line(what, episodes, FIRST + 1) - self._line(what, episodes, FIRST)

    def _line(self, what: What, episodes: int, presentations: int) -> int:
        one = self._point(what, 1, presentations)
        two = self._point(what, 2, presentations) if episodes > 1 else one
        return one + (episodes - 1) * (two - one)

    def _point(self, what: What, episodes: int, presentations: int) -> int:
        key = (what, episodes, presentations)
        if key not in self._points:
            self._points[key] = self._measure(what, _short(self.episodes, episodes, presentations))
        return self._points[key]

    def _measure(self, what: What, episodes: Episodes) -> int:
        every = list(range(len(episodes)))
        with LiveBytes() as live, torch.enable_grad():
            draws = draw(self.learner, episodes, torch.Generator().manual_seed(0))
            own, draws = episodes[every], draws[every]
            if what == "stream":
                _prepared = Rollout(self.learner, own, draws)
                return live.now
            method = replace(self.method, checkpoint_every=1 if what == "steps" else None)
            loss, _ = method.losses(self.learner, own, draws)
            gradients(loss.sum(), self.parameters)
        return live.peak


What = Literal["stream", "whole", "steps"]
"""Measured: the stream as prepared; the peak that keeps everything, or states and one step."""


class _Plain(_Case):
    """By measurement alone."""

    def estimate(self, size: int, every: int | None) -> MemoryEstimate:
        stream = self.each("stream", size)
        own = self.each("whole", size) - stream
        if every is None or every >= self.length:
            alive, states, rest = self.length, 0, self.at("whole", size) - FIRST * (own + stream)
        else:
            state = self.each("steps", size) - stream
            alive, states = every, ceil(self.length / every) * state
            rest = self.at("steps", size) - FIRST * (state + stream) - own
        parts = {
            "stream": self.total * stream,
            "presentations": alive * own,
            "states": states,
            "queries and gradients": rest + self.outer,
        }
        return MemoryEstimate(self.engine, size, every, parts)


class _Fused(_Case):
    """By the shapes of what kernels keep, and of their scratch."""

    def __init__(
        self, learner: Learner, episodes: Episodes, method: Unrolled, kernels: Stream | Descent
    ) -> None:
        super().__init__(learner, episodes, method)
        assert isinstance(learner.network, LayeredNetwork)
        self._network, self._steps = learner.network, isinstance(kernels, Descent)
        weights = learner.network.weights()
        self._like = next(iter(weights.values()))
        self._given = {i: weights[p.layer.names[0]].shape for i, p in kernels.layers.items()}
        self._sizes = {i: (n, self._wide(d)) for i, (n, d) in self._given.items()}
        self._rates = dict.fromkeys(self._sizes, 0)
        values = learner.start(generator=torch.Generator())["coefficients"]
        for i, plastic in kernels.layers.items():
            name, (n, d) = plastic.layer.names[0], self._sizes[i]
            rates, _ = coefficients(plastic.rule, values[name], weights[name].unsqueeze(0))
            self._rates[i] = n * (d if rates.shape[2] == self._given[i][1] else 1)
        self._synapses = sum(n * d for n, d in self._sizes.values())
        each = sum(n * d for n, d in self._given.values()) * self._like.itemsize
        self._segment = segment(each) if self._steps else SEGMENT

    def _wide(self, n_in: int) -> int:
        """Numbers in a row as kernels hold it."""
        if self._like.device.type == "cuda":
            return n_in
        from metaplastic.kernels.cpu import LINE

        return ceil(n_in / LINE) * LINE

    def estimate(self, size: int, every: int | None) -> MemoryEstimate:
        examples, queries = self.episodes.support_x.shape[2], self.episodes.query_x.shape[1]
        piece = min(every or self.length, self.length)
        pieces, states = ceil(self.length / piece), ceil(piece / self._segment)
        cut = piece < self.total and size > 1  # what kernels see is then copied
        shown = self.length * examples * self._left(copied=cut)
        asked = queries * sum(layer.units for layer in self._network.layers)
        weights = pieces * (states + self._steps) + (not self._steps)
        counts = {
            "activity and teaching": size * (shown + asked),
            "weights": size * weights * self._synapses,
            "gradients": size * self._synapses
            + self._back(size, size * piece * examples, examples),
            "scratch": self._scratch(size, piece, examples),
        }
        parts = {name: count * self._like.itemsize for name, count in counts.items()}
        ahead = (self.total - FIRST) * self.each("stream", size)
        parts["stream"] = self.at("stream", size) + ahead
        parts["gradients"] += self.outer
        return MemoryEstimate("fused", size, every, parts)

    def _left(self, copied: bool) -> int:
        """Numbers that an example leaves behind: activity, teaching signal and error."""
        groups = self.learner.credit.groups().values()
        count = self._network.outputs * (self._steps + copied)
        count += self._sizes[min(self._sizes)][1] if copied and 0 in self._sizes else 0
        for layer in self._network.layers[: max(self._sizes) + 1]:
            maps = [g.n_out for g in groups if g.position == layer.index and g.n_in > 1]
            n = layer.units
            taught = n if self._steps or layer.index not in self._sizes else sum(maps)
            post = self._wide(n) if self._steps and layer.index + 1 in self._sizes else n
            count += post + n * len(layer.transforms) + taught
        return count

    def _back(self, size: int, seen: int, examples: int) -> int:
        """Numbers of the way back: of all layers that go together, or of the largest."""
        trunk, copies = self._network.trunk, 1 if self._steps else blocks(size) + 1
        learned = trunk is not None and any(p.requires_grad for p in trunk.parameters())
        of_x = {i: copies * seen * d * (learned or i > 0) for i, (_, d) in self._sizes.items()}
        for i, (_, d) in self._sizes.items():  # rows of whole lines are a copy
            of_x[i] += seen * d * (d > self._given[i][1])
        if self._steps:
            own = self._synapses + sum(self._rates.values())
            return size * own + of_x[min(of_x)]
        turned = 2 if examples > 1 else 1
        return max(
            size * (n * d + self._rates[i]) + turned * n * seen + of_x[i]
            for i, (n, d) in self._sizes.items()
        )

    def _scratch(self, size: int, piece: int, examples: int) -> int:
        """Numbers of the history of a segment, in all threads or programs that run at once."""
        rows, segment = list(self._sizes.values()), self._segment
        if self._like.device.type == "cuda":
            from metaplastic.kernels import gpu_rows, gpu_steps

            if not self._steps:
                return max(min(size * n, gpu_rows.PROGRAMS) * segment * d for n, d in rows)
            signals = segment * (examples + 1) + 3 * examples
            each = segment * self._synapses + signals * sum(n for n, _ in rows)
            return min(size, gpu_steps.PROGRAMS) * each
        alone = size * piece * examples * self._synapses < ALONE
        threads = 1 if alone else min(torch.get_num_threads(), size)
        again = segment + 1 + (segment + 1 if examples > 1 else 0)
        if not self._steps:
            from metaplastic.kernels.cpu import GROUP

            return threads * GROUP * (again * max(d for _, d in rows) + segment * examples)
        return threads * (again * self._synapses + segment * sum(n for n, _ in rows) * examples)


def _short(episodes: Episodes, count: int, presentations: int) -> Episodes:
    """So many episodes with so many presentations each, repeated where there are fewer."""
    some = episodes[[i % len(episodes) for i in range(count)]]
    shown = [t % episodes.presentations for t in range(presentations)]
    names = ("support_x", "support_y", "support_task", "support_weight")
    stream = {name: getattr(some, name) for name in names}
    return replace(some, **{n: t[:, shown] for n, t in stream.items() if t is not None})
