"""The parts that the contracts put beside what is tested."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from metaplastic.credit import Backprop
from metaplastic.described import Described
from metaplastic.networks import LayeredNetwork, Network
from metaplastic.rules import PlasticityRule
from metaplastic.rules.base import Traces
from metaplastic.signals import Learn, LocalSignals, Presentation, State
from metaplastic.testing.oracles import seeded

OUTPUTS = 3
FIELDS = frozenset({"teaching", "gain", "pre_teaching", "modulator"})
"""The optional signals."""


def mlp() -> Network:
    """Three Linear layers of odd sizes on examples of 6 numbers."""
    with torch.random.fork_rng(devices=[]):
        chain = nn.Sequential(
            nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, OUTPUTS)
        )
        return drawn(LayeredNetwork(chain))


def conv() -> Network:
    """A convolution of 6 positions and a Linear layer behind a trunk, on the same examples."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.ZeroPad2d(1), nn.Conv2d(1, 2, 1))
        chain = nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2, padding=1),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(18, OUTPUTS),
        )
        return drawn(LayeredNetwork(chain, trunk=trunk, input_shape=(6,)))


def drawn(network: Network, seed: int = 0) -> Network:
    """The network with fresh initial weights, in place."""
    for name, value in network.draw(seeded(seed)).items():
        parameter = network.parameter(name)
        parameter.data = value.reshape(parameter.shape).to(parameter)
    return network


def known(*made: nn.Module) -> dict[str, type]:
    """The classes by which a file makes these modules, and what they hold, again."""
    parts = [part for module in made for part in module.modules()]
    return {type(part).__name__: type(part) for part in parts if isinstance(part, Described)}


class EverySignal(Backprop):
    """Backpropagation that sends a modulator too, tanh of the first output's error, so that any
    rule can be run.
    """

    provides = FIELDS

    def present(
        self, network: Network, state: State, presentation: Presentation, learn: Learn
    ) -> State:
        assert isinstance(network, LayeredNetwork)
        signals = self.descend(network, state, presentation, learn.needs)
        output, _ = network.run(presentation.x, state["weights"])
        modulator = presentation.teacher.error(output)[:, :1].tanh()
        for layer in network.layers:
            for name in layer.names:
                if "modulator" in learn.needs.get(name, ()):
                    signals[name] = replace(signals[name], modulator=layer.per_row(modulator))
        return learn(state, signals)


class Silent(PlasticityRule):
    """Asks for signals and learns nothing."""

    def __init__(self, asked: Any = ()) -> None:
        super().__init__()
        self.needs = frozenset(asked)

    def update(
        self,
        weight: Tensor,
        signals: LocalSignals,
        traces: Traces,
        coefficients: dict[str, Tensor],
    ) -> tuple[Tensor, Traces]:
        return torch.zeros_like(weight), traces
