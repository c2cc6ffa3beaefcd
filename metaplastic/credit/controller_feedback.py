"""The feedback synapses of a controller."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

import torch
from torch import Tensor

from metaplastic.control import Chain, Units
from metaplastic.control.chain import check_controllable
from metaplastic.credit.base import CreditAssignment, Needs
from metaplastic.credit.control_signals import Sample, repeated, sampled
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
        """Normal numbers for the potentials, (E, T, B, moments, S): of what feedback learns from
        before the presentation, then of the simulation itself.
        """
        moments = self._noisy_moments() + (self.steps - 1 if self.simulates_noise else 0)
        units = sum(group.n_out for group in self._groups.values())
        return torch.randn(*lead, moments, units, generator=generator) if moments else None

    def _noisy_moments(self) -> int:
        """Those before the presentation."""
        return {"forward-noise": 1, "noise-phase": self.noisy.steps - 1}.get(
            self.feedback_learning, 0
        )

    @property
    def simulates_noise(self) -> bool:
        """Whether there is noise in the simulation itself."""
        return self.feedback_learning == "single-phase"

    def _teach_feedback(
        self, chain: Chain, units: Units, state: State, presentation: Presentation, learn: Learn
    ) -> State:
        """What feedback learns before the presentation itself."""
        count = self._noisy_moments()
        if not count or set(learn.needs).isdisjoint(self._groups):
            return state
        xi, weight = self.given_noise(presentation)[:, :count], presentation.weight
        if self.feedback_learning == "forward-noise":
            told = from_forward_noise(chain, units, xi[:, 0], self.noisy)
            return self._tell(state, learn, told, weight, 1.0)
        phase = noise_phase(chain, units, self._feedback(state), xi, self.noisy)
        scales = self.noisy.scales(len(chain.layers))
        for stretch in sampled(phase, 1, self.chunk):
            state = self._tell_control(state, learn, stretch, scales, weight, count)
        return state

    def _tell_control(
        self,
        state: State,
        learn: Learn,
        stretch: list[Sample],
        scales: list[float],
        weight: Tensor | None,
        count: int,
    ) -> State:
        """What feedback learns from some of ``count`` moments and the control after each."""
        followed = [(s.moment, s.control) for s in stretch if s.control is not None]
        if not followed:
            return state
        moments, controls = zip(*followed, strict=True)
        told = from_control(moments, controls, scales)
        return self._tell(state, learn, told, weight, len(followed) / count)

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
