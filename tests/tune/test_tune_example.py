"""A search on data of one's own, with nothing but the library."""

from __future__ import annotations

import optuna
import torch

from metaplastic import LayeredNetwork
from metaplastic.episodes import Episodes
from metaplastic.objectives import CrossEntropy
from metaplastic.recipes import recipe
from metaplastic.training import MetaTraining
from metaplastic.tune import (
    Problem,
    finished,
    make_pruner,
    make_sampler,
    open_storage,
    open_study,
    search,
)


def own_episodes(generator: torch.Generator, count: int = 4) -> Episodes:
    """E episodes of two classes, which a random direction divides."""
    directions = torch.randn(count, 1, 5, generator=generator)
    shown = torch.randn(count, 10, 5, generator=generator)
    asked = torch.randn(count, 8, 5, generator=generator)

    def label(x: torch.Tensor) -> torch.Tensor:
        return ((x * directions).sum(-1) > 0).long()

    return Episodes(shown.unsqueeze(2), label(shown).unsqueeze(2), asked, label(asked))


def test_a_search_on_data_of_ones_own(tmp_path):
    known = recipe("feedback-delta")

    def training(options, seed):
        chosen = known.configure(options)
        generator = torch.Generator().manual_seed(seed)
        network = LayeredNetwork(
            torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        )
        for p in network.parameters():
            torch.nn.init.normal_(p, std=0.3, generator=generator)
        learner = known.build(network, CrossEntropy(), chosen, generator)
        optimizer = torch.optim.Adam(chosen.param_groups(learner))
        return MetaTraining(learner, own_episodes, optimizer=optimizer, clip=chosen.clip, seed=seed)

    problem = Problem(
        training=training,
        steps=4,
        validation=[own_episodes(torch.Generator().manual_seed(1), 20)],
        space=known.space,
        options=known.configure({}).__dict__,
        accuracy=True,
        identity={"data": "divided by a random direction"},
    )
    storage = open_storage(tmp_path / "study.db")
    sampler = make_sampler("tpe", seed=0, space=problem.space, trials=4)
    study = open_study(storage, "own", problem, sampler=sampler, pruner=make_pruner("median"))
    search(study, problem, trials=4)

    assert len(finished(study)) == 4
    assert study.best_value >= study.trials[0].values[0]
    assert set(study.best_params) == set(known.space)
    again = optuna.load_study(study_name="own", storage=open_storage(tmp_path / "study.db"))
    assert again.best_value == study.best_value
