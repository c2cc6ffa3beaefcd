"""One rule on a bench: synapses, and what they are shown."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from metaplastic.rules import PlasticityRule
from metaplastic.rules.base import Traces
from metaplastic.signals import Kind, LocalSignals, SynapseGroup
from metaplastic.testing.oracles import direction, seeded
from metaplastic.testing.parts import FIELDS

EXAMPLES, SITES = 3, 2
GROUP = SynapseGroup("layer0_weight", 4, 3, sites=SITES)
OTHER_SIZES = [
    SynapseGroup("one", 1, 1),
    SynapseGroup("wide", 1, 5),
    SynapseGroup("tall", 7, 1, "bias"),
]
Rows = dict[str, Tensor]
"""The tensors of a LocalSignals by name."""


@dataclass(frozen=True)
class SynapseBench:
    """A rule bound to 4 x 3 synapses, its learned coefficients off their first values and unlike
    each other.
    """

    rule: PlasticityRule
    """The template."""
    device: str = "cpu"
    dtype: torch.dtype = torch.float64
    bound: PlasticityRule = field(init=False)

    def __post_init__(self) -> None:
        # A copy, since coefficients of the whole network are shared with the template.
        bound = copy.deepcopy(self.rule).bind(GROUP).to(self.device, torch.float64)
        noise = direction(bound, seed=1)
        with torch.no_grad():
            for name, p in bound.named_parameters():
                p += 0.1 * noise[name]
        object.__setattr__(self, "bound", bound.to(self.dtype))

    def weight(self, seed: int = 0, group: SynapseGroup = GROUP) -> Tensor:
        """Weights (n_out, n_in)."""
        return self._normal((group.n_out, group.n_in), 100 + seed)

    def rows(
        self,
        seed: int = 0,
        fields: Iterable[str] | None = None,
        *,
        group: SynapseGroup = GROUP,
        modulators: int | None = None,
    ) -> Rows:
        """What N = 6 rows show: ``pre``, ``post`` and the optional fields that the rule needs, or
        those asked for; ``modulators`` for all neurons together (1) or each (n_out, the default).
        """
        asked = self.bound.needs if fields is None else frozenset(fields)
        sizes = {
            "pre": group.n_in,
            "post": group.n_out,
            "teaching": group.n_out,
            "gain": group.n_out,
            "pre_teaching": group.n_in,
            "modulator": modulators or group.n_out,
        }
        count = EXAMPLES * SITES
        values = {
            name: self._normal((count, size), 10 * seed + i)
            for i, (name, size) in enumerate(sizes.items())
        }
        return {n: v for n, v in values.items() if n not in FIELDS or n in asked}

    def _normal(self, shape: tuple[int, int], seed: int) -> Tensor:
        value = 0.7 * torch.randn(shape, generator=seeded(seed), dtype=torch.float64)
        return value.to(self.device, self.dtype)

    def seen(self, rows: Rows, kind: Kind = "error") -> LocalSignals:
        """What the rule is given."""
        return LocalSignals(**rows, kind=kind, sites=SITES)  # type: ignore[arg-type]

    def live(
        self,
        weight: Tensor,
        shown: Sequence[Rows],
        *,
        kind: Kind = "error",
        traces: Traces | None = None,
        coefficients: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, Traces]:
        """The weights and traces after these presentations; several, because some rules move from
        the second only.
        """
        traces = self.bound.init(weight) if traces is None else traces
        coefficients = self.bound.coefficients() if coefficients is None else coefficients
        for rows in shown:
            change, traces = self.bound.update(weight, self.seen(rows, kind), traces, coefficients)
            weight = weight + change
        return weight, traces

    def after(self, shown: Sequence[Rows], *, kind: Kind = "error") -> dict[str, Tensor]:
        """The same from the first weights, as one dict, detached."""
        weight, traces = self.live(self.weight(), shown, kind=kind)
        return {"weight": weight.detach()} | {n: t.detach() for n, t in traces.items()}

    def with_rule(self, rule: PlasticityRule) -> SynapseBench:
        """The same bench for another template."""
        return replace(self, rule=rule)


def changed_elsewhere(rows: Rows, i: int, j: int) -> Rows:
    """The rows with other signals at every unit but postsynaptic i and presynaptic j."""
    found = {}
    for name, value in rows.items():
        own = j if name in ("pre", "pre_teaching") else i
        found[name] = _but(value, value + 5.0, (slice(None), slice(own, own + 1)))
    return found


def matrix_changed_elsewhere(value: Tensor, i: int, j: int) -> Tensor:
    """A weight or coefficient with other numbers where synapse (i, j) does not look."""
    rows = slice(i, i + 1) if value.shape[0] > 1 else slice(None)
    columns = slice(j, j + 1) if value.shape[1] > 1 else slice(None)
    return _but(value, 3 * value + 1, (rows, columns))


def _but(value: Tensor, other: Tensor, kept: tuple[slice, slice]) -> Tensor:
    other = other.clone()
    other[kept] = value[kept]
    return other
