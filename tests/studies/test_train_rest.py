"""Learners at rest through the commands: what they are trained, scored and searched by."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from torch import nn

import studies.run
from metaplastic.errors import ConfigurationError
from metaplastic.evaluation import evaluate
from metaplastic.metagradient import LeastControl, Unrolled
from metaplastic.recipes import RECIPES, recipe
from metaplastic.seeds import evaluation_stream
from metaplastic.training import load_checkpoint
from metaplastic.tune import make_sampler, open_study, search
from studies.assembly import make_learner, make_run_task
from studies.config import (
    default_metagradient,
    make_config,
    make_metagradient,
    own_rest,
    read_config,
    run_metagradient,
)
from studies.networks import build_network
from studies.presets import PRESETS, sizes
from studies.results import REST_KEYS, ROW_KEYS
from studies.run import search_rate
from studies.scoring import BATCH, GRID, fitted_functions, score_run
from studies.search import make_problem
from studies.words import REST_HEAD, rest_head, rest_texts
from tasks import Sinusoid, make_task
from tests.helpers import presentation
from tests.studies.conftest import curve, read

CPU = torch.device("cpu")
TASK = "sinusoid-iid"
SMOKE = ("train", "--preset", "smoke", "--task", TASK)
NAMES = [name for name, known in RECIPES.items() if known.rest is not None]


def trained(folder: Path):
    """The learner of a run, its task and its configuration."""
    config = read_config(folder)
    task = make_run_task(config, CPU)
    learner = make_learner(config, task, CPU)
    content = load_checkpoint(folder / "checkpoint.pt", learner)
    learner.load_state_dict(content["learner"])
    return learner, task, config


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A short run of ``lcp``, with its page."""
    out = tmp_path_factory.mktemp("rest") / "lcp"
    assert studies.main([*SMOKE, "--learner", "lcp", "--steps", "2", "--out", str(out)]) == 0
    return out


def test_a_run_is_scored_by_what_it_was_trained_for(run):
    learner, task, config = trained(run)
    method = run_metagradient(config)
    assert isinstance(method, LeastControl)
    assert method == own_rest(config)
    assert method.steps == config.options["steps"] == 25
    episodes = task.episodes("test", BATCH, evaluation_stream(0))[: config.test]
    (row,) = read(run)["rows"]
    assert tuple(row) == ROW_KEYS
    assert row["metagradient"] == "at-rest"
    settled, online = method.evaluate(learner, episodes), evaluate(learner, episodes)
    assert settled.residual is not None
    assert row["loss"] == pytest.approx(float(settled.loss.mean()), rel=1e-5)
    assert row["rest_score"] == row["loss"]
    assert row["residual"] == pytest.approx(float(settled.residual.mean()), rel=1e-4)
    assert row["online_score"] == pytest.approx(float(online.loss.mean()), rel=1e-5)
    assert row["online_score"] != pytest.approx(row["loss"], rel=1e-3)
    assert [line["diverged"] for line in curve(run)] == [0, 0]
    assert "at rest" in read(run)["headline"]
    scores = np.load(run / "scores.npz")
    assert scores["residual"].shape == scores["loss"].shape == (config.test,)
    assert [line["step"] for line in curve(run)] == [1, 2]


def test_fitted_functions_are_those_at_rest(run):
    """Against a longer way to the rest point, in a loop of plain steps."""
    learner, task, config = trained(run)
    assert isinstance(task, Sinusoid)
    method = own_rest(config)
    assert method is not None
    dense = Sinusoid("iid", task.functions, task.batches, task.batch, GRID)
    episodes = dense.episodes("test", 1, evaluation_stream(2))
    x, y = episodes.support_x[0].flatten(0, 1), episodes.support_y[0].flatten(0, 1)
    state = learner.start(len(x))
    for _ in range(10 * method.steps):
        with torch.no_grad():
            change = learner.field(state, presentation(learner, x, y))
        moved = {n: state["weights"][n] + v for n, v in change.items()}
        state = {**state, "weights": state["weights"] | moved}
    with torch.no_grad():
        fit = learner.network(episodes.query_x[0], state["weights"])[:, 0]
    wanted = fit[episodes.query_x[0, :, -1].argsort()].numpy()
    found = np.load(run / "scores.npz")["function_fit"][0]
    assert found == pytest.approx(wanted, abs=1e-5)
    online = fitted_functions(learner, task)["function_fit"][0]
    assert np.abs(online - found).max() > 1e-3


def test_the_page_has_the_scores_of_both(run):
    page = (run / "report.html").read_text("utf-8")
    (row,) = read(run)["rows"]
    for name in REST_HEAD:
        assert f"<th>{name}</th>" in page
    for text in rest_texts(row):
        assert f"<td>{text}</td>" in page
    assert f"{TASK}-age.png" not in {path.name for path in run.glob("*.png")}


def test_evaluation_scores_both_as_well(run, command, tmp_path):
    done = command("evaluate", run, "--out", tmp_path / "same")
    assert done.code == 0
    assert all(name in done.out for name in REST_HEAD)
    assert rest_texts(read(run)["rows"][0])[2] in done.out
    assert read(tmp_path / "same")["rows"] == read(run)["rows"]
    assert command("report", run, tmp_path / "same", "--out", tmp_path / "both").code == 0
    other = ("--task", "sinusoid-continual", "--episodes", 7, "--out", tmp_path / "other")
    assert command("evaluate", run, *other).code == 0
    (row,) = read(tmp_path / "other")["rows"]
    assert (row["episodes"], row["metagradient"]) == (7, "at-rest")
    assert None not in (row["rest_score"], row["residual"])


def test_classes_are_scored_both_ways():
    config = make_config("glyphs-iid", "t1-t2", "smoke", 0)
    task = make_run_task(config, CPU)
    learner, rest, seen = make_learner(config, task, CPU), own_rest(config), []
    assert rest is not None
    episodes = task.episodes("test", BATCH, evaluation_stream(0))[:6]
    settled, online = rest.evaluate(learner, episodes), evaluate(learner, episodes)
    assert settled.accuracy is not None
    assert online.accuracy is not None
    for trained, primary in ((rest, settled), (Unrolled(), online)):
        scores, row = score_run(learner, task, 6, trained, rest, lambda *done: seen.append(done))
        assert row["accuracy"] == pytest.approx(float(primary.accuracy.mean()))
        assert row["loss"] == pytest.approx(float(primary.loss.mean()), rel=1e-5)
        assert row["rest_score"] == pytest.approx(float(settled.accuracy.mean()))
        assert row["online_score"] == pytest.approx(float(online.accuracy.mean()))
        assert (scores.residual is None) == (trained is not rest)
    assert row["rest_score"] != row["online_score"]
    assert seen == [(6, 12), (12, 12)] * 2
    assert score_run(learner, task, 6, Unrolled(), None)[1].keys().isdisjoint(REST_KEYS)


@pytest.mark.usefixtures("bare")
def test_an_interrupted_run_goes_on_exactly(run, command, tmp_path, monkeypatch):
    real = studies.run.make_training

    def interrupted(config, *rest):
        training = real(config, *rest)
        step = training.step

        def stop_in_the_first():
            signal.raise_signal(signal.SIGINT)
            return step()

        monkeypatch.setattr(training, "step", stop_in_the_first)
        return training

    monkeypatch.setattr(studies.run, "make_training", interrupted)
    out = tmp_path / "halves"
    done = command(*SMOKE, "--learner", "lcp", "--steps", 2, "--out", out)
    assert (done.code, len(curve(out))) == (130, 1)
    monkeypatch.setattr(studies.run, "make_training", real)
    assert command("train", "--resume", out).code == 0
    assert read(out)["rows"] == read(run)["rows"]
    assert curve(out) == curve(run)


@pytest.mark.usefixtures("bare")
def test_the_online_stream_can_be_trained_instead(command, tmp_path):
    done = command(
        *SMOKE, "--learner", "imaml", "--steps", 1, "--metagradient", "unrolled", "--out", tmp_path
    )
    assert done.code == 0
    (row,) = read(tmp_path)["rows"]
    assert row["metagradient"] == "unrolled"
    assert row["online_score"] == row["loss"]
    assert row["diverged"] == 0
    assert row["rest_score"] not in (None, row["loss"])
    assert row["residual"] is not None
    assert "at rest" not in done.last


@pytest.mark.usefixtures("bare")
def test_learners_of_streams_have_no_rest(command, tmp_path):
    refused = command(*SMOKE, "--learner", "none", "--metagradient", "at-rest")
    assert refused.code == 2
    assert "none has no meta-gradient at rest; lcp, " in refused.err
    done = command(*SMOKE, "--learner", "none", "--steps", 1, "--out", tmp_path)
    assert done.code == 0
    (row,) = read(tmp_path)["rows"]
    assert all(row[name] is None for name in REST_KEYS)
    assert "residual" not in np.load(tmp_path / "scores.npz").files


def test_meta_gradients_at_rest_by_name():
    named = recipe("lcp-direct")
    options = named.configure({"beta": 0.7, "steps": 3})
    found = make_metagradient("at-rest", named, options)
    assert found == options.control("direct")  # type: ignore[attr-defined]
    assert make_metagradient("at-rest", named) != found
    assert make_metagradient("unrolled", named, options) == Unrolled()
    with pytest.raises(ConfigurationError, match="is written at-rest"):
        make_metagradient("at-rest:3", named)
    with pytest.raises(ConfigurationError, match="flp has no meta-gradient at rest"):
        make_config(TASK, "flp", "smoke", 0, metagradient="at-rest")
    assert {default_metagradient(recipe(name)) for name in NAMES} == {"at-rest"}
    assert default_metagradient(recipe("oml-1")) == "first-order"
    with pytest.raises(ConfigurationError, match="beta must be positive"):
        make_config(TASK, "lcp", "smoke", 0, options={"beta": -1.0})


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", NAMES)
def test_tasks_at_rest_have_sizes_of_their_own(name, preset):
    points = sizes(TASK, name, preset).task
    assert (points["functions"], points["batches"] * points["batch"]) == (1, 10)
    assert sizes("sinusoid-continual", name, preset).task["functions"] > 1
    for task in ("glyphs-iid", "omniglot-iid"):
        shown = sizes(task, name, preset).task
        assert preset == "smoke" or (shown["ways"], shown["shots"]) == (5, 5)
    for task in (TASK, "sinusoid-continual", "glyphs-iid"):
        config = make_config(task, name, preset, 0)
        assert config.metagradient == "at-rest"
        assert config.rate_search == {}  # the rate is a step's, not an inner rate
        json.dumps(config.as_json(), allow_nan=False)


def test_their_networks_are_smooth_and_draw_alike():
    for task in (make_task(TASK, functions=1), make_task("glyphs-iid")):
        kinked, smooth = (
            build_network(task, recipe(name), (7, 6), torch.Generator().manual_seed(3))
            for name in ("flp", "lcp")
        )
        values = smooth.state_dict()
        assert all(torch.equal(v, values[k]) for k, v in kinked.state_dict().items())
        assert sum(isinstance(m, nn.Tanh) for m in smooth.modules()) == 2
        trunk = list(smooth.modules()) if smooth.trunk is None else list(smooth.trunk.modules())
        rectifiers = sum(isinstance(m, nn.ReLU) for m in trunk)
        assert rectifiers == sum(isinstance(m, nn.ReLU) for m in smooth.modules())
        assert rectifiers == (0 if smooth.trunk is None else 3)
    whole = replace(recipe("lcp"), whole=True)
    network = build_network(make_task("glyphs-iid"), whole, (7,), torch.Generator().manual_seed(3))
    assert sum(isinstance(m, nn.Tanh) for m in network.modules()) == 4


def test_the_rate_search_scores_what_is_trained(monkeypatch):
    """A learner of streams, so that there is a rate to search, with an evaluation that tells."""
    config = make_config("sinusoid-continual", "anil", "smoke", 0, steps=20)
    seen = []

    def told(self, learner, episodes, *, generator=None):
        seen.append(len(episodes))
        return evaluate(learner, episodes, generator=generator)

    monkeypatch.setattr(Unrolled, "evaluate", told)
    search_rate(config, make_run_task(config, CPU), CPU, lambda status: None)
    assert seen == [4, 4, 4]


def test_two_trials_of_a_search():
    config = make_config(TASK, "lcp", "smoke", 0, steps=1)
    problem = make_problem(config, CPU)
    assert isinstance(problem.training(config.options, 0).metagradient, LeastControl)
    storage = optuna.storages.InMemoryStorage()
    study = open_study(storage, "s", problem, sampler=make_sampler("random", 0, problem.space, 2))
    training = problem.training(config.options, 0)
    (first, *_), wanted = (
        problem.batches(training),
        training.metagradient.evaluate(training.learner, problem.validation[0]),
    )
    assert first.residual is not None
    assert torch.equal(first.loss, wanted.loss)
    search(study, problem, trials=2)
    default, other = study.trials
    assert set(default.params) == set(recipe("lcp").space)
    assert default.user_attrs["options"] == config.options
    assert other.user_attrs["options"]["beta"] != config.options["beta"]
    assert {t.user_attrs["outcome"] for t in study.trials} <= {"complete", "diverged"}


def test_the_columns_stand_where_a_row_has_them():
    plain = {"accuracy": None}
    regression = {"accuracy": None, "rest_score": 0.5, "online_score": None, "residual": 2e-3}
    classes = {"accuracy": 0.8, "rest_score": 0.8, "online_score": 0.255, "residual": None}
    assert rest_head([plain]) == ()
    assert rest_head([plain, regression]) == REST_HEAD
    assert rest_texts(plain) == ("", "", "")
    assert rest_texts(regression) == ("0.5", "diverged", "2.0e-03")
    assert rest_texts(classes) == ("80.0 %", "25.5 %", "–")
