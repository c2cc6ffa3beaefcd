"""Layered networks of every kind of module, at random."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from metaplastic import LayeredNetwork
from tests.helpers import normal

WAYS = 3


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 with random Parameters and running statistics."""
    module.double()
    for i, parameter in enumerate(module.parameters()):
        parameter.data = 0.4 * normal(*parameter.shape, seed=1000 * seed + i)
        if parameter.dim() == 1:
            parameter.data += 0.5
    for i, (name, buffer) in enumerate(module.named_buffers()):
        if buffer.is_floating_point():
            noise = normal(*buffer.shape, seed=1000 * seed + 500 + i)
            buffer.copy_(noise.exp() if name.endswith("var") else noise)
    return module


def dense(*between: nn.Module) -> Callable[[], nn.Sequential]:
    chain = nn.Sequential(nn.Linear(4, 6), *between, nn.Linear(6, WAYS))
    return lambda: copy.deepcopy(chain)


def conv(
    *between: nn.Module, units: int, first: nn.Module | None = None
) -> Callable[[], nn.Sequential]:
    first = first or nn.Conv2d(2, 4, 3, padding=1)
    chain = nn.Sequential(first, *between, nn.Flatten(), nn.Linear(units, WAYS))
    return lambda: copy.deepcopy(chain)


# Name: (chain, shape of one example, batch-norm policy).
CASES: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...], str | None]] = {
    "identity": (dense(), (4,), None),
    "ReLU": (dense(nn.ReLU()), (4,), None),
    "ReLU in place": (dense(nn.ReLU(inplace=True)), (4,), None),
    "LeakyReLU": (dense(nn.LeakyReLU(0.1)), (4,), None),
    "Tanh": (dense(nn.Tanh()), (4,), None),
    "Sigmoid": (dense(nn.Sigmoid()), (4,), None),
    "Softplus": (dense(nn.Softplus(beta=2.0)), (4,), None),
    "Softplus beyond its threshold": (dense(nn.Softplus(beta=2.0, threshold=0.5)), (4,), None),
    "ELU": (dense(nn.ELU(alpha=0.7)), (4,), None),
    "SiLU": (dense(nn.SiLU()), (4,), None),
    "two activations": (dense(nn.Tanh(), nn.SiLU(), nn.ReLU(inplace=True)), (4,), None),
    "activation at the output": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, WAYS), nn.Sigmoid()),
        (4,),
        None,
    ),
    "no biases": (
        lambda: nn.Sequential(
            nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, WAYS, bias=False)
        ),
        (4,),
        None,
    ),
    "nested": (
        lambda: nn.Sequential(
            nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Tanh(), nn.LayerNorm(6))),
            nn.Sequential(nn.Linear(6, WAYS)),
        ),
        (4,),
        None,
    ),
    "LayerNorm": (dense(nn.LayerNorm(6), nn.Tanh()), (4,), None),
    "LayerNorm without bias": (dense(nn.Tanh(), nn.LayerNorm(6, bias=False)), (4,), None),
    "LayerNorm, fixed": (dense(nn.LayerNorm(6, elementwise_affine=False)), (4,), None),
    "GroupNorm of vectors": (dense(nn.GroupNorm(2, 6), nn.Tanh()), (4,), None),
    "BatchNorm1d, running": (dense(nn.BatchNorm1d(6), nn.Tanh()), (4,), "running"),
    "BatchNorm1d, batch": (dense(nn.BatchNorm1d(6), nn.Tanh()), (4,), "batch"),
    "conv": (conv(nn.Tanh(), units=80), (2, 4, 5), None),
    "conv without bias": (
        conv(nn.Tanh(), units=80, first=nn.Conv2d(2, 4, 3, padding=1, bias=False)),
        (2, 4, 5),
        None,
    ),
    "conv, stride": (
        conv(nn.Tanh(), units=4 * 2 * 3, first=nn.Conv2d(2, 4, 3, stride=2)),
        (2, 6, 7),
        None,
    ),
    "conv, padding and dilation": (
        conv(
            nn.Tanh(),
            units=4 * 5 * 2,
            first=nn.Conv2d(2, 4, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 3)),
        ),
        (2, 5, 4),
        None,
    ),
    "conv, all to one position": (
        conv(nn.Tanh(), units=4, first=nn.Conv2d(2, 4, (4, 5))),
        (2, 4, 5),
        None,
    ),
    "two convs": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2, padding=1),
            nn.Tanh(),
            nn.Conv2d(3, 4, 2, dilation=2),
            nn.Sigmoid(),
            nn.Flatten(),
            nn.Linear(4, WAYS),
        ),
        (2, 5, 6),
        None,
    ),
    "AvgPool2d": (conv(nn.Tanh(), nn.AvgPool2d(2), units=4 * 2 * 2), (2, 4, 5), None),
    "AvgPool2d, overlap and padding": (
        conv(nn.Tanh(), nn.AvgPool2d(3, stride=2, padding=1), units=4 * 2 * 3),
        (2, 4, 5),
        None,
    ),
    "MaxPool2d": (conv(nn.Tanh(), nn.MaxPool2d(2), units=4 * 2 * 2), (2, 4, 5), None),
    "MaxPool2d, overlap, padding, ceil": (
        conv(nn.ReLU(), nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), units=4 * 3 * 3),
        (2, 4, 5),
        None,
    ),
    "MaxPool2d, dilation": (
        conv(nn.Tanh(), nn.MaxPool2d(2, stride=1, dilation=2), units=4 * 2 * 3),
        (2, 4, 5),
        None,
    ),
    "AdaptiveAvgPool2d": (conv(nn.Tanh(), nn.AdaptiveAvgPool2d(1), units=4), (2, 4, 5), None),
    "GroupNorm": (conv(nn.GroupNorm(2, 4), nn.ReLU(), units=80), (2, 4, 5), None),
    "LayerNorm of maps": (conv(nn.Tanh(), nn.LayerNorm([4, 4, 5]), units=80), (2, 4, 5), None),
    "BatchNorm2d, running": (conv(nn.BatchNorm2d(4), nn.ReLU(), units=80), (2, 4, 5), "running"),
    "BatchNorm2d, batch": (conv(nn.BatchNorm2d(4), nn.ReLU(), units=80), (2, 4, 5), "batch"),
    "BatchNorm2d, no affine": (
        conv(nn.BatchNorm2d(4, affine=False), nn.ReLU(), units=80),
        (2, 4, 5),
        "running",
    ),
    "transforms in front": (
        lambda: nn.Sequential(nn.Flatten(), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, WAYS)),
        (2, 3),
        None,
    ),
    "many": (
        conv(
            nn.GroupNorm(1, 4),
            nn.ELU(),
            nn.MaxPool2d(2, 1, padding=1),
            nn.Conv2d(4, 2, 2),
            nn.SiLU(),
            nn.AvgPool2d(2, 1),
            units=2 * 3 * 4,
        ),
        (2, 4, 5),
        None,
    ),
}


def built(name: str, **options) -> tuple[LayeredNetwork, nn.Sequential, tuple[int, ...]]:
    """A network, the chain inside it with its norms in the declared mode, the input's shape."""
    make, shape, policy = CASES[name]
    chain = randomised(make())
    assert isinstance(chain, nn.Sequential)
    chain.train(policy == "batch")
    return LayeredNetwork(chain, input_shape=shape, batch_norm=policy, **options), chain, shape
