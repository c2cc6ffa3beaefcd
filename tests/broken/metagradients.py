"""Meta-gradients that break their contract, each with the test that must catch it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from metaplastic import (
    Coefficient,
    Delta,
    DirectFeedback,
    Learner,
    MetaGradient,
    Oja,
    Outcome,
    Unrolled,
)
from metaplastic.testing.loop import LearnerBench
from metaplastic.testing.metagradient import MetaBench
from metaplastic.testing.parts import mlp

After = Callable[[Learner, Outcome, int], Outcome | None]


def then(what: After, **options: Any) -> Callable[[], MetaGradient]:
    """Unrolled, and something afterwards, given the number of episodes."""

    @dataclass(frozen=True)
    class Broken(Unrolled):
        def gradient(self, learner, episodes, *, generator=None):
            outcome = super().gradient(learner, episodes, generator=generator)
            return what(learner, outcome, len(episodes)) or outcome

    return lambda: Broken(**options)


@dataclass(frozen=True)
class Overwrites(Unrolled):
    def gradient(self, learner, episodes, *, generator=None):
        learner.zero_grad()
        return super().gradient(learner, episodes, generator=generator)


def scaled(factor: Callable[[Outcome, int], float]) -> Callable[[], MetaGradient]:
    def scale(learner: Learner, outcome: Outcome, episodes: int) -> None:
        for p in learner.parameters():
            assert p.grad is not None
            p.grad.mul_(factor(outcome, episodes))

    return then(scale)


def step(learner: Learner, outcome: Outcome, episodes: int) -> None:
    torch.optim.SGD(learner.parameters(), lr=0.1).step()


def jitter(learner: Learner, outcome: Outcome, episodes: int) -> None:
    for p in learner.parameters():
        assert p.grad is not None
        p.grad.add_(torch.randn_like(p))


METAGRADIENT_CASES: list[tuple[str, str, Callable[[], MetaGradient]]] = [
    ("adds_to_what_is_there", "overwrites", Overwrites),
    ("never_steps", "a step", then(step)),
    ("chance_comes_from_the_generator_alone", "global chance", then(jitter)),
    (
        "its_outcome_says_how_the_learner_did",
        "another loss",
        then(lambda learner, o, n: replace(o, loss=2 * o.loss)),
    ),
    (
        "its_outcome_says_how_the_learner_did",
        "a graph",
        then(lambda learner, o, n: replace(o, loss=o.loss.requires_grad_())),
    ),
    (
        "its_outcome_says_how_the_learner_did",
        "no accuracy",
        then(lambda learner, o, n: replace(o, accuracy=None)),
    ),
    (
        "a_diverged_episode_is_left_out_and_reported",
        "not reported",
        then(lambda learner, o, n: replace(o, diverged=())),
    ),
    (
        "a_diverged_episode_is_left_out_and_reported",
        "a mean over all",
        scaled(lambda outcome, n: len(outcome.kept) / n),
    ),
    (
        "a_diverged_episode_is_left_out_and_reported",
        "not finite",
        scaled(lambda outcome, n: 1.0 if not outcome.diverged else float("nan")),
    ),
    (
        "nothing_is_left_where_all_diverged",
        "a mean over none",
        scaled(lambda outcome, n: 1.0 if outcome.kept else float("nan")),
    ),
    (
        "any_number_of_episodes_and_examples",
        "one too few",
        scaled(lambda outcome, n: float("inf") if n == 1 else 1.0),
    ),
    ("is_of_the_mean_over_episodes", "a sum", scaled(lambda outcome, n: n)),
    (
        "equals_the_unrolled_gradient",
        "first order",
        then(lambda learner, o, n: None, first_order=True),
    ),
    ("equals_the_unrolled_gradient", "nothing", scaled(lambda outcome, n: 0.0)),
]


def metagradient_pool(method: MetaGradient, tmp_path: Path) -> dict[str, Any]:
    rule = Oja(Coefficient(0.02, granularity="neuron", bound="tanh", l1=0.01))
    parts = LearnerBench(mlp(), DirectFeedback(bias=True), {"*": rule})
    following = Delta(0.1, learned=True)
    bench = MetaBench(method, parts)
    return {"meta": bench, "exact": True, "sizes": (1, 1, 1, 1), "following": following}
