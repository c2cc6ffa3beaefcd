"""Modules, sizes and examples that a layered network refuses."""

from __future__ import annotations

import pytest
from torch import nn

from metaplastic import Backprop, Delta, LayeredNetwork, Learner, SquaredError
from metaplastic.errors import (
    ConfigurationError,
    MetaplasticError,
    ShapeError,
    UnsupportedLayerError,
)
from tests.helpers import mlp, normal
from tests.networks.parts import WAYS, built


def image(*modules: nn.Module, shape: tuple[int, ...] = (1, 4, 4), **options) -> LayeredNetwork:
    return LayeredNetwork(nn.Sequential(*modules), input_shape=shape, **options)


@pytest.mark.parametrize(
    ("module", "advice"),
    [
        (nn.Dropout(0.5), "Dropout.*generator"),
        (nn.PReLU(), "PReLU.*trunk"),
        (nn.GELU(), "GELU.*trunk"),
        (nn.AdaptiveAvgPool2d(2), "AdaptiveAvgPool2d.*trunk"),
        (nn.AvgPool2d(2, ceil_mode=True), "AvgPool2d.*trunk"),
        (nn.Flatten(0), "Flatten.*trunk"),
        (nn.LSTM(4, 4), "LSTM.*trunk"),
    ],
)
def test_unsupported_layers_are_named_with_advice(module, advice):
    with pytest.raises(UnsupportedLayerError, match=f"(?s){advice}.*Supported there: .*ReLU"):
        LayeredNetwork(nn.Sequential(nn.Linear(4, 4), module, nn.Linear(4, 3)))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 4, 3, groups=2),
        nn.Conv2d(2, 4, 3, padding="same"),
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(2, 4, 3),
        nn.Conv1d(2, 4, 3),
    ],
)
def test_unsupported_convolutions_are_named(layer):
    with pytest.raises(UnsupportedLayerError, match=type(layer).__name__):
        image(layer, nn.Flatten(), nn.Linear(4, 3), shape=(2, 4, 4))


def test_the_chain_ends_in_linear_synapses():
    for last in (nn.LayerNorm(3), nn.Softmax(dim=-1)):
        with pytest.raises(UnsupportedLayerError, match=type(last).__name__):
            LayeredNetwork(nn.Sequential(nn.Linear(4, 3), last))
    with pytest.raises(UnsupportedLayerError, match=r"Conv2d.*|end in a Linear"):
        image(nn.Conv2d(1, 3, 4))
    with pytest.raises(UnsupportedLayerError, match="no Linear"):
        LayeredNetwork(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize(
    ("chain", "named"),
    [
        ([nn.Linear(4, 5), nn.ReLU(), nn.Linear(6, 3)], r"layer 1, Linear.*\(6,\).*\(5,\)"),
        ([nn.Conv2d(1, 2, 3), nn.Linear(2, 3)], r"layer 1, Linear.*Flatten"),
        ([nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 3)], r"layer 0, Conv2d.*\(1, 4, 4\)"),
        ([nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(9, 3)], r"layer 1, Linear.*\(8,\)"),
        ([nn.Conv2d(1, 2, 5), nn.Flatten(), nn.Linear(2, 3)], r"layer 0, Conv2d.*\(1, 4, 4\)"),
        ([nn.Conv2d(1, 2, 3), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(2, 3)], "MaxPool2d"),
        ([nn.Linear(4, 5), nn.LayerNorm(7), nn.Linear(5, 3)], r"LayerNorm.*\(5,\)"),
        (
            [nn.Linear(4, 5), nn.LayerNorm(7, elementwise_affine=False), nn.Linear(5, 3)],
            r"LayerNorm.*\(5,\)",
        ),
        ([nn.Linear(4, 6), nn.GroupNorm(2, 4), nn.Linear(6, 3)], r"GroupNorm.*\(6,\)"),
        ([nn.Linear(4, 6), nn.BatchNorm1d(1), nn.Linear(6, 3)], r"BatchNorm1d.*\(6,\)"),
    ],
)
def test_sizes_that_do_not_fit_name_the_layer(chain, named):
    shape = (1, 4, 4) if isinstance(chain[0], nn.Conv2d) else (4,)
    with pytest.raises(ShapeError, match=f"(?s){named}"):
        image(*chain, shape=shape, batch_norm="running")


def test_convolutions_need_the_shape_of_an_example():
    with pytest.raises(ConfigurationError, match="input_shape"):
        LayeredNetwork(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)))


@pytest.mark.parametrize("policy", [None, "both"])
def test_batch_norm_needs_a_declared_policy(policy):
    with pytest.raises(ConfigurationError, match="BatchNorm1d needs a declared policy"):
        LayeredNetwork(mlp(4, 3).insert(0, nn.BatchNorm1d(4)), batch_norm=policy)
    with pytest.raises(ConfigurationError, match="track_running_stats"):
        LayeredNetwork(
            mlp(4, 3).insert(0, nn.BatchNorm1d(4, track_running_stats=False)), batch_norm="running"
        )


def test_batch_statistics_of_one_row_are_an_error():
    """They are the row itself: every output would be the norm's bias."""
    network, _, shape = built("BatchNorm1d, batch")
    learner = Learner(network, Backprop(), Delta(0.1), SquaredError())
    with pytest.raises(MetaplasticError, match=r"two rows|running"):
        learner.clone().adapt(normal(1, *shape), normal(1, WAYS))


@pytest.mark.parametrize("bad", [(3, 5), (3, 1, 4), (4,)])
def test_examples_of_the_wrong_shape_are_an_error(bad):
    for network in (LayeredNetwork(mlp(4, 3)), LayeredNetwork(mlp(4, 3), input_shape=(4,))):
        with pytest.raises(ShapeError, match=r"\(4,\)"):
            network.features(normal(*bad))
