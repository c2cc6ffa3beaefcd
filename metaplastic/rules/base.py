"""The rule axis: the contract."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Literal, Self

from torch import Tensor, nn

from metaplastic.described import Described
from metaplastic.errors import ConfigurationError
from metaplastic.rules.coefficient import Coefficient
from metaplastic.signals import LocalSignals, SynapseGroup

Traces = dict[str, Tensor]


class PlasticityRule(Described, ABC, nn.Module):
    """What one synapse group does with what reaches it: a pure function of local signals.

    The lifetime: the user's rule is a template. ``bind`` makes one for each plastic group;
    ``coefficients`` evaluates its learned numbers once at the start of an episode; ``init`` makes
    the traces; ``update`` runs at every presentation and sees nothing but its arguments.

    ``needs`` names the optional fields of LocalSignals that ``update`` reads; a credit computes no
    others. ``scope`` says what a synapse's change may depend on: ``"synapse"``, its own two units
    and its own weight, or ``"group"``, also other synapses of its matrix (a sum over a neuron's
    outputs, a normalisation).
    """

    needs: frozenset[str] = frozenset()
    scope: Literal["synapse", "group"] = "synapse"

    def bind(self, group: SynapseGroup) -> Self:
        """This rule with coefficients of its own for ``group``."""
        own = copy.deepcopy(self)
        for name, module in self.named_children():
            if isinstance(module, Coefficient):
                setattr(own, name, module.bind(group))
        return own

    def coefficients(self) -> dict[str, Tensor]:
        """Every Coefficient's value by attribute name, each broadcastable to (n_out, n_in)."""
        return {n: m() for n, m in self.named_children() if isinstance(m, Coefficient)}

    def with_rate(self, rate: float) -> PlasticityRule:
        """The plainest rule of this family, with one fixed rate for every synapse: what a learned
        rule must beat.

        Raises:
            ConfigurationError: for a family without such a rule.
        """
        raise ConfigurationError(
            f"{type(self).__name__} has no form with a single rate ({rate} was asked for)."
        )

    def init(self, weight: Tensor) -> Traces:
        """Traces at the start of an episode for weights (n_out, n_in); {} for most rules."""
        del weight
        return {}

    @abstractmethod
    def update(
        self,
        weight: Tensor,
        signals: LocalSignals,
        traces: Traces,
        coefficients: dict[str, Tensor],
    ) -> tuple[Tensor, Traces]:
        """The change of ``weight``, (n_out, n_in), and the new traces."""
