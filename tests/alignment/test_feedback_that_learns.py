"""Feedback that learns: Kolen-Pollack against its equation, the weight mirror against loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaplastic import Backprop, CrossEntropy, Delta, LayeredNetwork, Learner, Presentation
from metaplastic.credit import FeedbackAlignment, KolenPollack, WeightMirror
from metaplastic.errors import ConfigurationError
from metaplastic.rules import Coefficient
from metaplastic.signals import State, Teacher
from tests.alignment.parts import NETWORKS, WAYS, batch, both_networks, dense, make, shown_to
from tests.helpers import (
    Hear,
    assert_close,
    classification,
    deviation,
    meta_gradient,
    mlp,
    normal,
    presentation,
    raw,
    seeded,
    shake,
    show,
    slope_error,
    unit_direction,
)


@both_networks
def test_b08_kolen_pollack_difference_decays(network):
    decay = 0.2
    learner = make(KolenPollack(), NETWORKS[network](), Delta(0.3, decay=decay))
    x, y = batch(network)
    state = learner.start(3)
    names = sorted(learner.credit.groups())
    assert names == ["layer1_feedback", "layer2_feedback", "layer3_feedback"]

    def difference(state: State) -> dict[str, Tensor]:
        weights = state["weights"]
        return {n: weights[n] - weights[n.replace("feedback", "weight")] for n in names}

    first = difference(state)
    for step in range(1, 6):
        before, state = state, show(learner, x[None], y[None], state)
        assert all(deviation(state["weights"][n], before["weights"][n]) > 1e-3 for n in names)
        shrunk = {n: d * (1 - decay) ** step for n, d in first.items()}
        assert_close(difference(state), shrunk, 1e-12)


def test_kolen_pollack_shares_rule_and_coefficients():
    rule = Delta(
        Coefficient(0.3, granularity="synapse", bound="exp"),
        decay=Coefficient(0.1, bound="sigmoid"),
    )
    learner = make(KolenPollack("learned"), dense(), rule)
    names = [f"layer{i}_{role}" for i in range(4) for role in ("weight", "bias")]
    assert len({id(raw(learner, name, "decay")) for name in names}) == 8
    for layer in ("layer1", "layer2", "layer3"):
        assert learner.rules[f"{layer}_feedback"] is learner.rules[f"{layer}_weight"]
        assert learner.patterns[f"{layer}_feedback"] == "*"
    listed = [p for group in learner.param_groups() for p in group["params"]]
    assert len(listed) == len(set(map(id, listed))) == len(list(learner.parameters()))
    # One number moves both: their gradients add up.
    shake(learner, 1)
    episodes = classification(2, 3, 2, 5, WAYS)
    gradient = meta_gradient(learner, episodes)
    direction = unit_direction(learner, 4, "layer1_(weight|feedback).*decay")
    assert list(direction) == ["rules.layer1_weight.decay.raw"]
    assert slope_error(learner, episodes, direction, gradient) < 1e-6


def test_kolen_pollack_without_plastic_forward_weights_keeps_its_own():
    rules = {"name:layer2_weight": None, "role:weight": Delta(0.3)}
    learner = Learner(dense(), KolenPollack(), rules).double()
    assert "layer2_feedback" in learner.credit.groups()
    assert learner.plastic == {
        "layer0_weight", "layer1_weight", "layer3_weight", "layer1_feedback", "layer3_feedback"
    }  # fmt: skip
    x, y = batch("mlp")
    before, after = learner.start(3), show(learner, x[None], y[None])
    assert torch.equal(before["weights"]["layer2_feedback"], after["weights"]["layer2_feedback"])


@pytest.mark.parametrize(("activation", "share"), [(nn.Identity, 1.0), (nn.ReLU, 0.5)])
@pytest.mark.parametrize("layer", ["dense", "conv"])
def test_weight_mirror_follows_the_forward_weights_on_average(activation, share, layer):
    """The mean of rate <y xi^T> is rate c sigma^2 W for each of a convolution's positions."""
    sigma, rate, count = 0.3, 0.7, 20_000
    if layer == "dense":
        chain = LayeredNetwork(
            nn.Sequential(
                nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), activation(), nn.Linear(5, WAYS)
            ).double()
        )
        shape = (4,)
    else:
        body = nn.Sequential(
            nn.Conv2d(1, 2, 1), nn.Tanh(), nn.Conv2d(2, 3, 2), activation(), nn.Flatten(),
            nn.Linear(12, WAYS),
        )  # fmt: skip
        shape = (1, 3, 3)
        chain = LayeredNetwork(body.double(), input_shape=shape)
    rules = {
        "role:weight": Delta(0.1),
        "role:feedback": Delta(rate, derivative=False, reduction="positions"),
    }
    learner = Learner(chain, WeightMirror(sigma=sigma), rules).double()
    shown = shown_to(learner, torch.zeros(count, *shape).double(), torch.zeros(count).long())
    assert shown.noise is not None
    assert abs(float(shown.noise.std()) / sigma - 1) < 0.02
    field = learner.field(learner.start(count), shown)
    wanted = rate * share * sigma**2 * chain.weights()["layer1_weight"].detach()
    found = field["layer1_feedback"].detach()
    assert found.shape == wanted.shape
    assert float(F.cosine_similarity(found.flatten(), wanted.flatten(), dim=0)) > 0.99
    scale = float((found * wanted).sum() / wanted.square().sum())
    assert abs(scale - 1) < 0.05


def test_weight_mirror_decays_and_is_scored_by_a_scalar_loop():
    """One presentation, number by number; a padded example leaves no trace."""
    learner = make(WeightMirror(sigma=0.5), dense(nn.ReLU))
    x, y = batch("mlp")
    weight = torch.tensor([[1.0], [0.0], [1.0]], dtype=torch.float64)
    shown = replace(shown_to(learner, x, y), weight=weight)
    state = learner.start(3)
    after = learner.step(state, shown)["weights"]
    assert shown.noise is not None
    assert shown.noise.shape == (3, 7 + 6 + 4)
    begin = 0
    for layer, width in ((1, 7), (2, 6), (3, 4)):
        xi = shown.noise[:, begin : begin + width].tolist()
        begin += width
        w = state["weights"][f"layer{layer}_weight"].tolist()
        b = state["weights"][f"layer{layer}_feedback"]
        wanted = b.detach().clone()
        for k in range(b.shape[0]):
            for j in range(width):
                seen = 0.0
                for row in (0, 2):
                    response = sum(a * n for a, n in zip(w[k], xi[row], strict=True))
                    seen += (response if layer == 3 else max(response, 0.0)) * xi[row][j] / 2
                wanted[k, j] += 0.5 * seen - 0.1 * b[k, j]
        assert deviation(after[f"layer{layer}_feedback"], wanted) < 1e-12


@both_networks
def test_weight_mirror_has_a_phase_of_its_own(network):
    """First the feedback alone learns, from noise; then the error comes down through it."""
    learner, (x, y) = make(WeightMirror(), NETWORKS[network]()), batch(network)
    shown, hear, state = shown_to(learner, x, y), Hear(learner), learner.start(3)
    after = learner.credit.present(learner.network, state, shown, hear)
    mirrored, taught = hear.calls
    assert set(mirrored) == {"layer1_feedback", "layer2_feedback", "layer3_feedback"}
    assert set(taught) == learner.network.groups().keys()
    aligned = make(FeedbackAlignment(), learner.network)
    own = {n: after["weights"][n] for n in mirrored}
    start = aligned.start(3)
    wanted = aligned.step({**start, "weights": start["weights"] | own}, shown)
    for name in taught:
        assert torch.equal(after["weights"][name], wanted["weights"][name])
    assert mirrored["layer1_feedback"].sites == learner.groups()["layer1_weight"].sites


def test_weight_mirror_aligns():
    learner = Learner(
        mlp(5, 30, 20, WAYS, bias=False),
        WeightMirror(sigma=1.0),
        {"role:weight": Delta(0.0), "role:feedback": Delta(0.1, derivative=False, decay=0.1)},
    ).double()
    state = learner.start(30)
    name = "layer1_weight"
    for step in range(150):
        noise = learner.credit.noise(learner.network, (1, 1, 30), seeded(step))
        assert noise is not None
        shown = presentation(learner, normal(30, 5), torch.arange(30) % WAYS)
        with torch.no_grad():
            state = learner.step(state, replace(shown, noise=noise[0, 0].double()))
    weight, feedback = state["weights"][name], state["weights"]["layer1_feedback"]
    assert torch.equal(weight, learner.start()["weights"][name])
    assert float(F.cosine_similarity(weight.flatten(), feedback.flatten(), dim=0)) > 0.9


def test_decay_pulls_weights_to_zero():
    """The change is rate <e x^T> - decay W, for a learned decay too."""
    chain, (x, y) = dense(), batch("mlp")
    plain = make(Backprop(), chain)
    teacher = Teacher(CrossEntropy(), plain.encode(y, x.shape[:1]))
    fields = {}
    for decay in (0.0, 0.2, Coefficient(0.2, bound="sigmoid")):
        learner = make(Backprop(), chain, Delta(0.3, decay=decay))
        fields[str(decay)[:3]] = learner.field(learner.start(3), Presentation(x, teacher))
    bare, fixed, learned = fields.values()
    weights = chain.weights()
    for name, change in bare.items():
        assert deviation(fixed[name], change - 0.2 * weights[name]) < 1e-14
        assert deviation(learned[name], fixed[name]) < 1e-14


def test_optimisers_follow_feedback_that_is_learned():
    """Twins get the same ``.grad``; fixed feedback is nothing that an optimiser could move."""
    x, y = batch("mlp")
    learner = make(KolenPollack("learned"), dense())
    learner.assign_grads(x, y)
    for name in learner.credit.groups():
        forward = learner.network.parameter(name.replace("feedback", "weight"))
        feedback = learner.credit.get_parameter(name)
        assert forward.grad is not None
        assert feedback.grad is not None
        assert torch.equal(feedback.grad, forward.grad)
    with pytest.raises(ConfigurationError, match=r"layer1_feedback .* weights='learned'"):
        make(KolenPollack(), dense()).assign_grads(x, y)
