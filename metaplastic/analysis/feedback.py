"""How well feedback weights agree with the forward weights that they stand for."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from metaplastic.analysis.angles import degrees_between
from metaplastic.credit import DirectFeedback, LayerwiseFeedback
from metaplastic.learner import Learner
from metaplastic.networks import LayeredNetwork
from metaplastic.signals import Presentation, State, Teacher


def feedback_alignment(
    learner: Learner, generator: torch.Generator | None = None
) -> dict[str, float]:
    """The angle between feedback and forward weights at the beginning of an episode, {feedback
    group: degrees 0..180}; about 90 where they know nothing of each other.

    The matrix that sends errors down one layer is held against that layer's forward weights;
    linear direct feedback to a layer against the transposed product of all forward weights above
    it, (W_L ... W_{l+1})^T, slopes and norms left out. Convolutions and what is below them have no
    such product. What has nothing to be held against is not in the result, {} for most credits.

    Args:
        learner: left as it is.
        generator: draws what is resampled; seed 0 where none is given.
    """
    generator = generator or torch.Generator().manual_seed(0)
    with torch.no_grad():
        state = learner.start(generator=generator)
        return {
            name: float(degrees_between(matrix, wanted))
            for name, matrix, wanted in _pairs(learner, state, generator)
        }


def _pairs(
    learner: Learner, state: State, generator: torch.Generator
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(feedback group, its matrix, what it stands for), the two of one shape."""
    if not isinstance(learner.network, LayeredNetwork):
        return
    if isinstance(learner.credit, LayerwiseFeedback):
        yield from _layerwise(learner, learner.network, learner.credit, state, generator)
    elif isinstance(learner.credit, DirectFeedback):
        if learner.credit.depth == 1 and not learner.credit.rectify:
            yield from _direct(learner.network, state["weights"])


def _layerwise(
    learner: Learner,
    network: LayeredNetwork,
    credit: LayerwiseFeedback,
    state: State,
    generator: torch.Generator,
) -> Iterator[tuple[str, Tensor, Tensor]]:
    weights = state["weights"]
    like = weights[network.layers[0].names[0]]
    noise = credit.noise(network, (1, 1, 1), generator)
    presentation = Presentation(
        like.new_zeros(1, *network.layers[0].in_shape),
        Teacher(learner.objective, like.new_zeros(1, network.outputs)),
        noise=None if noise is None else noise[0, 0].to(like),
    )
    for layer in network.layers:
        name = f"{layer.name}_feedback"
        if name in credit.groups():
            forward = weights[f"{layer.name}_weight"]
            yield name, credit.matrix(layer, state, presentation), forward


def _direct(
    network: LayeredNetwork, weights: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    above = torch.eye(network.outputs).to(weights[network.layers[-1].names[0]])
    found = []
    for layer in reversed(network.layers):
        if not isinstance(layer.synapses, nn.Linear):
            break
        name = f"{layer.name}_feedback1"
        if name in weights:
            found.append((name, weights[name], above.mT))
        above = above @ weights[f"{layer.name}_weight"]
    return reversed(found)
