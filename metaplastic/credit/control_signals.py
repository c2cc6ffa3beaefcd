"""What synapses see while their network is controlled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

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


class Sample(NamedTuple):
    """A moment, and the control right after it, None at the end of the simulation."""

    moment: Moment
    control: Tensor | None


def sampled(
    along: Iterable[Moment], every: int, size: int, seen: Callable[[Tensor], Tensor] | None = None
) -> Iterator[list[Sample]]:
    """Every so many moments, the first among them, in stretches of ``size``; ``seen`` filters the
    control, at all moments but the first.
    """

    def samples() -> Iterator[Sample]:
        held = None
        for k, moment in enumerate(along):
            control = moment.control if k == 0 or seen is None else seen(moment.control)
            if held is not None:
                yield Sample(held, control)
                held = None
            if k % every == 0:
                held = moment
        if held is not None:
            yield Sample(held, None)

    single = samples()
    while stretch := list(islice(single, size)):
        yield stretch


def repeated(weight: Tensor | None, count: int) -> Tensor | None:
    """The weight of each example, (B, 1), for ``count`` moments, (count x B, 1)."""
    return None if weight is None else weight.repeat(count, 1)
