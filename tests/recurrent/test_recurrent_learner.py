"""Recurrent learners in use: clones and steps, patterns, initial weights and what they learn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metaplastic import Episodes, Learner, Oja, PlasticityRule, SquaredError, Unrolled
from metaplastic.credit import Unsupervised
from metaplastic.errors import ConfigurationError
from metaplastic.evaluation import evaluate
from metaplastic.inner_loop import Rollout, draw
from metaplastic.networks import RecurrentNetwork
from metaplastic.rules import Backpropamine, Coefficient, DifferentiablePlasticity
from metaplastic.signals import State
from tests.helpers import (
    assert_close,
    classification,
    meta_gradient,
    normal,
    presentation,
    seeded,
    show,
)
from tests.recurrent.parts import FORMS, RATE, cases, plain, recurrent


def test_queries_go_on_from_the_stream_and_change_nothing():
    learner = recurrent(Backpropamine("retroactive", 0.5, RATE), "fanout", instruction=True)
    xs, ys, queries = normal(4, 1, 3), normal(4, 1, 2, seed=2), normal(5, 3, seed=3)
    asked, quiet = learner.clone(), learner.clone()
    for x, y in zip(xs, ys, strict=True):
        asked.adapt(x, y)
        asked(queries)
        quiet.adapt(x, y)
    output = quiet(queries)
    assert torch.equal(asked(queries), output)
    assert torch.equal(quiet(queries), output)
    state = show(learner, xs, ys)
    shown = torch.cat([queries, torch.zeros(5, 2).double()], dim=1)
    nothing = normal(0, 1, 5)
    wanted = plain(state["weights"], nothing, shown, before=state["network"]["hidden"])[1]
    assert torch.equal(output, wanted)
    assert not torch.allclose(
        plain(state["weights"], nothing, shown, torch.zeros(1, 4).double())[1], wanted
    )
    again = quiet.clone()
    again.adapt(xs[0], ys[0])
    assert torch.equal(quiet(queries), output)
    assert not torch.equal(again(queries), output)


def test_gradients_after_adapt_reach_the_original():
    """``clone`` and ``adapt`` by hand give the meta-gradient of Unrolled."""
    learner = recurrent(Backpropamine("simple", 0.5), "scalar", instruction=True, classes=True)
    episodes = classification(1, 4, 1, 3, 2)
    wanted = meta_gradient(learner, episodes)
    learner.zero_grad()
    fast = learner.clone()
    for x, y in zip(episodes.support_x[0], episodes.support_y[0], strict=True):
        fast.adapt(x, y)
    nn.functional.cross_entropy(fast(episodes.query_x[0]), episodes.query_y[0]).backward()
    assert_close({n: p.grad for n, p in learner.named_parameters()}, wanted, 1e-12)


def test_without_a_clone_examples_have_lives_of_their_own():
    learner = recurrent(Oja(0.1, 0.0), "scalar", instruction=True)
    x, y = normal(3, 3), normal(3, 2)
    shown = torch.cat([x, torch.zeros(3, 2).double()], dim=1)
    wanted = plain(learner.network.weights(), normal(0, 3, 5), shown)[1]
    assert torch.equal(learner(x), wanted)
    assert torch.equal(learner.network(x, learner.network.weights()), wanted)
    assert learner.assign_grads(x, y).shape == (3,)
    found = {n for n in learner.network.groups() if learner.network.parameter(n).grad is not None}
    assert found == learner.plastic == {"input_weight", "recurrent_weight", "output_weight"}


@cases
def test_a_step_is_pure(form, modulator):
    learner = recurrent(FORMS[form][0](), modulator, instruction=True)

    def flat(tree: State) -> list[Tensor]:
        parts = [flat(v) if isinstance(v, dict) else [v] for v in tree.values()]
        return [tensor for part in parts for tensor in part]

    x, y = normal(1, 3), normal(1, 2)
    state = show(learner, normal(2, 1, 3, seed=5), normal(2, 1, 2, seed=6))
    before = [t.clone() for t in flat(state)]
    with torch.inference_mode():
        after = learner.step(state, presentation(learner, x, y))
    assert all(torch.equal(a, b) for a, b in zip(before, flat(state), strict=True))
    for old, new in zip(before, flat(after), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
    for a, b in zip(
        flat(learner.step(state, presentation(learner, x, y))), flat(after), strict=True
    ):
        assert torch.equal(a, b)


def test_patterns_reach_the_groups_by_name_role_and_position():
    def plastic(pattern: str) -> frozenset[str]:
        network = RecurrentNetwork(3, 4, 2, modulator="fanout")
        return Learner(network, Unsupervised(), {pattern: Oja(0.1, 0.0)}).plastic

    hidden = {"input_weight", "recurrent_weight", "hidden_bias"}
    output = {"output_weight", "output_bias"}
    assert plastic("position:first") == hidden
    assert plastic("position:last") == output
    assert plastic("role:bias") == {"hidden_bias", "output_bias"}
    assert plastic("*") == hidden | output
    with pytest.raises(ConfigurationError, match="matches no synapse group"):
        plastic("role:modulator")


def test_initial_weights_come_from_the_generator():
    def made(seed: int | None) -> dict[str, Tensor]:
        g = None if seed is None else seeded(seed)
        return RecurrentNetwork(3, 400, 2, modulator="fanout", generator=g).weights()

    one, same, other = made(0), made(None), made(1)
    assert all(torch.equal(one[n], same[n]) for n in one)
    assert not torch.equal(one["recurrent_weight"], other["recurrent_weight"])
    assert abs(float(one["recurrent_weight"].detach().std()) * 20 - 1) < 0.02
    assert bool((one["fanout_weight"] == 1).all())
    assert all(v.dtype == torch.float32 for v in one.values())
    learner = Learner(RecurrentNetwork(3, 4, 2), Unsupervised(), Oja(0.1, 0.0), initial="resampled")
    episodes = classification(2, 3, 1, 3, 2)
    begun = Rollout(learner, episodes, draw(learner, episodes, seeded(1))).moving
    assert not torch.equal(*begun["weights"]["recurrent_weight"])
    assert begun["network"]["hidden"].shape == (2, 1, 4)


def test_a_fan_out_starts_as_the_scalar_modulator():
    xs, ys = normal(4, 1, 3), normal(4, 1, 2)
    found = []
    for modulator in ("scalar", "fanout"):
        network = RecurrentNetwork(3, 4, 2, modulator=modulator).double()
        learner = Learner(network, Unsupervised(), Backpropamine(alpha=0.5), SquaredError())
        found.append(show(learner, xs, ys)["weights"])
    assert all(torch.equal(w, found[1][n]) for n, w in found[0].items())


def associations(episodes: int, generator: torch.Generator) -> Episodes:
    """Six random patterns, each shown once with its random label, and asked for again."""
    x = torch.randn(episodes, 6, 10, generator=generator).sign()
    y = torch.randint(2, (episodes, 6), generator=generator)
    return Episodes(x.unsqueeze(2), y.unsqueeze(2), x, y)


def test_plastic_networks_learn_to_associate_where_a_static_one_does_not():
    def accuracy(rule: PlasticityRule | None, modulator=None) -> float:
        network = RecurrentNetwork(10, 16, 2, modulator=modulator, instruction=True)
        learner = Learner(network, Unsupervised(), rule)
        optimiser = torch.optim.Adam(learner.parameters(), lr=0.01)
        generator = seeded(0)
        for _ in range(150):
            optimiser.zero_grad()
            Unrolled().gradient(learner, associations(32, generator))
            optimiser.step()
        scores = evaluate(learner, associations(256, seeded(99))).accuracy
        assert scores is not None
        return float(scores.mean())

    static = accuracy(None)
    assert static < 0.75
    assert accuracy(DifferentiablePlasticity("clip", 0.1, 0.3)) > static + 0.15
    assert accuracy(Backpropamine("simple", 0.1), "scalar") > static + 0.15


def test_coefficients_of_ones_own_reach_the_network():
    rule = DifferentiablePlasticity(alpha=Coefficient(0.4, granularity="neuron"))
    learner = recurrent(rule)
    assert learner.get_parameter("rules.recurrent_weight.alpha.raw").shape == (4, 1)
    rates = {id(learner.rules[n].rate) for n in learner.plastic}
    assert len(rates) == 1  # one rate for the whole network
