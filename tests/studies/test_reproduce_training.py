"""Training in a reproduction: interrupted, by hand, and under control."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from metaplastic import Delta, Learner
from metaplastic.credit import Backprop, FeedbackControl
from metaplastic.errors import CheckpointError
from studies.reproduce.base import Setup
from studies.reproduce.control import controlled
from studies.reproduce.phase import WEIGHTS, Phase
from studies.reproduce.training import Training, evaluate
from tasks.images import Part
from tests.helpers import seeded
from tests.studies.reproductions import SIZES, made_up, silent, small, timeless


def training(seed: int = 0) -> Training:
    images = made_up()
    setup = Setup((1, 2, 3), 3, seed, SIZES, {"lr": 0.01})
    made = small(setup)
    return Training(
        made.learner,
        images,
        made.phases,
        before=made.before,
        probes=made.probes,
        batch=SIZES.batch,
        seed=seed,
    )


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(stop, tmp_path):
    whole, path = training(), tmp_path / "checkpoint.pt"
    whole.run(3, silent)
    begun = training()
    begun.run(stop, silent)
    begun.save(path, {"mine": 3})
    resumed = training(seed=5)  # whatever it began with
    assert resumed.resume(path)["mine"] == 3
    resumed.run(3, silent)
    assert timeless(resumed.curve) == timeless(whole.curve)
    for name, value in whole.learner.state_dict().items():
        assert torch.equal(value, resumed.learner.state_dict()[name]), name
    other = Training(whole.learner, whole.images, whole.phases[:1])
    with pytest.raises(CheckpointError, match="optimisers"):
        other.resume(path)


def test_an_epoch_is_what_a_loop_by_hand_does():
    """Backpropagation by autograd, clipped by hand, on batches in the same order."""
    images = made_up()
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double()
    start = {k: v.clone() for k, v in net.state_dict().items()}
    images = replace(images, train=Part(images.train.x.double()[:35], images.train.y[:35]))
    for part in ("validation", "test"):
        own = getattr(images, part)
        images = replace(images, **{part: Part(own.x.double(), own.y)})
    rules = {"role:weight": Delta(1.0), "role:bias": Delta(1.0)}
    learner = Learner(net, Backprop(), rules)
    phase = Phase(WEIGHTS, torch.optim.SGD(net.parameters(), 0.5), sweeps=2, clip=0.2)
    made = Training(learner, images, [phase], batch=8, seed=3)
    order = made._generators["episodes"].clone_state()
    made.run(1, silent)

    w, b = start["1.weight"].clone(), start["1.bias"].clone()
    losses = []
    for _ in range(2):
        shuffled = torch.randperm(35, generator=order)
        for i in range(4):  # the last 3 images are dropped
            index = shuffled[8 * i : 8 * i + 8]
            w, b = w.requires_grad_(), b.requires_grad_()
            x, y = images.train.x[index].flatten(1), images.train.y[index]
            loss = nn.functional.cross_entropy(x @ w.T + b, y)
            losses.append(loss.item())
            gw, gb = torch.autograd.grad(loss, (w, b))
            gw, gb = (g * min(1.0, 0.2 / (float(g.norm()) + 1e-6)) for g in (gw, gb))
            w, b = (w - 0.5 * gw).detach(), (b - 0.5 * gb).detach()
    assert torch.allclose(net[1].weight, w, atol=1e-12)
    assert torch.allclose(net[1].bias, b, atol=1e-12)
    line = made.curve[1]
    assert line["loss"] == pytest.approx(np.mean(losses))
    with torch.no_grad():
        right = (net(images.test.x).argmax(1) == images.test.y).double().mean()
        loss = nn.functional.cross_entropy(net(images.test.x), images.test.y)
    assert line["test_accuracy"] == pytest.approx(float(right))
    assert evaluate(learner, images.test)[0] == pytest.approx(float(loss))


def test_feedback_is_trained_first_and_weights_only_in_their_phase():
    made = training()
    before = {k: v.clone() for k, v in made.learner.state_dict().items()}
    made.run(0, silent)
    for name, value in made.learner.state_dict().items():
        moved = not torch.equal(value, before[name])
        assert moved == name.startswith("credit."), name
    assert "loss" not in made.curve[0]
    first = made.curve[0]["probes"]["norm"]
    assert first == pytest.approx(float(before["credit.layer0_feedback"].norm()))
    assert made.phases[1].optimizer.param_groups[0]["lr"] == 0.01
    made.run(2, silent)
    assert made.phases[1].optimizer.param_groups[0]["lr"] == pytest.approx(0.001)


def test_lost_examples_are_counted_as_a_share(monkeypatch):
    made = training()
    assign = made.learner.assign_grads

    def lossy(*arguments, observe, **options):
        return assign(
            *arguments,
            observe=lambda state: observe({"credit": {"unconverged": torch.tensor(2.0)}}),
            **options,
        )

    monkeypatch.setattr(made.learner, "assign_grads", lossy)
    made.run(1, silent)
    assert made.curve[1]["unconverged"] == 2 / 8


def test_control_under_a_small_nudge_learns_in_the_direction_of_the_gradient():
    """With the transposed weights as feedback; rate 1 / nudge gives it the size of a gradient."""
    options = {"lr": 1e-3}
    setup = Setup((1, 4, 4), 10, 0, SIZES, options)
    made = controlled(setup, FeedbackControl(nudge=1e-3, leak=1.0), 1e3)
    x, y = torch.randn(8, 1, 4, 4, generator=seeded()), torch.arange(8)
    made.learner.assign_grads(x, y)
    own = torch.cat([p.grad.flatten() for p in made.learner.network.parameters()])
    loss = nn.functional.cross_entropy(made.learner(x), y)
    wanted = torch.autograd.grad(loss, list(made.learner.network.parameters()))
    flat = torch.cat([g.flatten() for g in wanted])
    assert float(nn.functional.cosine_similarity(own, flat, dim=0)) > 0.9
    assert 0.1 < float(own.norm() / flat.norm()) < 1.0
    energies = made.probes["control_energy"](made.learner, x, y)
    assert 0 < energies < 1e-3
    assert made.probes["gradient_angle"](made.learner, x, y) < 45
