"""Reproductions on episodes: jobs that go on, the paired table, and the command."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from metaplastic.errors import CheckpointError, ConfigurationError
from metaplastic.metagradient import Unrolled
from metaplastic.seeds import evaluation_stream
from studies.assembly import make_learner, make_run_task
from studies.config import make_config, own_rest, run_metagradient
from studies.reproduce import PAPERS
from studies.reproduce.episode_jobs import EpisodeJob, EpisodeOutcome
from studies.reproduce.episode_tables import amount, episodes_table, summarise_episodes
from studies.reproduce.episodes import ChosenEpisodes
from studies.reproduce.lcp_episodes import EPISODES
from studies.reproduce.paper import chosen
from studies.results import ROW_KEYS
from studies.scoring import BATCH
from tests.studies.conftest import curve, read

CPU = torch.device("cpu")
TASK, PART = "sinusoid-iid", "few-shot-sinusoid"
STEPS = 4


def silent(status) -> None:
    del status


def job(out: Path, seed: int = 0, **options) -> EpisodeJob:
    out.mkdir(exist_ok=True)
    config = make_config(TASK, "t1-t2", "smoke", seed, steps=STEPS, options=options)
    return EpisodeJob(PART, "mine", config, out, "cpu")


def test_a_job_is_a_run_and_the_score_that_it_begins_with(tmp_path):
    own = job(tmp_path)
    seen = []
    done = own.work(lambda status: seen.append(status.stage))
    task = make_run_task(own.config, CPU)
    rest = own_rest(own.config)
    assert rest is not None
    episodes = task.episodes("test", BATCH, evaluation_stream(0))[: own.config.test]
    untrained = rest.evaluate(make_learner(own.config, task, CPU), episodes)
    assert done.start == pytest.approx(float(untrained.loss.mean()), rel=1e-5)
    row = read(tmp_path)["rows"][0]
    assert (done.score, done.online) == (row["rest_score"], row["online_score"])
    assert done.residual == row["residual"]
    assert done.score != done.start
    assert own.row() == {**row, "task": PART, "learner": "mine"}
    assert 0 < done.seconds < read(tmp_path)["seconds"]
    assert (done.left_out, done.accuracy, done.diverged) == (0, False, None)
    assert seen[0] == "start"
    assert "training" in seen
    pickle.dumps((own, done))


def test_what_was_left_out_is_a_share_of_the_training_episodes(tmp_path):
    """Two steps are too few for any episode to settle."""
    done = job(tmp_path, steps=2).work(silent)
    assert done.left_out == 1
    assert sum(line["diverged"] for line in curve(tmp_path)) == STEPS * 2


def test_a_job_that_is_killed_goes_on_and_a_finished_one_is_only_read(tmp_path, monkeypatch):
    whole = job(tmp_path / "whole").work(silent)

    class Killed(BaseException):
        pass

    def dies(status) -> None:
        if (status.stage, status.done) == ("training", 3):
            raise Killed

    monkeypatch.setattr("studies.status.Every.__call__", lambda self: True)
    killed = job(tmp_path / "killed")
    with pytest.raises(Killed):
        killed.work(dies)
    assert len(curve(killed.out)) == 2  # those of its checkpoint
    with pytest.raises(CheckpointError, match=r"another options: .*--overwrite"):
        job(killed.out, strength=2.0).work(silent)
    seen = []
    done = killed.work(lambda status: seen.append((status.stage, status.done)))
    assert seen[0] == ("training", 3)
    assert replace(done, seconds=whole.seconds) == whole
    assert curve(killed.out) == curve(tmp_path / "whole")
    assert read(killed.out)["rows"] == read(tmp_path / "whole")["rows"]
    monkeypatch.setattr("studies.reproduce.episode_jobs.run_training", None)
    assert killed.work(silent) == done
    for other in (job(killed.out, seed=1), job(killed.out, rate=0.05)):
        with pytest.raises(CheckpointError, match="--overwrite"):
            other.work(silent)


def test_what_was_begun_without_a_checkpoint_begins_anew(tmp_path):
    (tmp_path / "start.json").write_text('{"rest_score": 3.0}')
    done = job(tmp_path).work(silent)
    assert done.start != 3.0


def test_a_learner_of_streams_is_refused(tmp_path):
    config = make_config(TASK, "none", "smoke", 0)
    with pytest.raises(ConfigurationError, match="none has no method at rest"):
        EpisodeJob(PART, "mine", config, tmp_path, "cpu").work(silent)


def outcome(method: str, seed: int, score: float | None, **changes) -> EpisodeOutcome:
    made = EpisodeOutcome(PART, method, seed, False, score, 2.0 + seed, 0.5, 1e-3, 0.25, 0.75)
    return replace(made, **changes)


def test_differences_are_paired_over_the_seeds_that_both_have():
    outcomes = [
        *(outcome("ref", seed, score) for seed, score in enumerate((1.0, 1.2, 1.7))),
        *(outcome("own", seed, score) for seed, score in enumerate((1.1, 1.5, 1.8, 9.0))),
        outcome("lost", 0, None, online=None),
        outcome("lost", 1, 1.0),
    ]
    ref, own, lost = summarise_episodes(outcomes, "ref")
    differences = [0.1, 0.3, 0.1]
    middle = sum(differences) / 3
    spread = math.sqrt(sum((d - middle) ** 2 for d in differences) / 2)
    assert own.difference == pytest.approx(middle)
    assert own.half == pytest.approx(4.303 * spread / math.sqrt(3))  # t at 2 degrees of freedom
    assert own.score == pytest.approx(13.4 / 4)
    assert (ref.difference, ref.half) == (None, None)
    assert ref.std == pytest.approx(math.sqrt((0.3**2 + 0.1**2 + 0.4**2) / 2))
    assert (ref.start, ref.start_std) == (3.0, 1.0)
    assert (lost.score, lost.diverged, lost.seeds) == (1.0, 1, 2)
    assert lost.difference == pytest.approx(-0.2)  # one pair has no interval
    assert lost.half is None
    assert (lost.online, own.online) == (None, 0.5)
    assert (ref.residual, ref.left_out, ref.seconds) == (1e-3, 0.25, 0.75)


def test_the_table_is_in_the_units_of_the_score():
    errors = [outcome("ref", 0, 1.0), outcome("own", 0, 0.5), outcome("own", 1, 0.7, left_out=1.0)]
    top, body = episodes_table("ref", summarise_episodes(errors, "ref"))
    assert top[:4] == ["method", "mean squared error at rest", "at the start", "against ref"]
    assert body[0][:4] == ["ref", "1.0000", "2.0000", "–"]
    assert body[1][:4] == ["own", "0.6000 ± 0.1414", "2.5000 ± 0.7071", "-0.5000"]
    assert body[1][4:] == ["0.5000", "1.0e-03", "62.5 %", "0.75"]
    assert "diverged" not in top
    shares = [
        outcome(name, seed, score + 0.1 * seed, accuracy=True, start=0.2)
        for name, score in (("ref", 0.5), ("own", 0.6))
        for seed in (0, 1)
    ]
    top, body = episodes_table("ref", summarise_episodes(shares, "ref"))
    assert top[1] == "accuracy at rest, %"
    assert body[1][1:5] == ["65.00 ± 7.07", "20.00 ± 0.00", "+10.00 ± 0.00", "50.00"]
    lost = [outcome("ref", 0, None, start=None, online=None), outcome("own", 0, 2e7)]
    top, body = episodes_table("ref", summarise_episodes(lost, "ref"))
    assert body[0][1:3] == ["diverged", "diverged"]
    assert body[1][1] == "2e+07"
    assert (top[-1], body[0][-1], body[1][-1]) == ("diverged", "1 of 1", "–")
    assert amount(None, None, True) == "–"


def test_every_row_is_a_run_at_every_preset():
    for name, part in EPISODES.items():
        assert part.reference in {row.name for row in part.rows}
        for preset in ("smoke", "quick", "acceptance", "full"):
            one = chosen(PAPERS["lcp"], preset, None, [name])[name]
            assert isinstance(one, ChosenEpisodes)
            assert len(one.about) == len(one.rows)
            assert not one.setting
            for row in one.rows:
                config = one.config(row, 1)
                assert own_rest(config) is not None
                assert (config.task, config.seed, config.preset) == (part.task, 1, preset)
                assert not config.rate_search
                json.dumps({**one.record, **config.as_json()}, allow_nan=False)
            assert len(one.seeds) == (1 if preset in ("smoke", "quick") else 3)
    local = chosen(PAPERS["lcp"], "quick", None, ["local-glyphs"])["local-glyphs"]
    assert isinstance(local, ChosenEpisodes)
    frozen, learned, unrolled = (local.config(row, 0) for row in local.rows)
    assert (frozen.options["feedback"], learned.options["feedback"]) == ("fixed", "learned")
    assert {**frozen.options, "feedback": "learned"} == learned.options == unrolled.options
    assert run_metagradient(frozen) == run_metagradient(learned)
    assert run_metagradient(unrolled) == Unrolled()


@pytest.fixture
def short(monkeypatch) -> None:
    """Two meta-steps, in this process."""
    config = partial(make_config, steps=2)
    monkeypatch.setattr("studies.reproduce.episodes.make_config", config)

    def here(function, jobs, workers, display, words):
        return {name: function(one, silent) for name, one in jobs.items()}

    monkeypatch.setattr("studies.commands.reproduce.run_jobs", here)


SMOKE = ("reproduce", "lcp", "--preset", "smoke", "--parts", PART)


@pytest.mark.usefixtures("short")
def test_the_command_writes_its_results_and_goes_on(command, tmp_path):
    out = tmp_path / "out"
    first = command(*SMOKE, "--methods", "imaml", "--out", out)
    assert first.code == 0, first.err
    kept = (out / "runs" / f"{PART}-imaml-0" / "result.json").read_bytes()
    done = command(*SMOKE, "--methods", "imaml,t1-t2", "--seeds", "0,1", "--out", out)
    assert done.code == 0, done.err
    assert (out / "runs" / f"{PART}-imaml-0" / "result.json").read_bytes() == kept
    result = read(out)
    assert all(tuple(row) == ROW_KEYS for row in result["rows"])
    rows = {(row["task"], row["learner"], row["seed"]): row for row in result["rows"]}
    assert list(rows) == [(PART, name, seed) for seed in (0, 1) for name in ("imaml", "t1-t2")]
    imaml, other = result["config"]["summary"]
    pairs = [
        rows[PART, "t1-t2", seed]["rest_score"] - rows[PART, "imaml", seed]["rest_score"]
        for seed in (0, 1)
    ]
    assert other["difference"] == pytest.approx(sum(pairs) / 2)
    assert other["half"] == pytest.approx(12.706 * abs(pairs[0] - pairs[1]) / 2, rel=1e-6)
    assert imaml["start"] == other["start"]  # one inner loop and one start
    assert "mean squared error at rest     at the start" in done.out
    assert "against imaml" in done.out
    assert done.last == result["headline"]
    assert f"lcp on {PART}, mean squared error at rest: imaml " in done.last
    assert "seeds 0, 1; 2 meta-steps of 2 episodes, 20 unseen episodes" in done.last
    assert result["config"]["sizes"][PART]["steps"] == 2
    page = (out / "report.html").read_text("utf-8")
    assert "Differences are paired by seed" in page
    assert "Test accuracy is" not in page


@pytest.mark.usefixtures("short")
def test_sizes_of_images_are_refused(command, tmp_path):
    for option in ("--epochs", "--images"):
        refused = command(*SMOKE, option, 500, "--out", tmp_path / "out")
        assert refused.code == 2
        assert f"{option}: {PART} learn from episodes" in refused.err
    assert command(*SMOKE, "--seeds", "-1", "--out", tmp_path / "out").code == 2
    assert command(*SMOKE, "--methods", "bp", "--out", tmp_path / "out").code == 2
    assert not list(tmp_path.iterdir())
