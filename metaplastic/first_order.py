"""First-order steps: what an update sees of the network is a constant."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from metaplastic.networks import Network
from metaplastic.signals import Presentation, State

if TYPE_CHECKING:
    from metaplastic.learner import Learner


def constant_copy(network: Network) -> Network:
    """The network with every Parameter a constant; values are shared, nothing is copied."""
    tensors = (*network.parameters(), *network.buffers())
    return copy.deepcopy(network, {id(t): t.detach() for t in tensors})


def first_order_step(
    learner: Learner, state: State, presentation: Presentation, constant: Network | None
) -> State:
    """One step; with the ``constant_copy`` of its network a first-order one: weights, norms and
    features that the update sees are constants. The weights keep the identity as their graph, and
    what remains is the direct effect of feedback weights and coefficients on the change.
    """
    if constant is None:
        return learner.step(state, presentation)
    before = state["weights"]
    forward = [name for name in before if name not in learner.credit.groups()]
    seen = before | {name: before[name].detach() for name in forward}
    shown = replace(presentation, x=presentation.x.detach())
    after = learner.step({**state, "weights": seen}, shown, constant)
    weights = dict(after["weights"])
    for name in forward:
        weights[name] = weights[name] + (before[name] - before[name].detach())
    return {**after, "weights": weights}
