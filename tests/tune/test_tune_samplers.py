"""Samplers, pruners and objectives of a search."""

from __future__ import annotations

from itertools import product

import optuna
import pytest
import torch
from optuna.trial import TrialState

from metaplastic.errors import ConfigurationError, UnknownNameError
from metaplastic.recipes.space import Choice, Log, OneMinus, PowerOfTwo, Real, Space
from metaplastic.tune import make_pruner, make_sampler, open_study, search
from metaplastic.tune.samplers import STOPS
from tests.tune.synthetic import DEFAULTS, SPACE, diverging, make_problem, memory, training

EVERY_KIND: Space = {
    "a": Real(0.0, 1.0),
    "b": Log(1e-4, 0.1),
    "c": OneMinus(0.5, 0.99),
    "d": PowerOfTwo(8, 64),
    "e": Choice(("layer", "synapse")),
}
DEFAULT = {"a": 0.5, "b": 1e-3, "c": 0.9, "d": 16, "e": "layer"}
SAMPLERS = ("tpe", "gp", "cmaes", "random", "grid")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_inside_a_space_of_every_kind(sampler):
    seen = []

    def note(options, seed):
        seen.append(dict(options))
        return training(DEFAULTS, seed)

    problem = make_problem(training=note, space=EVERY_KIND, options=DEFAULT, steps=1)
    study = open_study(memory(), "s", problem, sampler=make_sampler(sampler, 0, EVERY_KIND, 9))
    search(study, problem, trials=9)
    assert [t.user_attrs["outcome"] for t in study.trials] == ["complete"] * 9
    assert seen[0] == DEFAULT
    for options, trial in zip(seen, study.trials, strict=True):
        assert trial.user_attrs["options"] == options
        for name, dimension in EVERY_KIND.items():
            assert dimension.parameter(options[name]) == pytest.approx(trial.params[name])
    assert len({tuple(options.values()) for options in seen}) == 9


@pytest.mark.parametrize("seed", [0, 1])
def test_workers_share_one_grid(seed):
    space: Space = {"rate": Choice((0.01, 0.1, 1.0)), "outer": Choice((1e-3, 1e-2))}
    problem = make_problem(space=space, steps=1)
    study = open_study(memory(), "s", problem)
    # The default comes first and is no point of the walk; each worker has another seed.
    for done in range(2, 8):
        study.sampler = make_sampler("grid", 10 * seed + done, space, 7)
        search(study, problem, trials=done)
    walked = {(t.params["rate"], t.params["outer"]) for t in study.trials[1:]}
    assert walked == set(product((0.01, 0.1, 1.0), (1e-3, 1e-2)))


def test_gp_does_not_come_back_to_where_trials_diverged():
    def fragile(options, seed):
        return (diverging if options["rate"] > 0.02 else training)(options, seed)

    space: Space = {"rate": Log(1e-6, 1.0)}
    problem = make_problem(
        training=fragile, space=space, steps=1, options={**DEFAULTS, "rate": 0.01}
    )
    study = open_study(memory(), "s", problem, sampler=make_sampler("gp", 0, space, 14))
    search(study, problem, trials=14)
    diverged = [t.params["rate"] for t in study.trials if t.user_attrs["outcome"] == "diverged"]
    assert 0 < len(diverged) < 7
    assert len({round(rate, 4) for rate in diverged}) == len(diverged)


def good_first(bad: int, good: float = 0.1, poor: float = 1e-6):
    """Training in which the trials from ``bad`` on learn nothing in their episodes."""
    return lambda options, seed: training({**options, "rate": good if seed < bad else poor}, seed)


@pytest.mark.parametrize("pruner", ["median", "hyperband", "wilcoxon"])
def test_bad_trials_are_pruned_early(pruner):
    steps = []

    def note(options, seed):
        steps.append(good_first(8)(options, seed))
        return steps[-1]

    problem = make_problem(training=note, steps=STOPS)
    study = open_study(
        memory(), "bad-trials", problem, sampler=make_sampler("random", 0, SPACE, 14),
        pruner=make_pruner(pruner),
    )  # fmt: skip
    search(study, problem, trials=14)
    bad = study.trials[8:]
    assert all(t.state == TrialState.COMPLETE for t in study.trials[:1])
    pruned = [t for t in bad if t.state == TrialState.PRUNED]
    # Hyperband's last bracket runs its trials to the end.
    assert len(pruned) == 6 if pruner != "hyperband" else len(pruned) >= 2
    for trial in pruned:
        assert trial.user_attrs["outcome"] == "pruned"
        assert "validation" not in trial.user_attrs
        if pruner != "wilcoxon":
            last = max(trial.intermediate_values)
            assert last < STOPS
            assert steps[trial.number].steps == last


def test_wilcoxon_compares_episode_by_episode():
    problem = make_problem()
    study = open_study(memory(), "s", problem, pruner=make_pruner("wilcoxon"))
    search(study, problem, trials=1)
    (trial,) = study.trials
    learner = training(DEFAULTS, 0)
    for _ in learner.run(problem.steps):
        pass
    values = torch.cat([part.accuracy for part in problem.batches(learner)]).tolist()
    assert trial.intermediate_values == dict(enumerate(values))
    assert trial.value == pytest.approx(sum(values) / 11)


def test_every_trial_is_validated_on_the_same_episodes():
    copies = []

    class Watched(list):
        def __iter__(self):
            for episodes in super().__iter__():
                copies.append((episodes.support_x.clone(), episodes.query_y.clone()))
                yield episodes

    problem = make_problem()
    problem = make_problem(validation=Watched(problem.validation))
    study = open_study(memory(), "s", problem)
    copies.clear()
    search(study, problem, trials=3)
    sizes = [x.shape[0] for x, _ in copies]
    for size in (6, 5):
        of_size = [copy for copy, n in zip(copies, sizes, strict=True) if n == size]
        assert len(of_size) >= 3
        assert all(torch.equal(a, b) for c in of_size for a, b in zip(c, of_size[0], strict=True))


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "grid"])
@pytest.mark.parametrize("measures", [("score", "forgetting"), ("score", "seconds")])
def test_several_objectives_make_a_front(measures, sampler):
    problem = make_problem()
    study = open_study(memory(), "s", problem, measures, sampler=make_sampler(sampler, 0, SPACE, 7))
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    search(study, problem, trials=7, measures=measures)
    assert {t.state for t in study.trials} == {TrialState.COMPLETE}
    assert all(t.intermediate_values == {} for t in study.trials)
    front = study.best_trials
    assert front
    for trial in study.trials:
        accuracy, other = trial.values
        assert accuracy == trial.user_attrs["validation"]["accuracy"]
        if measures[1] == "forgetting":
            assert other == trial.user_attrs["validation"]["forgetting"]
        else:
            assert other == pytest.approx(trial.user_attrs["seconds"], abs=0.2)
        dominated = any(
            t.values[0] >= accuracy and t.values[1] <= other and t.values != trial.values
            for t in study.trials
        )
        assert (trial in front) != dominated


@pytest.mark.parametrize("measure", ["score", "forgetting", "seconds"])
def test_one_objective_is_what_the_pruner_sees(measure):
    problem = make_problem()
    study = open_study(
        memory(), "s", problem, (measure,), sampler=make_sampler("random", 0, SPACE, 3),
        pruner=make_pruner("median"),
    )  # fmt: skip
    search(study, problem, trials=3, measures=(measure,))
    assert study.direction.name == ("MAXIMIZE" if measure == "score" else "MINIMIZE")
    trial = study.trials[0]
    learner = training(DEFAULTS, 0)
    for stop, value in trial.intermediate_values.items():
        for _ in learner.run(stop):
            pass
        if measure == "seconds":
            assert 0 < value <= trial.values[0]
        else:
            assert value == problem.early(learner, 0.0).value(measure)
    assert len(trial.intermediate_values) == problem.steps - 1


def test_forgetting_needs_tasks_in_a_row():
    problem = make_problem()
    whole = [type(e)(e.support_x, e.support_y, e.query_x, e.query_y) for e in problem.validation]
    storage = memory()
    with pytest.raises(ConfigurationError, match="no forgetting"):
        open_study(storage, "s", make_problem(validation=whole), ("score", "forgetting"))
    assert optuna.get_all_study_names(storage) == []


def test_other_names_are_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="tpe"):
        make_sampler("tpw", 0, SPACE, 10)
    with pytest.raises(UnknownNameError, match="hyperband"):
        make_pruner("hiperband")
