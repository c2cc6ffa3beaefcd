"""The page about studies: its example runs, and its commands are ones that there are."""

from __future__ import annotations

import re
import shlex
from typing import Any

import optuna
import torch

from metaplastic.tune import finished
from studies.cli import make_parser
from tests.helpers import page_examples
from tools.check_wheel import ROOT

PAGE = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")


def test_the_example_searches(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ((section, code),) = page_examples("studies.md")
    assert section == "On data of your own"
    before, names = torch.get_rng_state(), {"__name__": "page"}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        exec(compile(code, "docs/studies.md", "exec"), names)
    finally:
        optuna.logging.set_verbosity(verbosity)
        torch.set_rng_state(before)
    study: Any = names["study"]
    assert len(finished(study)) == 8
    assert len(capsys.readouterr().out.splitlines()) == 8
    assert study.trials[0].user_attrs["options"] == {"rate": 0.01, "mix": 0.9, "lr": 0.01}
    assert study.best_value > 0.45  # chance is 1/3


def test_the_commands_are_ones_that_there_are():
    blocks = re.findall(r"^```shell\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [line for line in lines if line.startswith("python -m studies")]
    assert len(commands) == 9
    for command in commands:
        make_parser().parse_args(shlex.split(command)[3:])


def test_the_proxy_is_started_by_names_that_optuna_has():
    code = re.search(r'^python -c "(.*?)"$', PAGE, re.DOTALL | re.MULTILINE)
    assert code is not None
    compile(code[1], "docs/studies.md", "exec")
    for name in re.findall(r"\b(get_storage|run_grpc_proxy_server)\b", code[1]):
        assert hasattr(optuna.storages, name)
