"""What synapses see of two forward passes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from metaplastic.credit.base import Needs
from metaplastic.credit.forward_passes import ForwardPasses, Passed
from metaplastic.networks import LayeredNetwork
from metaplastic.networks.layer import Layer
from metaplastic.signals import LocalSignals, Presentation


def difference(
    passes: ForwardPasses,
    before: Passed,
    after: Passed,
    pre: Passed,
    answer: Passed,
    presentation: Presentation,
    needs: Needs,
) -> dict[str, LocalSignals]:
    """Of one layer: its activity ``before`` in the clean pass, with that ``after`` the modulation
    as its target; in the last layer the error of ``answer``. Presynaptic is what ``pre`` saw.
    """
    last = _is_last(passes.network, before.layer)
    return passes.signals(
        before,
        needs,
        teaching=presentation.teacher.error(answer.above) if last else after.post,
        kind="error" if last else "target",
        pre=pre.activity.pre,
        weight=presentation.weight,
    )


def clean_half(
    passes: ForwardPasses, passed: Passed, presentation: Presentation, needs: Needs
) -> dict[str, LocalSignals]:
    """Of one layer, less of what it does in the clean pass; in the last layer of the output in the
    target's units.
    """
    last = _is_last(passes.network, passed.layer)
    post = presentation.teacher.link(passed.above) if last else passed.post
    return passes.signals(passed, needs, teaching=-post, weight=presentation.weight)


def modulated_half(
    passes: ForwardPasses, passed: Passed, presentation: Presentation, needs: Needs
) -> dict[str, LocalSignals]:
    """Of one layer, more of what it does in the modulated pass; in the last layer of the target."""
    last = _is_last(passes.network, passed.layer)
    post = presentation.teacher.target if last else passed.post
    return passes.signals(passed, needs, teaching=post, weight=presentation.weight)


def both(first: LocalSignals, second: LocalSignals) -> LocalSignals:
    """The signals of two passes as twice as many sites, those of the first pass first."""

    def rows(one: Tensor | None, other: Tensor | None) -> Tensor | None:
        if one is None or other is None:
            return None
        pair = [side.reshape(-1, first.sites, side.shape[-1]) for side in (one, other)]
        return torch.cat(pair, 1).reshape(-1, one.shape[-1])

    fields = ("pre", "post", "teaching", "gain", "weight")
    joined = {name: rows(getattr(first, name), getattr(second, name)) for name in fields}
    return replace(first, sites=2 * first.sites, **joined)  # type: ignore[arg-type]


def taught_layers(network: LayeredNetwork, needs: Needs) -> tuple[Layer, ...]:
    """The layers up to the highest plastic one."""
    plastic = [i.index for i in network.layers if not set(needs).isdisjoint(i.names)]
    return network.layers[: max(plastic) + 1]


def _is_last(network: LayeredNetwork, layer: Layer) -> bool:
    return layer.index == len(network.layers) - 1
