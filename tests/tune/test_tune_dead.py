"""The moment between a dead trial's failing and its parameters being queued again."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState

from metaplastic.tune import dead
from metaplastic.tune.dead import awaited
from metaplastic.tune.trial import SurplusError, TrialObjective
from tests.tune.synthetic import make_problem


def study_with_a_dead_trial() -> tuple[optuna.Study, int]:
    """One finished trial, and one that has just failed."""
    study = optuna.create_study()
    study.tell(study.ask(), 1.0)
    gone = study.ask()
    study.tell(gone, state=TrialState.FAIL)
    return study, gone.number


def queue(study: optuna.Study, number: int) -> None:
    retry = optuna.create_trial(
        state=TrialState.WAITING, system_attrs={"failed_trial": number, "retry_history": [number]}
    )
    study.add_trial(retry)


def test_a_dead_trial_is_awaited_until_it_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    study, gone = study_with_a_dead_trial()
    assert awaited(study.trials) == 1
    queue(study, gone)
    assert awaited(study.trials) == 0
    other, _ = study_with_a_dead_trial()
    monkeypatch.setattr(dead, "MOMENT", 0)
    assert awaited(other.trials) == 0


def test_a_trial_that_gave_way_is_not_awaited() -> None:
    study = optuna.create_study()
    trial = study.ask()
    trial.set_user_attr("outcome", "surplus")
    study.tell(trial, state=TrialState.FAIL)
    assert awaited(study.trials) == 0


@pytest.mark.parametrize("queued", [False, True])
def test_nobody_takes_the_place_of_a_dead_trial(queued: bool) -> None:
    """Of two trials that are wanted one is finished and one has died: a new one gives way to the
    dead one's parameters, before and after they are queued."""
    study, gone = study_with_a_dead_trial()
    new = study.ask()
    if queued:
        queue(study, gone)
    with pytest.raises(SurplusError):
        TrialObjective(make_problem(), ("score",), 0, 2, None, lambda *_: None)(new)
