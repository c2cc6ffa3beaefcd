"""Many recurrent episodes, ragged ones too, and gradients through their steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaplastic import Learner, Unrolled
from metaplastic.evaluation import evaluate
from metaplastic.rules import Backpropamine, DifferentiablePlasticity
from tests.helpers import (
    assert_close,
    classification,
    deviation,
    meta_gradient,
    normal,
    regression,
    show,
    slope_error,
    unit_direction,
)
from tests.recurrent.parts import FORMS, RATE, after_stream, cases, recurrent


@cases
def test_b14_lifetimes_are_independent(form, modulator):
    """Perturbing one episode changes nothing in the others; nor has it a slope there."""
    learner = recurrent(FORMS[form][0](), modulator, instruction=True)
    episodes = regression(3, 5, 1, 3, 2)
    before = after_stream(learner, episodes)
    for k in range(3):
        x, y = episodes.support_x.clone(), episodes.support_y.clone()
        x[k], y[k] = x[k] + 1.0, y[k] - 2.0
        x.requires_grad_()
        after = after_stream(learner, replace(episodes, support_x=x, support_y=y))
        others = [e for e in range(3) if e != k]
        assert torch.equal(after.outputs()[others], before.outputs()[others])
        assert not torch.equal(after.outputs()[k], before.outputs()[k])
        for name, weights in after.moving["weights"].items():
            assert torch.equal(weights[others], before.moving["weights"][name][others])
        (slope,) = torch.autograd.grad(after.outputs()[k].sum(), x)
        assert float(slope[others].abs().max()) == 0.0
        assert float(slope[k].abs().max()) > 0.0


@cases
def test_all_ways_through_the_loop_give_one_gradient(form, modulator):
    learner = recurrent(FORMS[form][0](), modulator, instruction=True, classes=True)
    episodes = classification(3, 5, 1, 3, 2)
    wanted = meta_gradient(learner, episodes, Unrolled(batching="loop"))
    for method in (
        Unrolled(batching="vmap"),
        Unrolled(batching="vmap", checkpoint_every=2),
        Unrolled(batching="loop", checkpoint_every=1),
        Unrolled(truncate=5),
    ):
        assert_close(meta_gradient(learner, episodes, method), wanted, 1e-12)
    each = [meta_gradient(learner, episodes[[e]]) for e in range(3)]
    assert_close({n: torch.stack([g[n] for g in each]).mean(0) for n in wanted}, wanted, 1e-12)
    loss = Unrolled().gradient(learner, episodes).loss
    assert deviation(evaluate(learner, episodes).loss, loss) < 1e-13


# --- gradients ---


class Life(nn.Module):
    """Five presentations, then queries, as one function of Parameters and inputs."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, xs: Tensor, ys: Tensor, queries: Tensor) -> Tensor:
        state = show(self.learner, xs, ys)
        return self.learner.network(queries, state["weights"], state["network"])


@cases
def test_b15_gradcheck_through_five_steps(form, modulator):
    """Wide clips (0.5 and 0.3 cut in other tests), so that no kink is near."""
    rule = FORMS[form][0]()
    if isinstance(rule, DifferentiablePlasticity | Backpropamine):
        rule.bound = 10.0
    learner = recurrent(rule, modulator, instruction=True)
    life, names = Life(learner), [n for n, _ in learner.named_parameters()]

    def answer(*leaves: Tensor) -> Tensor:
        parameters = {f"learner.{n}": p for n, p in zip(names, leaves[3:], strict=True)}
        return functional_call(life, parameters, leaves[:3])

    inputs = [normal(5, 1, 3), normal(5, 1, 2, seed=2), normal(2, 3, seed=3)]
    inputs += [p.detach().clone() for p in learner.parameters()]
    leaves = [v.requires_grad_() for v in inputs]
    assert torch.autograd.gradcheck(answer, leaves, eps=1e-6, atol=1e-5)
    slopes = torch.autograd.grad(answer(*leaves).sum(), leaves)
    assert all(float(s.abs().max()) > 0 for s in slopes)


@cases
@pytest.mark.parametrize("checkpoint_every", [None, 2])
def test_meta_gradient_equals_central_differences(form, modulator, checkpoint_every):
    learner = recurrent(FORMS[form][0](), modulator, instruction=True, classes=True)
    episodes = classification(2, 5, 1, 3, 2)
    gradient = meta_gradient(learner, episodes, Unrolled(checkpoint_every=checkpoint_every))
    for seed, pattern in enumerate(("", "^network", "^rules")):
        direction = unit_direction(learner, seed, pattern)
        assert slope_error(learner, episodes, direction, gradient) < 1e-6


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Sigmoid(), nn.Identity()])
def test_other_activation_functions(activation):
    rule = DifferentiablePlasticity("clip", 0.3, RATE)
    learner = recurrent(rule, activation=activation)
    episodes = regression(2, 4, 1, 3, 2)
    gradient = meta_gradient(learner, episodes)
    assert slope_error(learner, episodes, unit_direction(learner, 0), gradient) < 1e-6


# --- ragged streams ---


@cases
@pytest.mark.parametrize("place", [0, 2, 4])
def test_padding_does_not_move_the_network(form, modulator, place):
    learner = recurrent(FORMS[form][0](), modulator, instruction=True)
    short = regression(2, 4, 1, 3, 2)

    def padded(values: Tensor) -> Tensor:
        filler = 3.0 * normal(*values[:, :1].shape, seed=9)
        return torch.cat([values[:, :place], filler, values[:, place:]], dim=1)

    weight = torch.ones(2, 5, 1).double()
    weight[:, place] = 0.0
    ragged = replace(
        short,
        support_x=padded(short.support_x),
        support_y=padded(short.support_y),
        support_weight=weight,
    )
    found, wanted = after_stream(learner, ragged), after_stream(learner, short)
    torch.testing.assert_close(found.outputs(), wanted.outputs(), rtol=1e-13, atol=1e-15)
    hidden = found.moving["network"]["hidden"]
    torch.testing.assert_close(hidden, wanted.moving["network"]["hidden"], rtol=1e-13, atol=1e-15)
    assert_close(meta_gradient(learner, ragged), meta_gradient(learner, short), 1e-12)
