"""What the optimiser for higher refuses, and what it imports."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import higher
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metaplastic import Backprop, Delta, DirectFeedback, Learner
from metaplastic.adapters.higher import PlasticOptimizer
from metaplastic.errors import CompatibilityError, ConfigurationError, DivergenceError
from tests.adapters.higher_loop import FLP, body_of, cnn, learner_for, shaken
from tests.helpers import mlp, normal


def one_step(learner: Learner, loss: Callable, model: nn.Module | None = None, **options) -> None:
    x = normal(2, 4)
    optimizer = PlasticOptimizer(learner)
    with higher.innerloop_ctx(model or learner, optimizer) as (fmodel, diffopt):
        diffopt.step(loss(fmodel, x), **options)


Y = torch.tensor([0, 2])


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda fmodel, x: torch.ones((), requires_grad=True), "after no forward pass"),
        (lambda fmodel, x: fmodel(x), "scalar loss"),
        (lambda fmodel, x: F.cross_entropy(fmodel(x), Y).detach(), "requires_grad=False"),
        (lambda fmodel, x: fmodel.fast_params[0].sum() + 0 * fmodel(x).detach().sum(), "depend"),
        (lambda fmodel, x: (F.cross_entropy(fmodel(x), Y), fmodel(x))[0], "last fmodel"),
    ],
    ids=["no forward", "no scalar", "no graph", "another loss", "an earlier output"],
)
def test_a_loss_that_is_none_of_the_last_output_is_refused(loss, words):
    with pytest.raises(ConfigurationError, match=words):
        one_step(learner_for("FLP"), loss)


def cross_entropy(fmodel, x):
    return F.cross_entropy(fmodel(x), Y)


def test_a_second_step_needs_a_second_forward_pass():
    learner = learner_for("FLP")
    with higher.innerloop_ctx(learner, PlasticOptimizer(learner)) as (fmodel, diffopt):
        loss = cross_entropy(fmodel, normal(2, 4))
        diffopt.step(loss)
        with pytest.raises(ConfigurationError, match="after no forward pass"):
            diffopt.step(loss)


def test_target_feedback_asks_for_the_target():
    learner = Learner(mlp(4, 6, 3), DirectFeedback("target"), FLP)
    with pytest.raises(CompatibilityError, match=r"diffopt\.step\(loss, target=y\)"):
        one_step(learner, cross_entropy)


@pytest.mark.parametrize("name", ["override", "grad_callback", "momentum"])
def test_what_has_no_meaning_is_refused(name):
    with pytest.raises(ConfigurationError, match=name):
        one_step(learner_for("FLP"), cross_entropy, **{name: {"lr": [0.1]}})


def test_override_of_the_context_is_refused():
    learner = learner_for("FLP")
    with (
        pytest.raises(ConfigurationError, match="override"),
        higher.innerloop_ctx(learner, PlasticOptimizer(learner), override={"lr": [0.1]}),
    ):
        pass


def other_models() -> dict[str, Callable[[Learner], nn.Module]]:
    return {
        "another learner": lambda learner: learner_for("FLP"),
        "another module": lambda learner: mlp(4, 6, 5, 3),
        "a part": lambda learner: body_of(learner)[:3],
        "something around it": lambda learner: nn.Sequential(body_of(learner), nn.Tanh()),
        "the network": lambda learner: learner.network,
        "a clone": lambda learner: learner.clone(),
    }


@pytest.mark.parametrize("which", other_models())
def test_a_model_that_the_optimiser_was_not_made_for_is_refused(which):
    learner = learner_for("FLP")
    with pytest.raises(ConfigurationError, match="made for"):
        one_step(learner, cross_entropy, model=other_models()[which](learner))


def test_the_body_behind_a_trunk_is_no_model():
    learner = shaken(Learner(cnn(), DirectFeedback(), Delta(0.05)))
    with pytest.raises(ConfigurationError, match="no trunk"):
        one_step(learner, cross_entropy, model=body_of(learner))


def test_a_model_alone_is_not_enough():
    learner = learner_for("FLP")
    with pytest.raises(ConfigurationError, match="NoneType"):
        higher.get_diff_optim(PlasticOptimizer(learner), learner.parameters())


@pytest.mark.parametrize("wrong", [mlp(4, 3), [], None])
def test_the_optimiser_takes_a_learner(wrong):
    with pytest.raises(ConfigurationError, match="takes a Learner"):
        PlasticOptimizer(wrong)
    with pytest.raises(ConfigurationError, match="takes a Learner"):
        PlasticOptimizer(learner_for("FLP").clone())


def test_the_optimiser_does_not_step_by_itself():
    with pytest.raises(ConfigurationError, match=r"innerloop_ctx.*assign_grads"):
        PlasticOptimizer(learner_for("FLP")).step()


def test_divergence_is_an_error_that_changes_nothing():
    learner = Learner(mlp(4, 6, 3), Backprop(), Delta(1.0))
    with higher.innerloop_ctx(learner, PlasticOptimizer(learner)) as (fmodel, diffopt):
        before = fmodel.fast_params
        loss = cross_entropy(fmodel, normal(2, 4)) * float("inf")
        with pytest.raises(DivergenceError, match="after step 0 diverged in layer0_weight"):
            diffopt.step(loss)
        assert fmodel.fast_params is before


ADAPTER = "from metaplastic.adapters.higher import PlasticOptimizer\n"


def test_the_adapter_imports_higher_only_when_it_is_used():
    code = "import sys\n" + ADAPTER + "sys.exit('higher' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_higher_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "higher", None)
    with pytest.raises(ConfigurationError, match="pip install higher"):
        PlasticOptimizer(learner_for("FLP"))
