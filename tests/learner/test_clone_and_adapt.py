"""Learn2learn's face: ``clone`` and ``adapt``, to examples or to their loss."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from metaplastic import CrossEntropy, DirectFeedback, Oja, SquaredError, Unrolled
from metaplastic.errors import CompatibilityError, ConfigurationError
from tests.helpers import (
    assert_close,
    classification,
    deviation,
    meta_gradient,
    normal,
    presentation,
    seeded,
)
from tests.learner.parts import batch, classifier


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("scale", ["example", "batch"])
def test_adapt_to_examples_equals_adapt_to_their_loss(scale, size):
    """Both in the weights and in the gradient that reaches the Parameters."""
    learner = classifier({"*": Oja(0.1)}, objective=CrossEntropy(scale=scale))
    query, answer = normal(5, 4), torch.tensor([0, 1, 2, 0, 1])
    found = []
    for given in ("examples", "loss"):
        fast = learner.clone()
        for step in range(3):
            x, y = normal(size, 4, seed=step), torch.randint(3, (size,), generator=seeded(step))
            fast.adapt(x, y) if given == "examples" else fast.adapt(F.cross_entropy(fast(x), y))
        learner.zero_grad()
        F.cross_entropy(fast(query), answer).backward()
        found.append({n: p.grad.clone() for n, p in learner.named_parameters()})
    assert_close(found[1], found[0], 1e-11)


def test_adapt_to_half_the_summed_square_is_adapt_to_the_targets():
    """The convention of SquaredError: the error is y - output."""
    learner = classifier({"*": Oja(0.1)}, objective=SquaredError())
    x, y, query = normal(3, 4), normal(3, 3, seed=1), normal(5, 4, seed=2)
    one, two = learner.clone(), learner.clone()
    one.adapt(x, y)
    two.adapt(0.5 * (two(x) - y).square().sum(-1).mean())
    assert deviation(two(query), one(query)) < 1e-13


def test_clone_gives_the_meta_gradient_of_the_unrolled_loop():
    learner = classifier()
    episodes = classification(2, 4, 3, 4, 3)
    for first_order in (False, True):
        wanted = meta_gradient(learner, episodes, Unrolled(first_order=first_order))
        learner.zero_grad()
        for e in range(2):
            fast = learner.clone(first_order=first_order)
            for x, y in zip(episodes.support_x[e], episodes.support_y[e], strict=True):
                fast.adapt(x, y)
            loss = F.cross_entropy(fast(episodes.query_x[e]), episodes.query_y[e])
            (loss / 2).backward()
        assert_close({n: p.grad for n, p in learner.named_parameters()}, wanted, 1e-12)


def test_clone_shares_parameters_and_leaves_the_original_as_it_was():
    learner = classifier()
    x, y = batch()
    before = copy.deepcopy(learner.state_dict())
    output = learner(x)
    fast = learner.clone()
    assert [id(p) for p in fast.parameters()] == [id(p) for p in learner.parameters()]
    fast.adapt(x, y)
    deeper = fast.clone()
    halfway = fast(x)
    deeper.adapt(x, y)
    assert not torch.equal(halfway, output)
    assert not torch.equal(deeper(x), halfway)
    assert torch.equal(fast(x), halfway)
    assert torch.equal(learner(x), output)
    assert all(torch.equal(v, before[n]) for n, v in learner.state_dict().items())


def test_clone_has_fast_weights_of_its_own():
    """An optimiser step on the original does not reach a clone made before it."""
    learner = classifier()
    x, y = batch()
    fast, adapted = learner.clone(), learner.clone()
    adapted.adapt(x, y)
    before = fast(x).detach().clone(), adapted(x).detach().clone()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(1.0)
    assert torch.equal(fast(x), before[0])
    assert torch.equal(adapted(x), before[1])


def test_step_changes_none_of_its_inputs():
    learner = classifier({"*": Oja(0.1)})
    x, y = batch()
    state = learner.start(3)
    shown = presentation(learner, x, y)
    given = [x, y, *(w for part in ("weights",) for w in state[part].values())]
    given += [v for values in state["coefficients"].values() for v in values.values()]
    copies = [t.detach().clone() for t in given]
    versions = [t._version for t in given]
    after = learner.step(state, shown)
    assert all(torch.equal(t, c) for t, c in zip(given, copies, strict=True))
    assert versions == [t._version for t in given]
    assert after.keys() == state.keys()
    assert after["weights"].keys() == state["weights"].keys()


def test_field_is_the_change_that_step_applies():
    learner = classifier({"*": Oja(0.1)})
    x, y = batch()
    state, shown = learner.start(3), presentation(learner, x, y)
    change, after = learner.field(state, shown), learner.step(state, shown)
    assert change.keys() == learner.plastic
    for name, delta in change.items():
        assert torch.equal(after["weights"][name], state["weights"][name] + delta)


def test_adapt_without_gradients_gives_the_same_weights():
    learner = classifier()
    x, y = batch()
    outputs = []
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            fast = learner.clone()
            fast.adapt(x, y)
            outputs.append(fast(x))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_learn2learns_arguments_are_accepted():
    learner = classifier()
    x, y = batch()
    fast = learner.clone(first_order=False, allow_unused=True, allow_nograd=True)
    fast.adapt(F.cross_entropy(fast(x), y), first_order=False, allow_unused=True)
    assert fast.module is learner.network


def test_adapt_needs_a_clone_and_a_loss_of_its_last_output():
    learner = classifier()
    x, y = batch()
    with pytest.raises(ConfigurationError, match="clone"):
        learner.adapt(x, y)
    fast = learner.clone()
    with pytest.raises(ConfigurationError, match="last output"):
        fast.adapt(torch.zeros((), requires_grad=True))
    with torch.no_grad():
        blind = F.cross_entropy(fast(x), y)
    with pytest.raises(ConfigurationError, match="gradients"):
        fast.adapt(blind)
    with pytest.raises(ConfigurationError, match="scalar"):
        fast.adapt(F.cross_entropy(fast(x), y, reduction="none"))
    loss = F.cross_entropy(fast(x), y)
    fast.adapt(loss)
    with pytest.raises(ConfigurationError, match="adapt once"):
        fast.adapt(loss)


def test_adapt_to_the_loss_of_another_learner_is_an_error():
    learner, x, y = classifier(), *batch()
    fast, other = learner.clone(), learner.clone()
    fast(x)
    with pytest.raises(ConfigurationError, match="last output"):
        fast.adapt(F.cross_entropy(other(x), y))


def test_adapt_to_a_loss_does_not_hold_the_target():
    learner = classifier(credit=DirectFeedback("target"))
    x, y = batch()
    fast = learner.clone()
    with pytest.raises(CompatibilityError, match="target"):
        fast.adapt(F.cross_entropy(fast(x), y))
