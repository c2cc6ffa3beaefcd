"""The credit axis: the contract."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from metaplastic.described import Described
from metaplastic.errors import ConfigurationError, check_choice
from metaplastic.networks import Network
from metaplastic.networks.base import Needs, he_normal
from metaplastic.signals import Learn, Origin, Presentation, State, SynapseGroup


class CreditAssignment(Described, ABC, nn.Module):
    """Carries the teaching signal to the synapses. It transports and never mixes.

    The lifetime: the user's credit is a template. ``bind`` makes one that fits a network, with its
    feedback synapses as Parameters (or buffers where they are not learned). ``start`` makes its
    state for one episode; ``present`` runs once for each presentation. All weights, its own
    feedback weights included, are read from ``state["weights"]``.

    Args:
        weights: feedback weights ``"learned"`` by the outer loop, ``"fixed"`` as drawn, or
            ``"resampled"`` in every episode.
        scale: factor on the standard deviation sqrt(2 / n_in) that they are drawn with.
    """

    protocol: ClassVar[type[Network]] = Network
    """The kind of network that it can run through."""
    provides: frozenset[str] = frozenset({"teaching"})
    """The optional fields of LocalSignals that it can fill in."""

    def __init__(self, weights: Origin = "fixed", scale: float = 1.0) -> None:
        super().__init__()
        check_choice(weights=(weights, Origin))
        self.learned, self.resampled = weights == "learned", weights == "resampled"
        self.scale = scale
        self._groups: dict[str, SynapseGroup] = {}

    def bind(self, network: Network, needs: Needs, generator: torch.Generator) -> Self:
        """A copy whose feedback synapses fit ``network``, drawn from ``generator``; those of a
        credit that was bound before stay where they fit. Only the network's plastic groups, the
        keys of ``needs``, need signals; feedback that no one reads is not made.
        """
        own, had = copy.deepcopy(self), self.weights()
        for name in had:
            delattr(own, name)
        own._groups = {group.name: group for group in own.feedback_groups(network, needs)}
        for name, value in own.draw(generator).items():
            if name in had and had[name].shape == value.shape:
                value = had[name].detach().clone()
            if self.learned:
                own.register_parameter(name, nn.Parameter(value))
            else:
                own.register_buffer(name, value)
        return own

    def feedback_groups(self, network: Network, needs: Needs) -> Iterable[SynapseGroup]:
        """The feedback synapses that it has in ``network``."""
        del network, needs
        return ()

    def groups(self) -> dict[str, SynapseGroup]:
        """The feedback synapses that it owns, {} where it has none."""
        return dict(self._groups)

    def weights(self) -> dict[str, Tensor]:
        """Their initial weights, {group: (n_out, n_in)}, with their graph to the Parameters."""
        return {name: getattr(self, name) for name in self._groups}

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Fresh feedback weights, {group: (n_out, n_in)}; biases are 0."""
        return {
            name: torch.zeros(g.n_out, 1)
            if name.endswith("_bias")
            else he_normal((g.n_out, g.n_in), generator) * self.scale
            for name, g in self._groups.items()
        }

    def noise(
        self, network: Network, lead: tuple[int, ...], generator: torch.Generator
    ) -> Tensor | None:
        """The noise of many presentations, (E, T, *), or None; lead is (E, T, B)."""
        del network, lead, generator
        return None

    def given_noise(self, presentation: Presentation) -> Tensor:
        """The noise that came with a presentation.

        Raises:
            ConfigurationError: where nobody drew any, as in ``adapt`` and ``assign_grads``.
        """
        if presentation.noise is None:
            raise ConfigurationError(
                f"{type(self).__name__} needs noise at every presentation and got none: run whole "
                "episodes (a MetaGradient, evaluate), or pass Presentation(noise=...) to step."
            )
        return presentation.noise

    def start(self, network: Network, weights: dict[str, Tensor], batch: int) -> State:
        """Its own state at the beginning of an episode of B examples at a time."""
        del network, weights, batch
        return {}

    def advice(self, network: Network, state: State, presentation: Presentation) -> str:
        """What to say of the examples of a presentation that it counts in its state as
        ``unconverged``: those for which it found no signal, and which therefore changed nothing.
        """
        del network, state, presentation
        return "no signal was found for them."

    @abstractmethod
    def present(
        self, network: Network, state: State, presentation: Presentation, learn: Learn
    ) -> State:
        """One presentation. Calls ``learn(state, {group: LocalSignals})`` as often as the method
        learns, goes on with the weights as ``learn`` left them, and returns the new state.
        """
