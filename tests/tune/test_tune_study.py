"""Studies know what they search, and begin with the baselines."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState

from metaplastic.errors import ConfigurationError
from metaplastic.recipes.space import Log
from metaplastic.tune import make_sampler, open_study, search
from tests.tune.synthetic import DEFAULTS, SPACE, make_problem, memory

PUBLISHED = {"rate": 5.0, "outer": 1e-3, "decay": 0.7}  # the rate lies outside the space


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes", "random", "grid"])
def test_the_baselines_come_first_with_exactly_their_options(sampler):
    seen = []

    def note(options, seed):
        seen.append(dict(options))
        return make_problem().training(options, seed)

    problem = make_problem(published=PUBLISHED, training=note)
    study = open_study(memory(), "s", problem, sampler=make_sampler(sampler, 0, SPACE, 7))
    waiting = study.trials
    assert [t.state for t in waiting] == [TrialState.WAITING] * 2
    search(study, problem, trials=7)
    assert seen[:2] == [DEFAULTS, PUBLISHED]
    default, published = study.trials[:2]
    assert default.user_attrs["baseline"] == "default"
    assert default.user_attrs["options"] == DEFAULTS
    assert default.params == pytest.approx({**DEFAULTS, "decay": 0.1})
    assert published.user_attrs["baseline"] == "published"
    assert published.user_attrs["options"] == PUBLISHED
    assert published.params == pytest.approx({"outer": 1e-3, "decay": 0.3})
    assert all("baseline" not in t.user_attrs for t in study.trials[2:])


def test_a_name_is_taken_once_and_gone_on_with_on_demand():
    problem, storage = make_problem(), memory()
    study = open_study(storage, "s", problem)
    search(study, problem, trials=1)
    with pytest.raises(ConfigurationError, match="there is a study 's' already"):
        open_study(storage, "s", problem)
    again = open_study(storage, "s", problem, resume=True)
    assert [t.number for t in again.trials] == [0]
    with pytest.raises(ConfigurationError, match=r"no study 'other' .* there are: s"):
        open_study(storage, "other", problem, resume=True)
    assert optuna.get_all_study_names(storage) == ["s"]


@pytest.mark.parametrize(
    ("changes", "measures", "lines"),
    [
        ({"steps": 6}, ("score",), ["steps: 5 -> 6"]),
        ({"identity": {"data": "others"}}, ("score",), ["data: prototypes -> others"]),
        ({"space": {**SPACE, "rate": Log(1e-5, 1.0)}}, ("score",), ["rate.low: 1e-06 -> 1e-05"]),
        ({"space": {"rate": SPACE["rate"]}}, ("score",), ["outer", "decay: missing -> 0.9"]),
        ({"options": {**DEFAULTS, "extra": 1}}, ("score",), ["fixed.extra: missing -> 1"]),
        ({"validation": make_problem().validation[:1]}, ("score",), ["validation: 11 -> 6"]),
        ({}, ("score", "seconds"), ["measures: ['score'] -> ['score', 'seconds']"]),
        ({}, ("seconds",), ["measures: ['score'] -> ['seconds']"]),
    ],
)  # fmt: skip
def test_a_study_of_something_else_is_refused_with_the_difference(changes, measures, lines):
    problem, storage = make_problem(), memory()
    study = open_study(storage, "s", problem)
    search(study, problem, trials=1)
    before = study.trials, study.user_attrs, study.directions
    with pytest.raises(ConfigurationError, match="searches something else") as raised:
        open_study(storage, "s", make_problem(**changes), measures, resume=True)
    for line in lines:
        assert line in str(raised.value)
    again = optuna.load_study(study_name="s", storage=storage)
    assert (again.trials, again.user_attrs, again.directions) == before


def test_a_study_of_another_program_is_refused():
    storage = memory()
    optuna.create_study(storage=storage, study_name="s")
    with pytest.raises(ConfigurationError, match="not made by metaplastic"):
        open_study(storage, "s", make_problem(), resume=True)
