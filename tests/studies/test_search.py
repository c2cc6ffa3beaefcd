"""``python -m studies search``: killed workers, studies that go on, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState

from metaplastic.recipes import RECIPES
from metaplastic.rule_file import read_rule
from metaplastic.tune import finished, make_sampler, open_storage, open_study, search
from studies.config import make_config
from studies.search import Search, make_problem, run_workers
from tests.studies import postgres
from tests.studies.conftest import read

ROOT = Path(__file__).parents[2]
SMALL = ("search", "--task", "sinusoid-continual", "--preset", "smoke", "--grace", "3")
NAME = "sinusoid-continual-flp"


def stored(place: object, name: str = NAME) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=open_storage(str(place)))


def plain(study: optuna.Study) -> list[dict[str, Any]]:
    """Trials without times and artifacts."""
    timed = ("seconds", "artifacts", "worker")
    return [
        {
            "params": t.params,
            "state": t.state,
            "values": t.values,
            "on the way": t.intermediate_values,
            "attributes": {k: v for k, v in t.user_attrs.items() if k not in timed},
        }
        for t in study.trials
    ]


def workers_of(process: subprocess.Popen) -> list[int]:
    """Its worker processes."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = []
    for child in children:
        with suppress(OSError):  # it has ended meanwhile
            if b"--multiprocessing-fork" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


def wait_for(condition: Callable[[], Any], process: subprocess.Popen, seconds: float = 300) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        assert process.poll() is None, "the search ended before it could be disturbed"
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def kill_twice(place: str, out: Path) -> None:
    """Two workers, of which one is killed in the middle of a trial, and later one again."""
    total = 6
    command = [
        sys.executable, "-m", "studies", *SMALL, "--learner", "flp", "--steps", "160",
        "--trials", total, "--workers", 2, "--storage", place, "--out", out,
    ]  # fmt: skip
    log = out.with_suffix(".log")
    with log.open("w") as stream:
        process = subprocess.Popen(
            list(map(str, command)), cwd=ROOT, stdout=stream, stderr=stream,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        wait_for(lambda: "trial 0" in log.read_text(), process)
        storage = open_storage(place)
        study = optuna.load_study(study_name=NAME, storage=storage)
        before: dict[int, Any] = {}
        victims: dict[int, int] = {}

        def midway() -> tuple[int, int] | None:
            alive = workers_of(process)
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                worker = int(trial.user_attrs.get("worker", ":0").split(":")[-1])
                if worker in alive and 1 <= len(trial.intermediate_values) <= 5:
                    return trial.number, worker
            return None

        while len(victims) < 2:
            number, worker = wait_for(midway, process)
            before |= {t.number: (t.params, t.values, t.user_attrs) for t in finished(study)}
            os.kill(worker, signal.SIGKILL)
            victims[number] = worker
            wait_for(lambda gone=worker: gone not in workers_of(process), process)
        assert process.wait(timeout=300) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    done = finished(study)
    assert len(done) == total, log.read_text()
    assert before
    for number, kept in before.items():
        trial = study.trials[number]
        assert (trial.params, trial.values, trial.user_attrs) == kept
    others = [t for t in study.trials if t.state == TrialState.FAIL]
    killed = [t for t in others if t.user_attrs.get("outcome") != "surplus"]
    assert {t.number for t in killed} == set(victims)
    assert len(done) + len(others) == len(study.trials)
    for attempt in killed:
        same = [t for t in done if t.user_attrs["options"] == attempt.user_attrs["options"]]
        assert len(same) == 1
        assert same[0].params == attempt.params
        assert attempt.number in same[0].system_attrs["retry_history"]
    assert read(out)["config"]["trials"] == total
    storage.remove_session()
    storage.engine.dispose()  # type: ignore[attr-defined] - a database in all of these tests


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="finds the workers through /proc"
)


@needs_proc
def test_killed_workers_lose_nothing_on_sqlite(tmp_path):
    kill_twice(str(tmp_path / "study.db"), tmp_path / "out")


@needs_proc
@pytest.mark.slow
@pytest.mark.skipif(postgres.find("initdb") is None, reason="needs PostgreSQL's server")
def test_killed_workers_lose_nothing_on_postgresql(tmp_path):
    pytest.importorskip("psycopg", reason="needs psycopg")
    with postgres.server() as url:
        kill_twice(url, tmp_path / "out")


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Path:
    """The folder of a small search with one worker."""
    out = tmp_path_factory.mktemp("search") / "first"
    done = subprocess.run(
        [sys.executable, "-m", "studies", *SMALL, "--learner", "flp", "--trials", "3", "--seed",
         "4", "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def test_one_seed_and_one_worker_repeat_bit_for_bit(searched, command, tmp_path):
    verbosity = optuna.logging.get_verbosity()
    out = tmp_path / "again"
    done = command(*SMALL, "--learner", "flp", "--trials", 3, "--seed", 4, "--out", out)
    assert done.code == 0
    assert optuna.logging.get_verbosity() == verbosity
    assert plain(stored(out / "study.db")) == plain(stored(searched / "study.db"))


def test_a_search_leaves_its_trials_and_their_rules(searched):
    result = read(searched)
    study = stored(searched / "study.db")
    assert result["config"]["trials"] == len(finished(study)) == 3
    assert [t.user_attrs.get("baseline") for t in study.trials] == ["default", None, None]
    for trial in study.trials:
        kept = trial.user_attrs
        assert kept["outcome"] == "complete"
        assert kept["seed"] == 4 + trial.number
        assert kept["seconds"] > 0
        assert set(kept["versions"]) == {"torch", "optuna"}
        assert kept["validation"]["loss"] == trial.value
        rule = searched / "artifacts" / kept["artifacts"]["rule.safetensors"]
        assert read_rule(rule).score == trial.value
        curve = (searched / "artifacts" / kept["artifacts"]["curve.jsonl"]).read_text()
        assert [json.loads(line)["step"] for line in curve.splitlines()] == list(range(1, 21))


def test_a_study_is_gone_on_with_up_to_a_larger_number(searched, command, tmp_path):
    out = tmp_path / "on"
    shutil.copytree(searched, out)
    before = plain(stored(out / "study.db"))
    going = (*SMALL, "--learner", "flp", "--seed", 4, "--out", out, "--resume")
    assert command(*going, "--trials", 5).code == 0
    after = stored(out / "study.db")
    assert plain(after)[:3] == before
    assert len(finished(after)) == len(after.trials) == 5
    options = [json.dumps(t.user_attrs["options"]) for t in after.trials]
    assert len(set(options)) == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--learner", "oml"), ["learner: flp -> oml", "space.rate"]),
        (("--learner", "flp", "--steps", 7), ["steps: 20 -> 7"]),
        (("--learner", "flp", "--functions", 4), ["task_options.functions: 3 -> 4"]),
        (("--learner", "flp", "--objectives", "score,seconds"), ["measures"]),
        (("--learner", "flp", "--preset", "quick"), ["hidden", "validation: 20 -> 200"]),
    ],
)
def test_another_problem_under_the_same_name_is_refused(
    arguments, words, searched, command, tmp_path
):
    study = stored(searched / "study.db")
    before = plain(study), study.user_attrs
    done = command(
        *SMALL, *arguments, "--resume", "--storage", searched / "study.db",
        "--study-name", NAME, "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 2
    for text in ("searches something else", *words):
        assert text in done.err
    study = stored(searched / "study.db")
    assert (plain(study), study.user_attrs) == before


def test_a_name_that_is_taken_or_missing_is_refused(searched, command, tmp_path):
    place = ("--learner", "flp", "--storage", searched / "study.db", "--out", tmp_path / "out")
    before = plain(stored(searched / "study.db"))
    taken = command(*SMALL, *place)
    assert taken.code == 2
    assert "--resume" in taken.err
    missing = command(*SMALL, *place, "--resume", "--study-name", "other")
    assert missing.code == 2
    assert NAME in missing.err
    assert plain(stored(searched / "study.db")) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--sampler", "tpw"), "tpe"),
        (("--pruner", "medium"), "median"),
        (("--objectives", "score,speed"), "seconds"),
        (("--objectives", "score,score"), "once"),
        (("--objectives", "score,seconds", "--pruner", "median"), "not pruned"),
        (("--objectives", "score,seconds", "--sampler", "cmaes"), "one objective"),
        (("--objectives", "seconds", "--pruner", "wilcoxon"), "by the episode"),
        (("--trials", 0), "count from 1"),
        (("--workers", 0), "count from 1"),
        (("--grace", 1), "from 2"),
        (("--resume",), "--storage"),
        (("--storage", "nosuchbase://here"), "cannot be opened"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(arguments, words, command, tmp_path):
    out = () if arguments == ("--resume",) else ("--out", tmp_path / "out")
    done = command(*SMALL, "--learner", "flp", *out, *arguments)
    assert done.code == 2
    assert words in done.err


def job(folder: Path, **changes: Any) -> Search:
    config = make_config("sinusoid-continual", "flp", "smoke", 0)
    place = str(folder / "study.db")
    made = Search(
        config, place, "s", str(folder), 2, "random", "none", ("score",), None, "cpu", 1, 3, 0
    )
    problem = make_problem(config, torch.device("cpu"))
    open_study(open_storage(place, interval=1, grace=3), "s", problem)
    return replace(made, **changes)


def test_a_worker_that_fails_ends_the_search(tmp_path):
    with pytest.raises(RuntimeError, match="a worker failed"):
        run_workers(job(tmp_path, device="nosuchdevice"), 1, lambda study: None)


def test_a_stop_ends_the_workers(tmp_path):
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        run_workers(job(tmp_path, trials=50), 1, lambda study: None, lambda: True)
    study = stored(tmp_path / "study.db", "s")
    assert len(finished(study)) < 50


@pytest.mark.slow
def test_a_journal_is_taken_with_a_notice(command, tmp_path):
    out = tmp_path / "out"
    done = command(
        *SMALL, "--learner", "flp", "--trials", 3, "--workers", 2, "--out", out,
        "--storage", tmp_path / "study.journal", "--pruner", "wilcoxon",
    )  # fmt: skip
    assert done.code == 0
    assert "no signs of life" in done.out
    assert len(finished(stored(tmp_path / "study.journal"))) == 3


@pytest.mark.slow
def test_several_objectives(command, tmp_path):
    out = tmp_path / "out"
    done = command(
        *SMALL, "--learner", "flp", "--trials", 4, "--out", out, "--objectives", "score,forgetting"
    )
    assert done.code == 0
    study = stored(out / "study.db")
    assert [d.name for d in study.directions] == ["MINIMIZE", "MINIMIZE"]
    assert study.best_trials
    assert all(t.state == TrialState.COMPLETE for t in study.trials)


@pytest.mark.slow
def test_a_learner_that_diverges_ends_as_an_outcome(command, tmp_path):
    settings = tmp_path / "wild.toml"
    settings.write_text("plasticity = 1e20\ninitial_rate = 1.0\n", encoding="utf-8")
    out = tmp_path / "out"
    done = command(
        *SMALL, "--learner", "flp-faithful", "--config", settings, "--trials", 3, "--out", out
    )
    assert done.code == 0
    diverged = [
        t
        for t in finished(stored(out / "study.db", "sinusoid-continual-flp-faithful"))
        if t.user_attrs["outcome"] == "diverged"
    ]
    assert diverged
    for trial in diverged:
        assert trial.state == TrialState.PRUNED
        assert trial.user_attrs["reason"]
    assert "diverged" in done.last


@pytest.mark.slow
@pytest.mark.parametrize("learner", RECIPES)
def test_every_learner_can_be_searched(learner):
    config = make_config("sinusoid-continual", learner, "smoke", 0)
    problem = make_problem(config, torch.device("cpu"))
    storage = optuna.storages.InMemoryStorage()
    study = open_study(storage, "s", problem, sampler=make_sampler("random", 0, problem.space, 2))
    search(study, problem, trials=2)
    default, other = study.trials
    assert default.user_attrs["baseline"] == "default"
    assert default.user_attrs["options"] == json.loads(json.dumps(config.options))
    assert set(default.params) == set(RECIPES[learner].space)
    changed = {
        name
        for name, value in default.user_attrs["options"].items()
        if other.user_attrs["options"][name] != value
    }
    published = RECIPES[learner].published is not None
    assert changed == (set() if published else set(RECIPES[learner].space))
    assert {t.user_attrs["outcome"] for t in study.trials} <= {"complete", "diverged"}
