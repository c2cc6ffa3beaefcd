"""The learner and the examples that these tests share."""

from __future__ import annotations

import torch
from torch import Tensor

from metaplastic import CreditAssignment, DirectFeedback, Learner, Oja
from tests.helpers import mlp, normal, seeded, shake


def classifier(rule=None, credit: CreditAssignment | None = None, **options) -> Learner:
    """Tanh layers 4-6-5-3 in float64, every Parameter at random."""
    rule = Oja(0.1) if rule is None else rule
    learner = Learner(mlp(4, 6, 5, 3), credit or DirectFeedback("error"), rule, **options)
    return shake(learner, 1, plasticity=0.2, mixing=0.2, feedback=0.2)


def batch(size: int = 3) -> tuple[Tensor, Tensor]:
    return normal(size, 4, seed=7), torch.randint(3, (size,), generator=seeded(8))
