"""The search: how trials are counted, what they leave behind, and what ends them."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.artifacts import FileSystemArtifactStore, download_artifact
from optuna.trial import TrialState

from metaplastic.errors import ConfigurationError
from metaplastic.rule_file import read_rule
from metaplastic.tune import finished, make_pruner, make_sampler, open_storage, open_study, search
from metaplastic.tune.dead import DeadTrials
from metaplastic.tune.problem import PATIENCE
from metaplastic.tune.storage import has_heartbeat
from metaplastic.tune.trial import SurplusError, TrialObjective
from tests.tune.synthetic import (
    DEFAULTS,
    SPACE,
    abandoned,
    database,
    diverging,
    make_problem,
    memory,
    slow,
    training,
)


def plain(study: optuna.Study) -> list[tuple]:
    """What two studies of one seed share: all but times."""
    return [
        (t.number, t.state, t.params, t.user_attrs["options"], t.user_attrs["seed"], t.values,
         t.user_attrs.get("validation"), t.intermediate_values)
        for t in study.trials
    ]  # fmt: skip


def test_as_many_trials_as_asked_for_and_later_the_difference():
    problem = make_problem()
    study = open_study(memory(), "s", problem, sampler=optuna.samplers.RandomSampler(seed=0))
    search(study, problem, trials=3)
    first = plain(study)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 3
    search(study, problem, trials=3)
    assert plain(study) == first
    search(study, problem, trials=5)
    assert plain(study)[:3] == first
    assert len(finished(study)) == len(study.trials) == 5


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_one_seed_is_one_search(sampler):
    found = []
    for seed in (3, 3, 4):
        problem = make_problem()
        study = open_study(
            memory(), "s", problem, sampler=make_sampler(sampler, seed, SPACE, 8),
            pruner=make_pruner("median"),
        )  # fmt: skip
        search(study, problem, trials=8, seed=seed)
        found.append(plain(study))
    assert found[0] == found[1]
    assert [t[3] for t in found[0][1:]] != [t[3] for t in found[2][1:]]
    assert [t[4] for t in found[2]] == list(range(4, 12))


def test_a_trial_is_the_training_with_its_options_and_seed():
    problem = make_problem()
    study = open_study(memory(), "s", problem)
    search(study, problem, trials=2, seed=11)
    for trial in study.trials:
        again = training(trial.user_attrs["options"], 11 + trial.number)
        for _ in again.run(problem.steps):
            pass
        score = problem.score(list(problem.batches(again)), time.monotonic())
        assert trial.value == score.value("score") == trial.user_attrs["validation"]["accuracy"]


def test_a_trial_keeps_how_it_was_made_and_what_came_out(tmp_path):
    problem = make_problem()
    store = FileSystemArtifactStore(str(tmp_path))
    study = open_study(memory(), "s", problem)
    search(study, problem, trials=2, artifacts=store, seed=5)
    for trial in study.trials:
        kept = trial.user_attrs
        assert kept["outcome"] == "complete"
        assert kept["seed"] == 5 + trial.number
        assert set(kept["options"]) == set(DEFAULTS)
        assert kept["versions"] == {
            "torch": version("torch"),
            "optuna": optuna.__version__,
        }
        assert kept["seconds"] > 0
        assert "reason" not in kept
        validation = kept["validation"]
        assert set(validation) == {"loss", "accuracy", "forgetting", "diverged"}
        assert validation["diverged"] == 0
        assert trial.value == validation["accuracy"]
        folder = tmp_path / f"trial-{trial.number}"
        folder.mkdir()
        for name, artifact in kept["artifacts"].items():
            download_artifact(
                artifact_store=store, artifact_id=artifact, file_path=str(folder / name)
            )
        lines = (folder / "curve.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]
        assert read_rule(folder / "rule.safetensors").score == trial.value


def test_a_trial_that_diverges_is_an_outcome_with_its_reason(tmp_path):
    problem = make_problem(
        training=diverging,
        steps=PATIENCE + 5,
    )
    store = FileSystemArtifactStore(str(tmp_path))
    study = open_study(memory(), "s", problem)
    search(study, problem, trials=2, artifacts=store)
    for trial in study.trials:
        assert trial.state == TrialState.PRUNED
        assert trial.user_attrs["outcome"] == "diverged"
        assert trial.user_attrs["seconds"] >= 0
        assert trial.user_attrs["reason"]
        assert set(trial.user_attrs["artifacts"]) == {"curve.jsonl"}
    assert len(finished(study)) == 2


def test_a_bug_is_not_an_outcome():
    def bug(options, seed):
        raise ZeroDivisionError("of my own")

    problem = make_problem(training=bug)
    study = open_study(memory(), "s", problem)
    with pytest.raises(ZeroDivisionError, match="of my own"):
        search(study, problem, trials=2)
    assert [t.state for t in study.trials if t.state.is_finished()] == [TrialState.FAIL]
    assert finished(study) == []


def test_no_trial_begins_after_the_timeout():
    problem = make_problem(training=slow(0.3))
    study = open_study(memory(), "s", problem)
    search(study, problem, trials=100, timeout=0.5)
    assert 1 <= len(finished(study)) <= 2
    search(study, problem, trials=100, timeout=0.0)
    assert 1 <= len(finished(study)) <= 2


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes", "random", "grid"])
@pytest.mark.parametrize("pruner", ["median", "wilcoxon"])
def test_nothing_global_changes(sampler, pruner):
    before = (
        optuna.logging.get_verbosity(), random.getstate(), torch.get_rng_state(),
        np.random.get_state(), torch.get_default_dtype(), torch.get_num_threads(),
    )  # fmt: skip
    problem = make_problem()
    study = open_study(
        memory(), "s", problem, sampler=make_sampler(sampler, 0, SPACE, 7),
        pruner=make_pruner(pruner),
    )  # fmt: skip
    search(study, problem, trials=7)
    assert len(finished(study)) == 7
    assert optuna.logging.get_verbosity() == before[0]
    assert random.getstate() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[3], strict=True))
    assert (torch.get_default_dtype(), torch.get_num_threads()) == before[4:]


@pytest.mark.parametrize(("trials", "outcome"), [(2, "surplus"), (3, "complete")])
def test_of_two_workers_that_begin_the_last_trial_one_gives_way(trials, outcome):
    problem = make_problem()
    study = open_study(memory(), "s", problem)
    search(study, problem, trials=1)
    abandoned(study)  # has the lower number, and goes first
    objective = TrialObjective(
        problem, ("score",), 0, trials, None, lambda trial, stop, stops, value: None
    )
    study.optimize(objective, n_trials=1, catch=(SurplusError,))
    assert study.trials[-1].user_attrs["outcome"] == outcome
    assert len(finished(study)) == trials - 1


def test_the_parameters_of_a_trial_without_signs_of_life_run_again(tmp_path):
    problem = make_problem()
    storage = database(tmp_path)
    study = open_study(storage, "s", problem, sampler=make_sampler("random", 0, SPACE, 5))
    search(study, problem, trials=2, timeout=60)
    trial = abandoned(study)
    drawn = {name: d.suggest(trial, name) for name, d in SPACE.items()}
    storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
    search(study, problem, trials=5, timeout=60)
    assert len(finished(study)) == 5
    failed, again = study.trials[2], study.trials[-1]
    assert failed.state == TrialState.FAIL
    retries = [t for t in study.trials if t.params == failed.params and t.number != 2]
    assert [t.user_attrs["options"] for t in retries] == [{**DEFAULTS, **drawn}]
    assert again.state == TrialState.COMPLETE


def test_a_worker_that_died_before_its_first_sign_of_life_holds_nobody_up(tmp_path, monkeypatch):
    monkeypatch.setattr("metaplastic.tune.dead.SILENCE", 1)
    problem = make_problem()
    study = open_study(database(tmp_path), "s", problem)
    abandoned(study)  # takes the default, and is never heard of again
    search(study, problem, trials=2, timeout=60)
    assert study.trials[0].state == TrialState.FAIL
    assert [t.user_attrs.get("baseline") for t in finished(study)] == [None, "default"]
    assert finished(study)[1].user_attrs["options"] == DEFAULTS


def test_a_worker_that_slept_too_long_goes_on_with_another_trial(tmp_path):
    storage = database(tmp_path)
    taken = []

    def steal(options, seed):
        if not taken:
            (running,) = study.get_trials(states=(TrialState.RUNNING,))
            taken.append(running.number)
            other = optuna.load_study(study_name="s", storage=database(tmp_path))
            other.tell(running.number, state=TrialState.FAIL)
        return training(options, seed)

    problem = make_problem(training=steal)
    study = open_study(storage, "s", problem)
    search(study, problem, trials=2, timeout=60)
    assert [t.state for t in study.trials] == [TrialState.FAIL] + [TrialState.COMPLETE] * 2


def test_a_journal_serves_and_waits_for_nobody(tmp_path):
    problem = make_problem()
    storage = open_storage(tmp_path / "study.journal")
    assert not has_heartbeat(storage)
    study = open_study(storage, "s", problem)
    search(study, problem, trials=2, timeout=60)
    abandoned(study)  # stays as running for ever, and takes a place
    assert not DeadTrials(study).known
    search(study, problem, trials=4, timeout=60)
    assert len(finished(study)) == 3
    again = open_study(open_storage(tmp_path / "study.journal"), "s", problem, resume=True)
    assert len(finished(again)) == 3


def test_a_place_that_cannot_be_opened_is_named_without_its_password(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        open_storage(tmp_path / "no" / "such" / "folder" / "study.db")
    with pytest.raises(ConfigurationError, match="cannot be opened") as raised:
        open_storage("nosuchbase://me:secret@nowhere/x")
    assert "secret" not in str(raised.value)
    with pytest.raises(ConfigurationError, match="below the grace time; got 5 and 5"):
        open_storage(tmp_path / "study.db", interval=5, grace=5)


WORKER = """
import os, signal, sys
import optuna
from metaplastic.tune import search
from tests.tune.synthetic import database, make_problem, slow
from pathlib import Path

folder = Path(sys.argv[1])
study = optuna.load_study(study_name="s", storage=database(folder))
search(study, make_problem(training=slow(30.0)), trials=4)
"""


def test_a_killed_process_costs_its_trial_and_no_more(tmp_path):
    problem = make_problem()
    study = open_study(
        database(tmp_path), "s", problem, sampler=make_sampler("random", 1, SPACE, 4)
    )
    search(study, problem, trials=2, timeout=60)
    before = plain(study)
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path)], cwd=Path(__file__).parents[2],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not any(
            t.state == TrialState.RUNNING and "options" in t.user_attrs for t in study.trials
        ):
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    search(study, problem, trials=4, timeout=600)
    assert plain(study)[:2] == before
    killed = study.trials[2]
    assert killed.state == TrialState.FAIL
    assert sum(t.params == killed.params for t in finished(study)) == 1
    assert len(finished(study)) == 4
