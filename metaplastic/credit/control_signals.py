"""What synapses see while their network is controlled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from metaplastic.control import Chain, Goal, Moment, Units
from metaplastic.networks import LayeredNetwork
from metaplastic.networks.base import Needs
from metaplastic.networks.layer import LayerActivity
from metaplastic.signals import LocalSignals, Presentation


@dataclass(frozen=True)
class Shown:
    """What is constant during a presentation."""

    network: LayeredNetwork
    presentation: Presentation
    chain: Chain
    still: Units
    """The feed-forward activity."""
    goal: Goal


def control_signals(
    shown: Shown, seen: list[Units], needs: Needs, *, rates: bool
) -> dict[str, LocalSignals]:
    """The network's plastic groups at some moments, B rows for each. ``rates`` compares rates, else
    potentials.
    """
    chain, still = shown.chain, shown.still
    signals = {}
    count = len(seen)
    for i, layer in enumerate(chain.layers):
        pre = torch.cat([chain.below(i, units.rate) for units in seen])
        potential, rate = (t.repeat(count, 1) for t in (still.potential[i], still.rate[i]))
        basal = torch.cat([units.basal[i] for units in seen])
        found = shown.network.signals(
            layer,
            LayerActivity(pre, potential, rate, ()),
            needs,
            teaching=torch.cat([(u.rate if rates else u.potential)[i] for u in seen]),
            kind="target",
            weight=repeated(shown.presentation.weight, count),
        )
        post = chain.rate(i, basal) if rates else basal
        signals |= {name: replace(s, post=post) for name, s in found.items()}
    return signals


def stretches(along: Iterator[Moment], length: int) -> Iterator[list[Moment]]:
    """Some moments at a time."""
    while stretch := list(islice(along, length)):
        yield stretch


def repeated(weight: Tensor | None, count: int) -> Tensor | None:
    """The weight of each example, (B, 1), for ``count`` moments, (count x B, 1)."""
    return None if weight is None else weight.repeat(count, 1)
