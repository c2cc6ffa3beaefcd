"""Reports of searches: the best trials again on fresh seeds, their pictures, and the export."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import optuna
import pytest
import torch
from optuna.artifacts import FileSystemArtifactStore
from optuna.distributions import BaseDistribution, FloatDistribution

from metaplastic.evaluation import evaluate
from metaplastic.seeds import evaluation_stream
from metaplastic.tune import finished, open_storage, open_study, search
from metaplastic.tune.problem import Score
from studies.assembly import make_learner, make_run_task, make_training
from studies.cli import make_parser
from studies.commands.train import given_sizes
from studies.config import make_config, read_config
from studies.figures_space import importance_figure, position, slices_figure
from studies.gather import Curve
from studies.report import render
from studies.results import KEYS, ROW_KEYS
from studies.search import make_problem, sign, trial_config
from studies.search_again import Candidate, Job, Outcome, again, chosen, fresh_seeds
from studies.search_page import write_search_page
from studies.search_read import Study, Trial, read_study, scale
from studies.search_standings import standings, verdict
from studies.spelling import run_words
from tests.studies.conftest import read

CPU = torch.device("cpu")
MADE_BY = "python -m studies search --task sinusoid-continual"


def tiny(task: str = "sinusoid-continual", learner: str = "flp", **sizes):
    """A run of two meta-steps, scored on six episodes."""
    sizes = sizes or {"functions": 2}
    config = make_config(task, learner, "smoke", 0, steps=2, episodes=1, task_options=sizes)
    return replace(config, test=6, rate_search={})


def make_study(folder, config, measures=("score",), trials=6, name="tiny", signed=True):
    """A study as ``search`` makes it, in this process."""
    problem = make_problem(config, CPU)
    study = open_study(open_storage(folder / "study.db"), name, problem, measures,
                       sampler=optuna.samplers.RandomSampler(seed=0))  # fmt: skip
    if signed:
        sign(study, config, MADE_BY)
    (folder / "artifacts").mkdir(exist_ok=True)
    store = FileSystemArtifactStore(str(folder / "artifacts"))
    search(study, problem, trials=trials, measures=measures, artifacts=store)
    return study


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, study) of one objective."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = tmp_path_factory.mktemp("search")
    return folder, make_study(folder, tiny())


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(folder, study) of two objectives."""
    folder = tmp_path_factory.mktemp("search")
    return folder, make_study(folder, tiny(), ("score", "forgetting"))


@pytest.fixture
def here(monkeypatch):
    """Runs in this process instead of workers."""

    def run_jobs(function, jobs, workers, display, words):
        return {name: function(job, lambda status: None) for name, job in jobs.items()}

    monkeypatch.setattr("studies.search_again.run_jobs", run_jobs)


def half(values) -> float:
    """Half the 95 % interval of the mean of three values."""
    return 4.303 * float(np.std(values, ddof=1)) / math.sqrt(3)


# --- what is run again ----------------------------------------------------------------------


def test_the_table_is_what_the_runs_say_and_a_run_is_what_the_library_says(made, command, tmp_path):
    folder, study = made
    out = tmp_path / "report"
    done = command("search-report", folder, "--best", 2, "--workers", 2, "--out", out)
    assert done.code == 0, done.err
    result, content = read(out), json.loads((out / "search.json").read_text())
    assert tuple(result) == KEYS
    assert [tuple(row) for row in result["rows"]] == [ROW_KEYS] * 9
    assert result["seeds"] == [10_000, 10_001, 10_002]
    assert done.last == result["headline"]

    # The two best trials besides the default, by the values that Optuna holds.
    others = sorted(study.trials[1:], key=lambda t: t.value)[:2]
    wanted = [0, *(t.number for t in others)]
    losses = {
        n: np.array([r["loss"] for r in result["rows"] if r["learner"] == f"flp trial {n}"])
        for n in wanted
    }
    lines = {line["trial"]: line for line in content["again"]["score"]}
    assert sorted(lines, key=lambda n: losses[n].mean()) == list(lines)
    for number, line in lines.items():
        value = study.trials[number].value
        assert line["search"] == value
        assert line["mean"] == pytest.approx(losses[number].mean())
        assert line["spread"] == pytest.approx(np.std(losses[number], ddof=1))
        assert line["half"] == pytest.approx(half(losses[number]))
        if number == 0:
            assert line["better"] is line["better_half"] is line["search_better"] is None
            continue
        gains = losses[0] - losses[number]  # a loss: less is better
        assert line["better"] == pytest.approx(gains.mean())
        assert line["better_half"] == pytest.approx(half(gains))
        assert line["search_better"] == pytest.approx(study.trials[0].value - value)
    assert content["command"] == MADE_BY
    assert len(content["trials"]) == 6

    # One of the runs, from the library's parts alone.
    number = wanted[1]
    config = trial_config(tiny(), study.trials[number].user_attrs["options"], 10_001)
    task = make_run_task(config, CPU)
    learner = make_learner(config, task, CPU)
    for _ in make_training(config, task, learner).run(config.steps):
        pass
    episodes = task.episodes("validation", 6, evaluation_stream(10))
    loss = evaluate(learner, episodes, generator=evaluation_stream(1000)).loss.mean()
    assert losses[number][1] == pytest.approx(float(loss), rel=1e-6)
    for name in ("again-score", "history", "slices", "curves"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "report.html").read_text()
    assert page.count("data:image/png") == 4
    assert "too few for importances" in page


def test_fresh_seeds_and_episodes_are_fresh_and_the_test_episodes_stay_unseen(made, monkeypatch):
    folder, _ = made
    study = read_study(str(folder / "study.db"), "tiny", folder / "artifacts")
    assert fresh_seeds(study, 2) == [10_000, 10_001]
    seeds = (9_999, 10_000, 10_002, 1, 1, 1)
    used = [replace(t, seed=seed) for t, seed in zip(study.trials, seeds, strict=True)]
    assert fresh_seeds(replace(study, trials=used), 3) == [10_001, 10_003, 10_004]
    searched, fresh = make_problem(study.config, CPU), make_problem(study.config, CPU, stream=10)
    for a, b in zip(searched.validation, fresh.validation, strict=True):
        assert not torch.isclose(a.query_y, b.query_y).any()

    splits = []
    task = type(make_run_task(study.config, CPU))
    episodes = task.episodes

    def spied(self, split, count, generator):
        splits.append(split)
        return episodes(self, split, count, generator)

    monkeypatch.setattr(task, "episodes", spied)
    outcome = again(Job(study.config, "cpu"), lambda status: None)
    assert outcome.score is not None
    assert set(splits) == {"train", "validation"}


def test_a_run_that_diverges_is_an_outcome():
    options = {**tiny().options, "bounded": False, "plasticity": 1e4, "clamp": False}
    outcome = again(Job(trial_config(tiny(), options, 1), "cpu"), lambda status: None)
    assert outcome.score is None
    assert "diverged" in outcome.reason


@pytest.mark.usefixtures("here")
def test_all_objectives_of_the_front(both, command, tmp_path):
    folder, study = both
    out = tmp_path / "report"
    done = command("search-report", folder, "--best", 2, "--seeds", 1, "--out", out)
    assert done.code == 0, done.err
    content = json.loads((out / "search.json").read_text())
    front = sorted(t.number for t in study.best_trials)
    assert content["front"] == front
    numbers = {line["trial"] for line in content["again"]["score"]}
    assert numbers == {line["trial"] for line in content["again"]["forgetting"]}
    assert numbers - {0} <= set(front)
    assert (out / "front.png").is_file()
    assert (out / "again-forgetting.png").is_file()
    assert "tells nothing" in done.last  # of one seed


# --- by hand --------------------------------------------------------------------------------


def trial(number, value, baseline="", outcome="complete", **parameters) -> Trial:
    values = None if outcome != "complete" else (value if isinstance(value, tuple) else (value,))
    curve = Curve(np.arange(1, 9), np.linspace(2, 1, 8), None)
    return Trial(
        number, outcome, baseline, values, parameters, {"rate": 0.1}, number, 1.0, "", curve
    )


def study_of(trials, measures=("score",), maximize=(True,), space=None, front=()) -> Study:
    config = tiny("glyphs-continual", "flp", ways=3)
    return Study("s", config, MADE_BY, measures, maximize, space or {}, trials, list(front), {}, "")


def candidate(of: Trial, *accuracies) -> Candidate:
    scores = [None if a is None else Score(1 - a, a, 0.1, 0, 1.0) for a in accuracies]
    return Candidate(of, [Outcome(10_000 + i, s, 0.01) for i, s in enumerate(scores)])


def test_standings_by_hand():
    study = study_of([trial(0, 0.5, "default"), trial(1, 0.7), trial(2, 0.6)])
    default, lucky, lost = study.trials
    found = standings(
        study,
        [candidate(default, 0.5, 0.6, 0.4), candidate(lucky, 0.55, 0.62, 0.48),
         candidate(lost, 0.9, None, 0.8)],
    )["score"]  # fmt: skip
    assert [line.trial for line in found] == [1, 0, 2]  # what diverged with a seed is last
    first, base, last = found
    assert first.mean == pytest.approx(0.55)
    assert first.better == pytest.approx(0.05)  # more is better
    assert first.better_half == pytest.approx(half([0.05, 0.02, 0.08]))
    assert first.search_better == pytest.approx(0.2)
    assert base.better is None
    assert (last.diverged, last.mean) == (1, pytest.approx(0.85))
    assert last.better == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("fresh", "words"),
    [
        ((0.6, 0.71, 0.5), "trial 1 beats the default by 10.3 ± 1.4 points (95 % interval"),
        ((0.55, 0.8, 0.4), "no trial beats the default by more than the interval; the best, "
                           "trial 1, is 8.3 ± 25.9 points better"),
        ((0.4, 0.5, 0.3), "no trial beats the default; the best, trial 1, is 10.0 ± 0.0 points"),
        ((None, None, None), "no trial stayed finite"),
    ],
)  # fmt: skip
def test_the_verdict_says_what_the_interval_allows(fresh, words):
    study = study_of([trial(0, 0.5, "default"), trial(1, 0.7)])
    found = standings(
        study, [candidate(study.trials[0], 0.5, 0.6, 0.4), candidate(study.trials[1], *fresh)]
    )
    said = verdict(found, study.config.chance, 3)
    assert said.startswith("accuracy: ")
    assert words in said


def test_trials_of_a_front_are_spread_over_it():
    trials = [trial(0, (0.1, 0.9), "default")]
    trials += [trial(n, (n / 10, n / 10)) for n in range(1, 8)]
    study = study_of(trials, ("score", "forgetting"), (True, False), front=range(1, 8))
    assert [t.number for t in chosen(study, 3)] == [0, 7, 4, 1]
    assert [t.number for t in chosen(study, 9)] == [0, 7, 6, 5, 4, 3, 2, 1]
    one = study_of([trial(n, n / 10, "published" if n == 3 else "") for n in range(6)])
    assert [t.number for t in chosen(one, 2)] == [3, 5, 4]


def test_scales():
    assert scale("score", 0.2).text(0.6134) == "61.3"
    assert scale("forgetting", 0.2).text(0.05, "+") == "+5.0"
    assert scale("score", None).text(1.23456) == "1.2346"
    assert scale("score", None).text(123456.0) == "1.23e+05"
    assert scale("score", None).text(None) == scale("score", None).text(math.nan) == "–"
    assert (scale("score", 0.2).label, scale("seconds", 0.2).label) == ("accuracy (%)", "seconds")


SPACE = {
    "rate": {"type": "Log", "low": 1e-3, "high": 1.0},
    "mix": {"type": "OneMinus", "low": 0.5, "high": 0.99},
    "width": {"type": "PowerOfTwo", "low": 4, "high": 64},
    "kind": {"type": "Choice", "values": ["a", None]},
    "share": {"type": "Real", "low": 0.0, "high": 1.0},
}


def test_slices_stand_where_the_search_drew_them():
    assert position(SPACE["width"], 5) == 32
    assert position(SPACE["kind"], None) == 1
    assert position(SPACE["mix"], 0.1) == 0.1
    full = {"rate": 0.1, "mix": 0.1, "width": 5, "kind": None, "share": 0.3}
    trials = [
        trial(0, 0.5, "default", rate=0.1),  # a baseline may lie outside the space
        trial(1, 0.6, **full),
        trial(2, 0.0, outcome="pruned", **full),
        trial(3, 0.0, outcome="diverged", **full),
    ]
    study = study_of(trials, space=SPACE)
    figure = slices_figure(study)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["rate", "1 − mix", "width", "kind", "share"]
    drawn = [np.asarray(axes.collections[0].get_offsets()).tolist() for axes in figure.axes]
    assert drawn == [
        [[0.1, 50.0], [0.1, 60.0]],
        [[0.1, 60.0]],
        [[32.0, 60.0]],
        [[1.0, 60.0]],
        [[0.3, 60.0]],
    ]
    marks = [
        [line.get_xdata() for line in a.lines if len(line.get_xdata()) == 1] for a in figure.axes
    ]
    assert marks[0][-2:] == [[0.1], [0.1]]  # pruned and diverged
    assert marks[3] == [[1.0], [1.0]]
    assert [axes.get_xscale() for axes in figure.axes] == ["log"] * 3 + ["linear"] * 2
    assert importance_figure(study) is None
    assert render(lambda: importance_figure(replace(study, importance={"rate": 0.7, "mix": 0.3})))


def test_the_page_of_every_kind_of_trial_and_two_directions(tmp_path):
    trials = [
        trial(0, (0.5, 0.2), "default"),
        trial(1, (0.6, 0.3)),
        trial(2, 0, outcome="diverged"),
    ]
    study = study_of(trials, ("score", "forgetting"), (True, False), front=(0, 1))
    study = replace(study, name="<odd>", space={"rate": SPACE["rate"]})
    candidates = [candidate(t, 0.5 + 0.1 * t.number) for t in trials[:2]]
    result = {
        "rows": [{"episodes": 6}], "seeds": [10_000], "headline": "a < b", "date": "today",
        "machine": {"processor": "p", "cores": 1, "device": "cpu"}, "versions": {},
    }  # fmt: skip
    left_out = write_search_page(tmp_path, study, candidates, standings(study, candidates), result)
    assert left_out == []
    page = (tmp_path / "report.html").read_text()
    assert "&lt;odd&gt;" in page
    assert "<odd>" not in page
    assert "2 complete, 1 diverged" in page
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == [
        "again-forgetting", "again-score", "curves", "front", "history", "slices",
    ]  # fmt: skip


# --- the export -----------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_the_best_options_go_to_train_and_come_out_the_same(made, command, tmp_path):
    folder, study = made
    file = tmp_path / "kept" / "best.toml"
    report = ("search-report", folder, "--seeds", 2, "--best", 2, "--export-best", file)
    done = command(*report, "--out", tmp_path / "report")
    assert done.code == 0, done.err
    content = json.loads((tmp_path / "report" / "search.json").read_text())
    number = content["again"]["score"][0]["trial"]
    text = file.read_text()
    assert "10000, 10001" in text
    assert f"searched with: {MADE_BY}" in text
    assert f"(trial {number})" in text or f"trial {number}\n" in text
    words = text.split("train with: python -m studies ")[1].splitlines()[0].split()
    assert words[-2:] == ["--config", "best.toml"]
    run = tmp_path / "run"
    trained = command(*words[:-1], file, "--steps", 1, "--out", run, "--device", "cpu")
    assert trained.code == 0, trained.err
    config = read_config(run)
    assert config.options == study.trials[number].user_attrs["options"]
    assert config.rate_search == {}

    refused = command(*report, "--out", tmp_path / "another")
    assert refused.code == 2
    assert "--overwrite" in refused.err
    assert not (tmp_path / "another").exists()
    assert file.read_text() == text
    assert command(*report, "--out", tmp_path / "another", "--overwrite").code == 0


@pytest.mark.parametrize(
    "words",
    [
        "--task sinusoid-continual --learner flp --preset quick",
        "--task glyphs-continual --learner oml --preset smoke --metagradient truncated:2 --ways 3",
        "--task glyphs-iid --learner pool --preset quick --steps 7 --episodes 3 --arch mlp:8x8",
    ],
)
def test_a_configuration_is_spelt_as_it_was_asked_for(words):
    given = make_parser().parse_args(["train", *words.split()])
    config = make_config(
        given.task, given.learner, given.preset, 0, metagradient=given.metagradient,
        steps=given.steps, episodes=given.episodes, task_options=given_sizes(given),
        arch=given.arch,
    )  # fmt: skip
    spelt = run_words(config).split()
    assert sorted(zip(spelt[::2], spelt[1::2], strict=True)) == sorted(
        zip(words.split()[::2], words.split()[1::2], strict=True)
    )


# --- the command ----------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_a_study_by_name_without_its_curves(made, command, tmp_path):
    folder, _ = made
    storage = ("--storage", folder / "study.db", "--seeds", 1, "--best", 1)
    done = command("search-report", "tiny", *storage, "--artifacts", tmp_path, "--out",
                   tmp_path / "report")  # fmt: skip
    assert done.code == 0, done.err
    assert not (tmp_path / "report" / "curves.png").exists()
    assert "--artifacts" in (tmp_path / "report" / "report.html").read_text()
    wrong = command("search-report", "tinny", *storage)
    assert wrong.code == 2
    assert "Did you mean 'tiny'?" in wrong.err


@pytest.mark.usefixtures("bare", "here")
def test_a_bare_machine_gets_tables_and_is_told_what_is_missing(made, command, tmp_path):
    done = command("search-report", made[0], "--seeds", 1, "--best", 1, "--out", tmp_path / "r")
    assert done.code == 0, done.err
    assert "again-score.png" in done.out
    assert list((tmp_path / "r").glob("*.png")) == []
    assert "Left out without matplotlib" in (tmp_path / "r" / "report.html").read_text()


def test_what_cannot_be_reported_is_said_before_a_folder_is_made(
    made, command, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    nothing = {path for path in tmp_path.iterdir()}
    for arguments, message in (
        (("nowhere",), "--storage"),
        (("tiny", "--storage", "nowhere.db"), "no such file"),
        (("tiny", "--storage", "sqlite:///nowhere.db"), "no such file"),
        ((made[0], "--best", "0"), "count from 1"),
        ((made[0], "--out", made[0], "--overwrite"), "name another folder"),
        (("tiny", "--storage", made[0] / "study.db", "--artifacts", tmp_path / "x", "--out",
          made[0], "--overwrite"), "name another folder"),
    ):  # fmt: skip
        done = command("search-report", *arguments)
        assert done.code == 2
        assert message in done.err
    assert {path for path in tmp_path.iterdir()} == nothing


def test_studies_that_are_not_of_a_search(command, tmp_path):
    place = tmp_path / "study.db"
    storage = open_storage(place)
    optuna.create_study(storage=storage, study_name="foreign")
    assert "not made by metaplastic" in command("search-report", tmp_path).err
    own = make_study(tmp_path, tiny(), trials=1, name="own", signed=False)
    assert len(finished(own)) == 1
    named = ("--storage", place)
    assert "data of its own" in command("search-report", "own", *named).err
    two = command("search-report", tmp_path)
    assert "2 studies (foreign, own)" in two.err
    empty = open_study(storage, "empty", make_problem(tiny(), CPU))
    sign(empty, tiny(), MADE_BY)
    assert "no complete trial" in command("search-report", "empty", *named).err


def test_importances_need_enough_trials(tmp_path):
    config, place = tiny(), str(tmp_path / "study.db")
    problem = make_problem(config, CPU)
    study = open_study(open_storage(place), "tiny", problem)
    sign(study, config, MADE_BY)
    distributions: dict[str, BaseDistribution] = {
        "initial_rate": FloatDistribution(1e-4, 0.1, log=True),
        "clip": FloatDistribution(0.1, 10, log=True),
    }
    draws = np.random.default_rng(0).uniform(size=(20, 2))
    trials = [
        optuna.create_trial(
            params={"initial_rate": 1e-4 * 1000**a, "clip": 0.1 * 100**b},
            distributions=distributions,
            value=float((a - 0.5) ** 2),  # the clip has no part in it
            user_attrs={"options": {}, "seed": 0},
        )
        for a, b in draws
    ]
    study.add_trials(trials[:19])
    few = read_study(place, "tiny", tmp_path)
    assert few.importance == {}
    assert "19 complete trials are too few" in few.importance_note
    study.add_trials(trials[19:])
    enough = read_study(place, "tiny", tmp_path)
    assert list(enough.importance) == ["initial_rate", "clip"]
    assert sum(enough.importance.values()) == pytest.approx(1)
    assert "rough" in enough.importance_note
