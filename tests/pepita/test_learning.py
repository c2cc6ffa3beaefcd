"""What it learns, and how the network comes to stand to its feedback."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from metaplastic import InputModulation, LayeredNetwork, Learner
from metaplastic.errors import DivergenceError
from tests.helpers import seeded
from tests.pepita.parts import FLAT, X, Y, cosine, made, projected

BATCH, RATE = 64, 0.1


@dataclass(frozen=True)
class Toy:
    """Ten classes of four prototypes each in [0, 1]^64, seen through noise."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


def toy(seed: int, count: int = 2000) -> Toy:
    g = seeded(seed)
    prototypes = torch.rand(40, 64, generator=g)
    which = torch.randint(40, (count + 1000,), generator=g)
    noise = 0.25 * torch.randn(count + 1000, 64, generator=g)
    x = (prototypes[which] + noise).clamp(0, 1)
    return Toy(x[:count], which[:count] % 10, x[count:], which[count:] % 10)


def learner(credit: InputModulation, rules, seed: int, hidden: int) -> Learner:
    """He-uniform weights without biases."""
    network = nn.Sequential(
        nn.Linear(64, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, 10, bias=False)
    )
    g = seeded(100 + seed)
    for weight in network.parameters():
        limit = math.sqrt(6 / weight.shape[1])
        weight.data = limit * (2 * torch.rand(weight.shape, generator=g) - 1)
    return Learner(network, credit, rules, generator=seeded(200 + seed))


def train(model: Learner, data: Toy, epochs: int, seed: int) -> None:
    """Heavy-ball momentum on what local plasticity asks for."""
    optimiser = torch.optim.SGD(model.network.parameters(), lr=RATE, momentum=0.9)
    g, count = seeded(300 + seed), len(data.x)
    for _ in range(epochs):
        order = torch.randperm(count, generator=g)
        for i in range(0, count - BATCH + 1, BATCH):
            at = order[i : i + BATCH]
            model.assign_grads(data.x[at], data.y[at])
            optimiser.step()


def accuracy(model: Learner, data: Toy) -> float:
    with torch.no_grad():
        return float((model(data.test_x).argmax(-1) == data.test_y).float().mean())


@cache
def trained(seed: int, sign: int, epochs: int = 15) -> tuple[Learner, Toy, float]:
    """And the angle between F and the forward chain before, in degrees."""
    data, model = toy(seed), learner(InputModulation(sign=sign), FLAT, seed, 16)
    before = angle(model)
    train(model, data, epochs, seed)
    return model, data, before


def angle(model: Learner) -> float:
    first, second = model.network.weights().values()
    return math.degrees(math.acos(cosine(first.mT @ second.mT, projected(model))))


def test_pepita_t08_momentum_adds_up() -> None:
    """Two steps of one gradient D: -eta D (1 + 1.9)."""
    model = made(InputModulation(scale=20.0))
    before = {n: w.detach().clone() for n, w in model.network.weights().items()}
    optimiser = torch.optim.SGD(model.network.parameters(), lr=0.01, momentum=0.9)
    model.assign_grads(X, Y)
    optimiser.step()
    optimiser.step()
    for name, start in before.items():
        parameter = model.network.parameter(name)
        assert parameter.grad is not None
        wanted = start - 0.01 * 2.9 * parameter.grad
        assert float((parameter - wanted).detach().abs().max()) < 1e-15


def test_pepita_t08_the_rate_decays_at_given_epochs() -> None:
    model = made(InputModulation())
    optimiser = torch.optim.SGD(model.network.parameters(), lr=RATE, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [60, 90], 0.1)
    rates = []
    for _ in range(91):
        rates.append(optimiser.param_groups[0]["lr"])
        model.assign_grads(X, Y)
        optimiser.step()
        schedule.step()
    assert [rates[i] for i in (59, 60, 90)] == pytest.approx([RATE, 0.1 * RATE, 0.01 * RATE])


def test_pepita_t09_the_hidden_layer_learns() -> None:
    """A narrow network whose random hidden layer is not enough, 5 seeds."""
    found, frozen = [], []
    for seed in range(5):
        model, data, _ = trained(seed, 1)
        found.append(accuracy(model, data))
        still = learner(InputModulation(), {"position:last": FLAT["*"]}, seed, 16)
        train(still, data, 15, seed)
        frozen.append(accuracy(still, data))
        with torch.no_grad():
            assert bool(nn.functional.cross_entropy(model(data.x), data.y).isfinite())
    assert min(found) > 0.3
    assert sum(found) / 5 - sum(frozen) / 5 > 0.15


def test_pepita_t09_a_strong_projection_diverges_and_is_told() -> None:
    data, model = toy(0, 4000), learner(InputModulation(scale=10.0), FLAT, 0, 16)
    with pytest.raises(DivergenceError):
        train(model, data, 40, 0)


@pytest.mark.parametrize("sign", [1, -1])
def test_pepita_t10_the_network_aligns_or_anti_aligns_with_its_feedback(sign: int) -> None:
    alignment = []
    for seed in range(3):
        model, data, before = trained(seed, sign)
        after = angle(model)
        assert abs(before - 90) < 4
        assert after > 97 if sign == 1 else after < 83
        assert isinstance(model.network, LayeredNetwork)
        loss = nn.functional.cross_entropy(model.network.body(data.x), data.y)
        (gradient,) = torch.autograd.grad(loss, [model.network.parameter("layer0_weight")])
        model.assign_grads(data.x, data.y)
        alignment.append(cosine(model.network.parameter("layer0_weight").grad, gradient))
    assert sum(alignment) / 3 > 0.15
