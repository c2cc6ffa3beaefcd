"""Angles between local updates and gradient descent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from metaplastic.credit import Backprop
from metaplastic.episodes import Episodes
from metaplastic.errors import CompatibilityError
from metaplastic.hinge import Record
from metaplastic.inner_loop import Draws, Rollout, chunks, draw
from metaplastic.learner import Learner
from metaplastic.networks import LayeredNetwork
from metaplastic.rules import Delta, PlasticityRule
from metaplastic.signals import Presentation, State, Teacher


@dataclass(frozen=True)
class UpdateAngles:
    """How far local updates point away from gradient descent."""

    degrees: dict[str, Tensor]
    """{plastic group of the network: (E, T)} 0..180, NaN where either of the two is zero or not
    finite."""


def update_angles(
    learner: Learner, episodes: Episodes, generator: torch.Generator | None = None
) -> UpdateAngles:
    """The angle between the local update of each presentation and minus the gradient of that
    presentation's loss with respect to the group's weights, both at the weights of that moment.

    Args:
        learner: left as it is.
        episodes: E episodes of T presentations.
        generator: draws what is resampled, and noise.

    Raises:
        CompatibilityError: for a network that is no LayeredNetwork.
    """
    if not isinstance(learner.network, LayeredNetwork):
        raise CompatibilityError(
            "update_angles runs backpropagation through a LayeredNetwork, got a "
            f"{type(learner.network).__name__}."
        )
    draws = draw(learner, episodes, generator)
    with torch.no_grad():
        parts = [
            _along(learner, episodes[chunk], draws[chunk])
            for chunk in chunks(learner, episodes, "auto")
        ]
    return UpdateAngles({name: torch.cat([p[name] for p in parts]).cpu() for name in parts[0]})


def _along(learner: Learner, episodes: Episodes, draws: Draws) -> dict[str, Tensor]:
    """{group: (E, T)} in degrees."""
    rules = _delta_rules(learner)
    if not rules:
        return {}
    rollout = Rollout(learner, episodes, draws)
    episodes, lead = rollout.episodes, rollout.episodes.support_x.shape[:3]
    # What the episodes share comes from here, what differs or moves from the rollout.
    shared = learner.start(lead[2], drawn={name: w[0] for name, w in draws.weights.items()})
    x = learner.network.features(episodes.support_x.flatten(0, 2))
    stream = {"x": x.unflatten(0, lead), "target": learner.encode(episodes.support_y, lead)}
    if episodes.support_weight is not None:
        stream["weight"] = episodes.support_weight.unsqueeze(-1)
    if draws.noise is not None:
        stream["noise"] = draws.noise.to(x)

    def compare(moving: State, shown: dict[str, Tensor]) -> dict[str, Tensor]:
        weight = shown.get("weight")
        teacher = Teacher(learner.objective, shown["target"], weight)
        presentation = Presentation(shown["x"], teacher, weight, shown.get("noise"))
        state = {**shared, **moving, "weights": shared["weights"] | moving["weights"]}
        change = learner.field(state, presentation)
        wanted = _descent(learner, rules, state["weights"], presentation)
        return {name: degrees_between(change[name], wanted[name]) for name in rules}

    found = []
    for t in range(lead[1]):
        found.append(vmap(compare)(rollout.moving, {n: v[:, t] for n, v in stream.items()}))
        rollout.advance(t, t + 1)
    return {name: torch.stack([angles[name] for angles in found], dim=1) for name in rules}


def descent(
    learner: Learner, weights: dict[str, Tensor], presentation: Presentation
) -> dict[str, Tensor]:
    """Minus the gradient of the mean loss of a presentation's examples, in the scale of the
    objective's ``error``, for the plastic groups of a LayeredNetwork: {group: (n_out, n_in)}.
    ``weights`` are those of all its groups. By hand, without autograd.
    """
    return _descent(learner, _delta_rules(learner), weights, presentation)


def _delta_rules(learner: Learner) -> dict[str, PlasticityRule]:
    """Gradient descent at rate 1 in the plastic groups of the network."""
    like = next(iter(learner.network.weights().values()))
    groups = learner.network.groups().items()
    delta = Delta(1.0, learned=False)
    return {name: delta.bind(group).to(like) for name, group in groups if name in learner.plastic}


def _descent(
    learner: Learner,
    rules: dict[str, PlasticityRule],
    weights: dict[str, Tensor],
    presentation: Presentation,
) -> dict[str, Tensor]:
    record = Record(rules)
    state = {
        "weights": weights,
        "rule": {name: {} for name in rules},
        "coefficients": {name: rule.coefficients() for name, rule in rules.items()},
    }
    Backprop().present(learner.network, state, presentation, record)
    return record.change


def degrees_between(first: Tensor, second: Tensor) -> Tensor:
    """Angle between matrices seen as vectors, (..., n_out, n_in) -> (...), 0..180 in float64; NaN
    where either is zero or not finite. Exact at 0 and 180 degrees, where the arc cosine is not.
    """
    u, v = _unit(first), _unit(second)
    across, along = (torch.linalg.vector_norm(w, dim=(-2, -1)) for w in (u - v, u + v))
    return torch.rad2deg(2 * torch.atan2(across, along))


def _unit(matrix: Tensor) -> Tensor:
    matrix = matrix.double()
    matrix = matrix / matrix.abs().amax((-2, -1), keepdim=True)  # whose square might underflow
    return matrix / torch.linalg.vector_norm(matrix, dim=(-2, -1), keepdim=True)
