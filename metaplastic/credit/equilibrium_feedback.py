"""The feedback synapses of control at rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from metaplastic.credit.base import CreditAssignment
from metaplastic.credit.equilibrium_noise import fluctuations
from metaplastic.credit.feedback_learning import Noise, NoiseOptions, feedback_signals
from metaplastic.equilibrium import Direct, Inversion
from metaplastic.errors import ConfigurationError, check_choice
from metaplastic.networks import EquilibriumNetwork, Network
from metaplastic.networks.base import Needs
from metaplastic.networks.populations import WiredField
from metaplastic.signals import LocalSignals, Origin, Presentation, State, SynapseGroup

Psi = Literal["inversion", "kolen-pollack", "linear", "energy", "recurrent-backprop", "backprop"]
NoisePhase = Literal["none", "noise-phase"]


class EquilibriumFeedback(CreditAssignment):
    """Matrices of its own by which control reaches the units of an EquilibriumNetwork, where
    ``psi`` has any.

    Args:
        psi, weights, scale, feedback_learning, noise: see EquilibriumControl.

    Raises:
        ConfigurationError: for options out of range or that contradict each other.
    """

    protocol = EquilibriumNetwork

    def __init__(
        self,
        psi: Psi,
        weights: Origin,
        scale: float,
        feedback_learning: NoisePhase,
        noise: NoiseOptions | None,
    ) -> None:
        super().__init__(weights, scale)
        check_choice(psi=(psi, Psi), feedback_learning=(feedback_learning, NoisePhase))
        if feedback_learning != "none" and psi != "linear":
            raise ConfigurationError(
                f"feedback_learning={feedback_learning!r} is for psi='linear', got psi={psi!r}."
            )
        self.psi, self.feedback_learning = psi, feedback_learning
        self.noisy = Noise.of(noise)

    def feedback_groups(self, network: Network, needs: Needs) -> Iterator[SynapseGroup]:
        assert isinstance(network, EquilibriumNetwork)
        if self.psi == "linear":
            yield from self._to_populations(network)
        elif self.psi == "kolen-pollack":
            yield from self._beside_weights(network)

    def _to_populations(self, network: EquilibriumNetwork) -> Iterator[SynapseGroup]:
        populations = network.wiring.populations
        for index, p in enumerate(populations[:-1]):
            yield SynapseGroup(
                f"{p.name}_feedback",
                p.size,
                network.outputs,
                "feedback",
                index,
                len(populations),
                taught=self.feedback_learning != "none",
            )

    def _beside_weights(self, network: EquilibriumNetwork) -> Iterator[SynapseGroup]:
        for name in network.carriers:
            forward = network.groups()[f"{name}_weight"]
            yield SynapseGroup(
                f"{name}_feedback",
                forward.n_out,
                forward.n_in,
                "feedback",
                forward.position,
                forward.layers,
                forward.sites,
                twin=forward.name,
            )

    def noise(
        self, network: Network, lead: tuple[int, ...], generator: torch.Generator
    ) -> Tensor | None:
        """Normal numbers for the potentials of all but the outputs, (E, T, B, moments, S - K)."""
        if self.feedback_learning == "none":
            return None
        units = sum(group.n_out for group in self._groups.values())
        return torch.randn(*lead, self.noisy.steps - 1, units, generator=generator)

    def feedback(
        self, network: EquilibriumNetwork, weights: dict[str, Tensor]
    ) -> Inversion | Direct:
        """From the control at the output to that of all units."""
        if self.psi == "linear":
            return self._direct(network.outputs, weights)
        if self.psi == "kolen-pollack":
            return Inversion({name: weights[f"{name}_feedback"] for name in network.carriers})
        return Inversion()

    def _direct(self, outputs: int, weights: dict[str, Tensor]) -> Direct:
        like = next(iter(weights.values()))
        eye = torch.eye(outputs, dtype=like.dtype, device=like.device)
        return Direct(torch.cat([*(weights[name] for name in self._groups), eye]))

    def fluctuating(
        self,
        field: WiredField,
        state: State,
        potential: Tensor,
        psi: Tensor,
        found: Tensor,
        presentation: Presentation,
        needs: Needs,
    ) -> dict[str, LocalSignals]:
        """What linear feedback learns from noise around a rest point, where one was found."""
        if self.feedback_learning == "none" or set(needs).isdisjoint(self._groups):
            return {}
        xi, feedback = self.given_noise(presentation), self._direct(field.outputs, state["weights"])
        sizes = [group.n_out for group in self._groups.values()]
        pre, post = fluctuations(field, potential, psi, feedback, xi, sizes, self.noisy)
        moments, weight = xi.shape[1], presentation.weight
        settled = found.repeat_interleave(moments, 0)
        seen = feedback_signals(
            tuple(self._groups),
            needs,
            torch.where(settled, pre, torch.zeros_like(pre)),
            post,
            [-scale / moments for scale in self.noisy.scales(len(sizes) + 1)[:-1]],
            None if weight is None else weight.repeat_interleave(moments, 0),
        )
        return {name: replace(signals, sites=moments) for name, signals in seen.items()}
