"""The inner loop: streams of presentations for many episodes at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils.checkpoint import checkpoint

from metaplastic.episodes import Episodes
from metaplastic.first_order import constant_copy, first_order_step
from metaplastic.kernels import Engine, explain
from metaplastic.kernels.compiled import compiled, map_tensors
from metaplastic.learner import Learner
from metaplastic.networks import Network
from metaplastic.signals import Presentation, State, Teacher

Batching = Literal["auto", "vmap", "loop"]
CACHE_BYTES = 2**21
"""Plastic weights of the episodes that a CPU runs at once; see ``chunks``."""


@dataclass(frozen=True)
class Draws:
    """What chance decides in E episodes, drawn outside the loop so that a repeat sees the same."""

    weights: dict[str, Tensor]
    """{resampled group: (E, n_out, n_in)}"""
    noise: Tensor | None
    """(E, T, *)"""

    def __getitem__(self, index: Sequence[int]) -> Draws:
        picked = list(index)
        noise = None if self.noise is None else self.noise[picked]
        return Draws({name: w[picked] for name, w in self.weights.items()}, noise)


def draw(learner: Learner, episodes: Episodes, generator: torch.Generator | None) -> Draws:
    """All randomness of the episodes, from one generator."""
    weights = {}
    if learner.resampled:
        each = [learner.draw(generator) for _ in range(len(episodes))]
        weights = {name: torch.stack([w[name] for w in each]) for name in each[0]}
    lead = tuple(episodes.support_x.shape[:3])
    return Draws(weights, learner.noise(lead, generator))


class Rollout:
    """E episodes under way: features and targets prepared once, and the state so far.

    The state is split into what moves or differs between episodes, with a leading axis E, and what
    all of them share.

    Args:
        learner: the learner.
        episodes: E episodes; moved to the learner's device and precision.
        draws: the randomness of these episodes.
        first_order: see ``first_order_step``.
        engine: see ``kernels.explain``.
    """

    def __init__(
        self,
        learner: Learner,
        episodes: Episodes,
        draws: Draws,
        *,
        first_order: bool = False,
        engine: Engine = "plain",
    ) -> None:
        self.learner = learner
        choice = explain(learner, engine, first_order=first_order)
        self._kernels = choice.kernels
        self._compiled = compiled(learner, _show) if choice.engine == "compiled" else None
        self._constant = constant_copy(learner.network) if first_order else None
        like = next(iter(learner.network.weights().values()))
        episodes = episodes.to(like.device, like.dtype)
        self.episodes = episodes
        support, query = _features(learner, episodes)
        self._stream = {
            "x": support,
            "target": learner.encode(episodes.support_y, episodes.support_x.shape[:3]),
        }
        if episodes.support_weight is not None:
            self._stream["weight"] = episodes.support_weight.unsqueeze(-1)
        if draws.noise is not None:
            self._stream["noise"] = draws.noise
        self._query = query
        self.target = learner.encode(episodes.query_y, episodes.query_x.shape[:2])
        self.moving, self._shared = self._begin(draws)

    def _begin(self, draws: Draws) -> tuple[State, State]:
        learner, count = self.learner, len(self.episodes)
        batch = self.episodes.support_x.shape[2]
        if draws.weights:
            drawn = [{n: w[e] for n, w in draws.weights.items()} for e in range(count)]
            states = [learner.start(batch, drawn=d) for d in drawn]
        else:
            states = [learner.start(batch)]
        moves = learner.plastic | learner.resampled
        weights = states[0]["weights"]
        shared = {
            "weights": {n: w for n, w in weights.items() if n not in moves},
            "coefficients": states[0]["coefficients"],
        }
        starts = [
            {
                "weights": {n: w for n, w in state["weights"].items() if n in moves},
                **{key: state[key] for key in ("rule", "credit", "network")},
            }
            for state in states
        ]
        if len(starts) == count:
            return _stack(starts), shared
        return map_tensors(lambda t: t.unsqueeze(0).expand(count, *t.shape), starts[0]), shared

    def advance(self, first: int, last: int, *, checkpointed: bool = False) -> None:
        """Show presentations first..last-1."""
        stream = {name: t[:, first:last] for name, t in self._stream.items()}
        if self._kernels is not None:
            self.moving = self._kernels.advance(self.moving, self._shared, stream)
            return
        show = _show if self._compiled is None else partial(self._compiled, again=checkpointed)
        segment = partial(show, self.learner, self._constant, self._shared)
        if checkpointed:
            self.moving = checkpoint(
                segment, self.moving, stream, use_reentrant=False, preserve_rng_state=False
            )
        else:
            self.moving = segment(self.moving, stream)

    def detach(self) -> None:
        """Forget the graph so far."""
        self.moving = map_tensors(lambda t: t.detach(), self.moving)

    def outputs(self) -> Tensor:
        """Outputs on the queries under the present weights, (E, Q, K)."""

        def answer(moving: State, x: Tensor) -> Tensor:
            weights = moving["weights"] | self._shared["weights"]
            return self.learner.network(x, weights, moving["network"])

        moving = {key: self.moving[key] for key in ("weights", "network")}
        return _over_episodes(answer, len(self.episodes))(moving, self._query)

    def finite_groups(self) -> dict[str, Tensor]:
        """Whether each plastic group's weights are finite in each episode, {group: (E,)}."""
        weights = self.moving["weights"]
        order = [n for n in self.learner.groups() if n in self.learner.plastic]
        return {n: weights[n].isfinite().flatten(1).all(1) for n in order}


def _show(
    learner: Learner,
    constant: Network | None,
    shared: State,
    moving: State,
    stream: dict[str, Tensor],
) -> State:
    """What ``moving`` is after the presentations of a stream, (E, T, B, *) each."""

    def one(moving: State, stream: dict[str, Tensor]) -> State:
        state = {**moving, **shared, "weights": moving["weights"] | shared["weights"]}
        for t in range(stream["x"].shape[0]):
            shown = {name: values[t] for name, values in stream.items()}
            weight, noise = shown.get("weight"), shown.get("noise")
            teacher = Teacher(learner.objective, shown["target"], weight)
            presentation = Presentation(shown["x"], teacher, weight, noise)
            state = first_order_step(learner, state, presentation, constant)
        own = {name: state["weights"][name] for name in moving["weights"]}
        return {"weights": own, **{k: state[k] for k in ("rule", "credit", "network")}}

    return _over_episodes(one, len(stream["x"]))(moving, stream)


def chunks(
    learner: Learner,
    episodes: Episodes,
    batching: Batching,
    engine: str = "plain",
    most: int | None = None,
) -> list[list[int]]:
    """Which episodes go together.

    On a CPU, episodes run at once as long as their plastic weights fit the cache together: small
    networks gain several times from ``vmap``; beyond the cache one episode after another is as fast
    or faster and needs the memory of one. On a GPU, and by kernels, all run at once. Never more
    than ``most``.
    """
    count = len(episodes)
    size = {"vmap": count, "loop": 1}.get(batching, count)
    if batching == "auto" and engine != "fused":
        weights = learner.network.weights()
        bytes_each = sum(weights[n].nbytes for n in learner.plastic & weights.keys())
        if all(w.device.type == "cpu" for w in weights.values()):
            size = max(1, CACHE_BYTES // max(1, bytes_each))
    size = size if most is None else min(size, most)
    return [list(range(i, min(i + size, count))) for i in range(0, count, size)]


def _features(learner: Learner, episodes: Episodes) -> tuple[Tensor, Tensor]:
    """Features of support (E, T, B, *) and queries (E, Q, *), by one pass through the trunk."""
    lead, asked = episodes.support_x.shape[:3], episodes.query_x.shape[:2]
    shown, queries = episodes.support_x.flatten(0, 2), episodes.query_x.flatten(0, 1)
    both = learner.network.features(torch.cat([shown, queries]))
    return both[: len(shown)].unflatten(0, lead), both[len(shown) :].unflatten(0, asked)


def _over_episodes(function: Callable, count: int) -> Callable:
    """The function of one episode, applied to a leading axis of ``count`` episodes."""
    if count > 1:
        return vmap(function)

    def single(*arguments: Any) -> Any:
        result = function(*(map_tensors(lambda t: t[0], a) for a in arguments))
        return map_tensors(lambda t: t.unsqueeze(0), result)

    return single


def _stack(trees: list[Any]) -> Any:
    if isinstance(trees[0], dict):
        return {key: _stack([tree[key] for tree in trees]) for key in trees[0]}
    return torch.stack(trees)
