"""Higher's context: copied, untracked and given weights, and what is freed."""

from __future__ import annotations

import gc
import weakref

import higher
import pytest
import torch
import torch.nn.functional as F

from metaplastic import DirectFeedback, Learner
from metaplastic.adapters.higher import PlasticOptimizer
from metaplastic.signals import GivenError, Presentation
from tests.adapters.higher_loop import (
    TOLERANCE,
    Eligibility,
    body_of,
    episode,
    inner_loop,
    learner_for,
    query,
    shaken,
    stream,
)
from tests.helpers import assert_close, meta_gradient, mlp


def test_copied_weights_leave_the_learner_alone():
    learner, episodes = learner_for("FLP"), episode()
    wanted = meta_gradient(learner, episodes)
    learner.zero_grad()
    fmodel, _ = inner_loop(learner, episodes, copy=True)
    found = torch.autograd.grad(query(fmodel, episodes), fmodel.init_fast_params)
    names = [name for name, _ in learner.named_parameters()]
    assert_close(dict(zip(names, found, strict=True)), wanted, TOLERANCE)
    assert all(p.grad is None for p in learner.parameters())


def test_copied_weights_of_the_body_keep_feedback_and_plasticity_learned():
    learner, episodes = learner_for("FLP"), episode()
    wanted = meta_gradient(learner, episodes)
    learner.zero_grad()
    body = body_of(learner)
    fmodel, _ = inner_loop(learner, episodes, model=body, copy=True)
    query(fmodel, episodes).backward()
    assert all(p.grad is None for p in body.parameters())
    rest = {n: p.grad for n, p in learner.named_parameters() if not n.startswith("network")}
    assert_close(rest, {name: wanted[name] for name in rest}, TOLERANCE)


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("whole", [True, False], ids=["learner", "body"])
def test_without_tracking_the_values_are_the_same_and_there_is_no_graph(copy, whole):
    learner, episodes = learner_for("FLP"), episode()
    model = learner if whole else body_of(learner)
    tracked, _ = inner_loop(learner, episodes, model=model)
    plain, _ = inner_loop(learner, episodes, model=model, copy=copy, track=False)
    for p, q in zip(plain.fast_params, tracked.fast_params, strict=True):
        assert torch.equal(p, q)
        assert p.is_leaf
        assert p.requires_grad
    loss = query(plain, episodes)
    torch.testing.assert_close(loss, query(tracked, episodes))
    loss.backward()
    assert all(p.grad is None for p in learner.parameters())


def test_fast_weights_given_by_hand_are_the_ones_used():
    """Higher's ``params=``: the forward pass and the step start from them."""
    learner, episodes = learner_for("backprop x delta"), episode()
    (x, y), *_ = stream(episodes)
    with higher.innerloop_ctx(learner, PlasticOptimizer(learner)) as (fmodel, diffopt):
        start = list(fmodel.fast_params)
        first = diffopt.step(F.cross_entropy(fmodel(x), y))
        again = diffopt.step(F.cross_entropy(fmodel(x, params=start), y))
        output = fmodel(x, params=first)
        further = list(diffopt.step(F.cross_entropy(output, y), params=start))
    for a, b, s in zip(first, again, start, strict=True):
        assert torch.equal(a, b)
        assert a is s or not torch.equal(a, s)
    assert all(a is s for a, s in zip(fmodel.init_fast_params, start, strict=True))
    # The weights at the start, moved by the error that the loss reads at the later output.
    error = F.one_hot(y, 3) - output.softmax(-1)
    shown = Presentation(x, GivenError(learner.objective, error))
    wanted = learner.step(learner.start(len(x)), shown)["weights"]
    names = [name for name, _ in learner.named_parameters()]
    for layer, position in enumerate((0, 2, 4)):
        moved = further[names.index(f"network.body.{position}.weight")]
        torch.testing.assert_close(moved, wanted[f"layer{layer}_weight"], rtol=1e-12, atol=0)


def test_an_episode_is_freed_with_its_last_name():
    learner, episodes = learner_for("FLP"), episode()
    gc.disable()
    try:
        fmodel, diffopt = inner_loop(learner, episodes)
        watched = weakref.ref(fmodel)
        weight = weakref.ref(fmodel.fast_params[0])
        del fmodel, diffopt
        assert watched() is None
        assert weight() is None
    finally:
        gc.enable()


def test_without_tracking_the_past_is_freed_at_once():
    """No fast weights outlive the step that moves them, with a trace of them or not."""
    learner = shaken(Learner(mlp(4, 6, 3), DirectFeedback(), Eligibility()))
    options = {"track_higher_grads": False}
    gc.disable()
    try:
        with higher.innerloop_ctx(learner, PlasticOptimizer(learner), **options) as pair:
            fmodel, diffopt = pair
            past = []
            for x, y in stream(episode()):
                diffopt.step(F.cross_entropy(fmodel(x), y))
                past.append(weakref.ref(fmodel.fast_params[0]))
            assert [fast() is None for fast in past] == [True] * (len(past) - 1) + [False]
    finally:
        gc.enable()


def test_autograd_never_enters_the_hidden_layers():
    """No backward pass of the network's: a step takes the slope at the output alone."""
    learner, episodes = learner_for("FLP"), episode()
    (x, y), *_ = stream(episodes)
    with higher.innerloop_ctx(learner, PlasticOptimizer(learner)) as (fmodel, diffopt):
        for weight in list(fmodel.parameters()):
            weight.register_hook(lambda _: pytest.fail("a gradient reached a weight"))
        output = fmodel(x)
        diffopt.step(F.cross_entropy(output, y))


def test_subclasses_are_registered_too():
    class Renamed(PlasticOptimizer):
        pass

    learner = learner_for("FLP")
    with higher.innerloop_ctx(learner, Renamed(learner)) as (_, diffopt):
        assert isinstance(diffopt, higher.optim.DifferentiableOptimizer)
