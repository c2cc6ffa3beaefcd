"""Samplers and pruners by name."""

from __future__ import annotations

from typing import Literal, get_args

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from metaplastic.errors import UnknownNameError
from metaplastic.recipes.space import Space
from metaplastic.tune.gp import WaryGPSampler
from metaplastic.tune.storage import quiet

Sampler = Literal["tpe", "gp", "cmaes", "random", "grid"]
Pruner = Literal["none", "hyperband", "median", "wilcoxon"]
STOPS = 9
"""Scores of a trial on its way, which the pruners by meta-step see: two halvings of Hyperband."""
GRID_POINTS = 4
"""Points of each dimension of the grid."""


def make_sampler(name: str, seed: int, space: Space, trials: int) -> BaseSampler:
    """The sampler of a name: ``tpe``, ``gp``, ``cmaes``, ``random`` or ``grid``.

    Args:
        name: see above.
        seed: of its random numbers; the grid has one order for all, by which workers share it.
        space: what is searched; its grid is what ``grid`` walks through.
        trials: planned trials; the first fifth of them, 5 to 10, are random for tpe and gp.

    Raises:
        UnknownNameError: for another name.
    """
    with quiet():
        return _sampler(name, seed, space, min(10, max(5, trials // 5)))


def _sampler(name: str, seed: int, space: Space, startup: int) -> BaseSampler:
    if name == "tpe":
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=startup, multivariate=True, constant_liar=True
        )
    if name == "gp":
        return WaryGPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
    if name == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=startup)
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if name == "grid":
        grid = {option: dimension.grid(GRID_POINTS) for option, dimension in space.items()}
        return optuna.samplers.GridSampler(grid, seed=0)
    raise UnknownNameError("sampler", name, get_args(Sampler))


def make_pruner(name: str) -> BasePruner:
    """The pruner of a name: ``none``; ``hyperband`` or ``median`` by the scores on the way; or
    ``wilcoxon``, which compares validation episode by episode with the best trial.

    Raises:
        UnknownNameError: for another name.
    """
    with quiet():
        return _pruner(name)


def _pruner(name: str) -> BasePruner:
    if name == "none":
        return optuna.pruners.NopPruner()
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=STOPS)
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=STOPS // 3)
    if name == "wilcoxon":
        return optuna.pruners.WilcoxonPruner(p_threshold=0.05)
    raise UnknownNameError("pruner", name, get_args(Pruner))
