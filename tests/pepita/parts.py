"""Small networks, learners and a scalar oracle that the tests of input modulation share."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from metaplastic import Delta, InputModulation, LayeredNetwork, Learner, Presentation
from metaplastic.objectives import Objective
from tests.helpers import mlp, normal, presentation, seeded

SIZES = (6, 5, 7, 4)
FLAT = {"*": Delta(1.0, derivative=False)}
X, Y = normal(5, 6, seed=40), torch.tensor([0, 3, 1, 1, 2])


def chain(*sizes: int, activation: type[nn.Module] = nn.ReLU, seed: int = 0) -> nn.Sequential:
    """Without biases, as published."""
    return mlp(*(sizes or SIZES), activation=activation, bias=False, seed=seed)


def convolution() -> LayeredNetwork:
    """The published kind: convolution, ReLU, max-pooling, one Linear layer, without biases."""
    parts = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=1, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 4, bias=False),
    ).double()
    for i, parameter in enumerate(parts.parameters()):
        parameter.data = 0.4 * normal(*parameter.shape, seed=60 + i)
    return LayeredNetwork(parts, input_shape=(2, 6, 7))


def made(
    credit: InputModulation,
    network: LayeredNetwork | nn.Sequential | None = None,
    rules=None,
    objective: Objective | None = None,
) -> Learner:
    return Learner(network or chain(), credit, rules or FLAT, objective).double()


def shown(learner: Learner, x: Tensor, y: Tensor, seed: int = 3) -> Presentation:
    """With the noise that the credit asks for."""
    noise = learner.credit.noise(learner.network, (1, 1, len(x)), seeded(seed))
    noise = None if noise is None else noise[0, 0].to(x.dtype)
    return replace(presentation(learner, x, y), noise=noise)


def field(learner: Learner, x: Tensor = X, y: Tensor = Y) -> dict[str, Tensor]:
    """The change that one presentation wants of every group."""
    with torch.no_grad():
        return learner.field(learner.start(len(x)), shown(learner, x, y))


def projected(learner: Learner) -> Tensor:
    """F, (n_0, K)."""
    assert isinstance(learner.credit, InputModulation)
    return learner.credit.projection(learner.start()["weights"]).detach()


def set_projection(learner: Learner, value: Tensor) -> Learner:
    learner.credit.get_buffer("layer0_feedback").copy_(value)
    return learner


def masks(learner: Learner, given: Presentation) -> list[Tensor]:
    """m_l (B, n_l) of the hidden layers, 1 of the last, from the numbers that were drawn."""
    assert isinstance(learner.network, LayeredNetwork)
    assert isinstance(learner.credit, InputModulation)
    found, start = [], 0
    for layer in learner.network.layers[:-1]:
        if given.noise is None:
            found.append(torch.ones(len(given.x), layer.units).double())
            continue
        drawn = given.noise[:, start : start + layer.units]
        found.append((drawn < learner.credit.keep).double() / learner.credit.keep)
        start += layer.units
    return [*found, torch.ones(len(given.x), learner.network.outputs).double()]


Numbers = list[float]


def times(matrix: list[Numbers], vector: Numbers) -> Numbers:
    return [sum(w * v for w, v in zip(row, vector, strict=True)) for row in matrix]


def softmax(logits: Numbers) -> Numbers:
    shares = [math.exp(v) for v in logits]
    return [s / sum(shares) for s in shares]


def activities(weights: list[list[Numbers]], x: Numbers, kept: list[Numbers]) -> list[Numbers]:
    """h_0 .. h_L of ReLU layers under softmax, without biases."""
    found = [x]
    for i, matrix in enumerate(weights):
        v = times(matrix, found[-1])
        if i == len(weights) - 1:
            found.append(softmax(v))
        else:
            found.append([m * max(a, 0.0) for m, a in zip(kept[i], v, strict=True)])
    return found


def by_hand(
    learner: Learner, given: Presentation, f: Tensor, credit: InputModulation
) -> list[Tensor]:
    """The published changes, -D_l, by loops over examples, units and synapses."""
    weights = [w.tolist() for w in learner.network.weights().values()]
    kept = masks(learner, given)
    changes = [torch.zeros(len(w), len(w[0])).double() for w in weights]
    count, last = len(given.x), len(weights) - 1
    for b in range(count):
        m = [k[b].tolist() for k in kept]
        x, target = given.x[b].tolist(), given.teacher.target[b].tolist()
        h = activities(weights, x, m)
        e = [a - t for a, t in zip(h[-1], target, strict=True)]
        if credit.error_sign:
            e = [float((v > 0) - (v < 0)) for v in e]
        fed = times(f.tolist(), e)
        g = activities(weights, [v + credit.sign * d for v, d in zip(x, fed, strict=True)], m)
        for i, change in enumerate(changes):
            for o in range(change.shape[0]):
                for j in range(change.shape[1]):
                    if credit.variant == "hebbian":
                        top = target[o] if i == last else g[i + 1][o]
                        d = h[i + 1][o] * h[i][j] - top * g[i][j]
                    else:
                        pre = g[i][j] if credit.pre == "modulated" else h[i][j]
                        answer = g if credit.output == "modulated" else h
                        error = h[i + 1][o] - g[i + 1][o]
                        d = (answer[-1][o] - target[o] if i == last else error) * pre
                    change[o, j] -= d / count
    return changes


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().flatten(), b.detach().flatten()
    return float(a @ b / (a.norm() * b.norm()))
