"""Scores of unseen episodes: per task, forgetting, and weights that make ragged streams exact."""

from __future__ import annotations

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
    Hebb,
    LayeredNetwork,
    Learner,
    Oja,
    PlasticityRule,
    SquaredError,
    Unrolled,
    inner_loop,
)
from metaplastic.evaluation import evaluate
from metaplastic.objectives import Objective
from tests.helpers import (
    assert_close,
    classification,
    deviation,
    final_weights,
    meta_gradient,
    mlp,
    normal,
    regression,
    shake,
    show,
)

SUPPORT = torch.tensor([0, 0, 0, 1, 1, 2])
QUERY = torch.tensor([0, 2, 1, 0, 2, 1, 1])


def learner_for(objective: Objective, outputs: int = 3) -> Learner:
    learner = Learner(mlp(4, 6, outputs), DirectFeedback("error"), Oja(0.0), objective)
    return shake(learner, 1, plasticity=0.5, mixing=0.3, feedback=0.3)


def stream(kind: str, count: int = 3) -> tuple[Learner, Episodes]:
    """Three tasks one after another, unequally long, with unequally many queries."""
    if kind == "classes":
        learner = learner_for(CrossEntropy())
        episodes = classification(count, 6, 2, 4, 3, queries=7)
    else:
        learner = learner_for(SquaredError(), 2)
        episodes = regression(count, 6, 2, 4, 2, queries=7)
    tasks = {"support_task": SUPPORT.expand(count, 6), "query_task": QUERY.expand(count, 7)}
    return learner, replace(episodes, **tasks)


def scores(learner: Learner, episodes: Episodes, e: int, shown: int) -> tuple[Tensor, Tensor]:
    """Loss and rightness of each query of one episode after some presentations, by hand."""
    with torch.no_grad():
        state = show(learner, episodes.support_x[e, :shown], episodes.support_y[e, :shown])
        output = learner.network(episodes.query_x[e], state["weights"])
    y = episodes.query_y[e]
    if y.is_floating_point():
        return ((output - y) ** 2).mean(-1), torch.zeros(len(y))
    return F.cross_entropy(output, y, reduction="none"), (output.argmax(-1) == y).double()


# --- what is reported ---


@pytest.mark.parametrize("batching", ["vmap", "loop", "auto"])
@pytest.mark.parametrize("kind", ["classes", "regression"])
def test_evaluation_by_hand(kind, batching):
    """Mean and per-task scores after the stream, and forgetting: mean over the first two tasks of
    what was lost from right after the task to the end.
    """
    learner, episodes = stream(kind)
    found = evaluate(learner, episodes, batching=batching)
    assert found.diverged == ()
    for e in range(3):
        loss, right = scores(learner, episodes, e, 6)
        by_task = torch.stack([loss[QUERY == k].mean() for k in range(3)])
        assert deviation(found.loss[e], loss.mean()) < 1e-12
        assert deviation(found.task_loss[e], by_task) < 1e-12
        lost = []
        for task, shown in ((0, 3), (1, 5)):
            early = scores(learner, episodes, e, shown)
            mine = task == QUERY
            if kind == "classes":
                lost.append(early[1][mine].mean() - right[mine].mean())
            else:
                lost.append(loss[mine].mean() - early[0][mine].mean())
        assert abs(float(found.forgetting[e] - torch.stack(lost).mean())) < 1e-12
        if kind == "classes":
            accuracy = torch.stack([right[QUERY == k].mean() for k in range(3)])
            assert torch.equal(found.accuracy[e], right.mean())
            assert deviation(found.task_accuracy[e], accuracy) < 1e-12
    if kind == "regression":
        assert found.accuracy is None
        assert found.task_accuracy is None


def test_forgetting_of_a_memory_that_holds_one_thing():
    """A toy whose end is known: at rate 1 the head becomes the last example shown, so every task
    but the last is forgotten whole. y = w x with x = 1 and targets 1, 2, 4.
    """
    learner = Learner(
        nn.Sequential(nn.Linear(1, 1, bias=False)), Backprop(), Delta(1.0), SquaredError()
    )
    learner.double()
    targets = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    ones = torch.ones(1, 3, dtype=torch.float64)
    episodes = Episodes(
        ones[..., None, None],
        targets[None, :, None, None],
        ones[..., None],
        targets[None, :, None],
        support_task=torch.arange(3)[None],
        query_task=torch.arange(3)[None],
    )
    found = evaluate(learner, episodes)
    assert found.task_loss.tolist() == [[9.0, 4.0, 0.0]]
    assert found.forgetting.tolist() == [6.5]
    assert found.loss.tolist() == [pytest.approx(13 / 3)]


@pytest.mark.parametrize("batching", ["vmap", "loop", "auto"])
@pytest.mark.parametrize(
    "tasks",
    [
        torch.tensor([[0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 2], [0, 1, 1, 1, 2, 2]]),
        torch.tensor([[0, 1, 0, 1, 2, 2]] * 3),
    ],
    ids=["at other presentations", "in turns"],
)
def test_forgetting_needs_tasks_one_after_another_at_the_same_presentations(
    tasks, batching, monkeypatch
):
    """However the episodes are batched; the other scores do not need it."""
    learner, episodes = stream("classes")
    episodes = replace(episodes, support_task=tasks)
    if batching == "auto":  # two episodes at a time
        monkeypatch.setattr(inner_loop, "CACHE_BYTES", 2 * 8 * (24 + 18))
    found = evaluate(learner, episodes, batching=batching)
    assert found.forgetting is None
    assert found.task_loss.shape == (3, 3)


@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_episodes_may_ask_about_fewer_tasks_than_others(batching):
    learner, episodes = stream("regression")
    asked = QUERY.expand(3, 7).clone()
    asked[1] = 0
    found = evaluate(learner, replace(episodes, query_task=asked), batching=batching)
    assert found.task_loss.shape == (3, 3)
    loss, _ = scores(learner, episodes, 1, 6)
    assert deviation(found.task_loss[1, 0], loss.mean()) < 1e-12


def test_no_task_labels_no_scores_by_task():
    learner, episodes = stream("classes")
    whole = evaluate(learner, episodes)
    plain = evaluate(learner, replace(episodes, support_task=None, query_task=None))
    assert plain.task_loss is plain.task_accuracy is plain.forgetting is None
    assert torch.equal(plain.loss, whole.loss)
    queries = evaluate(learner, replace(episodes, support_task=None))
    assert queries.forgetting is None
    assert torch.equal(queries.task_loss, whole.task_loss)


def test_one_task_is_not_forgotten():
    learner, episodes = stream("classes")
    zero = {"support_task": 0 * SUPPORT.expand(3, 6), "query_task": 0 * QUERY.expand(3, 7)}
    found = evaluate(learner, replace(episodes, **zero))
    assert found.forgetting is None
    assert torch.equal(found.task_loss[:, 0], found.loss)


def test_evaluation_leaves_learner_and_episodes_alone():
    learner, episodes = stream("classes")
    before = {n: v.clone() for n, v in learner.state_dict().items()}
    data = [episodes.support_x.clone(), episodes.query_x.clone()]
    found = evaluate(learner, episodes)
    assert not found.loss.requires_grad
    assert all(p.grad is None for p in learner.parameters())
    assert all(torch.equal(v, before[n]) for n, v in learner.state_dict().items())
    assert torch.equal(episodes.support_x, data[0])
    assert torch.equal(episodes.query_x, data[1])


def test_evaluation_is_the_loss_that_training_minimises():
    learner, episodes = stream("classes")
    assert torch.allclose(
        evaluate(learner, episodes).loss, Unrolled().gradient(learner, episodes).loss, rtol=1e-13
    )


# --- weights ---


RULES: dict[str, PlasticityRule] = {
    "oja, bounded": Oja(0.3, 0.4),
    "oja, bounded, mean over examples": Oja(0.3, 0.4, reduction="examples"),
    "oja": Oja(0.1, 0.4, bounded=False),
    "oja, mean": Oja(0.1, 0.4, bounded=False, reduction="examples"),
    "hebb, bounded": Hebb(0.3, 0.4),
    "hebb": Hebb(0.1, 0.4, bounded=False),
    "delta": Delta(0.25),
    "delta, sum": Delta(0.25, reduction="sum"),
    "delta, mean over rows": Delta(0.25, reduction="positions"),
}


def padded(episodes: Episodes, rows: int, steps: int) -> Episodes:
    """The same examples and, with weight 0, others in every batch and at the end of the stream."""
    count, presentations, batch = episodes.support_x.shape[:3]
    wide = (count, presentations + steps, batch + rows)
    x = 5 * normal(*wide, *episodes.support_x.shape[3:], seed=77)
    y = torch.zeros(*wide, *episodes.support_y.shape[3:], dtype=episodes.support_y.dtype)
    weight = torch.zeros(wide)
    x[:, :presentations, :batch] = episodes.support_x
    y[:, :presentations, :batch] = episodes.support_y
    weight[:, :presentations, :batch] = 1.0
    return replace(episodes, support_x=x, support_y=y, support_weight=weight)


@pytest.mark.parametrize("network", ["dense", "convolutional"])
@pytest.mark.parametrize("scale", ["example", "batch"])
@pytest.mark.parametrize("rule", RULES)
def test_an_episode_padded_with_weight_zero_is_the_episode(rule, scale, network):
    """Weights, loss and meta-gradient, biases being plastic too; a whole presentation of padding
    changes nothing.
    """
    if network == "dense":
        chain, shape = LayeredNetwork(mlp(4, 6, 3)), (4,)
    else:
        conv = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))
        conv.double()
        for i, p in enumerate(conv.parameters()):
            p.data = 0.4 * normal(*p.shape, seed=i)
        chain, shape = LayeredNetwork(conv, input_shape=(1, 3, 5)), (1, 3, 5)
    learner = Learner(chain, DirectFeedback("error"), {"*": RULES[rule]}, CrossEntropy(scale=scale))
    shake(learner, 1, feedback=0.2)
    episodes = classification(2, 3, 2, shape, 3)
    ragged = padded(episodes, 3, 2)
    assert_close(final_weights(learner, ragged), final_weights(learner, episodes), 1e-12)
    assert torch.allclose(
        evaluate(learner, ragged).loss, evaluate(learner, episodes).loss, rtol=1e-12
    )
    assert_close(meta_gradient(learner, ragged), meta_gradient(learner, episodes), 1e-11)


@pytest.mark.parametrize("scale", ["example", "batch"])
def test_padding_is_exact_for_backpropagation_too(scale):
    learner = Learner(
        mlp(4, 6, 3), Backprop(), {"*": Delta(0.25, learned=True)}, CrossEntropy(scale=scale)
    ).double()
    episodes = classification(2, 3, 2, 4, 3)
    ragged = padded(episodes, 1, 1)
    assert_close(meta_gradient(learner, ragged), meta_gradient(learner, episodes), 1e-11)


def test_ragged_episodes_together_equal_each_at_its_own_length():
    learner = learner_for(CrossEntropy())
    whole = classification(3, 4, 3, 4, 3)
    weight = torch.ones(3, 4, 3)
    weight[0, 2:] = 0.0
    weight[1, :, 1:] = 0.0
    together = evaluate(learner, replace(whole, support_weight=weight)).loss
    short = replace(
        whole[[0]], support_x=whole.support_x[:1, :2], support_y=whole.support_y[:1, :2]
    )
    thin = replace(
        whole[[1]], support_x=whole.support_x[1:2, :, :1], support_y=whole.support_y[1:2, :, :1]
    )
    alone = torch.cat([evaluate(learner, e).loss for e in (short, thin, whole[[2]])])
    assert torch.allclose(together, alone, rtol=1e-12)


def test_an_example_of_weight_two_counts_as_two():
    learner = learner_for(CrossEntropy())
    once = classification(1, 3, 2, 4, 3)
    weight = torch.tensor([2.0, 1.0]).expand(1, 3, 2)
    twice = replace(
        once,
        support_x=once.support_x[:, :, [0, 0, 1]],
        support_y=once.support_y[:, :, [0, 0, 1]],
    )
    weighted = final_weights(learner, replace(once, support_weight=weight))
    assert_close(weighted, final_weights(learner, twice), 1e-12)


@pytest.mark.parametrize("scaled", [1.0, 3.0, 0.01])
def test_query_weights_weigh_the_loss_the_accuracy_and_their_gradient(scaled):
    """They are shares: their scale does not matter."""
    learner, episodes = stream("classes", 2)
    weight = torch.tensor([[1.0, 0.0, 2.0, 1.0, 0.0, 1.0, 1.0], [0.0, 1, 1, 0, 0, 0, 0]])
    weighted = replace(episodes, query_weight=scaled * weight)
    found = evaluate(learner, weighted)
    for e in range(2):
        loss, right = scores(learner, episodes, e, 6)
        share = weight[e].double() / weight[e].sum()
        assert deviation(found.loss[e], (share * loss).sum()) < 1e-6
        assert abs(float(found.accuracy[e] - (share * right).sum())) < 1e-6
        for task in range(3):
            mine = share * (task == QUERY)
            if float(mine.sum()) > 0:
                wanted = (mine * loss).sum() / mine.sum()
                assert deviation(found.task_loss[e, task], wanted) < 1e-6
    picked = [
        replace(
            episodes[[e]],
            query_x=episodes.query_x[e : e + 1].repeat_interleave(weight[e].long(), 1),
            query_y=episodes.query_y[e : e + 1].repeat_interleave(weight[e].long(), 1),
            query_task=None,
            support_task=None,
        )
        for e in range(2)
    ]
    each = [meta_gradient(learner, e) for e in picked]
    mean = {n: (each[0][n] + each[1][n]) / 2 for n in each[0]}
    assert_close(meta_gradient(learner, weighted), mean, 1e-6)


def test_queries_of_weight_zero_may_be_anything():
    learner, episodes = stream("classes", 2)
    weight = torch.ones(2, 7)
    weight[:, 5:] = 0.0
    query = episodes.query_x.clone()
    query[:, 5:] *= 100
    one = meta_gradient(learner, replace(episodes, query_weight=weight))
    two = meta_gradient(learner, replace(episodes, query_weight=weight, query_x=query))
    assert_close(two, one, 1e-12)
