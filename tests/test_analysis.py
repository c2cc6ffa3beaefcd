"""Analyses of updates: their angle to gradient descent, interference, forgetting and feedback."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaplastic import (
    Backprop,
    CrossEntropy,
    Delta,
    DirectFeedback,
    Episodes,
    EquilibriumControl,
    InputModulation,
    LayeredNetwork,
    Learner,
    Oja,
    SquaredError,
    evaluate,
    inner_loop,
)
from metaplastic.analysis import (
    degrees_between,
    descent,
    feedback_alignment,
    forgetting_matrix,
    interference,
    update_angles,
)
from metaplastic.credit import (
    FeedbackAlignment,
    FeedbackControl,
    KolenPollack,
    SignSymmetry,
    WeightMirror,
)
from metaplastic.errors import CompatibilityError, ConfigurationError, DataError
from metaplastic.networks import RecurrentNetwork, equilibrium_rnn
from metaplastic.objectives import Objective
from metaplastic.testing.parts import drawn
from tests.helpers import (
    assert_close,
    classification,
    deviation,
    mlp,
    normal,
    presentation,
    raw,
    regression,
    seeded,
    shake,
    show,
)

SUPPORT = torch.tensor([0, 0, 0, 1, 1, 2, 2])
QUERY = torch.tensor([0, 2, 1, 0, 2, 1, 1])


def flp(objective: Objective, outputs: int = 3) -> Learner:
    learner = Learner(mlp(4, 6, 5, outputs), DirectFeedback("error"), Oja(0.0), objective)
    return shake(learner, 1, plasticity=0.5, mixing=0.3, feedback=0.3)


def stream(kind: str, count: int = 3) -> tuple[Learner, Episodes]:
    """Three tasks one after another, unequally long, with unequally many queries."""
    if kind == "classes":
        learner = flp(CrossEntropy())
        episodes = classification(count, 7, 2, 4, 3, queries=7)
    else:
        learner = flp(SquaredError(), 2)
        episodes = regression(count, 7, 2, 4, 2, queries=7)
    tasks = {"support_task": SUPPORT.expand(count, 7), "query_task": QUERY.expand(count, 7)}
    return learner, replace(episodes, **tasks)


def arc(first: Tensor, second: Tensor) -> float:
    """The angle by its definition, number by number."""
    a, b = first.flatten().tolist(), second.flatten().tolist()
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    size = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
    return math.degrees(math.acos(dot / size))


def autograd(learner: Learner, weights: dict[str, Tensor], x: Tensor, y: Tensor) -> dict:
    """Minus the gradient of the mean loss with respect to all weights."""
    leaves = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
    output = learner.network(learner.network.features(x), leaves)
    loss = learner.objective.loss(output, learner.encode(y, x.shape[:1])).mean()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {n: -g for n, g in zip(leaves, found, strict=True) if g is not None}


# --- angles between matrices ---


def test_angles_by_definition_and_at_their_ends():
    a, b = normal(3, 5, seed=1), normal(3, 5, seed=2)
    assert float(degrees_between(a, b)) == pytest.approx(arc(a, b), abs=1e-10)
    assert float(degrees_between(a, 4 * a)) == 0
    assert float(degrees_between(a, -a)) == pytest.approx(180, abs=1e-13)
    # where the arc cosine of a rounded 1 is 0 or worse
    turned = torch.tensor([[math.cos(1e-9), math.sin(1e-9)]], dtype=torch.float64)
    axis = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert float(degrees_between(axis, turned)) == pytest.approx(math.degrees(1e-9), rel=1e-6)
    for scale in (1e-200, 1e-30, 1e200):
        assert float(degrees_between(a * scale, b)) == pytest.approx(arc(a, b), abs=1e-10)
    assert degrees_between(torch.stack([a, b]), b[None]).shape == (2,)


@pytest.mark.parametrize("wrong", [0.0, math.inf, math.nan])
def test_no_angle_to_nothing(wrong):
    a, b = normal(2, 3, seed=1), torch.full((2, 3), wrong, dtype=torch.float64)
    assert degrees_between(a, b).isnan()
    assert degrees_between(b, a).isnan()


# --- updates against gradient descent ---


def networks(name: str) -> nn.Sequential | LayeredNetwork:
    if name == "dense":
        return mlp(4, 6, 5, 3)
    convolutions = nn.Sequential(
        nn.Conv2d(1, 3, 2, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    )
    return LayeredNetwork(convolutions.double(), input_shape=(1, 4, 4))


@pytest.mark.parametrize("kind", ["classes", "regression"])
@pytest.mark.parametrize("scale", ["example", "batch"])
@pytest.mark.parametrize("network", ["dense", "convolution"])
def test_descent_is_minus_the_gradient_of_autograd(network, scale, kind):
    objective = CrossEntropy(scale) if kind == "classes" else SquaredError(scale)
    rule = {"position:0": Delta(0.2), "position:last": Delta(0.2)}
    learner = shake(Learner(networks(network), Backprop(), rule, objective))
    x = normal(5, *((4,) if network == "dense" else (1, 4, 4)), seed=3)
    y = torch.tensor([0, 2, 1, 1, 0]) if kind == "classes" else normal(5, 3, seed=4)
    weights = learner.start(5)["weights"]
    found = descent(learner, weights, presentation(learner, x, y))
    wanted = autograd(learner, weights, x, y)
    # The error of the objective: of half the summed square, and over B examples once more.
    factor = (1 if kind == "classes" else 3 / 2) / (5 if scale == "batch" else 1)
    assert found.keys() == learner.plastic
    assert_close(found, {n: factor * wanted[n] for n in found}, 1e-12)


@pytest.mark.parametrize("kind", ["classes", "regression"])
@pytest.mark.parametrize("count", [1, 3])
def test_angles_along_the_stream_are_those_of_a_loop_with_autograd(kind, count):
    learner, episodes = stream(kind, count)
    found = update_angles(learner, episodes).degrees
    assert list(found) == ["layer0_weight", "layer1_weight", "layer2_weight"]
    for e in range(count):
        state = learner.start(2)
        for t in range(7):
            x, y = episodes.support_x[e, t], episodes.support_y[e, t]
            after = show(learner, x[None], y[None], state)
            wanted = autograd(learner, state["weights"], x, y)
            for name, degrees in found.items():
                change = (after["weights"][name] - state["weights"][name]).detach()
                assert degrees.shape == (count, 7)
                assert float(degrees[e, t]) == pytest.approx(arc(change, wanted[name]), abs=1e-6)
            state = after


def test_gradient_descent_has_no_angle_to_itself():
    learner = shake(Learner(mlp(4, 6, 3), Backprop(), {"*": Delta(0.1)}))
    found = update_angles(learner, classification(2, 3, 2, 4, 3)).degrees
    assert list(found) == [f"layer{i}_{kind}" for i in (0, 1) for kind in ("weight", "bias")]
    for degrees in found.values():
        assert float(degrees.abs().max()) < 1e-12
    learner = shake(
        Learner(mlp(4, 6, 3), Backprop(), Delta(0.1, granularity="synapse", learned=True))
    )
    with torch.no_grad():
        raw(learner, "layer1_weight", "rate").normal_(generator=seeded())
    found = update_angles(learner, classification(2, 3, 2, 4, 3)).degrees
    assert float(found["layer0_weight"].max()) < 1e-12
    assert 1 < float(found["layer1_weight"].min()) < 90


def test_padding_and_still_layers_have_no_angle():
    learner, episodes = stream("classes")
    weight = torch.ones(3, 7, 2, dtype=torch.float64)
    weight[1, 4:] = 0
    weight[2, 0, 1] = 0
    found = update_angles(learner, replace(episodes, support_weight=weight)).degrees
    whole = update_angles(learner, episodes).degrees
    for name, degrees in found.items():
        assert degrees[1, 4:].isnan().all()
        assert not degrees[1, :4].isnan().any()
        assert torch.allclose(degrees[:2, :4], whole[name][:2, :4], rtol=1e-12)
        alone = replace(
            episodes, support_x=episodes.support_x[:, :, :1], support_y=episodes.support_y[:, :, :1]
        )
        assert deviation(degrees[2, 0], update_angles(learner, alone).degrees[name][2, 0]) < 1e-12
    still = Learner(mlp(4, 6, 3), DirectFeedback(output="feedback"), {"position:0": Oja(0.0)})
    assert update_angles(still, episodes).degrees["layer0_weight"].isnan().all()
    assert update_angles(Learner(mlp(4, 3), Backprop(), None), episodes).degrees == {}


def test_angles_of_what_is_drawn_follow_the_generator():
    credit = WeightMirror("resampled")
    rule = {"role:feedback": Delta(0.1, derivative=False), "*": Delta(0.1)}
    learner = Learner(mlp(4, 6, 3), credit, rule, initial="resampled").double()
    episodes = classification(2, 3, 2, 4, 3)
    found = [update_angles(learner, episodes, seeded(i)).degrees for i in (0, 0, 1)]
    assert "layer1_feedback" not in found[0]  # it has no gradient
    assert torch.equal(found[0]["layer0_weight"], found[1]["layer0_weight"])
    assert not torch.equal(found[0]["layer0_weight"], found[2]["layer0_weight"])
    with pytest.raises(ConfigurationError, match="generator"):
        update_angles(learner, episodes)


def test_angles_need_a_layered_network():
    class Still(Backprop):
        protocol = RecurrentNetwork  # type: ignore[assignment]

    learner = Learner(RecurrentNetwork(4, 5, 3), Still(), None)
    with pytest.raises(CompatibilityError, match="RecurrentNetwork"):
        update_angles(learner, classification(1, 2, 1, 4, 3))


# --- interference and forgetting ---


def losses(learner: Learner, episodes: Episodes, e: int, shown: int) -> tuple[list, list, dict]:
    """Loss and accuracy of each task, and the weights, after some presentations, by hand."""
    with torch.no_grad():
        state = show(learner, episodes.support_x[e, :shown], episodes.support_y[e, :shown])
        output = learner.network(episodes.query_x[e], state["weights"])
    y, loss, right = episodes.query_y[e], [], []
    for k in range(3):
        mine = QUERY == k
        if y.is_floating_point():
            loss.append(float((output - y)[mine].square().mean()))
        else:
            loss.append(float(F.cross_entropy(output[mine], y[mine])))
            right.append(float((output[mine].argmax(-1) == y[mine]).double().mean()))
    return loss, right, state["weights"]


@pytest.mark.parametrize("kind", ["classes", "regression"])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
@pytest.mark.parametrize("count", [1, 3])
def test_interference_and_forgetting_by_hand(kind, order, count, monkeypatch):
    learner, episodes = stream(kind, count)
    episodes = replace(episodes, support_task=torch.tensor(order)[episodes.support_task])
    if count > 1:  # two episodes at a time
        monkeypatch.setattr(inner_loop, "CACHE_BYTES", 2 * 8 * (24 + 30 + 15))
    found, matrix = interference(learner, episodes), forgetting_matrix(learner, episodes)
    assert matrix.order == tuple(order)
    assert (matrix.accuracy is None) == (kind == "regression")
    ends = [0, 3, 5, 7]
    for e in range(count):
        seen = [losses(learner, episodes, e, shown) for shown in ends]
        changes = {}
        for place, task in enumerate(order):
            before, after = seen[place], seen[place + 1]
            for i in range(3):
                change = after[0][i] - before[0][i]
                assert float(found.loss[e, i, task]) == pytest.approx(change, abs=1e-12)
                assert float(matrix.loss[e, i, task]) == pytest.approx(after[0][i], abs=1e-12)
                if matrix.accuracy is not None:
                    assert float(matrix.accuracy[e, i, task]) == after[1][i]
            parts = [(after[2][n] - before[2][n]).flatten() for n in learner.plastic]
            changes[task] = torch.cat(parts)
        for i in range(3):
            for j in range(3):
                wanted = float(F.cosine_similarity(changes[i], changes[j], dim=0))
                assert float(found.update_cosines[e, i, j]) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("kind", ["classes", "regression"])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_forgetting_of_the_evaluation_is_that_of_the_matrix(kind, order):
    learner, episodes = stream(kind)
    episodes = replace(episodes, support_task=torch.tensor(order)[episodes.support_task])
    found = forgetting_matrix(learner, episodes)
    scored = evaluate(learner, episodes)
    assert found.forgetting is not None
    assert scored.forgetting is not None
    assert scored.task_loss is not None
    assert float((found.forgetting - scored.forgetting).abs().max()) < 1e-12
    final = found.loss[:, :, order[-1]]
    assert float((final - scored.task_loss).abs().max()) < 1e-12


def disjoint(kind: str) -> tuple[Learner, Episodes]:
    """Three tasks, each with an input line and two hidden units of its own, in turn shown twice."""
    network = nn.Sequential(
        nn.Linear(3, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)
    ).double()
    with torch.no_grad():
        own = torch.eye(3, dtype=torch.float64).repeat_interleave(2, 0)
        network.get_parameter("0.weight").copy_((1 + normal(6, 3).abs()) * own)
        network.get_parameter("2.weight").copy_(normal(3, 6, seed=1))
    credit = Backprop() if kind == "backprop" else DirectFeedback(weights="fixed")
    learner = Learner(network, credit, Delta(0.1), SquaredError()).double()
    lines, tasks = torch.eye(3, dtype=torch.float64), torch.arange(3).repeat_interleave(2)
    x, y = lines[tasks], normal(3, 3, seed=2)
    return learner, Episodes(
        x[None, :, None], y[tasks][None, :, None], lines[None], y[None], tasks[None],
        torch.arange(3)[None],
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["backprop", "direct feedback"])
def test_p19_tasks_that_share_no_unit_do_not_interfere(kind):
    learner, episodes = disjoint(kind)
    found = interference(learner, episodes)
    off = ~torch.eye(3, dtype=torch.bool)
    assert (found.loss[0][off] == 0).all()
    assert (found.update_cosines[0][off] == 0).all()
    assert (found.loss[0].diagonal() != 0).all()
    if kind == "backprop":
        assert (found.loss[0].diagonal() < 0).all()
    assert torch.allclose(found.update_cosines[0].diagonal(), torch.ones(3).double())


def test_what_stands_still_does_not_interfere():
    _, episodes = stream("classes")
    learner = Learner(mlp(4, 6, 3), Backprop(), None).double()
    found = interference(learner, episodes)
    assert (found.loss == 0).all()
    assert found.update_cosines.shape == (3, 3, 3)
    assert found.update_cosines.isnan().all()
    assert (forgetting_matrix(learner, episodes).forgetting == 0).all()


def test_one_task():
    learner, episodes = stream("classes")
    zero = {"support_task": 0 * SUPPORT.expand(3, 7), "query_task": 0 * QUERY.expand(3, 7)}
    matrix = forgetting_matrix(learner, replace(episodes, **zero))
    assert matrix.forgetting is None
    assert matrix.loss.shape == (3, 1, 1)
    assert interference(learner, replace(episodes, **zero)).loss.shape == (3, 1, 1)


@pytest.mark.parametrize("analysis", [interference, forgetting_matrix])
@pytest.mark.parametrize(
    ("tasks", "given"),
    [
        ([[0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 2, 2, 2]], r"as \[0, 1, 2\]"),
        ([[0, 1, 0, 1, 2, 2, 2]] * 2, r"as \[0, 1, 0, 1, 2\]"),
        ([[0, 0, 0, 0, 1, 1, 1]] * 2, "3 tasks"),
        (None, "no labels"),
    ],
    ids=["at other presentations", "in turns", "one is never shown", "unlabelled"],
)
def test_blocks_are_needed(analysis, tasks, given):
    learner, episodes = stream("classes", 2)
    tasks = None if tasks is None else torch.tensor(tasks)
    with pytest.raises(DataError, match=given):
        analysis(learner, replace(episodes, support_task=tasks))


# --- feedback against forward weights ---


def test_feedback_equal_to_the_forward_weights_is_aligned():
    learner = Learner(mlp(4, 6, 5, 3), FeedbackAlignment(), Delta(0.1)).double()
    with torch.no_grad():
        for i in (1, 2):
            learner.credit.get_buffer(f"layer{i}_feedback").copy_(
                2 * learner.network.weights()[f"layer{i}_weight"]
            )
    assert feedback_alignment(learner) == {"layer1_feedback": 0, "layer2_feedback": 0}
    with torch.no_grad():
        learner.credit.get_buffer("layer2_feedback").mul_(-1)
    assert feedback_alignment(learner)["layer2_feedback"] == pytest.approx(180, abs=1e-12)


def test_direct_feedback_stands_for_the_product_of_all_weights_above():
    learner = Learner(mlp(4, 6, 5, 3), DirectFeedback(output="feedback"), Delta(0.1)).double()
    w = {n: v.detach() for n, v in learner.network.weights().items()}
    b = {n: v.detach() for n, v in learner.credit.weights().items()}
    products = {
        "layer0_feedback1": (w["layer2_weight"] @ w["layer1_weight"]).T,
        "layer1_feedback1": w["layer2_weight"].T,
        "layer2_feedback1": torch.eye(3),
    }
    found = feedback_alignment(learner)
    assert list(found) == list(products)
    for name, product in products.items():
        assert found[name] == pytest.approx(arc(b[name], product), abs=1e-9)
    with torch.no_grad():
        learner.credit.get_parameter("layer0_feedback1").copy_(3 * products["layer0_feedback1"])
    assert feedback_alignment(learner)["layer0_feedback1"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("credit", "wanted"),
    [
        (FeedbackAlignment(), 90.0),
        (KolenPollack(), 90.0),
        (DirectFeedback(weights="fixed"), 90.0),
        (SignSymmetry(), math.degrees(math.acos((2 / math.pi) ** 0.5))),  # 37.1
        (SignSymmetry("fixed"), math.degrees(math.acos(2 / math.pi))),
        (SignSymmetry("presentation"), math.degrees(math.acos(2 / math.pi))),
    ],
)
def test_known_angles_of_random_feedback(credit, wanted):
    layers = nn.Sequential(nn.Linear(2, 300), nn.ReLU(), nn.Linear(300, 200))
    network = LayeredNetwork(layers)
    with torch.no_grad():
        for name, fresh in network.draw(seeded(3)).items():
            network.parameter(name).copy_(fresh.reshape(network.parameter(name).shape))
    rule = {"role:bias": None, "*": Delta(0.1)}
    (found,) = feedback_alignment(Learner(network, credit, rule)).values()
    assert found == pytest.approx(wanted, abs=0.6)


def test_resampled_feedback_follows_the_generator():
    credit = FeedbackAlignment("resampled")
    learner = Learner(mlp(4, 6, 3), credit, Delta(0.1), initial="resampled").double()
    found = [feedback_alignment(learner, seeded(i)) for i in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    weights = learner.start(generator=seeded(1))["weights"]
    wanted = arc(weights["layer1_feedback"], weights["layer1_weight"])
    assert found[2] == {"layer1_feedback": pytest.approx(wanted, abs=1e-9)}


def test_a_controller_stands_for_the_same_products():
    """Its feedback begins as these products, and random feedback is somewhere else."""
    network = mlp(4, 6, 5, 3)
    exact = feedback_alignment(Learner(network, FeedbackControl(), Delta(0.1)).double())
    assert list(exact) == ["layer0_feedback", "layer1_feedback", "layer2_feedback"]
    assert all(angle < 1e-6 for angle in exact.values())
    rules = {"position:0": None, "*": Delta(0.1)}
    learner = Learner(network, FeedbackControl(initial="random"), rules).double()
    weights = learner.start()["weights"]
    assert feedback_alignment(learner) == {
        "layer1_feedback": pytest.approx(
            arc(weights["layer1_feedback"], weights["layer2_weight"].T), abs=1e-9
        ),
        "layer2_feedback": 0,
    }


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("feedback", ["projection", "factors"])
def test_input_feedback_stands_for_the_product_of_all_weights(sign, feedback):
    credit = InputModulation("learned", sign=sign, feedback=feedback)
    learner = Learner(mlp(4, 6, 5, 3), credit, Delta(0.1)).double()
    w = {n: v.detach() for n, v in learner.network.weights().items()}
    f = {n: v.detach() for n, v in learner.credit.weights().items()}
    sent = f["layer0_feedback"]
    if feedback == "factors":
        sent = (f["layer2_feedback"] @ f["layer1_feedback"] @ sent).T
    wanted = arc(-sign * sent, (w["layer2_weight"] @ w["layer1_weight"] @ w["layer0_weight"]).T)
    assert feedback_alignment(learner) == {"layer0_feedback": pytest.approx(wanted, abs=1e-9)}
    clean = InputModulation(pre="clean", output="clean")
    only_last = {"position:last": Delta(0.1), "*": None}
    assert feedback_alignment(Learner(mlp(4, 6, 3), clean, only_last)) == {}


def test_feedback_at_rest_stands_for_the_weights_whose_rule_it_shares():
    network = drawn(equilibrium_rnn(4, 5, 3))
    learner = Learner(network, EquilibriumControl("kolen-pollack"), Delta(0.1)).double()
    w, f = learner.network.weights(), learner.credit.weights()
    wanted = {
        f"{name}_feedback": pytest.approx(
            arc(f[f"{name}_feedback"], w[f"{name}_weight"].detach()), abs=1e-9
        )
        for name in ("recurrent", "output")
    }
    assert feedback_alignment(learner) == wanted
    linear = Learner(network, EquilibriumControl("linear"), Delta(0.1, derivative=False))
    assert feedback_alignment(linear) == {}


def test_convolutions_and_what_is_below_them_have_no_product():
    learner = Learner(networks("convolution"), DirectFeedback(output="feedback"), Delta(0.1))
    assert list(feedback_alignment(learner.double())) == ["layer1_feedback1"]
    learner = Learner(networks("convolution"), FeedbackAlignment(), Delta(0.1)).double()
    assert list(feedback_alignment(learner)) == ["layer1_feedback"]
    learner = Learner(networks("convolution"), InputModulation(), Delta(0.1)).double()
    assert feedback_alignment(learner) == {}


@pytest.mark.parametrize(
    "credit", [Backprop(), DirectFeedback(rectify=True), DirectFeedback(depth=2, width=4)]
)
def test_nothing_to_compare(credit):
    learner = Learner(mlp(4, 6, 3), credit, Delta(0.1)).double()
    assert feedback_alignment(learner) == {}


# --- all ---


def test_analyses_leave_learner_and_episodes_alone():
    learner, episodes = stream("classes")
    before = {n: v.clone() for n, v in learner.state_dict().items()}
    data = episodes.support_x.clone(), episodes.query_x.clone()
    found = [
        *update_angles(learner, episodes).degrees.values(),
        interference(learner, episodes).loss,
        forgetting_matrix(learner, episodes).loss,
    ]
    feedback_alignment(learner)
    assert not any(t.requires_grad for t in found)
    assert all(t.dtype == torch.float64 for t in found)
    assert all(p.grad is None and p.requires_grad for p in learner.parameters())
    assert learner.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[n]) for n, v in learner.state_dict().items())
    assert torch.equal(episodes.support_x, data[0])
    assert torch.equal(episodes.query_x, data[1])
