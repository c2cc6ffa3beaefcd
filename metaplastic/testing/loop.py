"""A small learner on a bench, the whole inner loop, and what must hold of any."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from metaplastic.credit import CreditAssignment
from metaplastic.episodes import Episodes
from metaplastic.evaluation import evaluate
from metaplastic.learner import Learner
from metaplastic.metagradient import MetaGradient, Unrolled
from metaplastic.networks import Network
from metaplastic.objectives import CrossEntropy, SquaredError
from metaplastic.rules import PlasticityRule
from metaplastic.signals import Presentation, State, Teacher
from metaplastic.testing.oracles import (
    STEPS,
    assert_close,
    central_difference,
    direction,
    seeded,
)
from metaplastic.testing.parts import conv, mlp

NOISE = 5
"""Seed of what chance decides in the episodes."""


@dataclass(frozen=True)
class LearnerBench:
    """Parts from which a contract makes its learners."""

    network: Network
    """With 3 outputs."""
    credit: CreditAssignment
    rule: Mapping[str, PlasticityRule | None]
    """By pattern."""
    shape: tuple[int, ...] = (6,)
    """Of one example."""
    batch: int = 3
    """The largest number of examples that is shown at a time."""
    device: str = "cpu"

    def learner(
        self, *, classes: bool = True, dtype: torch.dtype = torch.float64, seed: int = 0
    ) -> Learner:
        """A learner whose Parameters stand off their first values, where biases are 0 and
        coefficients alike; the same for the same seed.
        """
        learner = Learner(
            copy.deepcopy(self.network),
            self.credit,
            self.rule,
            CrossEntropy() if classes else SquaredError(),
            generator=seeded(seed),
        )
        learner.to(self.device, torch.float64)
        coefficients = {id(p) for p in learner.rules.parameters()}
        noise = direction(learner, seed)
        with torch.no_grad():
            for name, p in learner.named_parameters():
                p += (0.01 if id(p) in coefficients else 0.1) * noise[name]
        return learner.to(dtype)

    def episodes(
        self,
        count: int = 3,
        presentations: int = 4,
        batch: int | None = None,
        queries: int = 3,
        *,
        classes: bool = True,
        seed: int = 0,
    ) -> Episodes:
        """Normal examples with labels or targets, on the CPU."""
        g = seeded(seed)
        shown = (count, presentations, self.batch if batch is None else batch)
        asked = (count, queries)

        def y(lead: tuple[int, ...]) -> Tensor:
            if classes:
                return torch.randint(0, self.network.outputs, lead, generator=g)
            return torch.randn(*lead, self.network.outputs, generator=g, dtype=torch.float64)

        def x(lead: tuple[int, ...]) -> Tensor:
            return torch.randn(*lead, *self.shape, generator=g, dtype=torch.float64)

        return Episodes(x(shown), y(shown), x(asked), y(asked))

    def stream(self, learner: Learner, seed: int = 0) -> list[Presentation]:
        """Three presentations, with the noise that the credit asks for."""
        shown = self.episodes(1, 3, classes=isinstance(learner.objective, CrossEntropy), seed=seed)
        like = next(iter(learner.network.weights().values()))
        shown = shown.to(like.device, like.dtype)
        noise = self.noise(learner, self.batch)
        return [
            self.presentation(
                learner,
                shown.support_x[0, t],
                shown.support_y[0, t],
                noise=None if noise is None else noise[t],
            )
            for t in range(3)
        ]

    def presentation(
        self,
        learner: Learner,
        x: Tensor,
        y: Tensor,
        weight: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Presentation:
        """Examples x (B, *) with labels (B,) or targets (B, K), each with a weight (B, 1)."""
        teacher = Teacher(learner.objective, learner.encode(y, x.shape[:1]), weight)
        return Presentation(learner.network.features(x), teacher, weight, noise)

    def noise(self, learner: Learner, batch: int) -> Tensor | None:
        """Of three presentations, (3, *), or None."""
        drawn = learner.credit.noise(learner.network, (1, 3, batch), seeded(NOISE))
        like = next(iter(learner.network.weights().values()))
        return None if drawn is None else drawn[0].to(like)

    def start(self, learner: Learner) -> State:
        """The state at the beginning of an episode."""
        return learner.start(self.batch, seeded(NOISE))

    def run(self, learner: Learner, stream: list[Presentation]) -> State:
        """The state after a stream."""
        state = self.start(learner)
        for shown in stream:
            state = learner.step(state, shown)
        return state


class LearnerFixtures:
    """The fixtures from which a bench is made; override those that do not suit your method."""

    @pytest.fixture(params=["cpu", "cuda"])
    def device(self, request: pytest.FixtureRequest) -> str:
        """Where it runs."""
        return available(request.param)

    @pytest.fixture(params=["mlp", "conv"])
    def network(self, request: pytest.FixtureRequest) -> Network:
        """A network with 3 outputs."""
        return {"mlp": mlp, "conv": conv}[request.param]()

    @pytest.fixture
    def shape(self) -> tuple[int, ...]:
        """Of one example of the network."""
        return (6,)

    @pytest.fixture
    def batch(self) -> int:
        """The largest number of examples that it can be shown at a time."""
        return 3

    @pytest.fixture
    def bench(
        self,
        network: Network,
        credit: CreditAssignment,
        rule: PlasticityRule | Mapping[str, PlasticityRule | None],
        shape: tuple[int, ...],
        batch: int,
        device: str,
    ) -> LearnerBench:
        """All of these; one rule that stands alone is for every group."""
        rules = {"*": rule} if isinstance(rule, PlasticityRule) else rule
        return LearnerBench(network, credit, rules, shape, batch, device)


def available(device: str) -> str:
    """The device; skips the test where it is missing."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return device


def gradient(
    learner: Learner, episodes: Episodes, method: MetaGradient, seed: int = NOISE
) -> dict[str, Tensor]:
    """What a method adds to the (empty) ``.grad`` of every Parameter, by name."""
    learner.zero_grad(set_to_none=True)
    outcome = method.gradient(learner, episodes, generator=seeded(seed))
    assert outcome.diverged == ()
    return grads(learner)


def grads(learner: Learner) -> dict[str, Tensor]:
    """Every ``.grad``, which must be there, finite and like its Parameter."""
    found = {}
    for name, p in learner.named_parameters():
        assert p.grad is not None, f"{name} has no gradient"
        assert bool(p.grad.isfinite().all()), f"the gradient of {name} is not finite"
        assert (p.grad.shape, p.grad.dtype, p.grad.device) == (p.shape, p.dtype, p.device), name
        found[name] = p.grad.detach().clone()
    return found


WAYS: tuple[dict[str, Any], ...] = (
    {"batching": "vmap"},
    {"batching": "vmap", "checkpoint_every": 3},
    {"batching": "loop", "checkpoint_every": 1},
    {"truncate": 4},
)


def assert_one_gradient_on_all_ways(bench: LearnerBench) -> None:
    """Episodes at once or one by one, checkpointed or not, cut where nothing is cut off."""
    learner, shown = bench.learner(), bench.episodes(3, 4)
    wanted = gradient(learner, shown, Unrolled(batching="loop"))
    for options in WAYS:
        assert_close(gradient(learner, shown, Unrolled(**options)), wanted, 1e-11)


def assert_slope(bench: LearnerBench, classes: bool) -> None:
    """The meta-gradient is the slope of the query loss, by central differences along two random
    directions.
    """
    learner = bench.learner(classes=classes)
    shown = bench.episodes(2, 4, classes=classes, seed=3)
    found = gradient(learner, shown, Unrolled())

    def loss() -> float:
        scores = evaluate(learner, shown, generator=seeded(NOISE))
        return float(scores.loss.mean() + learner.penalty().detach())

    for seed in (1, 2):
        along = direction(learner, seed)
        slope = sum(float((found[n] * d).sum()) for n, d in along.items())
        errors = []
        for h in STEPS:
            errors.append(abs(central_difference(learner, along, h, loss) - slope))
            if errors[-1] < 1e-6 * max(abs(slope), 1e-2):
                break
        else:
            raise AssertionError(f"the meta-gradient says {slope}, and is off by {errors}")
