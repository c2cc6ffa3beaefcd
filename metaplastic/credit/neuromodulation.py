"""A global third factor instead of a teaching signal."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from metaplastic.credit.base import CreditAssignment, Needs
from metaplastic.errors import check_choice
from metaplastic.networks import LayeredNetwork, Network
from metaplastic.networks.layer import Layer
from metaplastic.signals import Kind, Learn, Origin, Presentation, State, SynapseGroup


class Neuromodulation(CreditAssignment):
    r"""Each layer gets one number for each example, M_l = tanh(B_l f), as its modulator.

    f is the error or the target at the output, (B, K), and B_l (1, K) a feedback group
    ``layer0_modulator`` of the layer: the global third factor of three-factor rules (reviewed by
    Fremaux & Gerstner 2016), with the meta-learned read-out of Miconi et al. (2019) put at the
    output. Nothing else is sent; rules read it as ``modulator``.

    Args:
        signal: f = ``"error"`` (target - output) or ``"target"``.
        weights: ``"learned"`` by the outer loop, ``"fixed"`` as drawn, or ``"resampled"`` in every
            episode.
        scale: factor on the standard deviation sqrt(2 / K) of the feedback weights.
    """

    protocol = LayeredNetwork
    provides = frozenset({"gain", "modulator"})

    def __init__(
        self, signal: Kind = "error", *, weights: Origin = "learned", scale: float = 1.0
    ) -> None:
        super().__init__(weights, scale)
        check_choice(signal=(signal, Kind))
        self.signal: Kind = signal

    def feedback_groups(self, network: Network, needs: Needs) -> Iterator[SynapseGroup]:
        assert isinstance(network, LayeredNetwork)
        for layer in network.layers:
            if any("modulator" in needs.get(name, ()) for name in layer.names):
                yield SynapseGroup(
                    f"{layer.name}_modulator",
                    1,
                    network.outputs,
                    "feedback",
                    layer.index,
                    len(network.layers),
                    taught=False,
                )

    def modulator(self, layer: Layer, weights: dict[str, Tensor], sent: Tensor) -> Tensor | None:
        """The third factor of one layer, (B, K) -> (B, 1); None where no rule reads it."""
        feedback = weights.get(f"{layer.name}_modulator")
        return None if feedback is None else (sent @ feedback.mT).tanh()

    def present(
        self, network: Network, state: State, presentation: Presentation, learn: Learn
    ) -> State:
        assert isinstance(network, LayeredNetwork)
        weights, teacher = state["weights"], presentation.teacher
        output, activities = network.run(presentation.x, weights)
        sent = teacher.target if self.signal == "target" else teacher.error(output)
        signals = {}
        for layer, activity in zip(network.layers, activities, strict=True):
            signals |= network.signals(
                layer,
                activity,
                learn.needs,
                modulator=self.modulator(layer, weights, sent),
                weight=presentation.weight,
            )
        return learn(state, signals)
