"""The feedback synapses of a controller."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, Self

import torch
from torch import Tensor

from metaplastic.control import Chain, Moment, Units
from metaplastic.control.chain import check_controllable
from metaplastic.credit.base import CreditAssignment, Needs
from metaplastic.credit.control_signals import repeated, stretches
from metaplastic.credit.feedback_learning import (
    FeedbackLearning,
    Noise,
    NoiseOptions,
    feedback_signals,
    from_control,
    from_forward_noise,
    noise_phase,
)
from metaplastic.credit.layerwise import lowest_plastic
from metaplastic.errors import ConfigurationError, check_choice
from metaplastic.networks import LayeredNetwork, Network
from metaplastic.signals import Learn, Origin, Presentation, State, SynapseGroup

Initial = Literal["weight-product", "random"]


class ControllerFeedback(CreditAssignment):
    """Feedback from one control signal (B, K) to every layer from the lowest plastic one on:
    ``layer0_feedback`` (n_i, K), with the ways in which it may learn.

    Args:
        weights, scale, initial, feedback_learning, noise, steps, chunk: see FeedbackControl.

    Raises:
        ConfigurationError: for options out of range or that contradict each other.
    """

    protocol = LayeredNetwork

    def __init__(
        self,
        weights: Origin,
        scale: float,
        initial: Initial,
        feedback_learning: FeedbackLearning,
        noise: NoiseOptions | None,
        steps: int,
        chunk: int,
    ) -> None:
        super().__init__(weights, scale)
        check_choice(
            initial=(initial, Initial), feedback_learning=(feedback_learning, FeedbackLearning)
        )
        if self.resampled and initial == "weight-product":
            raise ConfigurationError(
                "weights='resampled' are drawn anew: they need initial='random'."
            )
        self.initial, self.feedback_learning = initial, feedback_learning
        self.noisy = Noise.of(noise)
        self.steps, self.chunk = steps, chunk

    def bind(self, network: Network, needs: Needs, generator: torch.Generator) -> Self:
        had = self.weights()
        own = super().bind(network, needs, generator)
        if own.initial == "weight-product":
            assert isinstance(network, LayeredNetwork)
            for name, value in own._products(network).items():
                if name not in had or had[name].shape != value.shape:
                    getattr(own, name).data = value
        return own

    def _products(self, network: LayeredNetwork) -> dict[str, Tensor]:
        """W_{i+1}^T ... W_L^T for each feedback group."""
        weights = {name: w.detach() for name, w in network.weights().items()}
        like = weights[network.layers[-1].names[0]]
        above = torch.eye(network.outputs, dtype=like.dtype, device=like.device)
        found = {}
        for layer in reversed(network.layers[self._lowest(network) :]):
            found[f"{layer.name}_feedback"] = above
            above = weights[f"{layer.name}_weight"].mT @ above
        return found

    def feedback_groups(self, network: Network, needs: Needs) -> Iterator[SynapseGroup]:
        assert isinstance(network, LayeredNetwork)
        lowest = lowest_plastic(network, needs) if needs else len(network.layers)
        check_controllable(network, lowest)
        for layer in network.layers[lowest:]:
            place = layer.index, len(network.layers)
            taught = self.feedback_learning != "none"
            yield SynapseGroup(
                f"{layer.name}_feedback",
                layer.units,
                network.outputs,
                "feedback",
                *place,
                taught=taught,
            )

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Normal feedback weights, and the identity to the last layer."""
        drawn = super().draw(generator)
        return {
            name: torch.eye(g.n_out) if g.position == g.layers - 1 else drawn[name]
            for name, g in self._groups.items()
        }

    def _lowest(self, network: LayeredNetwork) -> int:
        return len(network.layers) - len(self._groups)

    def _feedback(self, state: State) -> tuple[Tensor, ...]:
        return tuple(state["weights"][name] for name in self._groups)

    def noise(
        self, network: Network, lead: tuple[int, ...], generator: torch.Generator
    ) -> Tensor | None:
        """Normal numbers for the potentials, (E, T, B, S) or (E, T, B, steps - 1, S)."""
        steps = {
            "forward-noise": (),
            "noise-phase": (self.noisy.steps - 1,),
            "single-phase": (self.steps - 1,),
        }.get(self.feedback_learning)
        units = sum(group.n_out for group in self._groups.values())
        return None if steps is None else torch.randn(*lead, *steps, units, generator=generator)

    def _teach_feedback(
        self, chain: Chain, units: Units, state: State, presentation: Presentation, learn: Learn
    ) -> State:
        """What feedback learns before the presentation itself."""
        plastic = not learn.needs.keys().isdisjoint(self._groups)
        if not plastic or self.feedback_learning in ("none", "single-phase"):
            return state
        xi, weight = self.given_noise(presentation), presentation.weight
        if self.feedback_learning == "forward-noise":
            told = from_forward_noise(chain, units, xi, self.noisy)
            return self._tell(state, learn, told, weight, 1.0)
        scales, steps = self.noisy.scales(len(chain.layers)), self.noisy.steps
        phase = noise_phase(chain, units, self._feedback(state), xi, self.noisy)
        before: list[Moment] = []
        for stretch in stretches(phase, self.chunk):
            pairs = list(pairwise(before + stretch))
            if pairs:
                told = from_control(pairs, [m.control for _, m in pairs], scales)
                state = self._tell(state, learn, told, weight, len(pairs) / (steps - 1))
            before = stretch[-1:]
        return state

    def _tell(
        self,
        state: State,
        learn: Learn,
        told: tuple[Tensor, tuple[Tensor, ...], list[float]],
        weight: Tensor | None,
        share: float,
    ) -> State:
        pre, post, factors = told
        rows = None if weight is None else repeated(weight, len(pre) // len(weight))
        signals = feedback_signals(tuple(self._groups), learn.needs, pre, post, factors, rows)
        return learn(state, signals, share)
