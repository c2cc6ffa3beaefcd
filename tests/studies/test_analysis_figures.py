"""Analyses of runs: what is logged and written, exact resume, and the pictures of it."""

from __future__ import annotations

import json
import math
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import studies.run
from metaplastic import evaluate
from metaplastic.analysis import feedback_alignment, forgetting_matrix, interference, update_angles
from metaplastic.errors import CheckpointError
from metaplastic.seeds import evaluation_stream
from studies.analysis import AlignmentLog, analyse, write_analysis
from studies.assembly import make_learner, make_run_task
from studies.config import make_config
from studies.figures_analysis import (
    alignment_figure,
    angle_figure,
    forgetting_figure,
    interference_figure,
)
from studies.gather import Alignment, Run, gather
from studies.logs import Log
from tests.studies.conftest import read

CPU = torch.device("cpu")
ALL = (angle_figure, alignment_figure, interference_figure, forgetting_figure)


def made(task_name: str, learner: str):
    config = make_config(task_name, learner, "smoke", 0)
    task = make_run_task(config, CPU)
    return make_learner(config, task, CPU), task


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# --- what is written ---


@pytest.mark.parametrize("task", ["sinusoid-continual", "glyphs-continual"])
@pytest.mark.parametrize("learner", ["flp", "oml"])
def test_the_analysis_holds_the_means_of_the_library(task, learner):
    trained, source = made(task, learner)
    episodes = source.episodes("test", 50, evaluation_stream(0))[:6]
    found = analyse(trained, source, 6)
    degrees = update_angles(trained, episodes).degrees
    for name, values in degrees.items():
        mean = values.nanmean(0).numpy()
        assert found[f"angle_{name}"] == pytest.approx(mean, abs=1e-9, nan_ok=True)
    between, matrix = interference(trained, episodes), forgetting_matrix(trained, episodes)
    assert found["interference"] == pytest.approx(between.loss.mean(0).numpy(), abs=1e-5)
    assert found["forgetting_loss"] == pytest.approx(matrix.loss.mean(0).numpy(), abs=1e-5)
    assert ("forgetting_accuracy" in found) == (task == "glyphs-continual")
    assert episodes.support_task is not None
    assert found["task"].tolist() == episodes.support_task[0].tolist()
    assert found["update_cosines"].shape == found["interference"].shape


def test_where_there_is_nothing_to_analyse_nothing_is_written(tmp_path):
    assert analyse(*made("sinusoid-continual", "none")) == {}
    write_analysis(tmp_path, {})
    assert list(tmp_path.iterdir()) == []
    shuffled = analyse(*made("sinusoid-iid", "oml"), 3)
    assert {name.partition("_")[0] for name in shuffled} == {"angle"}


def test_episodes_that_diverge_are_left_out():
    learner, task = made("sinusoid-continual", "oml")
    learner.double()
    with torch.no_grad():
        for parameter in learner.rules.parameters():
            parameter.fill_(math.log(0.4))
    episodes = task.episodes("test", 50, evaluation_stream(0))[:8]
    scores = evaluate(learner, episodes)
    lost = {*scores.diverged}
    alive = [e for e in range(8) if e not in lost]
    kept = [e for e, loss in zip(alive, scores.loss.tolist(), strict=True) if loss < 1e8]
    assert 0 < len(kept) < 8
    found = analyse(learner, task, 8)
    wanted = interference(learner, episodes[kept]).loss.mean(0).numpy()
    assert found["interference"] == pytest.approx(wanted, rel=1e-6)
    with torch.no_grad():
        for parameter in learner.rules.parameters():
            parameter.fill_(60.0)
    assert analyse(learner, task, 3) == {}


# --- what is logged during the training ---


@pytest.mark.parametrize(("total", "every"), [(3, 1), (50, 1), (51, 2), (120, 3)])
def test_alignment_is_logged_at_about_fifty_points(total, every, tmp_path):
    learner, _ = made("sinusoid-continual", "dfa")
    log = AlignmentLog(tmp_path, learner, 0, total)
    for step in range(1, total + 1):
        log.add(step)
    log.flush()
    found = lines(tmp_path / "alignment.jsonl")
    assert [line["step"] for line in found] == sorted({*range(0, total + 1, every), total})
    assert found[-1]["degrees"] == feedback_alignment(learner)


def test_no_log_without_feedback(tmp_path):
    learner, _ = made("sinusoid-continual", "oml")
    log = AlignmentLog(tmp_path, learner, 0, 2)
    log.add(1)
    log.flush()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("bare")
def test_alignment_goes_on_exactly(command, tmp_path, monkeypatch):
    run = ("train", "--preset", "smoke", "--task", "sinusoid-continual", "--learner", "flp")
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert command(*run, "--steps", 4, "--out", whole).code == 0
    real = studies.run.make_training

    def interrupted(config, *rest):
        training = real(config, *rest)
        step = training.step

        def stop_in_the_second():
            if training.steps == 1:
                signal.raise_signal(signal.SIGINT)
            return step()

        monkeypatch.setattr(training, "step", stop_in_the_second)
        return training

    monkeypatch.setattr(studies.run, "make_training", interrupted)
    assert command(*run, "--steps", 4, "--out", halves).code == 130
    # As after a crash: ahead of the checkpoint, and cut off.
    with (halves / "alignment.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "degrees": {}}) + '\n{"step": 4, "deg')
    monkeypatch.setattr(studies.run, "make_training", real)
    assert command("train", "--resume", halves).code == 0
    assert len(lines(whole / "alignment.jsonl")) == 5
    assert lines(halves / "alignment.jsonl") == lines(whole / "alignment.jsonl")
    first, second = (np.load(folder / "analysis.npz") for folder in (whole, halves))
    assert first.files == second.files
    assert all(np.array_equal(first[n], second[n], equal_nan=True) for n in first.files)


@pytest.mark.parametrize("every", [1, 3])
def test_a_log_is_cut_to_the_checkpoint_or_refused(every, tmp_path):
    path = tmp_path / "log.jsonl"
    log = Log(path, 0, every)
    for step in range(every, 10, every):
        log.add({"step": step, "value": float("nan")})
    log.flush()
    Log(path, 8, every)
    with path.open("a") as file:
        file.write('{"step": 9, "va')  # as after a crash
    Log(path, 8, every)
    steps = [line["step"] for line in lines(path)]
    assert steps == list(range(every, 9, every))
    assert lines(path)[0]["value"] is None
    with pytest.raises(CheckpointError, match="ends at meta-step"):
        Log(path, 8 + every, every)


def test_evaluations_are_analysed_and_overwritten_results_go(command, tmp_path):
    run = ("train", "--preset", "smoke", "--task", "sinusoid-continual", "--steps", 2)
    first, other = tmp_path / "first", tmp_path / "other"
    assert command(*run, "--learner", "flp", "--out", first).code == 0
    assert command("evaluate", first, "--episodes", 20, "--out", other).code == 0
    here, there = (np.load(folder / "analysis.npz") for folder in (first, other))
    assert all(np.array_equal(here[n], there[n], equal_nan=True) for n in here.files)
    assert (other / "sinusoid-continual-angles.png").is_file()
    assert command(*run, "--learner", "none", "--out", first, "--overwrite").code == 0
    left = {path.name for path in first.iterdir()}
    assert left.isdisjoint({"alignment.jsonl", "analysis.npz", "sinusoid-continual-angles.png"})
    assert "angle" not in read(first)["rows"][0]


# --- the pictures ---


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    out = tmp_path_factory.mktemp("run")
    arguments = ["train", "--preset", "smoke", "--task", "glyphs-continual", "--learner", "flp"]
    assert studies.main([*arguments, "--steps", "2", "--out", str(out), "--overwrite"]) == 0
    return gather([out])[0]


def with_arrays(run: Run, tasks: int = 4, shown: int = 8, layers: int = 2) -> Run:
    """The same run with other analyses."""
    rng = np.random.default_rng(tasks)
    analysis = {f"angle_layer{i}_weight": rng.uniform(0, 120, shown) for i in range(layers)}
    analysis |= {
        "angle_layer0_bias": np.zeros(shown),
        "task": np.arange(shown) * tasks // shown,
        "interference": rng.normal(size=(tasks, tasks)),
        "forgetting_loss": rng.uniform(0.1, 9, (tasks, tasks)),
        "forgetting_accuracy": rng.uniform(0, 1, (tasks, tasks)),
    }
    steps = np.arange(3.0)
    return replace(run, analysis=analysis, alignment=Alignment(steps, {"layer1_feedback": steps}))


def test_what_was_written_is_gathered(run):
    assert run.alignment is not None
    assert run.alignment.step.tolist() == [0, 1, 2]
    assert list(run.alignment.degrees) == ["layer0_feedback1"]
    assert run.analysis["interference"].shape == (4, 4)
    assert run.analysis["angle_layer1_weight"].shape == (8,)


def test_angles_have_a_panel_for_each_run_and_a_line_for_each_layer(run):
    figure = angle_figure([run, with_arrays(run, layers=3), replace(run, analysis={})])
    assert figure is not None
    curves = [
        [line for line in axes.get_lines() if len(np.atleast_1d(line.get_xdata())) == 8]
        for axes in figure.axes
    ]
    assert [len(found) for found in curves] == [2, 3]
    wanted = [run.analysis[f"angle_layer{i}_weight"] for i in (0, 1)]
    for line, degrees in zip(curves[0], wanted, strict=True):
        assert np.array_equal(np.asarray(line.get_ydata()), degrees)
    for axes in figure.axes:
        assert any(np.all(np.asarray(line.get_ydata()) == 90) for line in axes.get_lines())
        texts = [text.get_text() for text in axes.texts]
        assert len(set(texts)) == len(texts) in (2, 3)


def test_matrices_share_one_scale_centred_at_zero(run):
    runs = [with_arrays(run, 4), with_arrays(run, 5), with_arrays(run, 12)]
    figure = interference_figure(runs)
    assert figure is not None
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(images) == 3
    limits = {image.get_clim() for image in images}
    assert len(limits) == 1
    low, high = limits.pop()
    assert low == -high < 0
    for image, drawn in zip(images, runs, strict=True):
        assert np.array_equal(np.asarray(image.get_array()), drawn.analysis["interference"])
    numbers = [len(axes.texts) for axes in figure.axes if axes.images]
    assert numbers == [16, 25, 0]
    # matrices of other sizes beside it leave each one whole
    heights = [sorted(axes.get_ylim()) for axes in figure.axes if axes.images]
    assert heights == [[-0.5, 3.5], [-0.5, 4.5], [-0.5, 11.5]]


def test_forgetting_is_shown_as_accuracy_where_there_is_one(run):
    accuracy = forgetting_figure([with_arrays(run)])
    assert accuracy is not None
    image = accuracy.axes[0].images[0]
    assert image.get_clim() == (0, 100)
    wanted = 100 * with_arrays(run).analysis["forgetting_accuracy"]
    assert np.array_equal(np.asarray(image.get_array()), wanted)


def test_no_picture_of_nothing_and_none_of_one_task(run):
    for figure in ALL:
        assert figure([replace(run, analysis={}, alignment=None)]) is None
    still = {"angle_layer0_weight": np.full(8, np.nan)}
    assert angle_figure([replace(run, analysis=still)]) is None
    one = with_arrays(run, tasks=1)
    assert interference_figure([one]) is forgetting_figure([one]) is None


@pytest.mark.parametrize("count", [1, 4, 7])
def test_pictures_of_many_runs_and_long_streams(run, count):
    runs = [replace(with_arrays(run, 20, 200, 5), label=f"flp (seed {i})") for i in range(count)]
    for draw in ALL:
        figure = draw(runs)
        assert figure is not None
        figure.draw_without_rendering()
        titles = [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes]
        assert [title for title in titles if title] == [drawn.label for drawn in runs]
