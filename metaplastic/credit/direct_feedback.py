"""Direct feedback from the output or the target to every layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor

from metaplastic.credit.base import CreditAssignment, Needs
from metaplastic.errors import ConfigurationError, check_choice
from metaplastic.networks import LayeredNetwork, Network
from metaplastic.networks.layer import Layer
from metaplastic.signals import (
    Kind,
    Learn,
    Origin,
    Presentation,
    State,
    SynapseGroup,
    Teacher,
)

OutputSignal = Literal["clamp", "feedback"]


class DirectFeedback(CreditAssignment):
    r"""Each layer gets the output's signal through feedback weights of its own.

    r_l = g(B_lk ... g(B_l1 f + c_l1) + c_lk) with f the error or the target at the output; every
    unit of a convolution, at each position, has its own feedback. Meta-learned it is the feedback
    of Lindsey & Litwin-Kumar (2020); fixed, random, linear and without bias it is direct feedback
    alignment (Nokland 2016).

    Args:
        signal: f = ``"error"`` (target - output) or ``"target"`` (which needs no output, so that
            feedback does not depend on the network).
        weights: ``"learned"`` by the outer loop, ``"fixed"`` as drawn, or ``"resampled"`` in every
            episode.
        depth: number k of feedback layers to each layer.
        width: their hidden width, for depth > 1.
        rectify: g is a ReLU after every feedback layer, the last one included; else the identity.
        bias: whether feedback layers have biases c (initially 0).
        output: the last layer's signal is f itself (``"clamp"``) or comes through feedback weights
            as everywhere (``"feedback"``).
        detach_error: the outer loop takes the error for a constant.
        scale: factor on the standard deviation sqrt(2 / fan-in) of the feedback weights.

    Raises:
        ConfigurationError: for depth > 1 without a width.
    """

    protocol = LayeredNetwork
    provides = frozenset({"teaching", "gain"})

    def __init__(
        self,
        signal: Kind = "error",
        *,
        weights: Origin = "learned",
        depth: int = 1,
        width: int | None = None,
        rectify: bool = False,
        bias: bool = False,
        output: OutputSignal = "clamp",
        detach_error: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__(weights, scale)
        check_choice(signal=(signal, Kind), output=(output, OutputSignal))
        if depth < 1 or (depth > 1 and width is None):
            raise ConfigurationError(
                f"depth must be at least 1, and depth > 1 needs width=; got depth={depth}, "
                f"width={width}."
            )
        self.signal: Kind = signal
        self.depth, self.width = depth, width
        self.rectify, self.bias, self.output = rectify, bias, output
        self.detach_error = detach_error

    def feedback_groups(self, network: Network, needs: Needs) -> Iterator[SynapseGroup]:
        assert isinstance(network, LayeredNetwork)
        for layer in network.layers:
            if not set(needs).isdisjoint(layer.names):
                yield from self._maps(network, layer)

    def _maps(self, network: LayeredNetwork, layer: Layer) -> list[SynapseGroup]:
        """The feedback groups of one layer, from the output's side."""
        last = layer.index == len(network.layers) - 1
        if last and self.output == "clamp":
            return []
        sizes = [network.outputs, *[self.width or 0] * (self.depth - 1), layer.units]
        found = []
        for j in range(self.depth):
            ends = {"weight": sizes[j], "bias": 1} if self.bias else {"weight": sizes[j]}
            for kind, n_in in ends.items():
                name = f"{layer.name}_feedback{j + 1}" + ("_bias" if kind == "bias" else "")
                place = layer.index, len(network.layers)
                group = SynapseGroup(name, sizes[j + 1], n_in, "feedback", *place, taught=False)
                found.append(group)
        return found

    @property
    def kind(self) -> Kind:
        """How the synapses are to read what arrives."""
        return self.signal

    def top(self, teacher: Teacher, output: Tensor) -> tuple[Tensor, Tensor]:
        """What enters the feedback weights, and what a clamped last layer gets, (B, K) each."""
        sent = teacher.target if self.signal == "target" else teacher.error(output)
        sent = sent.detach() if self.detach_error else sent
        return sent, sent

    def feedback(self, layer: Layer, weights: dict[str, Tensor], sent: Tensor) -> Tensor:
        """The teaching signal of one layer, (B, K) -> (N, n_out)."""
        r = sent
        for j in range(1, self.depth + 1):
            r = r @ weights[f"{layer.name}_feedback{j}"].mT
            if self.bias:
                r = r + weights[f"{layer.name}_feedback{j}_bias"].mT
            r = r.relu() if self.rectify else r
        return layer.to_rows(r.reshape(-1, *layer.unit_shape))

    def present(
        self, network: Network, state: State, presentation: Presentation, learn: Learn
    ) -> State:
        assert isinstance(network, LayeredNetwork)
        weights = state["weights"]
        output, activities = network.run(presentation.x, weights)
        sent, clamped = self.top(presentation.teacher, output)
        signals = {}
        for layer in network.layers:
            if set(learn.needs).isdisjoint(layer.names):
                continue
            fed = f"{layer.name}_feedback1" in self._groups
            signals |= network.signals(
                layer,
                activities[layer.index],
                learn.needs,
                teaching=self.feedback(layer, weights, sent) if fed else clamped,
                kind=self.kind,
                weight=presentation.weight,
            )
        return learn(state, signals)
