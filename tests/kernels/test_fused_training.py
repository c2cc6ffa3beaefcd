"""Meta-training by kernels goes the way of the plain engine."""

from __future__ import annotations

import copy

import pytest
import torch

from metaplastic import Unrolled
from metaplastic.kernels import explain
from studies.assembly import make_learner, make_run_task, make_training
from studies.config import make_config
from tests.helpers import assert_close, gradients

pytest.importorskip("numba", reason="the fused engine on a CPU is compiled by Numba")


def test_the_first_meta_gradients_on_glyphs_are_those_of_the_plain_engine() -> None:
    """In single precision, with the optimiser's steps between them, at the demo's sizes."""
    config, device = make_config("glyphs-continual", "flp", "quick", 0), torch.device("cpu")
    task = make_run_task(config, device)
    training = make_training(config, task, make_learner(config, task, device))
    assert isinstance(training.metagradient, Unrolled)
    assert explain(training.learner).engine == "fused"
    sample = training.sample
    for _ in range(5):
        before, shown = copy.deepcopy(training.learner), []
        training.sample = lambda generator, shown=shown: shown.append(sample(generator)) or shown[0]
        training.step()
        Unrolled(engine="plain").gradient(before, shown[0])
        norm = torch.nn.utils.clip_grad_norm_(list(before.parameters()), training.clip or 1e9)
        assert bool(norm.isfinite())
        assert_close(gradients(training.learner), gradients(before), 1e-4)
