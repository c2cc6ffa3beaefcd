"""What credits that send errors down refuse, and what they say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch.nn.functional as F

from metaplastic import Delta, DirectFeedback, Learner, Oja, Unrolled
from metaplastic.credit import (
    DirectRandomTarget,
    FeedbackAlignment,
    KolenPollack,
    SignSymmetry,
    WeightMirror,
)
from metaplastic.errors import CompatibilityError, ConfigurationError
from metaplastic.rules import Pool
from tests.alignment.parts import batch, dense, episodes_for, make

WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "origin": (lambda: FeedbackAlignment("random"), "weights must be one of"),  # type: ignore[arg-type]
    "Kolen-Pollack origin": (lambda: KolenPollack("drawn"), "weights must be one of"),  # type: ignore[arg-type]
    "random target origin": (lambda: DirectRandomTarget("no"), "weights must be one of"),  # type: ignore[arg-type]
    "magnitudes": (lambda: SignSymmetry("half"), "magnitudes must be one of"),  # type: ignore[arg-type]
    "sigma": (lambda: WeightMirror(sigma=0.0), "sigma .* got 0"),
    "sigma not a number": (lambda: WeightMirror(sigma=float("nan")), "sigma .* got nan"),
    "decay": (lambda: Delta(decay=1.5), r"\[0.0, 1.0\], got 1.5"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_options_out_of_range(wrong):
    build, message = WRONG[wrong]
    with pytest.raises(ConfigurationError, match=message):
        build()


@pytest.mark.parametrize("credit", [WeightMirror(), SignSymmetry("presentation")], ids=repr)
def test_presentations_without_noise_are_an_error(credit):
    learner, (x, y) = make(credit, dense()), batch("mlp")
    with pytest.raises(ConfigurationError, match="generator"):
        Unrolled().gradient(learner, episodes_for("mlp"))
    with pytest.raises(ConfigurationError, match="noise"):
        learner.clone().adapt(x, y)


def test_resampled_feedback_without_a_generator_is_an_error():
    learner = make(FeedbackAlignment("resampled"), dense())
    with pytest.raises(ConfigurationError, match="generator"):
        Unrolled().gradient(learner, episodes_for("mlp"))


def test_a_loss_alone_holds_no_target_to_project():
    learner, (x, y) = make(DirectRandomTarget(), dense()), batch("mlp")
    clone = learner.clone()
    with pytest.raises(CompatibilityError, match="target"):
        clone.adapt(F.cross_entropy(clone(x), y))


def test_a_rule_that_reads_what_is_not_sent():
    with pytest.raises(CompatibilityError, match=r"pre_teaching.*DirectFeedback"):
        make(DirectFeedback(), dense(), Pool())
    with pytest.raises(ConfigurationError, match="role:feedback"):
        Learner(dense(), FeedbackAlignment(), {"role:weight": Oja(), "role:feedback": Delta()})
