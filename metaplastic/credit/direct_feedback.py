"""Direct feedback from the output or the target to every layer."""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor, nn

from metaplastic.credit.base import CreditAssignment
from metaplastic.errors import CompatibilityError, ConfigurationError, check_choice
from metaplastic.networks import LayeredNetwork, Network
from metaplastic.networks.base import he_normal
from metaplastic.networks.layer import Layer
from metaplastic.signals import Kind, Learn, Origin, Presentation, State, SynapseGroup

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
        super().__init__()
        check_choice(
            signal=(signal, Kind), weights=(weights, Origin), output=(output, OutputSignal)
        )
        if depth < 1 or (depth > 1 and width is None):
            raise ConfigurationError(
                f"depth must be at least 1, and depth > 1 needs width=; got depth={depth}, "
                f"width={width}."
            )
        self.signal: Kind = signal
        self.depth, self.width = depth, width
        self.learned, self.resampled = weights == "learned", weights == "resampled"
        self.rectify, self.bias, self.output = rectify, bias, output
        self.detach_error, self.scale = detach_error, scale
        self._groups: dict[str, SynapseGroup] = {}

    def bind(self, network: Network, plastic: frozenset[str], generator: torch.Generator) -> Self:
        own = super().bind(network, plastic, generator)
        if not isinstance(network, LayeredNetwork):
            raise CompatibilityError(f"DirectFeedback needs a LayeredNetwork, got {network}.")
        own._groups = {
            group.name: group
            for layer in network.layers
            if not plastic.isdisjoint(layer.names)
            for group in self._maps(network, layer)
        }
        for name, value in own.draw(generator).items():
            if self.learned:
                own.register_parameter(name, nn.Parameter(value))
            else:
                own.register_buffer(name, value)
        return own

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
                place = {"position": layer.index, "layers": len(network.layers)}
                group = SynapseGroup(name, sizes[j + 1], n_in, "feedback", taught=False, **place)
                found.append(group)
        return found

    def groups(self) -> dict[str, SynapseGroup]:
        return dict(self._groups)

    def weights(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self._groups}

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            name: torch.zeros(g.n_out, 1)
            if name.endswith("_bias")
            else he_normal((g.n_out, g.n_in), generator) * self.scale
            for name, g in self._groups.items()
        }

    def feedback(self, layer: Layer, weights: dict[str, Tensor], top: Tensor) -> Tensor:
        """The teaching signal of one layer, (B, K) -> (N, n_out)."""
        if f"{layer.name}_feedback1" not in self._groups:
            return top
        r = top
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
        weights, teacher = state["weights"], presentation.teacher
        output, activities = network.run(presentation.x, weights)
        top = teacher.target if self.signal == "target" else teacher.error(output)
        if self.detach_error:
            top = top.detach()
        signals = {}
        for layer in network.layers:
            if learn.needs.keys().isdisjoint(layer.names):
                continue
            signals |= network.signals(
                layer,
                activities[layer.index],
                learn.needs,
                teaching=self.feedback(layer, weights, top),
                kind=self.signal,
                weight=presentation.weight,
            )
        return learn(state, signals)
