"""The command that reproduces a paper, and the folder that it writes."""

import json

import pytest

from metaplastic.errors import ConfigurationError
from studies.reproduce import PAPERS
from studies.reproduce.base import Method, Sweep
from studies.reproduce.figures import CONTROL_PICTURES, NOISE_PICTURE
from studies.reproduce.images import PaperPart
from studies.reproduce.jobs import make_training
from studies.reproduce.paper import Paper
from studies.reproduce.study import open_study
from studies.results import KEYS, ROW_KEYS
from tests.studies.conftest import read
from tests.studies.reproductions import SIZES, made_up, silent, small


def test_a_folder_is_gone_on_with_only_for_the_same_setting(tmp_path):
    out, setting = str(tmp_path / "out"), {"paper": "dfc", "epochs": 2}
    folder = open_study(out, False, setting)
    assert open_study(out, False, setting) == folder
    with pytest.raises(ConfigurationError, match=r"epochs 2 \(now 3\)"):
        open_study(out, False, {**setting, "epochs": 3})
    open_study(out, True, {**setting, "epochs": 3})
    assert json.loads((folder / "config.json").read_text())["epochs"] == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(ConfigurationError, match="not empty"):
        open_study(str(tmp_path / "mine"), False, setting)


@pytest.fixture
def tiny(monkeypatch) -> None:
    """A paper of two methods and a sweep, and one of the methods again, in this process."""
    methods = [Method("bp", "one", small, {"lr": 0.02}), Method("own", "two", small, {"lr": 0.01})]
    sweep = Sweep("noise", "σ", (Method("swept", "three", small, {"lr": 0.01}),), (0.0, 0.1), SIZES)
    sizes = {"quick": SIZES}
    parts = {
        "one": PaperPart("mnist", lambda preset: methods, sizes, sweep=lambda preset: sweep),
        "two": PaperPart("mnist", lambda preset: methods[:1], sizes, scaling="unit"),
        "never": PaperPart("mnist", lambda preset: methods, {"full": SIZES}),
    }
    paper = Paper(
        name="tiny",
        title="A tiny paper",
        source="nobody",
        about="for this test",
        parts=parts,
        pictures=(*CONTROL_PICTURES, NOISE_PICTURE),
        shown_epochs=(1,),
    )
    monkeypatch.setitem(PAPERS, "tiny", paper)
    for module in ("jobs", "images"):
        monkeypatch.setattr(f"studies.reproduce.{module}.load_images", made_up)

    def here(function, jobs, workers, display, words):
        return {name: function(job, silent) for name, job in jobs.items()}

    monkeypatch.setattr("studies.commands.reproduce.run_jobs", here)


@pytest.mark.usefixtures("tiny")
def test_the_command_writes_its_results_and_goes_on(command, tmp_path, monkeypatch):
    out = tmp_path / "out"
    done = command("reproduce", "tiny", "--methods", "bp", "--parts", "one", "--out", out)
    assert done.code == 0, done.err
    assert [(row["task"], row["learner"]) for row in read(out)["rows"]] == [("one", "bp")] * 2
    seen = []

    def spied(job, images):
        seen.append(job.out.name)
        return make_training(job, images)

    monkeypatch.setattr("studies.reproduce.jobs.make_training", spied)
    done = command("reproduce", "tiny", "--out", out)
    assert done.code == 0, done.err
    assert not [name for name in seen if name.startswith("one-bp")]  # those were there
    result = read(out)
    assert tuple(result) == KEYS
    assert all(tuple(row) == ROW_KEYS for row in result["rows"])
    assert {(row["task"], row["learner"], row["seed"]) for row in result["rows"]} == {
        *(("one", name, seed) for name in ("bp", "own") for seed in (0, 1)),
        *(("one", f"swept at {level:g}", seed) for level in (0, 0.1) for seed in (0, 1)),
        *(("two", "bp", seed) for seed in (0, 1)),
    }
    found = [(s["part"], s["method"]) for s in result["config"]["summary"]]
    assert found == [("one", "bp"), ("one", "own"), ("two", "bp")]
    assert done.out.count("test accuracy, % at epoch ") == 2
    assert done.last == result["headline"]
    assert (out / "report.html").read_text().count("A tiny paper") >= 2
    assert (out / "runs" / "one-own-0" / "curve.jsonl").read_text().count("\n") == 4
    refused = command("reproduce", "tiny", "--epochs", 5, "--out", out)
    assert refused.code == 2
    assert "--overwrite" in refused.err
    alone = command("reproduce", "tiny", "--methods", "swept", "--seed", 0, "--out", out)
    assert alone.code == 0, alone.err
    assert "swept 0: " in alone.last


@pytest.mark.usefixtures("tiny", "bare")
def test_without_matplotlib_the_pictures_are_named(command, tmp_path):
    done = command("reproduce", "tiny", "--methods", "own", "--seed", 1, "--out", tmp_path)
    assert done.code == 0, done.err
    assert "one-curves.png" in done.out
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dcf",), "Did you mean 'dfc'"),
        (("tiny", "--methods", "owns"), "Did you mean 'own'"),
        (("tiny", "--parts", "never"), "part of tiny at --preset quick"),
        (("tiny", "--parts", "two", "--methods", "own"), "method of tiny"),
        (("tiny", "--seeds", "a"), "numbers with commas"),
        (("tiny", "--seeds", "0", "--seed", "0"), "one of them"),
        (("tiny", "--workers", "0"), "--workers counts from 1"),
        (("tiny", "--images", "3"), "--images from 8"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(arguments, message, command, tmp_path):
    done = command("reproduce", *arguments, "--out", tmp_path / "out")
    assert done.code == 2
    assert message in done.err
    assert not list(tmp_path.iterdir())
