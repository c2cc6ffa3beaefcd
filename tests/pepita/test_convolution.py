"""Convolutions: as fully connected layers, and by loops over positions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from metaplastic import Delta, InputModulation, LayeredNetwork
from tests.helpers import deviation, heard, normal
from tests.pepita.parts import chain, convolution, field, made, masks, projected, shown

X, Y = normal(3, 2, 6, 7, seed=30), torch.tensor([1, 3, 0])
POSITIONS = 20
PER_POSITION = {"*": Delta(1.0, derivative=False, reduction="positions")}


@pytest.mark.parametrize("options", [{}, {"variant": "hebbian"}, {"keep": 0.6}])
def test_pepita_t11_a_kernel_as_large_as_the_image_is_a_linear_layer(options: dict) -> None:
    dense = chain(24, 5, 4)
    kernel, last = nn.Conv2d(2, 5, (3, 4), bias=False), nn.Linear(5, 4, bias=False)
    first, second = (weight.data for weight in dense.parameters())
    kernel.weight.data, last.weight.data = first.reshape(5, 2, 3, 4), second
    wide = nn.Sequential(kernel, nn.ReLU(), nn.Flatten(), last)
    x, y = normal(3, 2, 3, 4), torch.tensor([1, 3, 0])
    wanted = field(made(InputModulation(scale=9.0, **options), dense), x.flatten(1), y)
    network = LayeredNetwork(wide, input_shape=(2, 3, 4))
    found = field(made(InputModulation(scale=9.0, **options), network), x, y)
    assert deviation(found["layer0_weight"], wanted["layer0_weight"]) < 1e-13
    assert deviation(found["layer1_weight"], wanted["layer1_weight"]) < 1e-13


def forward(x: Tensor, kernel: Tensor, last: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The convolution's activity, what the last layer sees, and the output's softmax."""
    h = F.conv2d(x, kernel).relu() * mask
    pooled = F.max_pool2d(h, 2).flatten(1)
    return h, pooled, (pooled @ last.mT).softmax(-1)


@pytest.mark.parametrize("keep", [1.0, 0.7])
def test_pepita_t11_the_published_convolution_by_loops(keep: float) -> None:
    """The activity before pooling, mean over examples and positions; the projection in the shape of
    the image.
    """
    network = convolution()
    learner = made(InputModulation(scale=30.0, keep=keep), network, PER_POSITION)
    found = field(learner, X, Y)
    given = shown(learner, X, Y)
    mask = masks(learner, given)[0].reshape(3, 3, 4, 5)
    kernel = network.parameter("layer0_weight").detach()
    last = network.parameter("layer1_weight").detach()
    target = torch.eye(4).double()[Y]
    h, _, output = forward(X, kernel, last, mask)
    modulated = X + ((output - target) @ projected(learner).mT).reshape(X.shape)
    g, below, answer = forward(modulated, kernel, last, mask)
    by_loops = torch.zeros_like(kernel)
    moved, image = (g - h).tolist(), modulated.tolist()
    for o, i, u, v in torch.cartesian_prod(*(torch.arange(n) for n in kernel.shape)).tolist():
        terms = [
            moved[b][o][r][c] * image[b][i][r + u][c + v]
            for b in range(3)
            for r in range(4)
            for c in range(5)
        ]
        by_loops[o, i, u, v] = math.fsum(terms) / (3 * POSITIONS)
    assert deviation(found["layer0_weight"], by_loops.flatten(1)) < 1e-12
    grad = conv2d_weight(modulated, kernel.shape, (g - h) / (3 * POSITIONS))
    assert deviation(found["layer0_weight"], grad.flatten(1)) < 1e-10
    assert deviation(found["layer1_weight"], (target - answer).mT @ below / 3) < 1e-12


def test_pepita_t11_positions_divide_only_where_the_rule_says() -> None:
    per_position = field(made(InputModulation(), convolution(), PER_POSITION), X, Y)
    summed = field(made(InputModulation(), convolution()), X, Y)
    assert deviation(summed["layer0_weight"], POSITIONS * per_position["layer0_weight"]) < 1e-13
    assert torch.equal(summed["layer1_weight"], per_position["layer1_weight"])


def test_both_halves_of_a_convolution_are_sites() -> None:
    learner = made(InputModulation(variant="hebbian"), convolution())
    seen = heard(learner, shown(learner, X, Y))["layer0_weight"]
    assert (seen.sites, len(seen.pre)) == (2 * POSITIONS, 3 * 2 * POSITIONS)
    before = seen.post.reshape(3, 2, POSITIONS, 3)[:, 0].mT.reshape(3, 3, 4, 5)
    kernel = learner.network.parameter("layer0_weight").detach()
    assert deviation(before, F.conv2d(X, kernel).relu()) < 1e-13
