"""The networks of the studies, the same for every learner."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from metaplastic.errors import ConfigurationError
from metaplastic.networks import LayeredNetwork
from metaplastic.networks.base import he_normal
from metaplastic.recipes import Recipe
from tasks import Task

_SIZES = r"\d+(?:x\d+)*"
ARCH = re.compile(rf"mlp:(?P<mlp>{_SIZES})|conv:(?P<channels>{_SIZES})(?:-(?P<widths>{_SIZES}))?")
CHANNELS = 32
CONVOLUTIONS = 3


def build_network(
    task: Task,
    recipe: Recipe,
    hidden: Sequence[int],
    generator: torch.Generator,
    feature_norm: float = 4.0,
) -> LayeredNetwork:
    """The network that fits a task: plastic Linear layers of widths ``hidden`` with ReLUs, or with
    tanh units for a learner that needs a smooth field (``recipe.smooth``).

    Vectors go straight in. Images pass a trunk first: three 3x3 convolutions with stride 2 and 32
    channels, ReLUs, and a normalisation that gives the features mean 0 and the Euclidean norm
    ``feature_norm``. For a learner whose every layer is plastic (``recipe.whole``) the trunk is
    part of the chain and has the units of the chain. He-normal weights and zero biases come from
    ``generator`` alone, so that every learner starts from the same weights.

    Raises:
        ConfigurationError: for inputs that are neither vectors nor images, or widths below 1.
    """
    if any(width < 1 for width in hidden) or feature_norm <= 0:
        raise ConfigurationError(
            f"hidden widths and feature_norm must be positive, got {list(hidden)} and "
            f"{feature_norm}."
        )
    shape = task.input_shape
    if len(shape) not in (1, 3):
        raise ConfigurationError(f"{task.name} has inputs of shape {shape}: no network for these.")
    vectors, unit = len(shape) == 1, nn.Tanh if recipe.smooth else nn.ReLU
    in_front = unit if recipe.whole else nn.ReLU
    convolutions = [] if vectors else _convolutions(shape, feature_norm, in_front)
    features = shape[0] if vectors else _feature_count(shape)
    whole = recipe.whole and bool(convolutions)
    chain = [*(convolutions if whole else ()), *_dense(features, hidden, task.outputs, unit)]
    trunk = nn.Sequential(*convolutions) if convolutions and not whole else None
    network = LayeredNetwork(nn.Sequential(*chain), trunk=trunk, input_shape=shape)
    _draw(network, generator)
    return network


def build_architecture(arch: str, task: Task, generator: torch.Generator) -> LayeredNetwork:
    """A network without a trunk or biases, every layer of which can be plastic.

    ``mlp:64x64x64`` has hidden Linear layers of these widths; ``conv:32x32-64`` two 3x3
    convolutions with stride 2 and these channels, then hidden Linear layers as after ``mlp:``.
    Activation functions are softplus with beta 10, a smooth ReLU.

    Raises:
        ConfigurationError: for another spelling, or a convolution over vectors.
    """
    found = ARCH.fullmatch(arch)
    channels, widths = ([int(n) for n in text.split("x") if n] for text in _parts(found))
    if found is None or min([*channels, *widths]) < 1:
        raise ConfigurationError(
            f"an architecture is written mlp:64x64 or conv:32x32-64 (channels, then widths); got "
            f"{arch!r}."
        )
    shape = task.input_shape
    if channels and len(shape) != 3:
        raise ConfigurationError(
            f"{arch} needs images; {task.name} has inputs {shape}: take mlp:64x64."
        )
    chain: list[nn.Module] = []
    features = prod(shape)
    if channels:
        depth, side = shape[0], list(shape[1:])
        for n_out in channels:
            chain += [skip_init(nn.Conv2d, depth, n_out, 3, stride=2, padding=1, bias=False)]
            chain += [nn.Softplus(beta=10)]
            depth, side = n_out, [(length + 1) // 2 for length in side]
        features = depth * prod(side)
    if len(shape) > 1:
        chain.append(nn.Flatten())
    for n_in, n_out in pairwise([features, *widths, task.outputs]):
        chain += [skip_init(nn.Linear, n_in, n_out, bias=False), nn.Softplus(beta=10)]
    network = LayeredNetwork(nn.Sequential(*chain[:-1]), input_shape=shape)
    _draw(network, generator)
    return network


def _parts(found: re.Match[str] | None) -> tuple[str, str]:
    """Channels and widths of an architecture, as written."""
    if found is None:
        return "", ""
    return found["channels"] or "", found["mlp"] or found["widths"] or ""


def _convolutions(
    shape: tuple[int, ...], feature_norm: float, unit: type[nn.Module]
) -> list[nn.Module]:
    found: list[nn.Module] = []
    channels = shape[0]
    for _ in range(CONVOLUTIONS):
        found += [
            skip_init(nn.Conv2d, channels, CHANNELS, 3, stride=2, padding=1),
            unit(),
        ]
        channels = CHANNELS
    count = _feature_count(shape)
    # A layer norm with a fixed gain: it has the same meaning in a trunk and between plastic layers.
    norm = nn.LayerNorm(count, bias=False)
    nn.init.constant_(norm.weight, feature_norm / count**0.5)
    norm.weight.requires_grad_(False)
    return [*found, nn.Flatten(), norm]


def _feature_count(shape: tuple[int, ...]) -> int:
    size = shape[1:]
    for _ in range(CONVOLUTIONS):
        size = tuple((side + 1) // 2 for side in size)
    return CHANNELS * size[0] * size[1]


def _dense(
    features: int, hidden: Sequence[int], outputs: int, unit: type[nn.Module]
) -> list[nn.Module]:
    widths = [features, *hidden, outputs]
    found: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        found += [skip_init(nn.Linear, n_in, n_out), unit()]
    return found[:-1]


def _draw(network: LayeredNetwork, generator: torch.Generator) -> None:
    """Fill in every weight, input side first, so that a trunk and a chain draw alike."""
    with torch.no_grad():
        for module in network.trunk.modules() if network.trunk is not None else ():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                n_out = module.out_channels
                fresh = he_normal((n_out, module.weight[0].numel()), generator)
                module.weight.copy_(fresh.reshape(module.weight.shape))
                module.bias.zero_()
        for group, fresh in network.draw(generator).items():
            parameter: Tensor = network.parameter(group)
            parameter.copy_(fresh.reshape(parameter.shape))
