"""Two processes that torchrun starts give the meta-gradient of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metaplastic import Delta, DirectFeedback, Distributed, Learner, MetaTraining, Oja, Unrolled
from metaplastic.errors import ConfigurationError
from tests.helpers import ROOT, assert_close, classification, mlp, shake

EPISODES = 5
SCRIPT = """
import sys, torch
from torch import distributed
from tests.test_distributed import EPISODES, trained
from metaplastic import Distributed, Unrolled
distributed.init_process_group("gloo")
found = trained(Distributed(Unrolled(engine=sys.argv[2])), diverging=sys.argv[3] == "True")
torch.save(found, f"{sys.argv[1]}/{distributed.get_rank()}.pt")
distributed.destroy_process_group()
"""


def trained(method: Unrolled | Distributed, diverging: bool) -> dict[str, torch.Tensor]:
    """The gradients of a first meta-step, the learner after a second one, and what was reported."""
    rule = Oja(0.1, 0.9) if not diverging else Delta(0.1, learned=True, derivative=False)
    feedback = DirectFeedback("target")
    learner = Learner(mlp(4, 6, 3), feedback, {"role:weight": rule}, initial="learned")
    shake(learner, plasticity=0.2)
    shown = classification(EPISODES, 6, 1, 4, 3)
    if diverging:
        shown.support_x[3] *= 1e200
    training = MetaTraining(learner, lambda generator: shown, metagradient=method)
    reports = [training.step()]
    gradients = {
        f"{n}.grad": p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None
    }
    reports.append(training.step())
    lost = torch.tensor([d.episode for r in reports for d in r.diverged], dtype=torch.float64)
    losses = torch.tensor([r.loss for r in reports], dtype=torch.float64)
    after = {n: p.detach() for n, p in learner.named_parameters()}
    return {**gradients, **after, "losses": losses, "lost": lost}


@pytest.mark.parametrize(("engine", "diverging"), [("plain", False), ("auto", True)])
def test_two_processes_train_as_one(diverging: bool, engine: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        str(script), str(tmp_path), engine, str(diverging),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    wanted = trained(Unrolled(engine="plain"), diverging)
    lost = [3, 3] if diverging else []
    assert wanted.pop("lost").tolist() == lost
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.pop("lost").tolist() == lost
        assert_close(found, wanted, 1e-12)


def test_without_a_process_group_it_says_what_to_do() -> None:
    learner = Learner(mlp(4, 3), DirectFeedback("target"), {"role:weight": Oja(0.1)})
    with pytest.raises(ConfigurationError, match="torchrun"):
        Distributed(Unrolled()).gradient(learner, classification(2, 2, 1, 4, 3))
