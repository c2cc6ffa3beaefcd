"""The page about hosts: its examples run, and what it says of learn2learn's transforms is so."""

from __future__ import annotations

import math
import random
from typing import Any

import learn2learn as l2l
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaplastic import Backprop, Learner, Oja, SquaredError
from tests.helpers import normal, page_examples

EXAMPLES = page_examples("hosts.md")


def test_every_host_has_an_example():
    assert [s for s, _ in EXAMPLES] == ["learn2learn", "higher", "plain torch", "plain torch"]


@pytest.mark.parametrize("code", [code for _, code in EXAMPLES], ids=[s for s, _ in EXAMPLES])
def test_the_example_runs_and_answers_better_than_chance(code):
    torch.manual_seed(0)
    random.seed(0)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/hosts.md", "exec"), names)
    assert float(names["query"].detach()) < 0.9 * math.log(5)
    for parameter in names.get("maml", names["learner"]).parameters():
        assert bool(parameter.grad.isfinite().all())
        assert bool(parameter.grad.any())


class Listening(nn.Module):
    """A transform with one learnable number that writes down all it is given."""

    def __init__(self, heard: list[tuple[tuple, dict]]) -> None:
        super().__init__()
        self.heard = heard
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.heard.append((args, kwargs))
        return args[0] * self.scale


def through_gbml(model: nn.Module, x: Tensor, y: Tensor, heard: list) -> None:
    gbml = l2l.algorithms.GBML(model, lambda _: Listening(heard), lr=0.1)
    task = gbml.clone()
    task.adapt(F.mse_loss(task(x), y))


def through_learnable_optimizer(model: nn.Module, x: Tensor, y: Tensor, heard: list) -> None:
    optimizer = l2l.optim.LearnableOptimizer(model, lambda _: Listening(heard), lr=0.1)
    F.mse_loss(model(x), y).backward()
    optimizer.step()


ROUTES = [through_gbml, through_learnable_optimizer]


def linear(shift: float) -> nn.Sequential:
    """One layer whose answer to any input is moved by ``shift``, without another input."""
    layer = nn.Linear(3, 2).double()
    layer.weight.data = normal(2, 3, seed=1)
    layer.bias.data = torch.full((2,), shift, dtype=torch.float64)
    return nn.Sequential(layer)


@pytest.mark.parametrize("route", ROUTES)
def test_a_transform_is_given_the_gradient_and_nothing_else(route):
    model, x, y = linear(0.0), normal(1, 3), normal(1, 2, seed=2)
    gradients = torch.autograd.grad(F.mse_loss(model(x), y), list(model.parameters()))
    heard: list[tuple[tuple, dict]] = []
    route(model, x, y, heard)
    assert len(heard) == len(gradients)
    for (args, kwargs), gradient in zip(heard, gradients, strict=True):
        assert kwargs == {}
        assert len(args) == 1
        assert torch.equal(args[0], gradient)


@pytest.mark.parametrize("route", ROUTES)
def test_two_situations_that_a_transform_cannot_tell_apart_are_two_for_oja(route):
    """The same input and error at another activity of the output units."""
    x, error = normal(1, 3), normal(1, 2, seed=2)
    heard, changes = [], []
    for shift in (0.0, 1.0):
        model = linear(shift)
        y = (model(x) + error).detach()
        learner = Learner(linear(shift), Backprop(), Oja(0.1), SquaredError()).double()
        learner.assign_grads(x, y)
        changes.append(learner.network.parameter("layer0_weight").grad)
        seen: list[tuple[tuple, dict]] = []
        route(model, x, y, seen)
        heard.append([args[0] for args, _ in seen])
    for a, b in zip(*heard, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert float((changes[0] - changes[1]).abs().max()) > 0.01
