"""Training runs: what they leave behind, that they can be interrupted, and how they are scored."""

import json
import platform
import signal

import numpy as np
import pytest
import torch

import studies.run
from metaplastic.recipes import RECIPES
from metaplastic.training import StepReport
from studies.assembly import make_learner, make_run_task
from studies.config import default_metagradient, make_config, read_config
from studies.logs import Log
from studies.presets import sizes
from studies.results import KEYS, ROW_KEYS
from studies.run import search_rate
from studies.scoring import score
from tests.studies.conftest import curve, read

CPU = torch.device("cpu")
SINUSOID = ("train", "--preset", "smoke", "--task", "sinusoid-continual")


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("learner", RECIPES)
def test_every_learner_trains_and_leaves_its_results(learner, command, tmp_path):
    known = RECIPES[learner]
    task = "glyphs-continual" if learner in ("flp", "maml", "anil") else "sinusoid-continual"
    task = task if known.rest is None else "sinusoid-iid"
    out = tmp_path / "run"
    done = command(
        "train", "--preset", "smoke", "--task", task, "--learner", learner, "--steps", 3,
        "--seed", 5, "--out", out,
    )  # fmt: skip
    assert done.code == 0
    result = read(out)
    assert tuple(result) == KEYS
    (row,) = result["rows"]
    assert tuple(row) == ROW_KEYS
    expected = {"task": task, "learner": learner, "seed": 5, "steps": 3, "episodes": 20}
    assert {name: row[name] for name in expected} == expected
    assert row["metagradient"] == default_metagradient(known)
    assert result["seeds"] == [5]
    if learner != "flp-faithful":  # which is free to diverge
        assert row["loss"] is not None
        assert (row["accuracy"] is None) == task.startswith("sinusoid")
    tasks = {"glyphs-continual": 4, "sinusoid-continual": 3}.get(task, 0)
    assert len(row["per_task"] or ()) == (0 if row["loss"] is None else tasks)
    assert done.last == result["headline"]
    assert learner in result["headline"]
    assert [line["step"] for line in curve(out)] == [1, 2, 3]
    text = (out / "result.json").read_text()
    assert str(tmp_path) not in text
    assert platform.node() not in text


@pytest.mark.usefixtures("bare")
def test_rows_are_the_statistics_of_the_episodes(command, tmp_path):
    assert command(*SINUSOID, "--learner", "dfa", "--steps", 2, "--out", tmp_path).code == 0
    (row,) = read(tmp_path)["rows"]
    scores = np.load(tmp_path / "scores.npz")
    loss = scores["loss"].tolist()
    mean = sum(loss) / len(loss)
    variance = sum((value - mean) ** 2 for value in loss) / (len(loss) - 1)
    assert len(loss) == row["episodes"] - row["diverged"]
    assert row["loss"] == pytest.approx(mean)
    assert row["ci95"] == pytest.approx(1.96 * (variance / len(loss)) ** 0.5)
    assert row["per_task"] == pytest.approx(scores["by_task"].mean(0).tolist())
    # Each function has as many queries, so an episode's loss is the mean over its functions.
    assert loss == pytest.approx(scores["by_task"].mean(1).tolist(), rel=1e-5)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("decay", ["constant", "late"])
def test_an_interrupted_run_goes_on_exactly(decay, command, tmp_path, monkeypatch):
    real = studies.run.make_training

    def with_decay(config, *rest):
        return real(studies.run.replace(config, decay=decay), *rest)

    def interrupted(config, *rest):
        training = with_decay(config, *rest)
        step = training.step

        def stop_in_the_third():
            if training.steps == 2:
                signal.raise_signal(signal.SIGINT)
            return step()

        monkeypatch.setattr(training, "step", stop_in_the_third)
        return training

    run = (*SINUSOID, "--learner", "flp", "--steps", 5)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    monkeypatch.setattr(studies.run, "make_training", with_decay)
    assert command(*run, "--out", whole).code == 0

    monkeypatch.setattr(studies.run, "make_training", interrupted)
    done = command(*run, "--out", halves)
    assert done.code == 130
    assert f"--resume {halves}" in done.err
    assert "meta-step 3 of 5" in done.err
    assert len(curve(halves)) == 3
    assert not (halves / "result.json").exists()
    # As after a crash: the curve is ahead of the checkpoint.
    with (halves / "curve.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4, "loss": 0.0}) + "\n")

    monkeypatch.setattr(studies.run, "make_training", with_decay)
    assert command("train", "--resume", halves).code == 0
    assert read(halves)["rows"] == read(whole)["rows"]
    assert curve(halves) == curve(whole)
    first, second = (torch.load(f / "checkpoint.pt", weights_only=True) for f in (whole, halves))
    assert first["learner"].keys() == second["learner"].keys()
    assert all(torch.equal(v, second["learner"][k]) for k, v in first["learner"].items())


@pytest.mark.usefixtures("bare")
def test_a_finished_run_can_be_made_longer_but_not_shorter(command, tmp_path):
    assert command(*SINUSOID, "--learner", "none", "--steps", 2, "--out", tmp_path).code == 0
    assert command("train", "--resume", tmp_path, "--steps", 1).code == 2
    assert command("train", "--resume", tmp_path, "--steps", 3).code == 0
    assert [line["step"] for line in curve(tmp_path)] == [1, 2, 3]
    assert read(tmp_path)["rows"][0]["steps"] == 3


@pytest.mark.parametrize("task", ["sinusoid-continual", "glyphs-continual"])
def test_divergence_is_a_result(task, command, tmp_path):
    (tmp_path / "wild.toml").write_text("rate = 1e30\n")
    out = tmp_path / "run"
    done = command(
        "train", "--preset", "smoke", "--task", task, "--learner", "dfa", "--steps", 2,
        "--config", tmp_path / "wild.toml", "--out", out,
    )  # fmt: skip
    assert done.code == 0
    (row,) = read(out)["rows"]
    assert row["diverged"] == row["episodes"] == 20
    assert row["loss"] is row["ci95"] is row["per_task"] is row["forgetting"] is None
    assert "diverged on all 20" in done.last
    pictures = {path.name.removeprefix(f"{task}-") for path in out.glob("*.png")}
    # Beside the feedback weights and the true functions there is nothing to draw.
    assert pictures == {"alignment.png"} | ({"functions.png"} if "sinusoid" in task else set())
    assert [line["loss"] for line in curve(out)] == [None, None]
    assert command("report", out, "--out", tmp_path / "report").code == 0


@pytest.mark.usefixtures("bare")
def test_evaluation_repeats_the_score_of_the_run_and_takes_other_sizes(command, tmp_path):
    run = tmp_path / "run"
    images = ("train", "--preset", "smoke", "--task", "glyphs-continual", "--steps", 1)
    assert command(*images, "--learner", "oml", "--out", run).code == 0
    assert command("evaluate", run, "--out", tmp_path / "same").code == 0
    assert read(tmp_path / "same")["rows"] == read(run)["rows"]
    changed = ("--ways", 2, "--shots", 3, "--episodes", 7, "--task", "glyphs-iid")
    assert command("evaluate", run, *changed, "--out", tmp_path / "other").code == 0
    (row,) = read(tmp_path / "other")["rows"]
    assert (row["task"], row["episodes"], row["per_task"]) == ("glyphs-iid", 7, None)
    assert "chance 50 %" in read(tmp_path / "other")["headline"]
    refused = command("evaluate", run, "--ways", 5)
    assert refused.code == 2
    assert "needs 5 outputs" in refused.err


def test_unseen_episodes_depend_neither_on_their_number_nor_on_the_seed():
    scores = []
    for seed, count in ((0, 60), (1, 20)):
        config = make_config("sinusoid-continual", "none", "smoke", seed)
        task = make_run_task(config, CPU)
        learner = make_learner(make_config("sinusoid-continual", "none", "smoke", 0), task, CPU)
        scores.append(score(learner, task, count).loss)
    assert scores[0][:20].tolist() == pytest.approx(scores[1].tolist())


def test_a_learned_inner_rate_starts_at_the_best_of_three():
    config = make_config("sinusoid-continual", "anil", "smoke", 0, steps=40)
    rates = list(sizes("sinusoid-continual", "anil", "smoke").rates)
    assert config.rate_search == {"rates": rates, "steps": 2, "episodes": 4}
    found = search_rate(config, make_run_task(config, CPU), CPU, lambda status: None)
    losses = [float("inf") if v is None else v for v in found.rate_search["losses"]]
    assert len(losses) == 3
    assert found.options["rate"] == rates[int(np.argmin(losses))]
    given = make_config("sinusoid-continual", "anil", "smoke", 0, options={"rate": 0.2})
    assert given.rate_search == {}
    assert given.options["rate"] == 0.2
    # Nor is one looked for where a search has set the options.
    assert make_config("sinusoid-continual", "oml", "smoke", 0).rate_search == {}
    assert make_config("glyphs-continual", "oml", "smoke", 0).rate_search == {}
    assert make_config("omniglot-continual", "oml", "smoke", 0).rate_search != {}


@pytest.mark.usefixtures("bare")
def test_the_configuration_is_read_back_as_it_was(command, tmp_path):
    (tmp_path / "options.toml").write_text("mix = 0.25\nhebbian = true\nclip = 2\n")
    out = tmp_path / "run"
    done = command(
        *SINUSOID, "--functions", 2, "--steps", 1, "--episodes", 3, "--metagradient",
        "unrolled-checkpoint:3", "--config", tmp_path / "options.toml", "--out", out,
    )  # fmt: skip
    assert done.code == 0
    config = read_config(out)
    assert config.as_json() | {"hidden": [32, 32]} == read(out)["config"]
    assert (config.episodes, config.metagradient) == (3, "unrolled-checkpoint:3")
    assert config.task_options["functions"] == 2
    assert (config.options["mix"], config.options["hebbian"]) == (0.25, True)


def test_the_curve_is_json_even_where_a_gradient_is_not_finite(tmp_path):
    curve_file = Log(tmp_path / "curve.jsonl", 0)
    curve_file.add(studies.run.curve_line(StepReport(1, None, None, float("inf"), ())))
    curve_file.flush()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    text = (tmp_path / "curve.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse)["gradient_norm"] is None
