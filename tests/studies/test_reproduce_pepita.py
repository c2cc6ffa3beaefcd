"""The reproduction of PEPITA: its networks, how they are trained, and what is measured of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from metaplastic import InputModulation
from metaplastic.credit import DirectFeedback
from studies.reproduce.base import Setup, Sizes, Trainee
from studies.reproduce.figures_angles import MODULATION_PICTURES
from studies.reproduce.outcome import Outcome
from studies.reproduce.pepita import PAPER, methods
from studies.reproduce.probes import hidden_angle, projection_angle
from studies.reproduce.training import Training
from tasks.images import Images, Part

SIZES = Sizes(images=64, epochs=2, seeds=(0,), test=32, validation=32, batch=8)
SHAPE = (1, 8, 8)
METHODS = {part: {m.name: m for m in methods(part, "full")} for part in PAPER.parts}
ALL = [(part, name) for part, named in METHODS.items() for name in named]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(part: str, name: str, shape: tuple[int, ...] = SHAPE, **options) -> Trainee:
    method = METHODS[part][name]
    return method.build(Setup(shape, 10, 0, SIZES, {**method.options, **options}))


def images(count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten classes, each a bright stripe."""
    y = torch.arange(count) % 10
    x = 0.3 * torch.rand(count, *SHAPE, generator=seeded())
    x.flatten(1)[torch.arange(count)[:, None], (6 * y)[:, None] + torch.arange(6)] += 0.6
    return x, y


@pytest.mark.parametrize("part", PAPER.parts)
def test_weights_are_uniform_and_the_same_for_all_methods_of_a_seed(part: str) -> None:
    whole = [made(part, name).learner.network for where, name in ALL if where == part]
    for network in whole:
        assert not any("bias" in name for name in network.groups())
        for name, weight in network.weights().items():
            limit = math.sqrt(6 / weight.shape[1])
            assert torch.equal(weight, whole[0].weights()[name])
            assert 0.97 * limit < float(weight.detach().abs().max()) <= limit
            assert float(weight.detach().std()) == pytest.approx(limit / math.sqrt(3), rel=0.06)
    weights = [w.detach().flatten()[:50] for w in whole[0].weights().values()]
    ratio = weights[0] / weights[1]
    assert float(ratio.std()) > 0.1  # not the same numbers twice


@pytest.mark.parametrize("part", ["mnist-fc", "cifar10-conv"])
def test_backpropagation_is_a_momentum_step_of_autograd(part: str) -> None:
    trainee = made(part, "bp")
    network, (phase,) = trainee.learner.network, trainee.phases
    x, y = images(9)
    body = network.body
    assert isinstance(body, nn.Sequential)
    loss = nn.functional.cross_entropy(body(x), y)
    wanted = torch.autograd.grad(loss, list(body.parameters()))
    trainee.learner.assign_grads(x, y, only=phase.only)
    for parameter, gradient in zip(body.parameters(), wanted, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient, atol=1e-5)
    (group,) = phase.optimizer.param_groups
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 0, False)
    assert phase.clip is None
    assert trainee.probes["hidden_angle"](trainee.learner, x, y) == pytest.approx(0, abs=0.1)


def test_rates_fall_after_their_epochs() -> None:
    trainee = made("mnist-fc", "pepita", falls=[1, 2])
    assert METHODS["mnist-fc"]["bp"].options["falls"] == [60, 90]
    x, y = images(64)
    data = Images("made up", Part(x, y), Part(x, y), Part(x, y), 10)
    training = Training(trainee.learner, data, trainee.phases, batch=8)
    rates = []
    for epoch in range(4):
        training.run(epoch, lambda status: None)
        rates.append(trainee.phases[0].optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.01, 0.001, 0.001])


@pytest.mark.parametrize(("part", "name"), [one for one in ALL if one[0].startswith("mnist")])
def test_every_method_learns_stripes(part: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a small rate only have to stay bounded."""
    monkeypatch.setattr("studies.reproduce.pepita.HIDDEN", 128)
    trainee = made(part, name, falls=[])
    x, y = images(160)
    data = Images("made up", Part(x, y), Part(x, y), Part(x, y), 10)
    training = Training(
        trainee.learner,
        data,
        trainee.phases,
        before=trainee.before,
        probes=trainee.probes,
        batch=8,
    )
    training.run(6, lambda status: None)
    first, last = training.curve[0], training.curve[-1]
    if name in ("drtp", "pepita-time-local"):
        assert last["test_loss"] < first["test_loss"] + 0.1
    else:
        assert last["test_accuracy"] > 0.8
    assert all(math.isfinite(v) for line in training.curve for v in line["probes"].values())


def test_feedback_of_direct_alignment_has_the_variance_of_forward_weights() -> None:
    trainee = made("mnist-fc", "dfa")
    assert isinstance(trainee.learner.credit, DirectFeedback)
    std = float(trainee.learner.credit.weights()["layer0_feedback1"].std())
    assert std == pytest.approx(math.sqrt(2 / 1024), rel=0.03)
    aligned = made("mnist-fc", "fa").learner.credit.weights()["layer1_feedback"]
    assert float(aligned.std()) == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_projection_angle_knows_the_sign(sign: int) -> None:
    """F that sends a wanted output change down as the transposed weights do is at 0 degrees."""
    learner = made("mnist-fc", "pepita", sign=sign).learner
    x, y = images()
    assert projection_angle(learner, x, y) == pytest.approx(90, abs=8)
    first, last = learner.network.weights().values()
    feedback = learner.credit.weights()["layer0_feedback"]
    feedback.copy_((-sign * 0.01 * (last @ first).mT).detach())
    assert projection_angle(learner, x, y) == pytest.approx(0, abs=0.1)
    assert hidden_angle(learner, x, y) < 80
    feedback.neg_()
    assert projection_angle(learner, x, y) == pytest.approx(180, abs=0.1)
    assert hidden_angle(learner, x, y) > 100


def test_mirrors_come_to_agree_with_the_weights_before_the_training() -> None:
    trainee = made("mnist-fc", "pepita-mirror")
    x, y = images(800)
    own = {name: w.clone() for name, w in trainee.learner.network.weights().items()}
    data = Images("made up", Part(x, y), Part(x, y), Part(x, y), 10)
    training = Training(trainee.learner, data, trainee.phases, before=trainee.before, batch=8)
    start = projection_angle(trainee.learner, x, y)
    training.run(0, lambda status: None)
    assert projection_angle(trainee.learner, x, y) < start - 15
    assert all(torch.equal(own[n], w) for n, w in trainee.learner.network.weights().items())


def test_options_reach_the_credit_and_the_rule() -> None:
    plain, conv = (made(part, "pepita").learner for part in ("mnist-fc", "mnist-conv"))
    assert isinstance(plain.credit, InputModulation)
    assert isinstance(conv.credit, InputModulation)
    assert (plain.credit.keep, plain.credit.output, plain.credit.sign) == (0.9, "modulated", 1)
    assert (conv.credit.keep, conv.credit.output) == (1.0, "clean")
    assert conv.rules["layer0_weight"].reduction == "positions"
    local = made("mnist-fc", "pepita-time-local")
    assert isinstance(local.learner.credit, InputModulation)
    assert local.learner.credit.variant == "time-local"
    (group,) = local.phases[0].optimizer.param_groups
    assert (group["lr"], group["momentum"]) == (1.0, 0.0)  # what the second pass saw


def test_only_what_is_known_counts_as_published() -> None:
    for part, named in METHODS.items():
        for method in named.values():
            known = (part, method.name) == ("cifar10-fc", "pepita")
            assert bool(method.published_epochs) == known
            assert method.published == (52.58 if known else None)


def test_pictures_show_the_angles() -> None:
    pytest.importorskip("matplotlib")
    probes = {"hidden_angle": 80.0, "projection_angle": 70.0}
    line = {"step": 0, "validation_accuracy": 0.5, "test_accuracy": 0.5, "probes": probes}
    curve = [line, {**line, "step": 1}, {**line, "step": 2}]
    drawn = [Outcome("mnist-fc", "pepita", 0, None, curve)]
    bare = [replace(drawn[0], curve=[{**one, "probes": {}} for one in curve])]
    for picture in MODULATION_PICTURES:
        assert picture.draw(drawn) is not None
        assert (picture.draw(bare) is None) == (picture.name != "curves")
