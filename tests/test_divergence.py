"""Episodes that leave the finite numbers: left out, named, and never a silent NaN."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from metaplastic import (
    Backprop,
    Delta,
    DirectFeedback,
    Episodes,
    LayeredNetwork,
    Learner,
    Oja,
    SquaredError,
    Unrolled,
)
from metaplastic.errors import DivergenceError
from metaplastic.evaluation import evaluate
from metaplastic.metagradient import Divergence
from metaplastic.training import MetaTraining
from tests.helpers import (
    assert_close,
    gradients,
    meta_gradient,
    mlp,
    regression,
    seeded,
    shake,
    show,
)

METHODS = {
    "vmap": Unrolled(batching="vmap"),
    "loop": Unrolled(batching="loop"),
    "auto": Unrolled(),
    "checkpointed": Unrolled(checkpoint_every=2),
    "first order": Unrolled(first_order=True),
    "truncated": Unrolled(truncate=2),
}


def faithful(activation: type[nn.Module] = nn.ReLU) -> Learner:
    credit = DirectFeedback("error", output="feedback")
    rule = Oja(0.0, bounded=False)
    learner = Learner(mlp(3, 6, 5, 2, activation=activation), credit, rule, SquaredError())
    return shake(learner, 1, plasticity=0.01, mixing=0.1, feedback=0.3)


def spoiled(episodes: Episodes, *which: int, by: float = 1e30, since: int = 1) -> Episodes:
    """The same episodes, with huge inputs in some, from a presentation on."""
    x = episodes.support_x.clone()
    x[list(which), since:] *= by
    return replace(episodes, support_x=x)


def first_not_finite(learner: Learner, xs: Tensor, ys: Tensor) -> tuple[int, str]:
    """Where a run by hand leaves the finite numbers first: presentation and group."""
    state = learner.start(xs.shape[1])
    for step, (x, y) in enumerate(zip(xs, ys, strict=True)):
        state = show(learner, x[None], y[None], state)
        for name in learner.groups():  # input side first
            if name in learner.plastic and not bool(state["weights"][name].isfinite().all()):
                return step, name
    raise AssertionError("the run stayed finite")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("which", [(1,), (0, 2), (3,)])
def test_a_diverged_episode_is_left_out_of_the_mean(which, method):
    learner, count = faithful(), 4
    whole = regression(count, 5, 2, 3, 2)
    kept = [e for e in range(count) if e not in which]
    wanted = meta_gradient(learner, whole[kept], METHODS[method])
    wanted_loss = METHODS[method].gradient(learner, whole[kept]).loss
    learner.zero_grad()
    outcome = METHODS[method].gradient(learner, spoiled(whole, *which))
    assert outcome.kept == tuple(kept)
    assert torch.allclose(outcome.loss, wanted_loss, rtol=1e-12)
    assert [d.episode for d in outcome.diverged] == list(which)
    assert all(bool(g.isfinite().all()) for g in gradients(learner).values())
    assert_close(gradients(learner), wanted, 1e-12)


@pytest.mark.parametrize("method", ["vmap", "loop"])
@pytest.mark.parametrize("since", [0, 2, 4])
def test_divergence_names_the_first_group_and_presentation(since, method):
    learner = faithful()
    episodes = spoiled(regression(3, 6, 2, 3, 2), 1, since=since)
    step, group = first_not_finite(learner, episodes.support_x[1], episodes.support_y[1])
    assert step >= since
    (found,) = METHODS[method].gradient(learner, episodes).diverged
    assert found == Divergence(1, step, group, "weights")
    assert f"episode 1: the weights of {group} at presentation {step} diverged" in str(found)
    assert "lower the plasticity" in str(found)


def test_groups_that_diverge_together_are_named_from_the_input_on():
    """With more than ten layers too, where names do not sort by number."""
    chain = mlp(*[3] * 12, 2, activation=nn.Identity, bias=False)
    rule = {"name:layer2_weight": Oja(1.0, 1.0), "name:layer10_weight": Oja(1.0, 1.0)}
    learner = shake(Learner(chain, DirectFeedback("target"), rule, SquaredError()))
    for name in learner.credit.weights():
        getattr(learner.credit, name).data.fill_(1e200)
    episodes = regression(1, 2, 2, 3, 2)
    weights = show(learner, episodes.support_x[0, :1], episodes.support_y[0, :1])["weights"]
    assert not any(bool(weights[n].isfinite().all()) for n in learner.plastic)
    (found,) = Unrolled().gradient(learner, episodes).diverged
    assert (found.step, found.group) == (0, "layer2_weight")


def test_only_the_query_loss_can_diverge():
    """Finite weights, and a loss beyond the limit: there is no group to name."""
    learner = faithful()
    whole = regression(2, 3, 2, 3, 2)
    query = whole.query_y.clone()
    query[0] = 1e9
    outcome = Unrolled().gradient(learner, replace(whole, query_y=query))
    assert outcome.kept == (1,)
    assert outcome.diverged == (Divergence(0, None, None, "query loss"),)
    assert str(outcome.diverged[0]).startswith("episode 0: the query loss diverged;")
    assert Unrolled(limit=1e30).gradient(learner, replace(whole, query_y=query)).kept == (0, 1)


@pytest.mark.parametrize("method", ["vmap", "loop"])
def test_an_overflow_in_the_gradient_alone_is_found(method):
    """Behind a first weight of 0 every activity and every loss is small, and the slope of that
    weight is the product of the others, too large for a number where there is an error at all.
    """
    chain = nn.Sequential(*[nn.Linear(1, 1, bias=False) for _ in range(3)])
    learner = Learner(chain, Backprop(), None, SquaredError()).double()
    for parameter, value in zip(chain.parameters(), (0.0, 1e200, 1e200), strict=True):
        parameter.data.fill_(value)
    episodes = regression(3, 1, 1, 1, 1)
    query_y = torch.zeros_like(episodes.query_y)
    query_y[1] = 1.0
    episodes = replace(episodes, query_y=query_y)
    outcome = METHODS[method].gradient(learner, episodes)
    assert outcome.diverged == (Divergence(1, None, None, "meta-gradient"),)
    assert outcome.kept == (0, 2)
    assert all(bool(g.isfinite().all()) for g in gradients(learner).values())
    assert "the meta-gradient diverged" in str(outcome.diverged[0])


def test_when_all_diverge_every_gradient_is_zero():
    learner = faithful()
    episodes = spoiled(regression(2, 3, 2, 3, 2), 0, 1)
    outcome = Unrolled().gradient(learner, episodes)
    assert outcome.kept == ()
    assert outcome.loss.shape == (0,)
    assert outcome.accuracy is None
    assert len(outcome.diverged) == 2
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients(learner).values())


def test_gradients_are_added_to_what_is_there():
    """As backward does: two calls give the sum, and a diverged batch adds nothing."""
    learner, one, two = faithful(), regression(2, 3, 2, 3, 2), regression(2, 3, 2, 3, 2, seed=9)
    first, second = meta_gradient(learner, one), meta_gradient(learner, two)
    learner.zero_grad()
    for episodes in (one, spoiled(one, 0, 1), two):
        Unrolled().gradient(learner, episodes)
    assert_close(gradients(learner), {n: first[n] + second[n] for n in first}, 1e-13)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_training_does_not_step_when_all_diverge_and_goes_on_afterwards(optimizer):
    """Not even by the momentum of the steps before."""
    learner = faithful()
    whole = regression(2, 3, 2, 3, 2)
    stream = iter([whole, spoiled(whole, 0, 1), spoiled(whole, 0), whole])
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    training = MetaTraining(
        learner, lambda g: next(stream), optimizer=optimizer(learner.parameters(), 1e-3, **options)
    )
    path, reports = [[p.detach().clone() for p in learner.parameters()]], []
    for report in training.run(4):
        reports.append(report)
        path.append([p.detach().clone() for p in learner.parameters()])
    moved = [any(not torch.equal(a, b) for a, b in zip(*p, strict=True)) for p in pairwise(path)]
    assert moved == [True, False, True, True]
    assert [r.loss is None for r in reports] == [False, True, False, False]
    assert [[d.episode for d in r.diverged] for r in reports] == [[], [0, 1], [0], []]
    assert reports[1].gradient_norm == 0.0
    assert all(bool(p.isfinite().all()) for p in learner.parameters())


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_scheduler_does_not_mind_that_the_first_step_is_left_out():
    learner = faithful()
    whole = regression(2, 3, 2, 3, 2)
    stream = iter([spoiled(whole, 0, 1), whole])
    optimizer = torch.optim.SGD(learner.parameters(), 1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    training = MetaTraining(
        learner, lambda g: next(stream), optimizer=optimizer, scheduler=scheduler
    )
    assert [r.loss is None for r in training.run(2)] == [True, False]
    assert optimizer.param_groups[0]["lr"] == 0.5  # one step was taken


def test_adapt_and_assign_grads_raise_and_change_nothing():
    learner = faithful()
    x = torch.full((2, 3), 1e200, dtype=torch.float64)
    y = torch.zeros(2, 2, dtype=torch.float64)
    first = next(n for n in learner.groups() if n in learner.plastic)
    clone = learner.clone()
    before = clone(torch.ones_like(x))
    with pytest.raises(DivergenceError, match=f"adaptation 0 diverged in {first}; lower"):
        clone.adapt(x, y)
    assert torch.equal(clone(torch.ones_like(x)), before)
    with pytest.raises(DivergenceError, match=f"changes diverged in {first}"):
        learner.assign_grads(x, y)
    assert all(p.grad is None for p in learner.parameters())


@pytest.mark.parametrize("batching", ["vmap", "loop", "auto"])
def test_evaluation_reports_the_diverged_and_scores_the_others(batching):
    learner, count = faithful(), 4
    whole = regression(count, 5, 2, 3, 2)
    tasks = {
        "support_task": torch.tensor([0, 0, 1, 1, 1]).expand(count, 5),
        "query_task": torch.tensor([0, 1, 0, 1, 0]).expand(count, 5),
    }
    whole = replace(whole, **tasks)
    found = evaluate(learner, spoiled(whole, 0, 2), batching=batching)
    wanted = evaluate(learner, whole[[1, 3]], batching=batching)
    assert found.diverged == (0, 2)
    assert wanted.diverged == ()
    for field in ("loss", "task_loss", "forgetting"):
        assert torch.allclose(getattr(found, field), getattr(wanted, field), rtol=1e-12), field


def test_evaluation_of_nothing_finite_is_empty():
    found = evaluate(faithful(), spoiled(regression(2, 3, 2, 3, 2), 0, 1))
    assert found.diverged == (0, 1)
    assert found.loss.shape == (0,)


def test_the_bounded_rule_stays_finite_where_the_faithful_one_does_not():
    """Plasticity that is not negative, whatever the size of the input."""
    bounded = Learner(mlp(3, 6, 5, 2), DirectFeedback("error"), Oja(0.9), SquaredError())
    episodes = spoiled(regression(2, 20, 2, 3, 2), 0, 1, by=1e6)
    assert Unrolled().gradient(bounded.double(), episodes).diverged == ()
    fast = Delta(1e3)
    wild = Learner(LayeredNetwork(mlp(3, 6, 5, 2)), Backprop(), fast, SquaredError()).double()
    assert len(Unrolled().gradient(wild, episodes).diverged) == 2


def test_the_generators_do_not_depend_on_divergence():
    """A step that finds an episode diverged, and runs the others again, draws no more."""
    learner = faithful()
    whole = regression(2, 3, 2, 3, 2)
    g, other = seeded(1), seeded(1)
    Unrolled().gradient(learner, whole, generator=g)
    Unrolled().gradient(learner, spoiled(whole, 0), generator=other)
    assert torch.equal(g.get_state(), other.get_state())
