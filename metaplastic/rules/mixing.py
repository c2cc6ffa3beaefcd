"""Activity mixed with the teaching signal, for the rules that learn from both."""

from __future__ import annotations

import torch
from torch import Tensor

from metaplastic.errors import ConfigurationError
from metaplastic.rules.coefficient import Bound, Coefficient
from metaplastic.signals import LocalSignals


def mix_coefficient(mix: float | Coefficient, bound: Bound) -> Coefficient:
    """The share of the teaching signal: one number for each layer, or a Coefficient as given.

    Raises:
        ConfigurationError: for one number for each synapse, where a neuron has one activity.
    """
    if not isinstance(mix, Coefficient):
        return Coefficient(mix, bound=bound, role="mixing")
    if mix.granularity == "synapse":
        raise ConfigurationError(
            "mix is a share of the neuron's activity: its granularity is 'neuron', 'layer' or "
            "'network', got 'synapse'."
        )
    return mix


def mix_needs(mix: Coefficient) -> frozenset[str]:
    """What must be sent for it: nothing where the share is fixed at 0."""
    silent = not mix.learned and mix.value == 0.0
    return frozenset() if silent else frozenset({"teaching"})


def mixed(signals: LocalSignals, mix: Tensor) -> Tensor:
    """The sum z = mix * teaching + (1 - mix) * post, (N, n_out), with mix (n_out, 1) or (1, 1).

    The teaching signal enters raw, whatever its kind; z is post where nobody sent one.
    """
    if signals.teaching is None:
        return signals.post
    return torch.lerp(signals.post, signals.teaching, mix.mT)  # exact at 0 and at 1
