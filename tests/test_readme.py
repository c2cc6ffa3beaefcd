"""The README's longer example runs as it stands. The quickstart is in test_package.py."""

from __future__ import annotations

import random
import re

import torch
from torch import Tensor, nn

from tools.check_wheel import readme_example


class MyModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eye = nn.Sequential(nn.Linear(16, 64), nn.ReLU())
        self.brain = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.brain(self.eye(x))


def test_a_rule_learned_in_learn2learn_works_in_a_module_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    random.seed(0)  # learn2learn draws its tasks with Python's own generator
    before = torch.get_rng_state()
    torch.manual_seed(0)
    try:
        code = compile(readme_example("travel"), "README.md", "exec")
        exec(code, {"__name__": "readme", "MyModule": MyModule})
    finally:
        torch.set_rng_state(before)
    found = re.fullmatch(r"accuracy (0\.\d\d|1\.00), chance 0\.20\n", capsys.readouterr().out)
    assert found is not None
    assert float(found[1]) > 0.4
    assert [path.name for path in tmp_path.iterdir()] == ["oja.safetensors"]
