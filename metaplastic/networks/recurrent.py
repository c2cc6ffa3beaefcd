"""A recurrent network that lives through the stream of an episode."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from metaplastic.errors import (
    ConfigurationError,
    DataError,
    ShapeError,
    UnsupportedLayerError,
    check_choice,
)
from metaplastic.networks.base import Needs, Network, Observation
from metaplastic.networks.transforms import SLOPES, without_inplace
from metaplastic.signals import LocalSignals, Presentation, State, SynapseGroup

Modulation = Literal[None, "scalar", "fanout"]


class RecurrentNetwork(Network):
    r"""h(t) = f(W_in x(t) + W_rec h(t-1) + b), output(t) = W_out h(t) + b_out, with h(0) = 0.

    Each presentation of an episode is one time step of B streams side by side; a query is one more
    step from where the stream ended, and leaves no trace. Ragged streams are exact: padding does
    not move the activity. The groups are ``input_weight``, ``recurrent_weight`` (its presynaptic
    side is h(t-1), its postsynaptic side h(t)) and ``hidden_bias`` of the first layer, and
    ``output_weight`` and ``output_bias`` of the second and last one.

    With a ``modulator`` the network sets its own plasticity, M(t) = tanh(W_m h(t) + b_m) (Miconi et
    al. 2019), the third factor of rules that read one; its weights are of the role ``"modulator"``
    and fixed within an episode.

    Args:
        inputs: size of an example, flattened.
        hidden: number n of hidden units.
        outputs: K.
        activation: f, tanh by default.
        modulator: ``"scalar"``, one M for all synapses, or ``"fanout"``, M_i = a_i M + c_i for the
            synapses onto hidden unit i (at first a = 1, c = 0) and M itself for those onto outputs.
        instruction: show the target with the example, as K more inputs, which are 0 in queries: how
            such a network learns labels within an episode (Miconi, Clune & Stanley 2018).
        generator: draws the initial weights, of variance 1 / n_in; seed 0 where none is given.

    Raises:
        ConfigurationError: for a size below 1.
        UnsupportedLayerError: for an activation function whose slope is not known.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        *,
        activation: nn.Module | None = None,
        modulator: Modulation = None,
        instruction: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_choice(modulator=(modulator, Modulation))
        if min(inputs, hidden, outputs) < 1:
            raise ConfigurationError(
                f"inputs, hidden and outputs count units, from 1; got {inputs}, {hidden} and "
                f"{outputs}."
            )
        activation = without_inplace(nn.Tanh() if activation is None else activation)
        if type(activation) not in SLOPES:
            raise UnsupportedLayerError(
                f"{activation} is no activation function whose slope is known: take one of "
                f"{', '.join(sorted(k.__name__ for k in SLOPES))}."
            )
        self.inputs, self.hidden, self.outputs = inputs, hidden, outputs
        self.activation, self.modulator, self.instruction = activation, modulator, instruction
        self.provides = frozenset({"gain"} if modulator is None else {"gain", "modulator"})
        for name, value in self.draw(generator or torch.Generator().manual_seed(0)).items():
            self.register_parameter(name, nn.Parameter(value))

    def groups(self) -> dict[str, SynapseGroup]:
        n, outputs = self.hidden, self.outputs
        drive = self.inputs + (outputs if self.instruction else 0)
        sizes = {
            "input_weight": (n, drive, "weight", 0),
            "recurrent_weight": (n, n, "weight", 0),
            "hidden_bias": (n, 1, "bias", 0),
            "output_weight": (outputs, n, "weight", 1),
            "output_bias": (outputs, 1, "bias", 1),
        }
        if self.modulator is not None:
            sizes |= {
                "modulator_weight": (1, n, "modulator", 1),
                "modulator_bias": (1, 1, "modulator", 1),
            }
        if self.modulator == "fanout":
            sizes |= {
                "fanout_weight": (n, 1, "modulator", 1),
                "fanout_bias": (n, 1, "modulator", 1),
            }
        return {
            name: SynapseGroup(name, n_out, n_in, role, at, 2, taught=role != "modulator")
            for name, (n_out, n_in, role, at) in sizes.items()
        }

    def weights(self) -> dict[str, Tensor]:
        return {name: self.parameter(name) for name in self.groups()}

    def parameter(self, group: str) -> Tensor:
        return getattr(self, group)

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Normal weights of variance 1 / n_in, biases 0, a fan-out of 1."""
        found = {}
        for name, group in self.groups().items():
            shape = (group.n_out, group.n_in)
            if name.endswith("_bias"):
                found[name] = torch.zeros(shape)
            elif name == "fanout_weight":
                found[name] = torch.ones(shape)
            else:
                drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
                found[name] = (drawn * group.n_in**-0.5).to(torch.get_default_dtype())
        return found

    def features(self, x: Tensor) -> Tensor:
        """Examples as vectors, (B, *) -> (B, inputs)."""
        x = x.flatten(1)
        if not x.is_floating_point():
            raise DataError(f"examples must be floating point, got {x.dtype}: try x.float() / 255.")
        if x.shape[1] != self.inputs:
            raise ShapeError(
                f"an example must have {self.inputs} numbers, got {x.shape[1]} in a batch that "
                f"flattens to {tuple(x.shape)}."
            )
        return x

    def start(self, weights: dict[str, Tensor], batch: int) -> State:
        """``hidden`` (B, n), at rest."""
        return {"hidden": weights["recurrent_weight"].new_zeros(batch, self.hidden)}

    def forward(
        self, features: Tensor, weights: dict[str, Tensor], state: State | None = None
    ) -> Tensor:
        """Output of Q queries, (Q, inputs) -> (Q, K), each one step on from the activity of the one
        stream that was shown (or of its own, where Q were).

        Raises:
            ShapeError: where it is not clear which stream a query goes on from.
        """
        rows = features.shape[0]
        before = (self.start(weights, rows) if state is None else state)["hidden"]
        if before.shape[0] not in (1, rows):
            raise ShapeError(
                f"a recurrent network lives through one stream at a time: {before.shape[0]} "
                f"streams were shown and {rows} queries cannot tell which one to go on from. Show "
                "one example at a time."
            )
        target = features.new_zeros(rows, self.outputs) if self.instruction else None
        potential = self._potential(self._drive(features, target), before, weights)
        return self._read(self.activation(potential), weights)

    def observe(
        self, presentation: Presentation, weights: dict[str, Tensor], state: State, needs: Needs
    ) -> Observation:
        """One step: B examples, one for each of the B streams.

        Raises:
            ShapeError: for another number of examples than streams.
        """
        before, shown = state["hidden"], presentation.weight
        if presentation.x.shape[0] != before.shape[0]:
            raise ShapeError(
                f"a recurrent network lives through one stream at a time: got "
                f"{presentation.x.shape[0]} examples for the activity of {before.shape[0]}. Show "
                "one example at a time."
            )
        target = presentation.teacher.target if self.instruction else None
        drive = self._drive(presentation.x, target)
        potential = self._potential(drive, before, weights)
        hidden = self.activation(potential)
        output = self._read(hidden, weights)
        ones = torch.ones_like(hidden[:, :1])
        slopes = SLOPES[type(self.activation)](self.activation, potential, hidden)
        onto_hidden, onto_output = self._modulate(hidden, weights)
        first = (hidden, slopes, onto_hidden)
        last = (output, torch.ones_like(output), onto_output)
        ends = {
            "input_weight": (drive, first),
            "recurrent_weight": (before, first),
            "hidden_bias": (ones, first),
            "output_weight": (hidden, last),
            "output_bias": (ones, last),
        }
        signals = {}
        for name, (pre, (post, gain, modulator)) in ends.items():
            if name in needs:
                signals[name] = LocalSignals(
                    pre=pre,
                    post=post,
                    gain=gain if "gain" in needs[name] else None,
                    modulator=modulator if "modulator" in needs[name] else None,
                    weight=shown,
                )
        after = hidden if shown is None else torch.where(shown > 0, hidden, before)
        return Observation(output, signals, {"hidden": after})

    def _drive(self, x: Tensor, target: Tensor | None) -> Tensor:
        return x if target is None else torch.cat([x, target], dim=1)

    def _potential(self, drive: Tensor, before: Tensor, weights: dict[str, Tensor]) -> Tensor:
        driven = drive @ weights["input_weight"].mT + weights["hidden_bias"].mT
        return driven + before @ weights["recurrent_weight"].mT

    def _read(self, hidden: Tensor, weights: dict[str, Tensor]) -> Tensor:
        return hidden @ weights["output_weight"].mT + weights["output_bias"].mT

    def _modulate(
        self, hidden: Tensor, weights: dict[str, Tensor]
    ) -> tuple[Tensor | None, Tensor | None]:
        """The third factor of the hidden units' synapses, (B, 1) or (B, n), and of the outputs',
        (B, 1).
        """
        if self.modulator is None:
            return None, None
        m = (hidden @ weights["modulator_weight"].mT + weights["modulator_bias"].mT).tanh()
        if self.modulator == "scalar":
            return m, m
        return m @ weights["fanout_weight"].mT + weights["fanout_bias"].mT, m
