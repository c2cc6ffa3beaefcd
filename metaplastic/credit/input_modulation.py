"""Two forward passes, the second on an input that the output's error modulates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor

from metaplastic.credit.base import Needs
from metaplastic.credit.forward_passes import Dropout, ForwardPasses, Passed, check_precision
from metaplastic.credit.input_projection import Feedback, InputProjection
from metaplastic.credit.pass_signals import (
    both,
    clean_half,
    difference,
    modulated_half,
    taught_layers,
)
from metaplastic.errors import ConfigurationError, check_choice
from metaplastic.networks import LayeredNetwork, Network
from metaplastic.signals import Learn, LocalSignals, Origin, Presentation, State

Variant = Literal["plain", "hebbian", "time-local"]
Pass = Literal["modulated", "clean"]


class InputModulation(InputProjection):
    r"""PEPITA (Dellaferrera & Kreiman 2022): nothing is sent backwards. The error at the output
    modulates the input, x' = x + sign F e with e = output - target, and each hidden layer modulates
    its activity h in the clean pass with h' in the modulated one, under the same weights.

    Under ``Delta(rate, derivative=False)`` hidden weights change by rate <(h'_l - h_l) h'_{l-1}^T>
    and the last ones by the delta rule in the modulated pass. Published networks have no biases:
    give those here the rule None; where they have one, their presynaptic unit is 1 as everywhere.
    A convolution modulates its activity before pooling, and divides by its positions under
    ``reduction="positions"``. Computes in float32 without TF32, or float64: the differences are
    small.

    Args:
        weights: F is ``"fixed"`` as drawn, ``"learned"`` by the outer loop, or ``"resampled"`` in
            every episode.
        scale: factor on F, which is drawn uniformly between +-0.05 sqrt(6 / n_0), n_0 inputs.
        variant: ``"plain"``; ``"hebbian"`` (Srinivasan et al. 2024), <h'_l h'_{l-1}^T> -
            <h_l h_{l-1}^T>, at the output with the linked output for h and the target for h', told
            at once as twice as many sites (which ``reduction="positions"`` counts); or
            ``"time-local"``, where each layer learns the second of these terms in the clean pass
            already, and the modulated one runs with the changed weights, so that no activity is
            kept; a rule's decay or consolidation acts in both passes.
        feedback: ``"projection"``, F (n_0, K) itself as ``layer0_feedback``; ``"factors"``, F =
            F_1 .. F_L through Linear layers, ``layer0_feedback`` on, F_l^T in the shape of W_l,
            normal; or ``"mirror"``, factors that learn W by a rule of ``"role:feedback"`` from
            noise, as a WeightMirror's do, before each presentation, while the standard deviation of
            F stays as it was drawn.
        sign: 1 as in the original paper, where the network comes to anti-align with F, or -1 as in
            Srinivasan et al., where it aligns.
        pre: presynaptic activity of the ``"modulated"`` or the ``"clean"`` pass, plain variant.
        output: the pass whose error the last layer gets, plain variant.
        mean_zero: False draws F between 0 and its limit, not symmetrically.
        error_sign: F gets the signs of the error.
        keep: probability that a hidden unit stays (then divided by it) in both passes, above 0 and
            up to 1.
        streaming: layers learn as the modulated pass leaves them, and a clean pass is computed
            again beside it (Pau & Aymone 2023): three passes, the activity of two layers at a time,
            the same changes. Time-local learning keeps no more than that anyway.
        sigma: standard deviation of the mirrors' noise.

    Raises:
        ConfigurationError: for options out of range or that contradict each other; at a
            presentation, in half precision or under TF32.
        UnsupportedLayerError: for factors beside a convolution.
    """

    provides = frozenset({"teaching", "gain"})

    def __init__(
        self,
        weights: Origin = "fixed",
        scale: float = 1.0,
        *,
        variant: Variant = "plain",
        feedback: Feedback = "projection",
        sign: Literal[1, -1] = 1,
        pre: Pass = "modulated",
        output: Pass = "modulated",
        mean_zero: bool = True,
        error_sign: bool = False,
        keep: float = 1.0,
        streaming: bool = False,
        sigma: float = 0.1,
    ) -> None:
        super().__init__(weights, scale, feedback, mean_zero, sigma)
        check_choice(
            variant=(variant, Variant),
            sign=(sign, Literal[1, -1]),
            pre=(pre, Pass),
            output=(output, Pass),
        )
        if not 0 < keep <= 1:
            raise ConfigurationError(f"keep is a probability above 0 and up to 1, got {keep}.")
        if variant != "plain" and "clean" in (pre, output):
            raise ConfigurationError(
                f"pre and output choose between the passes of variant='plain'; {variant!r} takes "
                f"both: leave them out, got pre={pre!r}, output={output!r}."
            )
        if variant == "time-local" and streaming:
            raise ConfigurationError(
                "variant='time-local' keeps no activity as it is: leave out streaming=True."
            )
        self.variant: Variant = variant
        self.sign, self.pre, self.output = sign, pre, output
        self.error_sign, self.keep, self.streaming = error_sign, keep, streaming

    def projects(self, network: LayeredNetwork, needs: Needs) -> bool:
        """Whether any of the plastic groups reads the modulated pass: all but those of the last
        layer where it takes everything from the clean one.
        """
        hidden = [name for layer in network.layers[:-1] for name in layer.names]
        return bool(needs) and (
            (self.pre, self.output) != ("clean", "clean") or not set(needs).isdisjoint(hidden)
        )

    # --- noise ----------------------------------------------------------------------------------

    def noise(
        self, network: Network, lead: tuple[int, ...], generator: torch.Generator
    ) -> Tensor | None:
        """Uniform numbers for the masks of hidden layers, then normal ones for the mirrors,
        (E, T, B, units).
        """
        assert isinstance(network, LayeredNetwork)
        parts = []
        if units := sum(self._dropped(network)):
            parts.append(torch.rand(*lead, units, generator=generator))
        if self.mirrors:
            parts.append(self.mirror_noise(network, lead, generator))
        return torch.cat(parts, -1) if parts else None

    def _dropped(self, network: LayeredNetwork) -> list[int]:
        """Numbers of units of the layers with dropout."""
        return [layer.units for layer in network.layers[:-1]] if self.keep < 1 else []

    # --- a presentation -------------------------------------------------------------------------

    def present(
        self, network: Network, state: State, presentation: Presentation, learn: Learn
    ) -> State:
        assert isinstance(network, LayeredNetwork)
        check_precision(presentation.x.device, presentation.x.dtype)
        sizes, uniform = self._dropped(network), ()
        if sizes or self.mirrors:
            noise = self.given_noise(presentation)
            *uniform, xi = noise.split([*sizes, noise.shape[-1] - sum(sizes)], -1)
            if self.mirrors:
                state = self.teach_feedback(network, state, presentation, xi, learn)
        if learn.needs.keys() <= self._groups.keys():
            return state
        passes = ForwardPasses(network, state["weights"], Dropout(self.keep, tuple(uniform)))
        if self.variant == "time-local":
            return self._time_local(passes, state, presentation, learn)
        return self._two_passes(passes, state, presentation, learn)

    def _two_passes(
        self, passes: ForwardPasses, state: State, presentation: Presentation, learn: Learn
    ) -> State:
        layers = taught_layers(passes.network, learn.needs)
        if self.streaming:
            output = passes.output(presentation.x)
            clean: Iterable[Passed] = passes.run(presentation.x, layers)
        else:
            kept = list(passes.run(presentation.x, passes.network.layers))
            output, clean = kept[-1].above, kept[: len(layers)]
        told = self._compared(passes, clean, output, presentation, learn.needs)
        if self.streaming:
            for signals in told:
                state = learn(state, signals)
            return state
        return learn(state, {name: seen for signals in told for name, seen in signals.items()})

    def _compared(
        self,
        passes: ForwardPasses,
        clean: Iterable[Passed],
        output: Tensor,
        presentation: Presentation,
        needs: Needs,
    ) -> Iterator[dict[str, LocalSignals]]:
        """What each layer sees as the modulated pass leaves it."""
        x = presentation.x
        modulates = self.projects(passes.network, needs)
        if modulates:
            x = self._modulated(passes, output, presentation)
        for before in clean:
            after = passes.step(before.layer, x) if modulates else before
            if self.variant == "plain":
                pre = after if self.pre == "modulated" else before
                answer = after if self.output == "modulated" else before
                yield difference(passes, before, after, pre, answer, presentation, needs)
            else:
                negative = clean_half(passes, before, presentation, needs)
                positive = modulated_half(passes, after, presentation, needs)
                yield {name: both(seen, positive[name]) for name, seen in negative.items()}
            x = after.above

    def _time_local(
        self, passes: ForwardPasses, state: State, presentation: Presentation, learn: Learn
    ) -> State:
        network, x = passes.network, presentation.x
        for passed in passes.run(x, network.layers):
            state = learn(state, clean_half(passes, passed, presentation, learn.needs))
            x = passed.above
        x = self._modulated(passes, x, presentation)
        changed = ForwardPasses(network, state["weights"], passes.dropout)
        for passed in changed.run(x, taught_layers(network, learn.needs)):
            state = learn(state, modulated_half(changed, passed, presentation, learn.needs))
        return state

    def _modulated(
        self, passes: ForwardPasses, output: Tensor, presentation: Presentation
    ) -> Tensor:
        """The input x' (B, *); the teacher's error is the wanted change of the output, -e."""
        wanted = presentation.teacher.error(output)
        wanted = wanted.sign() if self.error_sign else wanted
        feedback = self.projection(passes.weights)
        return presentation.x - self.sign * (wanted @ feedback.mT).reshape(presentation.x.shape)
