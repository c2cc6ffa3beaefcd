"""Sign symmetry: feedback that knows the signs of the forward weights."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from metaplastic.credit.alignment import FeedbackAlignment
from metaplastic.errors import check_choice
from metaplastic.networks import Network
from metaplastic.networks.base import he_scale
from metaplastic.networks.layer import Layer
from metaplastic.signals import Presentation, State

Magnitudes = Literal["uniform", "fixed", "learned", "resampled", "presentation"]


class SignSymmetry(FeedbackAlignment):
    """Errors sent down through M o sign(W), the signs those of the present forward weights (Liao,
    Leibo & Poggio 2016; Moskovitz, Litwin-Kumar & Abbott 2018).

    Args:
        magnitudes: M is the same for all, ``"uniform"``; or |N|, N normal: ``"fixed"``,
            ``"learned"`` by the outer loop from there, ``"resampled"`` in every episode or at every
            ``"presentation"``, which keeps T matrices of each layer.
        scale: factor on M; at 1 its root mean square is sqrt(2 / n_in), that of fresh forward
            weights.
        input_beta, linked: see LayerwiseFeedback.
    """

    def __init__(
        self,
        magnitudes: Magnitudes = "uniform",
        scale: float = 1.0,
        *,
        input_beta: float | None = None,
        linked: bool = False,
    ) -> None:
        check_choice(magnitudes=(magnitudes, Magnitudes))
        drawn = magnitudes in ("fixed", "learned", "resampled")
        super().__init__(
            magnitudes if drawn else "fixed", scale, input_beta=input_beta, linked=linked
        )
        self.magnitudes: Magnitudes = magnitudes

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Fresh magnitudes, {group: (n_out, n_in)}; constant ones use no random numbers."""
        if self.magnitudes in ("uniform", "presentation"):
            return {
                name: torch.full((g.n_out, g.n_in), he_scale(g.n_in) * self.scale)
                for name, g in self._groups.items()
            }
        return {name: value.abs() for name, value in super().draw(generator).items()}

    def noise(
        self, network: Network, lead: tuple[int, ...], generator: torch.Generator
    ) -> Tensor | None:
        """|N| for every feedback synapse, (E, T, synapses), where it changes at a presentation."""
        if self.magnitudes != "presentation":
            return None
        count = sum(g.n_out * g.n_in for g in self._groups.values())
        return torch.randn(*lead[:2], count, generator=generator).abs()

    def matrix(self, layer: Layer, state: State, presentation: Presentation) -> Tensor:
        name = f"{layer.name}_feedback"
        magnitude = state["weights"][name]
        if self.magnitudes == "presentation":
            names = list(self._groups)
            sizes = [g.n_out * g.n_in for g in self._groups.values()]
            drawn = self.given_noise(presentation).split(sizes)[names.index(name)]
            magnitude = magnitude * drawn.reshape(magnitude.shape)
        return magnitude * state["weights"][f"{layer.name}_weight"].sign()
