"""Streaming, Hebbian and time-local learning, and the projection: as drawn, in factors, learned."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from metaplastic import Delta, InputModulation, LayeredNetwork, Learner, Oja, WeightMirror
from metaplastic.errors import CompatibilityError, ConfigurationError, UnsupportedLayerError
from tests.helpers import Hear, assert_close, deviation, heard, normal, seeded, show
from tests.pepita.parts import (
    FLAT,
    X,
    Y,
    chain,
    convolution,
    cosine,
    field,
    made,
    projected,
    shown,
)

MIRRORED = {"role:feedback": Delta(0.1, derivative=False, decay=0.05), **FLAT}


def streams(**options) -> list[Learner]:
    return [made(InputModulation(scale=20.0, streaming=s, **options)) for s in (False, True)]


@pytest.mark.parametrize("options", [{}, {"keep": 0.6}, {"variant": "hebbian"}, {"pre": "clean"}])
def test_pepita_t07_streaming_is_the_same(options: dict) -> None:
    """Weights that change while the pass goes on are none that it still needs."""
    plain, lean = streams(**options)
    given = shown(plain, X, Y)
    hears = [Hear(plain), Hear(lean)]
    after = [
        learner.credit.present(learner.network, learner.start(5), given, hear)
        for learner, hear in zip((plain, lean), hears, strict=True)
    ]
    assert [len(hear.calls) for hear in hears] == [1, 3]
    assert_close(after[1]["weights"], after[0]["weights"], 1e-12)


def test_pepita_t07_time_local_learning_follows_the_hebbian() -> None:
    """Up to the second order of the rate."""
    apart = []
    for rate in (1e-3, 1e-4):
        rules = {"*": Delta(rate, derivative=False)}
        ends = []
        for variant in ("hebbian", "time-local"):
            learner = made(InputModulation(scale=5.0, variant=variant), rules=rules)
            with torch.no_grad():
                ends.append(show(learner, X[None], Y[None])["weights"])
        a, b = (torch.cat([e[n].flatten() for n in learner.plastic]) for e in ends)
        apart.append(float((a - b).norm()))
    assert 95 < apart[0] / apart[1] < 105


def test_pepita_t07_time_local_learning_has_two_halves() -> None:
    """The clean half by the first weights, the modulated half by those that it left."""
    rules = {"*": Delta(0.05, derivative=False)}
    learner = made(InputModulation(scale=20.0, variant="time-local"), rules=rules)
    target, f = torch.eye(4).double()[Y], projected(learner)
    weights = [w.detach().clone() for w in learner.network.weights().values()]

    def run(x: Tensor) -> list[Tensor]:
        h = [x]
        for w in weights[:-1]:
            h.append((h[-1] @ w.mT).relu())
        return [*h, (h[-1] @ weights[-1].mT).softmax(-1)]

    h = run(X)
    modulated = X + (h[-1] - target) @ f.mT
    for i in range(3):
        weights[i] -= 0.05 * h[i + 1].mT @ h[i] / 5
    g = run(modulated)
    for i in range(3):
        weights[i] += 0.05 * (target if i == 2 else g[i + 1]).mT @ g[i] / 5
    found = show(learner, X[None], Y[None])["weights"]
    for i, wanted in enumerate(weights):
        assert deviation(found[f"layer{i}_weight"], wanted) < 1e-13


def test_pepita_t14_hebbian_changes_ascend_the_difference_of_goodness() -> None:
    """Of 0.5 (|h'|^2 - |h|^2) over its inputs as they are, by central differences."""
    learner = made(InputModulation(scale=20.0, variant="hebbian"))
    found = field(learner)["layer1_weight"]
    seen = heard(learner, shown(learner, X, Y))["layer1_weight"]
    assert seen.sites == 2
    before, after = seen.pre.detach().reshape(5, 2, 5).unbind(1)
    weight = learner.network.weights()["layer1_weight"].detach()

    def goodness(w: Tensor) -> float:
        sides = [0.5 * (p @ w.mT).relu().square().sum() for p in (after, before)]
        return float(sides[0] - sides[1]) / 5

    numeric = torch.zeros_like(weight)
    for index in range(weight.numel()):
        step = torch.zeros(weight.numel()).double()
        step[index] = 1e-6
        step = step.reshape(weight.shape)
        slope = (goodness(weight + step) - goodness(weight - step)) / 2e-6
        numeric[index // 5, index % 5] = slope
    assert deviation(found, numeric) < 1e-7


# --- the projection ---


@pytest.mark.parametrize("mean_zero", [True, False])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_pepita_t13_how_the_projection_is_drawn(scale: float, mean_zero: bool) -> None:
    f = projected(made(InputModulation(scale=scale, mean_zero=mean_zero), chain(784, 3, 10)))
    limit = scale * 0.05 * math.sqrt(6 / 784)
    assert f.shape == (784, 10)
    assert 0.99 * limit < float(f.abs().max()) <= limit * (1 + 1e-6)
    assert float(f.min()) >= (-limit * (1 + 1e-6) if mean_zero else 0.0)
    width = limit / math.sqrt(3) if mean_zero else limit / math.sqrt(12)
    assert abs(float(f.std()) / width - 1) < 0.03
    assert abs(float(f.mean()) - (0.0 if mean_zero else limit / 2)) < 0.02 * limit


def test_pepita_t13_factors_give_the_same_scale() -> None:
    network = chain(784, 200, 100, 10)
    wanted = 0.05 * math.sqrt(2 / 784)
    factors = made(InputModulation(feedback="factors"), network)
    assert abs(float(projected(factors).std()) / wanted - 1) < 0.1
    forward, own = factors.network.weights(), factors.credit.weights()
    assert [w.shape for w in own.values()] == [w.shape for w in forward.values()]
    product = torch.eye(10).double()
    for name in ("layer2_feedback", "layer1_feedback", "layer0_feedback"):
        product = product @ own[name]
    assert deviation(projected(factors), product.mT) < 1e-14


def mirrored(sigma: float, rate: float, decay: float, *sizes: int) -> Learner:
    """Its feedback learns, the forward weights all but stay."""
    mirror = Delta(rate, derivative=False, decay=decay)
    rules = {"role:feedback": mirror, "*": Delta(1e-12, derivative=False)}
    return made(InputModulation(feedback="mirror", sigma=sigma), chain(*sizes), rules)


def test_pepita_t12_mirrors_learn_the_weights_from_noise() -> None:
    learner = mirrored(0.1, 1.0, 0.0, 64, 32, 10)
    x = normal(25_600, 64)
    found = field(learner, x, torch.arange(25_600) % 10)
    for i, (low, high) in enumerate([(0.48, 0.52), (0.95, 1.05)]):  # a ReLU, a linear layer
        weight = learner.network.weights()[f"layer{i}_weight"].detach()
        change = found[f"layer{i}_feedback"]
        assert cosine(change, weight) > 0.99
        assert low < float((change * weight).sum() / weight.square().sum()) / 0.01 < high


def test_pepita_t12_mirrors_align_at_a_constant_scale() -> None:
    learner = mirrored(0.1, 0.1, 0.05, 64, 32, 10)
    state = learner.start(64)
    x, y = normal(64, 64), torch.arange(64) % 10
    weight = state["weights"]["layer0_weight"]
    assert abs(cosine(state["weights"]["layer0_feedback"], weight)) < 0.1
    credit = learner.credit
    assert isinstance(credit, InputModulation)
    with torch.no_grad():
        for step in range(200):
            state = learner.step(state, shown(learner, x, y, seed=step))
            if step % 50 == 0:
                std = float(credit.projection(state["weights"]).std())
                assert abs(std / (0.05 * math.sqrt(2 / 64)) - 1) < 1e-6
    assert cosine(state["weights"]["layer0_feedback"], weight) > 0.9


def test_mirrors_are_those_of_the_weight_mirror() -> None:
    """The same noise tells both the same."""
    own = made(InputModulation(feedback="mirror", sigma=0.3), rules=MIRRORED)
    theirs = made(WeightMirror(sigma=0.3), rules=MIRRORED)  # type: ignore[arg-type]
    given = shown(own, X, Y)
    assert given.noise is not None
    cut = replace(given, noise=given.noise[:, 6:])  # that one has no feedback below layer 1
    mine, wanted = heard(own, given), heard(theirs, cut)
    for name in ("layer1_feedback", "layer2_feedback"):
        for part in ("pre", "post", "teaching"):
            assert torch.equal(getattr(mine[name], part), getattr(wanted[name], part))


def test_masks_come_before_the_mirrors_noise() -> None:
    own = made(InputModulation(feedback="mirror", keep=0.5), rules=MIRRORED)
    given = shown(own, X, Y)
    assert given.noise is not None
    masks, noise = given.noise.split([5 + 7, 6 + 5 + 7], -1)
    assert 0 <= float(masks.min()) < float(masks.max()) < 1
    assert float(noise.min()) < 0 < float(noise.abs().max()) < 0.5
    told = heard(own, given)
    assert torch.equal(told["layer0_feedback"].pre, noise[:, :6])
    assert torch.equal(told["layer2_feedback"].pre, noise[:, 11:])
    dropped = masks[:, :5] >= 0.5
    assert bool(dropped.any())
    assert not told["layer0_weight"].post[dropped].any()


def test_meta_learned_projections_are_parameters() -> None:
    for feedback, count in (("projection", 1), ("factors", 3), ("mirror", 3)):
        learner = made(InputModulation("learned", feedback=feedback))
        assert len(list(learner.credit.parameters())) == count
        assert not list(made(InputModulation(feedback=feedback)).credit.parameters())


def test_no_projection_is_made_that_nobody_reads() -> None:
    last = {"position:last": FLAT["*"]}
    clean = made(InputModulation(pre="clean", output="clean"), rules=last)
    assert clean.credit.groups() == {}
    assert made(InputModulation(pre="clean"), rules=last).credit.groups().keys() == {
        "layer0_feedback"
    }
    wanted = field(made(InputModulation(pre="clean", output="clean")))
    assert torch.equal(field(clean)["layer2_weight"], wanted["layer2_weight"])
    silent = made(InputModulation(pre="clean", output="clean", feedback="mirror"), rules=last)
    assert shown(silent, X, Y).noise is None
    assert torch.equal(field(silent)["layer2_weight"], wanted["layer2_weight"])


@pytest.mark.parametrize("streaming", [False, True])
def test_the_modulated_pass_ends_where_nobody_listens(streaming: bool) -> None:
    network = chain()
    calls = []
    for i in (1, 3):
        network[i].register_forward_hook(lambda *a, i=i: calls.append(i))
    learner = made(InputModulation(streaming=streaming), network)
    learner.assign_grads(X, Y, only="position:0")
    # with the loss that assign_grads returns, and the clean pass again where it streams
    assert (calls.count(1), calls.count(3)) == ((4, 2) if streaming else (3, 2))
    wanted = field(learner)["layer0_weight"]
    assert torch.equal(-learner.network.parameter("layer0_weight").grad, wanted)
    mirror = made(InputModulation("learned", feedback="mirror"), network, MIRRORED)
    calls.clear()
    mirror.assign_grads(X, Y, seeded(), only="role:feedback")
    assert (calls.count(1), calls.count(3)) == (2, 2)  # the mirrors' own, and the loss


# --- errors ---

WRONG: dict[str, tuple[dict, str]] = {
    "variant": ({"variant": "mixed"}, "variant must be one of"),
    "feedback": ({"feedback": "sum"}, "feedback must be one of"),
    "sign": ({"sign": 0}, "sign must be one of 1, -1; got 0"),
    "pre": ({"pre": "first"}, "pre must be one of"),
    "output": ({"output": "first"}, "output must be one of"),
    "keep": ({"keep": 0.0}, "keep is a probability .* got 0"),
    "keep above 1": ({"keep": 1.5}, "got 1.5"),
    "sigma": ({"sigma": 0.0}, "sigma .* got 0"),
    "hebbian pre": ({"variant": "hebbian", "pre": "clean"}, "pre='clean'"),
    "time-local output": ({"variant": "time-local", "output": "clean"}, "output='clean'"),
    "time-local streaming": ({"variant": "time-local", "streaming": True}, "streaming"),
    "mean of factors": ({"feedback": "factors", "mean_zero": False}, "got 'factors'"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_options_out_of_range(wrong: str) -> None:
    options, message = WRONG[wrong]
    with pytest.raises(ConfigurationError, match=message):
        InputModulation(**options)


def test_factors_beside_a_convolution_are_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"Conv2d.*feedback='projection'"):
        made(InputModulation(feedback="factors"), convolution())


def test_mirrors_of_one_number_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="feedback='factors'"):
        made(InputModulation(feedback="mirror"), chain(1, 4, 1))
    assert made(InputModulation(feedback="factors"), chain(1, 4, 1)).credit.groups()


def test_presentations_without_noise_are_an_error() -> None:
    for credit in (InputModulation(keep=0.9), InputModulation(feedback="mirror")):
        learner = made(credit)
        with pytest.raises(ConfigurationError, match="noise"):
            learner.clone().adapt(X, Y)
        learner.clone(generator=seeded()).adapt(X, Y)


def test_a_loss_alone_is_enough_but_for_hebbian_targets() -> None:
    clone = made(InputModulation(scale=20.0)).clone()
    clone.adapt(nn.functional.cross_entropy(clone(X), Y))
    hebbian = made(InputModulation(variant="hebbian")).clone()
    loss = nn.functional.cross_entropy(hebbian(X), Y)
    with pytest.raises(CompatibilityError, match="target"):
        hebbian.adapt(loss)


def test_other_rules_run_and_slopes_are_sent() -> None:
    for variant in ("plain", "hebbian", "time-local"):
        learner = made(InputModulation(variant=variant), rules={"*": Oja(0.1)})
        assert all(bool(change.any()) for change in field(learner).values())
    network = LayeredNetwork(chain())
    assert set(made(InputModulation(), network, {"*": Delta(0.1)}).plastic) == set(network.groups())
