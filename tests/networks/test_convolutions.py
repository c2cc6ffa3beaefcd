"""Convolutions as synapses, against loops over their positions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaplastic import (
    DirectFeedback,
    Hebb,
    LayeredNetwork,
    Learner,
    LocalSignals,
    Oja,
    PlasticityRule,
)
from metaplastic.signals import State
from tests.helpers import deviation, normal, presentation, seeded, shake
from tests.networks.parts import WAYS, built, randomised


def patches(x: Tensor, m: nn.Conv2d) -> tuple[list[tuple[int, int]], Tensor]:
    """Output positions and what each of their synapses sees, (B, positions, n_in), by loops."""
    assert not isinstance(m.padding, str)
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = m.kernel_size, m.stride, m.padding, m.dilation
    height = (x.shape[2] + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    width = (x.shape[3] + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    places = [(i, j) for i in range(height) for j in range(width)]
    seen = torch.zeros(len(x), len(places), m.in_channels * kh * kw, dtype=x.dtype)
    for b in range(len(x)):
        for p, (i, j) in enumerate(places):
            n = 0
            for c in range(m.in_channels):
                for u in range(kh):
                    for v in range(kw):
                        row, column = i * sh - ph + u * dh, j * sw - pw + v * dw
                        if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
                            seen[b, p, n] = x[b, c, row, column]
                        n += 1
    return places, seen


CONVS = {
    "plain": (nn.Conv2d(1, 2, 3), (1, 5, 4)),
    "padding": (nn.Conv2d(2, 3, 3, padding=1), (2, 3, 5)),
    "stride and dilation": (nn.Conv2d(2, 2, 2, stride=2, dilation=2, padding=(0, 1)), (2, 5, 7)),
    "one pixel": (nn.Conv2d(1, 2, 1), (1, 1, 1)),
}
CONV_RULES: dict[str, PlasticityRule] = {
    "oja": Oja(0.05, 0.3, bounded=False),
    "hebb, mean over positions": Hebb(0.3, 0.4, bounded=False, reduction="positions"),
    "oja, mean over examples": Oja(0.05, 0.3, bounded=False, reduction="examples"),
    "oja, bounded": Oja(0.3, 0.4),
}


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("rule", CONV_RULES)
@pytest.mark.parametrize("name", CONVS)
def test_plastic_convolution_equals_a_loop_over_positions(name, rule, size):
    """Every unit at every position hears feedback of its own, and the positions' changes of the
    shared synapses are added or averaged.
    """
    layer, shape = CONVS[name]
    x, y = normal(size, *shape), torch.randint(WAYS, (size,), generator=seeded(1))
    places, seen = patches(x, layer)
    units = layer.out_channels * len(places)
    chain = randomised(nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(units, WAYS)))
    network = LayeredNetwork(chain, input_shape=shape)
    credit = DirectFeedback("target", bias=True, rectify=True)
    learner = Learner(network, credit, {"position:first": CONV_RULES[rule]})
    shake(learner, 2, feedback=0.3)
    state = learner.start(size)
    weights = {n: w.detach() for n, w in state["weights"].items()}
    after = learner.step(state, presentation(learner, x, y))["weights"]

    bounded = rule.endswith("bounded")
    values = state["coefficients"]["layer0_weight"]
    p, mix = values["plasticity"].mean().item(), values["mix"].item()
    share = {"oja": 1.0, "oja, mean over examples": 1 / size}.get(rule, 1 / size / len(places))
    maps = (weights["layer0_feedback1"], weights["layer0_feedback1_bias"])
    sent: Tensor = (F.one_hot(y, WAYS).double() @ maps[0].mT + maps[1].mT).relu()
    for o in range(layer.out_channels):
        hebb = torch.zeros(seen.shape[-1], dtype=torch.float64)
        drive = energy = 0.0
        for b in range(size):
            for k, (i, j) in enumerate(places):
                assert (i, j) == divmod(k, max(1, places[-1][1] + 1))
                post = weights["layer0_weight"][o] @ seen[b, k] + weights["layer0_bias"][o, 0]
                teaching = sent[b, o * len(places) + k]
                z = float(mix * teaching + (1 - mix) * post.clamp(min=0))
                hebb += share * z * seen[b, k]
                drive += share * z
                energy += share * z * z
        decay = 0.0 if rule.startswith("hebb") else energy
        scale = p / (1 + energy) if bounded else p
        w, c = weights["layer0_weight"][o], weights["layer0_bias"][o]
        assert deviation(after["layer0_weight"][o], w + scale * (hebb - decay * w)) < 1e-12
        assert deviation(after["layer0_bias"][o], c + scale * (drive - decay * c)) < 1e-12


def test_conv_synapses_see_their_patches_and_units_their_maps():
    layer, shape = nn.Conv2d(2, 3, (2, 3), stride=(2, 1), padding=(1, 0)), (2, 5, 6)
    units = 3 * 3 * 4
    chain = randomised(nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(units, WAYS)))
    network = LayeredNetwork(chain, input_shape=shape)
    group = network.groups()["layer0_weight"]
    assert (group.n_out, group.n_in, group.sites) == (3, 12, 12)
    x = normal(3, *shape)
    places, seen = patches(x, layer)
    _, (activity, _) = network.run(x, network.weights())
    assert torch.equal(activity.pre, seen.flatten(0, 1))
    maps = layer(x).tanh()
    post = torch.stack([maps[b, :, i, j] for b in range(3) for i, j in places])
    assert deviation(activity.post, post) < 1e-13
    assert deviation(activity.path[0], maps) < 1e-13


def test_padding_an_example_counts_at_every_position():
    """The weight of an example goes to all of its rows."""
    network, _, shape = built("conv")
    learner = Learner(network, DirectFeedback(), Oja(0.3)).double()
    heard: dict[str, LocalSignals] = {}

    class Listener:
        @property
        def needs(self) -> dict[str, frozenset[str]]:
            return {n: frozenset({"teaching"}) for n in learner.plastic}

        def __call__(
            self, state: State, signals: dict[str, LocalSignals], share: float = 1.0
        ) -> State:
            heard.update(signals)
            return state

    shown = presentation(learner, normal(2, *shape), torch.tensor([0, 1]))
    weight = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    shown = type(shown)(shown.x, shown.teacher, weight)
    learner.credit.present(network, learner.start(2), shown, Listener())
    sites = network.groups()["layer0_weight"].sites
    assert heard["layer0_weight"].weight.flatten().tolist() == [1.0] * sites + [0.0] * sites
    assert heard["layer1_weight"].weight.flatten().tolist() == [1.0, 0.0]
