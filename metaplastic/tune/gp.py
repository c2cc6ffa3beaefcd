"""Bayesian optimisation that does not come back to where trials were pruned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import GPSampler
from optuna.trial import FrozenTrial, TrialState

NEAR = 0.05
"""Share of each parameter's range within which two points are the same."""


class WaryGPSampler(GPSampler):
    """Optuna's Gaussian process learns from complete trials only, so that it would propose a point
    that diverged or was pruned again and again. A proposal near such a point is drawn at random
    instead.
    """

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        proposed = super().sample_relative(study, trial, search_space)
        pruned = study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
        if proposed and any(_near(proposed, t.params, search_space) for t in pruned):
            return {}
        return proposed


def _near(
    a: Mapping[str, Any], b: Mapping[str, Any], search_space: Mapping[str, BaseDistribution]
) -> bool:
    return all(
        name in b and abs(_place(d, a[name]) - _place(d, b[name])) < NEAR
        for name, d in search_space.items()
    )


def _place(distribution: BaseDistribution, value: Any) -> float:
    """Where a value lies in the range of a parameter, 0..1; choices count from 0."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.to_internal_repr(value)
    low, high = float(distribution.low), float(distribution.high)  # type: ignore[attr-defined]
    if distribution.log:  # type: ignore[attr-defined]
        low, high, value = math.log(low), math.log(high), math.log(value)
    return 0.0 if low == high else (value - low) / (high - low)
