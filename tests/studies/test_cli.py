"""The command line: what it teaches, what it refuses, and how it says so."""

import signal

import pytest

import studies
from metaplastic.recipes import RECIPES
from studies.interrupt import stoppable
from studies.presets import PRESETS
from tasks import TASKS

SMOKE = ("train", "--preset", "smoke", "--task", "sinusoid-continual", "--learner", "none")


@pytest.mark.parametrize("arguments", [("--help",), ("train", "--help")])
def test_help_lists_tasks_learners_and_presets(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        studies.main(list(arguments))
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    for name in (*TASKS, *RECIPES, *PRESETS, *(r.about for r in RECIPES.values())):
        assert name in shown


def test_every_command_has_help_and_the_common_options(capsys):
    for name in studies.COMMANDS:
        with pytest.raises(SystemExit) as ended:
            studies.main([name, "--help"])
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        for option in ("--out", "--overwrite", "--seed", "--device", "--preset", "--quick"):
            assert option in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trian",), "Did you mean 'train'?"),
        (("train", "--learner", "flpp"), "Did you mean 'flp'?"),
        (("train", "--task", "sinusoid-continuous"), "Did you mean 'sinusoid-continual'?"),
        (("train", "--preset", "smok"), "Did you mean 'smoke'?"),
        (("train", "--metagradient", "truncate:3"), "Did you mean 'truncated'?"),
        (("train", "--metagradient", "truncated"), "truncated:K"),
        (("train", "--metagradient", "unrolled:4"), "unrolled"),
        (("train", "--metagradient", "truncated:0"), "from 1"),
        (("train", "--device", "gpu"), "Did you mean 'cpu'?"),
        (("train", "--task", "sinusoid-iid", "--ways", "3"), "takes no option 'ways'"),
        (("train", "--ways", "0"), "positive integer"),
        (("train", "--steps", "0"), "count from 1"),
        (("train", "--seed", "-1"), "a seed from 0"),
        (("train", "--config", "nowhere.toml"), "nowhere.toml"),
        (("train", "--resume", "nowhere"), "python -m studies train"),
        (("train", "--resume", "nowhere", "--learner", "oml"), "leave out --learner"),
        (("evaluate", "nowhere"), "python -m studies train"),
        (("report", "nowhere"), "result.json"),
    ],
)
def test_what_is_wrong_is_said_in_one_message(arguments, message, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert message in done.err
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_unknown_options_end_with_code_2(capsys):
    with pytest.raises(SystemExit) as ended:
        studies.main(["train", "--step", "3"])
    assert ended.value.code == 2
    assert "--step" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rates = 0.1", "no option rates"),
        ("initial_rate = 'fast'", "option initial_rate of none is a float"),
        ("initial_rate = ", "not a readable TOML file"),
    ],
)
def test_options_files_are_strict(text, message, command, tmp_path):
    file = tmp_path / "options.toml"
    file.write_text(text)
    done = command(*SMOKE, "--config", file, "--out", tmp_path / "run")
    assert done.code == 2
    assert message in done.err


@pytest.mark.usefixtures("bare")
def test_results_are_overwritten_on_demand_only_and_other_files_stay(command, tmp_path):
    run = (*SMOKE, "--steps", 1, "--out", tmp_path)
    assert command(*run).code == 0
    first = (tmp_path / "result.json").read_bytes()
    (tmp_path / "notes.txt").write_text("mine")
    refused = command(*run, "--seed", 1)
    assert refused.code == 2
    assert "--overwrite" in refused.err
    assert (tmp_path / "result.json").read_bytes() == first
    assert command(*run, "--seed", 1, "--overwrite").code == 0
    assert (tmp_path / "result.json").read_bytes() != first
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("name", ["report", "evaluate"])
def test_what_a_command_reads_it_never_overwrites(name, command, tmp_path):
    assert command(*SMOKE, "--steps", 1, "--out", tmp_path / "run").code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    for out in (tmp_path / "run", tmp_path):
        done = command(name, tmp_path / "run", "--out", out, "--overwrite")
        assert done.code == 2
        assert "name another folder" in done.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_out_that_cannot_be_a_folder_is_refused(command, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        done = command(*SMOKE, "--out", out)
        assert done.code == 2
        assert "--out" in done.err


def test_the_first_interrupt_is_remembered_and_the_second_one_acts():
    before = signal.getsignal(signal.SIGINT)
    with stoppable() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
