"""Random and aligning feedback under the delta rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from metaplastic.credit import (
    CreditAssignment,
    DirectRandomTarget,
    FeedbackAlignment,
    KolenPollack,
    SignSymmetry,
    WeightMirror,
)
from metaplastic.learner import Learner
from metaplastic.networks import Network
from metaplastic.objectives import Objective
from metaplastic.recipes.base import DELTA, DeltaOptions, Recipe
from metaplastic.recipes.space import Log, Space
from metaplastic.rules import Delta
from metaplastic.signals import Origin


@dataclass(frozen=True)
class AlignmentOptions(DeltaOptions):
    """Learners whose errors come down through matrices of their own."""

    feedback: Origin = "fixed"
    """Where the feedback weights come from."""
    initial: Origin = "learned"
    """Where the initial weights come from."""
    decay: float = 0.0
    """Share of each weight lost at every presentation."""

    def rule(self) -> Delta:
        return Delta(
            self.rate, granularity=self.granularity, learned=self.learned, decay=self.decay
        )


@dataclass(frozen=True)
class MirrorOptions(AlignmentOptions):
    """Weight mirroring (Akrout et al. 2019)."""

    sigma: float = 1.0
    """Standard deviation of the noise."""
    mirror_rate: float = 0.02
    mirror_decay: float = 0.02


def _builder(
    credit: Callable[[AlignmentOptions], CreditAssignment],
) -> Callable[[Network, Objective, AlignmentOptions, torch.Generator], Learner]:
    def build(
        network: Network,
        objective: Objective,
        options: AlignmentOptions,
        generator: torch.Generator,
    ) -> Learner:
        return Learner(
            network,
            credit(options),
            options.rule(),
            objective,
            initial=options.initial,
            generator=generator,
        )

    return build


def _mirror(
    network: Network, objective: Objective, options: MirrorOptions, generator: torch.Generator
) -> Learner:
    mirror = Delta(options.mirror_rate, derivative=False, decay=options.mirror_decay)
    return Learner(
        network,
        WeightMirror(options.feedback, sigma=options.sigma),
        {"role:feedback": mirror, "role:weight": options.rule()},
        objective,
        initial=options.initial,
        generator=generator,
    )


_DECAY: Space = {**DELTA, "decay": Log(1e-5, 0.1)}
_MIRROR: Space = {
    **DELTA,
    "sigma": Log(0.1, 10.0),
    "mirror_rate": Log(1e-3, 0.1),
    "mirror_decay": Log(1e-3, 0.1),
}

RECIPES = (
    Recipe(
        "fa",
        "feedback alignment x delta",
        _builder(lambda o: FeedbackAlignment(o.feedback)),
        AlignmentOptions(),
        space=DELTA,
    ),
    Recipe(
        "drtp",
        "direct random target projection x delta",
        _builder(lambda o: DirectRandomTarget(o.feedback)),
        AlignmentOptions(),
        space=DELTA,
    ),
    Recipe(
        "sign-symmetry",
        "uniform sign-symmetric feedback x delta",
        _builder(lambda o: SignSymmetry()),
        AlignmentOptions(),
        space=DELTA,
    ),
    Recipe(
        "kolen-pollack",
        "feedback that gets the forward weights' changes x delta",
        _builder(lambda o: KolenPollack(o.feedback)),
        AlignmentOptions(decay=0.001),
        space=_DECAY,
    ),
    Recipe(
        "weight-mirror",
        "feedback that learns the forward weights from noise x delta",
        _mirror,
        MirrorOptions(),
        space=_MIRROR,
    ),
)
