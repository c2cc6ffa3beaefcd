"""The meta-gradient: against central differences, autograd and itself computed in other ways."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metaplastic import (
    Backprop,
    CrossEntropy,
    Delta,
    DirectFeedback,
    Episodes,
    Hebb,
    LayeredNetwork,
    Learner,
    Oja,
    SquaredError,
    Unrolled,
)
from metaplastic.inner_loop import draw
from metaplastic.rules import Coefficient
from metaplastic.rules.coefficient import Granularity
from tests.helpers import (
    STEPS,
    assert_close,
    central_difference,
    classification,
    deviation,
    final_weights,
    meta_gradient,
    mlp,
    normal,
    query_loss,
    raw,
    regression,
    seeded,
    shake,
    show,
    slope_error,
    unit_direction,
)

GROUPS = {
    "initial weights": r"^network.*weight$",
    "biases": r"^network.*bias$",
    "plasticity": r"plasticity",
    "feedback": r"feedback1$",
    "feedback biases": r"feedback1_bias$",
    "mix": r"mix",
}


def flp(
    *sizes: int,
    bounded: bool = False,
    activation: type[nn.Module] = nn.Tanh,
    rectify: bool = False,
    granularity: Granularity = "synapse",
    family: type[Hebb] = Oja,
) -> Learner:
    """The regression learner with every Parameter at random and plasticity large enough to tell."""
    credit = DirectFeedback("error", rectify=rectify, bias=True, output="feedback")
    rule = family(0.0, bounded=bounded, granularity=granularity)
    learner = Learner(mlp(*sizes, activation=activation), credit, rule, SquaredError())
    scale = 0.1 if bounded else 0.01
    return shake(learner, 4, plasticity=scale, mixing=0.2, feedback=0.3)


# --- against central differences ---


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_flp_P10_meta_gradient_of_a_deep_learner_equals_central_differences(activation, bounded):
    """Nine layers, twelve presentations of four; random unit directions over all groups. The best
    of several widths of the difference, which steps off the kinks of the ReLU.
    """
    sizes = (5, *[16] * 8, 2)
    learner = flp(*sizes, bounded=bounded, activation=activation, rectify=activation is nn.ReLU)
    episodes = regression(1, 12, 4, 5, 2)
    gradient = meta_gradient(learner, episodes)
    for seed in range(6):
        direction = unit_direction(learner, seed)
        assert slope_error(learner, episodes, direction, gradient) < 1e-7


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("presentations", [1, 2, 5])
def test_flp_P10_meta_gradient_of_every_group_equals_central_differences(presentations, bounded):
    learner = flp(3, 6, 5, 2, bounded=bounded)
    episodes = regression(2, presentations, 3, 3, 2)
    gradient = meta_gradient(learner, episodes)
    for seed, (group, pattern) in enumerate(GROUPS.items()):
        direction = unit_direction(learner, seed, pattern)
        assert len(direction) == 3
        assert slope_error(learner, episodes, direction, gradient) < 1e-6, group


@pytest.mark.parametrize("detach", [False, True])
def test_flp_P10_a_detached_error_is_a_constant_to_the_outer_loop(detach):
    """Then the gradient differs from the true slope, which the whole error gives."""
    credit = DirectFeedback("error", bias=True, detach_error=detach)
    rule = {"role:bias": None, "position:last": Oja(0.1, 1.0), "*": Oja(0.1)}
    learner = Learner(mlp(3, 6, 3), credit, rule, CrossEntropy(scale="batch"))
    shake(learner, 4, plasticity=0.5, feedback=0.3)
    episodes = classification(2, 4, 3, 3, 3)
    gradient, direction = meta_gradient(learner, episodes), unit_direction(learner, 0)
    error = slope_error(learner, episodes, direction, gradient)
    assert error > 1e-3 if detach else error < 1e-7


# --- limits and what stays fixed ---


def test_flp_P08_without_mixing_feedback_weights_have_no_influence():
    learner = flp(3, 6, 5, 2)
    for group in learner.plastic:
        raw(learner, group, "mix").data.zero_()
    episodes = regression(2, 5, 3, 3, 2)
    gradient, before = meta_gradient(learner, episodes), query_loss(learner, episodes)
    for name, g in gradient.items():
        if "feedback" in name:
            assert torch.equal(g, torch.zeros_like(g)), name
        else:
            assert float(g.abs().max()) > 0, name
    with torch.no_grad():
        for parameter in learner.credit.parameters():
            parameter.add_(1.0)
    assert query_loss(learner, episodes) == before


@pytest.mark.parametrize("bounded", [False, True])
def test_flp_P08_learning_can_start_from_no_plasticity(bounded):
    """Nothing moves, and only the plasticity itself has a meta-gradient through the changes."""
    learner = flp(3, 6, 5, 2, bounded=bounded)
    for group in learner.plastic:
        raw(learner, group, "plasticity").data.zero_()
    episodes = regression(1, 5, 3, 3, 2)
    after, begin = final_weights(learner, episodes), learner.start(3)["weights"]
    assert all(torch.equal(after[n][0], begin[n]) for n in after)
    for name, g in meta_gradient(learner, episodes).items():
        if "feedback" in name or "mix" in name:
            assert torch.equal(g, torch.zeros_like(g)), name
        else:
            assert float(g.abs().min()) > 0, name


def test_flp_P09_biases_and_fixed_layers_stay_and_are_meta_learned():
    network = LayeredNetwork(mlp(4, 6, 5, 3), trunk=mlp(3, 4, seed=9))
    learner = Learner(network, DirectFeedback("target"), {"name:layer1_weight": Oja(0.3)})
    shake(learner, 1, plasticity=0.2, feedback=0.3)
    xs, ys = normal(20, 2, 3), torch.randint(3, (20, 2), generator=seeded(1))
    begin, end = learner.start(2)["weights"], show(learner, xs, ys)["weights"]
    assert {n for n in begin if not torch.equal(begin[n], end[n])} == {"layer1_weight"}
    gradient = meta_gradient(learner, classification(2, 5, 2, 3, 3))
    assert "network.trunk.0.weight" in gradient
    assert all(float(g.abs().max()) > 0 for g in gradient.values())


# --- many episodes ---


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str
)
def test_flp_P11_episodes_at_once_equal_one_after_another(count, dtype, tolerance):
    learner = flp(3, 8, 7, 2).to(dtype)
    episodes = regression(count, 6, 3, 3, 2)
    at_once = meta_gradient(learner, episodes, Unrolled(batching="vmap"))
    assert_close(meta_gradient(learner, episodes, Unrolled(batching="loop")), at_once, tolerance)

    weights = final_weights(learner, episodes)
    singles = [final_weights(learner, episodes[[e]]) for e in range(count)]
    alone = {n: torch.cat([s[n] for s in singles]) for n in weights}
    assert_close(weights, alone, tolerance)

    each = [meta_gradient(learner, episodes[[e]]) for e in range(count)]
    mean = {n: torch.stack([g[n] for g in each]).mean(0) for n in at_once}
    assert_close(at_once, mean, tolerance)


def test_flp_P11_episodes_have_no_order():
    learner = flp(3, 8, 7, 2)
    episodes, order = regression(4, 6, 3, 3, 2), [2, 0, 3, 1]
    weights, moved = final_weights(learner, episodes), final_weights(learner, episodes[order])
    assert_close(moved, {n: w[order] for n, w in weights.items()}, 1e-12)
    gradient = meta_gradient(learner, episodes)
    assert_close(meta_gradient(learner, episodes[order]), gradient, 1e-12)
    method, outcome = Unrolled(), []
    for some in (episodes, episodes[order]):
        outcome.append(method.gradient(learner, some).loss)
    assert deviation(outcome[1], outcome[0][order]) < 1e-12


@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_flp_P11_an_episode_does_not_see_another_ones_data(batching):
    """The gradient of one episode's loss with respect to another one's examples is exactly 0."""
    learner = flp(3, 8, 7, 2)
    episodes = regression(3, 4, 2, 3, 2)
    data = {n: getattr(episodes, n).requires_grad_() for n in ("support_x", "support_y", "query_x")}
    chunks = [[0, 1, 2]] if batching == "vmap" else [[0], [1], [2]]
    draws = draw(learner, episodes, None)
    loss = torch.cat([Unrolled().losses(learner, episodes[c], draws[c])[0] for c in chunks])
    for name, tensor in data.items():
        (slope,) = torch.autograd.grad(loss[1], tensor, retain_graph=True)
        assert torch.equal(slope[[0, 2]], torch.zeros_like(slope[[0, 2]])), name
        assert float(slope[1].abs().min()) > 0, name


# --- other ways to the same gradient ---


def test_flp_P13_coarse_gradients_are_sums_of_the_fine_ones():
    gradient = {}
    for granularity in ("synapse", "neuron", "layer", "network"):
        learner = flp(3, 6, 5, 2, granularity=granularity)
        for group in learner.plastic:
            raw(learner, group, "plasticity").data.fill_(0.02)
        gradient[granularity] = meta_gradient(learner, regression(2, 4, 3, 3, 2))
    names = [f"rules.layer{i}_weight.plasticity.raw" for i in range(3)]
    fine = [gradient["synapse"][n] for n in names]
    for name, g in zip(names, fine, strict=True):
        assert deviation(gradient["neuron"][name], g.sum(1, keepdim=True)) < 1e-12
        assert deviation(gradient["layer"][name], g.sum((0, 1), keepdim=True)) < 1e-12
    total = torch.stack([g.sum() for g in fine]).sum().reshape(1, 1)
    assert deviation(gradient["network"][names[0]], total) < 1e-12
    assert names[1] not in gradient["network"]


@pytest.mark.parametrize("every", [1, 3, 7, 100])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("first_order", [False, True])
def test_flp_P14_checkpoints_change_no_bit_of_the_gradient(every, count, first_order):
    learner, episodes = flp(3, 8, 7, 2), regression(count, 7, 3, 3, 2)
    plain = meta_gradient(learner, episodes, Unrolled(first_order=first_order))
    method = Unrolled(checkpoint_every=every, first_order=first_order)
    saved = meta_gradient(learner, episodes, method)
    assert all(torch.equal(saved[n], plain[n]) for n in plain)


def test_flp_P14_truncation_longer_than_the_episode_is_none():
    learner, episodes = flp(3, 8, 7, 2), regression(2, 7, 3, 3, 2)
    plain = meta_gradient(learner, episodes)
    whole = meta_gradient(learner, episodes, Unrolled(truncate=7, checkpoint_every=2))
    assert all(torch.equal(whole[n], plain[n]) for n in plain)


@pytest.mark.parametrize("checkpoint", [None, 2])
def test_flp_P14_truncation_is_the_gradient_of_the_last_presentations(checkpoint):
    """The weights reached before them are constants: the same learner begun there and shown only
    the rest gives the same gradient of biases, feedback and coefficients.
    """
    learner, episodes = flp(3, 8, 7, 2), regression(1, 7, 3, 3, 2)
    method = Unrolled(truncate=3, checkpoint_every=checkpoint)
    cut = meta_gradient(learner, episodes, method)
    reached = show(learner, episodes.support_x[0, :4], episodes.support_y[0, :4])["weights"]
    for i in range(3):
        learner.network.parameter(f"layer{i}_weight").data = reached[f"layer{i}_weight"].detach()
    rest = Episodes(
        episodes.support_x[:, 4:], episodes.support_y[:, 4:], episodes.query_x, episodes.query_y
    )
    wanted = meta_gradient(learner, rest)
    for name in wanted:
        if name.startswith("network") and name.endswith("weight"):
            wanted[name] = torch.zeros_like(wanted[name])
    assert_close(cut, wanted, 1e-12)


# --- the gradient baseline ---


def maml(
    network: nn.Sequential, episodes: Episodes, rate: Tensor, plastic: list[str], *, second: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean query loss and its gradient, by nothing but autograd and functional_call."""
    initial = dict(network.named_parameters())
    losses = []
    for e in range(len(episodes)):
        fast = dict(initial)
        for x, y in zip(episodes.support_x[e], episodes.support_y[e], strict=True):
            loss = F.cross_entropy(functional_call(network, fast, (x,)), y)
            slopes = torch.autograd.grad(loss, [fast[n] for n in plastic], create_graph=second)
            fast |= {n: fast[n] - rate * s for n, s in zip(plastic, slopes, strict=True)}
        answer = functional_call(network, fast, (episodes.query_x[e],))
        losses.append(F.cross_entropy(answer, episodes.query_y[e]))
    loss = torch.stack(losses).mean()
    gradients = torch.autograd.grad(loss, [*initial.values(), rate], allow_unused=True)
    return loss.detach(), dict(zip([*initial, "rate"], gradients, strict=True))


BASELINES = {"maml": {"*": 1.0}, "anil": {"position:last": 1.0}, "oml": {"role:weight": 1.0}}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("name", BASELINES)
def test_flp_P16_gradient_baseline_equals_autograd(name, first_order, count):
    """Second order (MAML) and first order, where the updates are constants but for their rate."""
    rate = Delta(Coefficient(0.25, granularity="network", role="control"))
    network, reference = mlp(4, 7, 6, 3), mlp(4, 7, 6, 3)
    learner = Learner(network, Backprop(), dict.fromkeys(BASELINES[name], rate)).double()
    episodes = classification(count, 5, 2, 4, 3)
    outcome = Unrolled(first_order=first_order).gradient(learner, episodes)
    plastic = {
        "maml": [n for n, _ in reference.named_parameters()],
        "anil": ["4.weight", "4.bias"],
        "oml": ["0.weight", "2.weight", "4.weight"],
    }[name]
    free = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    loss, wanted = maml(reference, episodes, free, plastic, second=not first_order)
    assert abs(float(outcome.loss.mean()) - float(loss)) < 1e-13
    (found_rate,) = [p.grad for p in learner.rules.parameters()]
    assert deviation(found_rate.sum(), wanted.pop("rate")) < 1e-12
    assert_close({n: p.grad for n, p in network.named_parameters()}, wanted, 1e-12)


def test_flp_P16_second_order_passes_central_differences_and_first_order_does_not():
    learner = Learner(mlp(4, 7, 3), Backprop(), {"*": Delta(0.5, learned=True)}).double()
    episodes = classification(2, 4, 2, 4, 3)
    direction = unit_direction(learner, 0)
    for first_order in (False, True):
        gradient = meta_gradient(learner, episodes, Unrolled(first_order=first_order))
        error = slope_error(learner, episodes, direction, gradient)
        assert error > 1e-2 if first_order else error < 1e-7


def test_flp_P16_first_order_is_the_gradient_at_the_adapted_weights_bit_by_bit():
    """The adapted weights move one for one with the initial ones."""
    learner = Learner(mlp(4, 7, 3), Backprop(), {"*": Delta(0.5)}).double()
    episodes = classification(1, 4, 2, 4, 3)
    gradient = meta_gradient(learner, episodes, Unrolled(first_order=True))
    after = final_weights(learner, episodes)
    leaves = {n: w[0].detach().requires_grad_() for n, w in after.items()}
    output = learner.network(episodes.query_x[0], leaves)
    target = learner.encode(episodes.query_y, episodes.query_x.shape[:2])[0]
    learner.objective.loss(output, target).mean().backward()
    for name, leaf in leaves.items():
        group, attribute = name.split("_")
        found = gradient[f"network.body.{2 * int(group[-1])}.{attribute}"]
        assert torch.equal(found, leaf.grad.reshape(found.shape)), name


def test_flp_P16_first_order_takes_the_trunks_features_for_constants_in_the_updates():
    """What is left is the gradient of the final loss through the queries' features."""
    trunk = mlp(3, 4, seed=9)
    network = LayeredNetwork(mlp(4, 7, 3), trunk=trunk)
    learner = Learner(network, Backprop(), {"*": Delta(0.5)}).double()
    episodes = classification(1, 4, 2, 3, 3)
    found = meta_gradient(learner, episodes, Unrolled(first_order=True))
    after = {n: w[0].detach() for n, w in final_weights(learner, episodes).items()}
    output = network(trunk(episodes.query_x[0]), after)
    loss = F.cross_entropy(output, episodes.query_y[0])
    wanted = torch.autograd.grad(loss, list(trunk.parameters()))
    for (name, _), slope in zip(trunk.named_parameters(), wanted, strict=True):
        assert deviation(found[f"network.trunk.{name}"], slope) < 1e-12
    whole = meta_gradient(learner, episodes)
    assert deviation(whole["network.trunk.0.weight"], found["network.trunk.0.weight"]) > 1e-2


def test_central_difference_puts_the_parameters_back():
    learner = flp(3, 4, 2)
    before = {n: p.clone() for n, p in learner.named_parameters()}
    episodes = regression(1, 2, 2, 3, 2)
    for h in STEPS:
        central_difference(
            learner, unit_direction(learner, 0), h, lambda: query_loss(learner, episodes)
        )
    assert all(torch.equal(p, before[n]) for n, p in learner.named_parameters())
