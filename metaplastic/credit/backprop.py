"""Backpropagation, written by hand: the gradient baseline."""

from __future__ import annotations

from torch import Tensor

from metaplastic.credit.layerwise import LayerwiseFeedback
from metaplastic.networks.layer import Layer
from metaplastic.signals import Presentation, State


class Backprop(LayerwiseFeedback):
    """Errors sent down through the transposed forward weights (Rumelhart et al. 1986).

    Not local (weight transport): with Delta it is gradient descent, which makes MAML (all layers
    plastic), ANIL (the last one) and OML (the upper ones) points of the same space.

    Args:
        input_beta, linked: see LayerwiseFeedback.
    """

    def __init__(self, *, input_beta: float | None = None, linked: bool = False) -> None:
        super().__init__(input_beta=input_beta, linked=linked)

    def matrix(self, layer: Layer, state: State, presentation: Presentation) -> Tensor:
        return state["weights"][f"{layer.name}_weight"]
