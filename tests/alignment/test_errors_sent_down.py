"""Errors sent down layer by layer or directly: against autograd, each other, and known limits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaplastic import (
    Backprop,
    Delta,
    DirectFeedback,
    LayeredNetwork,
    Learner,
    Presentation,
    SquaredError,
)
from metaplastic.credit import DirectRandomTarget, FeedbackAlignment, SignSymmetry
from metaplastic.networks.layer import Layer
from metaplastic.rules import Pool
from metaplastic.signals import State
from tests.alignment.parts import (
    CREDITS,
    NETWORKS,
    SHAPES,
    WAYS,
    batch,
    both_networks,
    dense,
    every_credit,
    make,
    shown_to,
    tied,
)
from tests.helpers import assert_close, deviation, heard, mlp, normal, seeded, show


def by_autograd(network: LayeredNetwork, x: Tensor, y: Tensor, rate: float) -> dict[str, Tensor]:
    """-rate times the gradient of the mean cross-entropy, by torch's own modules and autograd."""
    parameters = {name: network.parameter(name) for name in network.groups()}
    loss = F.cross_entropy(network.body(x), y)
    found = torch.autograd.grad(loss, list(parameters.values()))
    return {name: -rate * g.reshape(len(g), -1) for name, g in zip(parameters, found, strict=True)}


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.Softplus, nn.SiLU, nn.Identity])
@both_networks
def test_b01_feedback_alignment_with_forward_weights_is_backprop(network, activation):
    chain = NETWORKS[network](activation)
    x, y = batch(network)
    aligned, exact = make(FeedbackAlignment(), chain), make(Backprop(), chain)
    shown = shown_to(exact, x, y)
    found = aligned.field(tied(aligned), shown)
    wanted = exact.field(exact.start(3), shown)
    assert found.keys() == wanted.keys() == chain.groups().keys()
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)
    assert_close(found, by_autograd(chain, x, y, 0.3), 1e-10)
    random = aligned.field(aligned.start(3), shown)
    assert deviation(random["layer0_weight"], wanted["layer0_weight"]) > 0.1


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_b02_direct_feedback_with_second_matrix_is_backprop(activation):
    chain = LayeredNetwork(mlp(5, 7, WAYS, activation=activation))
    x, y = batch("mlp")
    direct, exact = make(DirectFeedback(weights="fixed"), chain), make(Backprop(), chain)
    state, shown = direct.start(3), shown_to(exact, x, y)
    weights = state["weights"]
    second = {"layer0_feedback1": weights["layer1_weight"].mT}
    found = direct.field({**state, "weights": weights | second}, shown)
    assert_close(found, exact.field(exact.start(3), shown), 1e-14)
    assert_close(found, by_autograd(chain, x, y, 0.3), 1e-10)


@every_credit
@both_networks
def test_b03_output_layer_update_is_the_same_for_all(network, credit):
    chain = NETWORKS[network]()
    x, y = batch(network)
    exact, other = make(Backprop(), chain), make(CREDITS[credit](), chain)
    found = other.field(other.start(3, seeded()), shown_to(other, x, y))
    wanted = exact.field(exact.start(3), shown_to(exact, x, y))
    for name in ("layer3_weight", "layer3_bias"):
        assert torch.equal(found[name], wanted[name])
    if credit != "backprop":
        assert deviation(found["layer0_weight"], wanted["layer0_weight"]) > 0.1


def test_b04_last_hidden_layer_fa_equals_dfa():
    chain = dense()
    x, y = batch("mlp")
    aligned = make(FeedbackAlignment(), chain)
    direct = make(DirectFeedback(weights="fixed"), chain)
    state, shown = direct.start(3), shown_to(direct, x, y)
    same = {"layer2_feedback1": aligned.start(3)["weights"]["layer3_feedback"].mT}
    found = direct.field({**state, "weights": state["weights"] | same}, shown)
    wanted = aligned.field(aligned.start(3), shown)
    for name in ("layer2_weight", "layer2_bias"):
        assert deviation(found[name], wanted[name]) < 1e-14
    assert deviation(found["layer1_weight"], wanted["layer1_weight"]) > 0.1


@pytest.mark.parametrize(
    ("credit", "degrees"),
    [
        (SignSymmetry(), 37.1),
        (SignSymmetry("fixed"), 50.5),
        (SignSymmetry("presentation"), 50.5),
        (FeedbackAlignment(), 90.0),
        (DirectFeedback(weights="fixed"), 90.0),
    ],
    ids=lambda v: str(v) if isinstance(v, float) else type(v).__name__,
)
def test_b05_angles_at_random_weights(credit, degrees):
    """Between the error that arrives below a 64 x 128 matrix and the one by backpropagation:
    arccos(sqrt(2 / pi)), arccos(2 / pi) and a right angle.
    """
    chain = LayeredNetwork(mlp(8, 128, 64, activation=nn.Identity, bias=False))
    x, y = torch.zeros(400, 8).double(), normal(400, 64, seed=1)  # the output is 0, the error y
    arrived = []
    for each in (credit, Backprop()):
        learner = make(each, chain, objective=SquaredError())
        teaching = heard(learner, shown_to(learner, x, y))["layer0_weight"].teaching
        assert teaching is not None
        arrived.append(teaching.detach())
    cosine = F.cosine_similarity(*arrived, dim=1).mean()
    assert abs(float(cosine.arccos().rad2deg()) - degrees) < 2.0


def test_b06_linear_regression_learns_and_aligns():
    """A linear teacher, 30-20-10: the forward weights come to agree with fixed feedback."""
    torch_linear = mlp(30, 20, 10, activation=nn.Identity, bias=False)
    for i, parameter in enumerate(torch_linear.parameters()):
        parameter.data = 0.02 * torch.rand(parameter.shape, generator=seeded(i)).double() - 0.01
    learner = Learner(
        torch_linear, FeedbackAlignment(), Delta(1.0, reduction="sum"), SquaredError()
    ).double()
    feedback = learner.credit.get_buffer("layer1_feedback")
    feedback.copy_(torch.rand(feedback.shape, generator=seeded(2)) - 0.5)
    teacher = normal(30, 10, seed=3) / 30**0.5
    optimiser = torch.optim.SGD(learner.parameters(), lr=0.005)

    def angle() -> float:
        error = normal(200, 10, seed=4)
        second = learner.network.weights()["layer1_weight"].detach()
        cosine = F.cosine_similarity(error @ feedback, error @ second, dim=1).mean()
        return float(cosine.arccos().rad2deg())

    before = angle()
    for step in range(600):
        x = normal(10, 30, seed=100 + step)
        learner.assign_grads(x, x @ teacher)
        optimiser.step()
    x = normal(200, 30, seed=5)
    assert (learner(x) - x @ teacher).square().mean().item() < 1e-3 * float(
        teacher.square().sum(0).mean()
    )
    assert before > 60
    assert angle() < 45


def test_b07_direct_feedback_moves_zero_weights():
    """Where every gradient but that of the output's bias is 0."""
    x, y = batch("mlp")
    moved = {}
    for credit in (DirectFeedback(weights="fixed"), Backprop()):
        chain = mlp(5, 7, WAYS, bias=False)
        for parameter in chain.parameters():
            parameter.data.zero_()
        learner = make(credit, chain)
        after = show(learner, x.expand(3, *x.shape), y.expand(3, *y.shape))
        moved[type(credit)] = [bool(after["weights"][n].any()) for n in sorted(learner.plastic)]
    assert moved == {DirectFeedback: [True, True], Backprop: [False, False]}


def test_a_convolution_over_the_whole_image_is_a_dense_layer():
    """A kernel as large as the image: the same change from the same feedback."""
    x, y = batch("conv")
    units = 7
    flat = nn.Sequential(nn.Flatten(), nn.Linear(40, units), nn.Tanh(), nn.Linear(units, WAYS))
    deep = nn.Sequential(
        nn.Conv2d(2, units, (5, 4)), nn.Tanh(), nn.Flatten(), nn.Linear(units, WAYS)
    )
    for one, other in zip(flat.parameters(), deep.parameters(), strict=True):
        other.data = one.data.reshape(other.shape)
    fields = [
        make(FeedbackAlignment(), LayeredNetwork(chain, input_shape=SHAPES["conv"]))
        for chain in (flat.double(), deep.double())
    ]
    one, other = (f.field(f.start(3), shown_to(f, x, y)) for f in fields)
    assert_close(one, other, 1e-13)


def test_feedback_that_no_one_reads_is_not_made():
    def names(rule) -> set[str]:
        return set(Learner(dense(), FeedbackAlignment(), rule).credit.groups())

    assert names(Delta()) == {"layer1_feedback", "layer2_feedback", "layer3_feedback"}
    assert names({"position:2": Delta()}) == {"layer3_feedback"}
    assert names({"position:last": Delta()}) == set()
    assert names({"position:2": Pool()}) == {"layer2_feedback", "layer3_feedback"}
    assert names({"name:layer1_bias": Delta()}) == {"layer2_feedback", "layer3_feedback"}
    assert names(None) == set()


def test_layers_below_the_lowest_plastic_one_change_nothing_above():
    chain, (x, y) = dense(), batch("mlp")
    whole = make(Backprop(), chain)
    upper = Learner(chain, Backprop(), {"position:2": Delta(0.3), "position:3": Delta(0.3)})
    wanted = whole.field(whole.start(3), shown_to(whole, x, y))
    found = upper.field(upper.start(3), shown_to(upper, x, y))
    assert set(found) == {n for n in wanted if n[:6] in ("layer2", "layer3")}
    assert all(torch.equal(found[n], wanted[n]) for n in found)


def test_layers_below_the_lowest_plastic_one_are_not_visited():
    visited = []

    class Counting(FeedbackAlignment):
        def matrix(self, layer: Layer, state: State, presentation: Presentation) -> Tensor:
            visited.append(layer.index)
            return super().matrix(layer, state, presentation)

    x, y = batch("mlp")
    for rule, wanted in ((Delta(), [3]), (Pool(), [3, 2])):
        learner = Learner(dense(), Counting(), {"position:2": rule}).double()
        learner.field(learner.start(3), shown_to(learner, x, y))
        assert visited == wanted
        visited.clear()


def test_random_targets_stand_in_for_the_error():
    """By hand: (B^T t) o f' times the input, which knows nothing of the output."""
    chain, (x, y) = dense(), batch("mlp")
    learner = make(DirectRandomTarget(), chain)
    state = learner.start(3)
    found = learner.field(state, shown_to(learner, x, y))
    first = state["weights"]["layer0_feedback1"]
    hidden = chain.body[:2](x)
    wanted = torch.zeros_like(found["layer0_weight"])
    for row, label in enumerate(y.tolist()):
        wanted = wanted + torch.outer(first[:, label] * (1 - hidden[row] ** 2), x[row]) / 3
    assert deviation(found["layer0_weight"], 0.3 * wanted) < 1e-13
    last = {"layer3_weight": -state["weights"]["layer3_weight"]}
    other = learner.field({**state, "weights": state["weights"] | last}, shown_to(learner, x, y))
    assert torch.equal(other["layer0_weight"], found["layer0_weight"])
    assert not torch.equal(other["layer3_weight"], found["layer3_weight"])
