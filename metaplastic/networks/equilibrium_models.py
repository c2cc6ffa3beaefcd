"""The usual equilibrium networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import skip_init

from metaplastic.equilibrium import SolverOptions
from metaplastic.errors import UnsupportedLayerError
from metaplastic.networks.equilibrium import EquilibriumNetwork
from metaplastic.networks.wiring import FEATURES, opened

LOOP = 0.1
"""Initial share of the loop's last convolution beside the injection: norms undo any other scale."""


def equilibrium_chain(
    layers: nn.Sequential,
    *,
    input_shape: Sequence[int],
    trunk: nn.Module | None = None,
    solver: SolverOptions | None = None,
) -> EquilibriumNetwork:
    """A chain of Linear and Conv2d layers as one network at rest: what LayeredNetwork computes,
    with the same groups ``layer0_weight``, found after as many sweeps as there are layers.

    Args:
        layers: the chain, from its first Linear or Conv2d layer on to the last, a Linear.
        input_shape: see EquilibriumNetwork, as for the others.
        trunk: any module in front.
        solver: how the rest is sought.
    """
    modules = opened(layers)
    starts = [i for i, m in enumerate(modules) if isinstance(m, nn.Linear | nn.Conv2d)]
    if not starts or starts[0] != 0:
        raise UnsupportedLayerError(
            "the chain must begin with a Linear or Conv2d layer: put what stands in front into the "
            "trunk."
        )
    units: dict[str, nn.Module] = {}
    pathways: dict[str, tuple[str, str, nn.Module]] = {}
    source = FEATURES
    for index, (start, stop) in enumerate(zip(starts, [*starts[1:], None], strict=True)):
        name = f"layer{index}"
        units[name] = nn.Sequential(*modules[start + 1 : stop])
        pathways[name] = (source, name, modules[start])
        source = name
    return EquilibriumNetwork(units, pathways, input_shape=input_shape, trunk=trunk, solver=solver)


def equilibrium_rnn(
    inputs: int | Sequence[int],
    hidden: int,
    outputs: int,
    *,
    activation: nn.Module | None = None,
    solver: SolverOptions | None = None,
    generator: torch.Generator | None = None,
) -> EquilibriumNetwork:
    """At rest v = W_in x + W_rec f(v) + b, output = W_out f(v) + b_out; the pathways are ``input``,
    ``recurrent`` and ``output``.

    Args:
        inputs: size of an example, or its shape, which is flattened.
        hidden: number of units in v.
        outputs: K.
        activation: f, tanh by default.
        solver: see EquilibriumNetwork.
        generator: draws the initial weights; seed 0 where none is given.
    """
    shape = (inputs,) if isinstance(inputs, int) else tuple(inputs)
    entry = _blank(nn.Linear, math.prod(shape), hidden)
    units = {"hidden": nn.Tanh() if activation is None else activation, "output": nn.Identity()}
    pathways: dict[str, tuple[str, str, nn.Module]] = {
        "input": (
            FEATURES,
            "hidden",
            entry if len(shape) == 1 else nn.Sequential(nn.Flatten(), entry),
        ),
        "recurrent": ("hidden", "hidden", _blank(nn.Linear, hidden, hidden, bias=False)),
        "output": ("hidden", "output", _blank(nn.Linear, hidden, outputs)),
    }
    network = EquilibriumNetwork(units, pathways, input_shape=shape, solver=solver)
    return _drawn(network, generator)


def equilibrium_block(
    input_shape: Sequence[int],
    outputs: int,
    *,
    channels: int = 48,
    inner: int = 64,
    kernel: int = 3,
    groups: int = 8,
    pool: int = 8,
    trunk: nn.Module | None = None,
    solver: SolverOptions | None = None,
    generator: torch.Generator | None = None,
) -> EquilibriumNetwork:
    """A deep equilibrium model of one residual block (Bai et al. 2020) with group norms, N:
    z = N(relu(z + N(W_in * x + W_2 * N(relu(W_1 * z))))), output = W_out pool(z) + b_out.

    The convolutions act on the state and the input is injected in every sweep. What each
    convolution adds to is a population of its own (``inner``, ``outer``, ``state``), so that one
    sweep is a part of the block, and its synapses see the error of their own units.

    Args:
        input_shape: (channels, height, width) of an example.
        outputs: K.
        channels: of the state.
        inner: channels between the convolutions.
        kernel: their size, odd.
        groups: of the norms.
        pool: size of the average pooling in front of the output.
        trunk: see EquilibriumNetwork.
        solver: see EquilibriumNetwork.
        generator: draws the initial weights; seed 0 where none is given.
    """
    same = {"padding": kernel // 2, "bias": False}
    x = torch.zeros(1, *input_shape)
    if trunk is not None:
        with torch.no_grad():
            x = trunk.eval()(x.to(next(trunk.parameters(), x)))
    _, depth, height, width = x.shape
    units = {
        "inner": nn.Sequential(nn.ReLU(), nn.GroupNorm(groups, inner)),
        "outer": nn.GroupNorm(groups, channels),
        "state": nn.Sequential(nn.ReLU(), nn.GroupNorm(groups, channels)),
        "output": nn.Identity(),
    }
    read = channels * (height // pool) * (width // pool)
    pathways: dict[str, tuple[str, str, nn.Module]] = {
        "input": (FEATURES, "outer", _blank(nn.Conv2d, depth, channels, kernel, **same)),
        "first": ("state", "inner", _blank(nn.Conv2d, channels, inner, kernel, **same)),
        "second": ("inner", "outer", _blank(nn.Conv2d, inner, channels, kernel, **same)),
        "inject": ("outer", "state", nn.Identity()),
        "skip": ("state", "state", nn.Identity()),
        "output": (
            "state",
            "output",
            nn.Sequential(nn.AvgPool2d(pool), nn.Flatten(), _blank(nn.Linear, read, outputs)),
        ),
    }
    network = EquilibriumNetwork(
        units,
        pathways,
        input_shape=input_shape,
        trunk=trunk,
        solver=solver,
        gains={"second": LOOP},
    )
    return _drawn(network, generator)


def _blank(kind: type[nn.Module], *sizes: int, **options: Any) -> nn.Module:
    """A module without initial weights: those of PyTorch come from the global generator."""
    return skip_init(kind, *sizes, **options)


def _drawn(network: EquilibriumNetwork, generator: torch.Generator | None) -> EquilibriumNetwork:
    for name, value in network.draw(generator or torch.Generator().manual_seed(0)).items():
        parameter = network.parameter(name)
        parameter.data = value.reshape(parameter.shape)
    return network
