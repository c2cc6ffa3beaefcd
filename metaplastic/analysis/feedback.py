"""How well feedback weights agree with the forward weights that they stand for."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from metaplastic.analysis.angles import degrees_between
from metaplastic.credit import (
    DirectFeedback,
    FeedbackControl,
    InputModulation,
    LayerwiseFeedback,
)
from metaplastic.learner import Learner
from metaplastic.networks import LayeredNetwork
from metaplastic.networks.layer import Layer
from metaplastic.signals import Presentation, State, Teacher


def feedback_alignment(
    learner: Learner, generator: torch.Generator | None = None
) -> dict[str, float]:
    """The angle between feedback and forward weights at the beginning of an episode, {feedback
    group: degrees 0..180}; about 90 where they know nothing of each other.

    The matrix that sends errors down one layer is held against that layer's forward weights, and so
    is one that shares their rule, as in a network at rest; linear direct feedback to a layer, and a
    controller's, against the transposed product of all forward weights above it,
    (W_L ... W_{l+1})^T, slopes and norms left out; feedback to the input, as its sign sends a
    wanted change of the output there, against (W_L ... W_1)^T, in factors their product under the
    name of the first. Convolutions and what is below them have no such product. What has nothing to
    be held against is not in the result, {} for most credits. How a controller's feedback stands to
    the Jacobian at some examples is told by ``control.row_space_share``.

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
    network, credit, weights = learner.network, learner.credit, state["weights"]
    if not isinstance(network, LayeredNetwork):
        for name, group in credit.groups().items():
            if group.twin is not None:
                yield name, weights[name], weights[group.twin]
    elif isinstance(credit, LayerwiseFeedback):
        yield from _layerwise(learner, network, credit, state, generator)
    elif isinstance(credit, DirectFeedback):
        if credit.depth == 1 and not credit.rectify:
            yield from _columns(network, weights, "_feedback1")
    elif isinstance(credit, FeedbackControl):
        yield from _columns(network, weights, "_feedback")
    elif isinstance(credit, InputModulation) and credit.groups():
        for layer, product in _products(network, weights):
            if layer.index == 0:
                sent = -credit.sign * credit.projection(weights)
                yield next(iter(credit.groups())), sent, (product @ weights["layer0_weight"]).mT


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


def _columns(
    network: LayeredNetwork, weights: dict[str, Tensor], ending: str
) -> Iterator[tuple[str, Tensor, Tensor]]:
    above = [(f"{layer.name}{ending}", product) for layer, product in _products(network, weights)]
    for name, product in reversed(above):
        if name in weights:
            yield name, weights[name], product.mT


def _products(
    network: LayeredNetwork, weights: dict[str, Tensor]
) -> Iterator[tuple[Layer, Tensor]]:
    """Each layer with W_L ... W_{l+1} of those above it, (K, n_l), from the last one down to the
    first above all convolutions.
    """
    above = torch.eye(network.outputs).to(weights[network.layers[-1].names[0]])
    for layer in reversed(network.layers):
        if not isinstance(layer.synapses, nn.Linear):
            return
        yield layer, above
        above = above @ weights[f"{layer.name}_weight"]
