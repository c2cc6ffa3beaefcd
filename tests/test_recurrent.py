"""Recurrent plastic networks against plain loops, autograd and their equations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaplastic import (
    Backprop,
    CrossEntropy,
    Episodes,
    Hebb,
    Learner,
    Oja,
    PlasticityRule,
    SquaredError,
    Unrolled,
)
from metaplastic.credit import Unsupervised
from metaplastic.errors import (
    CompatibilityError,
    ConfigurationError,
    DataError,
    ShapeError,
    UnsupportedLayerError,
)
from metaplastic.evaluation import evaluate
from metaplastic.inner_loop import Rollout, draw
from metaplastic.networks import RecurrentNetwork
from metaplastic.rules import Backpropamine, Coefficient, DifferentiablePlasticity, Eligibility
from metaplastic.signals import State
from tests.helpers import (
    assert_close,
    classification,
    deviation,
    meta_gradient,
    mlp,
    normal,
    presentation,
    regression,
    seeded,
    shake,
    show,
    slope_error,
    unit_direction,
)
from tests.rules.scalar import Synapse

RATE = 0.3
SILENT = Coefficient(0.0, learned=False)
"""A mix that never reads the teaching signal."""
Make = Callable[[], PlasticityRule]
STATIC_FORMS: dict[str, tuple[Make, dict]] = {
    "decay": (lambda: DifferentiablePlasticity("decay", 0.5, RATE), {}),
    "oja": (lambda: DifferentiablePlasticity("oja", 0.5, RATE), {}),
    "clip": (lambda: DifferentiablePlasticity("clip", 0.5, RATE, bound=0.5), {"bound": 0.5}),
}
MODULATED_FORMS: dict[str, tuple[Make, dict]] = {
    "simple": (lambda: Backpropamine("simple", 0.5, clip=None), {}),
    "simple-hard": (
        lambda: Backpropamine("simple", 0.5, bound=0.3),
        {"clip": "hard", "bound": 0.3},
    ),
    "simple-soft": (lambda: Backpropamine("simple", 0.5, clip="soft"), {"clip": "soft"}),
    "retroactive": (lambda: Backpropamine("retroactive", 0.5, RATE), {"clip": "hard"}),
    "retroactive-soft": (
        lambda: Backpropamine("retroactive", 0.5, RATE, clip="soft"),
        {"clip": "soft"},
    ),
    "eligibility": (lambda: Eligibility(RATE, 4.0), {"tau": 4.0}),
}
FORMS = STATIC_FORMS | MODULATED_FORMS
CASES = [(form, None) for form in STATIC_FORMS] + [
    (form, kind) for form in MODULATED_FORMS for kind in ("scalar", "fanout")
]
cases = pytest.mark.parametrize(("form", "modulator"), CASES)


def recurrent(
    rule: PlasticityRule | None,
    modulator=None,
    *,
    instruction: bool = False,
    classes: bool = False,
    activation: nn.Module | None = None,
    pattern: str = "role:weight",
    seed: int = 1,
) -> Learner:
    """3-4-2 units in float64, every Parameter at random but the rates."""
    network = RecurrentNetwork(
        3, 4, 2, modulator=modulator, instruction=instruction, activation=activation
    ).double()
    learner = Learner(
        network,
        Unsupervised(),
        None if rule is None else {pattern: rule},
        CrossEntropy() if classes else SquaredError(),
    )
    return shake(learner, seed, initial=0.3, plasticity=0.3)


def plain(
    weights: dict[str, Tensor], xs: Tensor, queries: Tensor, before: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A static recurrent network: activity after xs (T, B, n), and outputs on queries."""

    def step(x: Tensor, h: Tensor) -> Tensor:
        driven = x @ weights["input_weight"].mT + weights["hidden_bias"].mT
        return (driven + h @ weights["recurrent_weight"].mT).tanh()

    h = xs.new_zeros(xs.shape[1], 4) if before is None else before
    for x in xs:
        h = step(x, h)
    return h, step(queries, h) @ weights["output_weight"].mT + weights["output_bias"].mT


def after_stream(learner: Learner, episodes: Episodes) -> Rollout:
    rollout = Rollout(learner, episodes, draw(learner, episodes, seeded()))
    rollout.advance(0, episodes.presentations)
    return rollout


# --- the whole network, one number at a time ---


def oracle(
    learner: Learner, form: str, xs: Tensor, ys: Tensor, queries: Tensor
) -> tuple[dict[str, list[list[float]]], list[list[float]], list[list[float]]]:
    """Weights and activity after the stream, and the outputs on queries, in Python numbers."""
    network = learner.network
    assert isinstance(network, RecurrentNetwork)
    w = {n: v.detach().tolist() for n, v in network.weights().items()}
    coefficients = {n: r.coefficients() for n, r in learner.rules.items()}  # type: ignore[operator]
    kind = FORMS[form][0]().__dict__.get("form", "eligibility")
    synapses = {}
    for name, values in coefficients.items():
        alpha = values.get("alpha", torch.zeros(1, 1)).detach().expand(len(w[name]), -1)
        synapses[name] = [
            [
                Synapse(
                    kind,
                    alpha=float(alpha[i, j % alpha.shape[1]]),
                    rate=RATE,
                    **FORMS[form][1],
                )
                for j in range(len(w[name][0]))
            ]
            for i in range(len(w[name]))
        ]

    def layer(matrix: str, bias: str | None, x: list[float]) -> list[float]:
        return [
            sum(a * b for a, b in zip(row, x, strict=True)) + (w[bias][i][0] if bias else 0.0)
            for i, row in enumerate(w[matrix])
        ]

    def step(drive: list[float], h: list[float]) -> list[float]:
        fed = zip(
            layer("input_weight", "hidden_bias", drive),
            layer("recurrent_weight", None, h),
            strict=True,
        )
        return [math.tanh(a + b) for a, b in fed]

    h = [[0.0] * 4 for _ in range(xs.shape[1])]
    for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
        drive = [a + b if network.instruction else a for a, b in zip(x, y, strict=True)]
        new = [step(d, a) for d, a in zip(drive, h, strict=True)]
        out = [layer("output_weight", "output_bias", a) for a in new]
        m, fan = [0.0 for _ in new], [[0.0] * 4 for _ in new]
        if network.modulator is not None:
            m = [math.tanh(layer("modulator_weight", "modulator_bias", a)[0]) for a in new]
            fan = [[value] * 4 for value in m]
        if network.modulator == "fanout":
            fan = [layer("fanout_weight", "fanout_bias", [value]) for value in m]
        ones = [[1.0] for _ in new]
        ends = {
            "input_weight": (drive, new, fan),
            "recurrent_weight": (h, new, fan),
            "hidden_bias": (ones, new, fan),
            "output_weight": (new, out, [[v] * 2 for v in m]),
            "output_bias": (ones, out, [[v] * 2 for v in m]),
        }
        for name, matrix in synapses.items():
            pre, post, third = ends[name]
            for i, row in enumerate(matrix):
                for j, synapse in enumerate(row):
                    w[name][i][j] += synapse.change(
                        [r[i] for r in post], [r[j] for r in pre], [r[i] for r in third]
                    )
        h = new
    blank = [0.0] * (2 if network.instruction else 0)
    answers = [
        layer("output_weight", "output_bias", step([*q, *blank], h[0])) for q in queries.tolist()
    ]
    return w, h, answers


@cases
@pytest.mark.parametrize("instruction", [False, True])
@pytest.mark.parametrize("pattern", ["role:weight", "name:recurrent_weight", "*"])
def test_the_network_equals_a_loop_over_numbers(form, modulator, instruction, pattern):
    learner = recurrent(FORMS[form][0](), modulator, instruction=instruction, pattern=pattern)
    xs, ys, queries = normal(3, 1, 3), normal(3, 1, 2, seed=2), normal(5, 3, seed=3)
    w, h, answers = oracle(learner, form, xs, ys, queries)
    state = show(learner, xs, ys)
    wanted = {n: torch.tensor(v, dtype=torch.float64) for n, v in w.items()}
    assert_close(state["weights"], wanted, 1e-13)
    assert deviation(state["network"]["hidden"], torch.tensor(h, dtype=torch.float64)) < 1e-13
    output = learner.network(queries, state["weights"], state["network"])
    assert deviation(output, torch.tensor(answers, dtype=torch.float64)) < 1e-13
    moved = {n for n in w if not torch.equal(state["weights"][n], learner.network.weights()[n])}
    assert moved == learner.plastic


@cases
def test_streams_side_by_side_share_their_synapses(form, modulator):
    """Three streams at once: activities of their own, changes from the mean over them."""
    learner = recurrent(FORMS[form][0](), modulator, instruction=True)
    xs, ys = normal(3, 3, 3), normal(3, 3, 2, seed=2)
    w, h, _ = oracle(learner, form, xs, ys, normal(1, 3))
    state = show(learner, xs, ys)
    wanted = {n: torch.tensor(v, dtype=torch.float64) for n, v in w.items()}
    assert_close(state["weights"], wanted, 1e-13)
    assert deviation(state["network"]["hidden"], torch.tensor(h, dtype=torch.float64)) < 1e-13


# --- limits ---


def silenced(form: str) -> Learner:
    """No alpha, or no modulator."""
    learner = recurrent(FORMS[form][0](), "scalar" if form in MODULATED_FORMS else None)
    if form in MODULATED_FORMS:
        for group in ("modulator_weight", "modulator_bias"):
            learner.network.parameter(group).data.zero_()
    else:
        for group in learner.plastic:
            learner.get_parameter(f"rules.{group}.alpha.raw").data.zero_()
    return learner


@pytest.mark.parametrize("form", FORMS)
def test_b10_no_alpha_or_no_modulator_is_the_static_network(form):
    learner = silenced(form)
    xs, ys, queries = normal(6, 1, 3), normal(6, 1, 2, seed=2), normal(5, 3, seed=3)
    fast = learner.clone()
    for x, y in zip(xs, ys, strict=True):
        fast.adapt(x, y)
    weights = learner.network.weights()
    assert torch.equal(fast(queries), plain(weights, xs, queries)[1])
    assert torch.equal(show(learner, xs, ys)["network"]["hidden"], plain(weights, xs, queries)[0])

    # What reaches the initial weights is backpropagation through time.
    episodes = Episodes(xs[None], ys[None], queries[None], normal(1, 5, 2, seed=4))
    found = meta_gradient(learner, episodes)
    loss = (plain(weights, xs, queries)[1] - episodes.query_y[0]).square().mean()
    names = [n for n in weights if not n.startswith("modulator")]
    wanted = torch.autograd.grad(loss, [learner.network.parameter(n) for n in names])
    kept = {n: found[f"network.{n}"] for n in names}
    assert_close(kept, dict(zip(names, wanted, strict=True)), 1e-12)


def test_a_network_without_rules_still_lives_through_the_stream():
    learner = recurrent(None)
    episodes = regression(3, 4, 1, 3, 2)
    outputs = after_stream(learner, episodes).outputs()
    for e in range(3):
        weights = learner.network.weights()
        wanted = plain(weights, episodes.support_x[e], episodes.query_x[e])[1]
        torch.testing.assert_close(outputs[e], wanted, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("m", [0.4, -0.7])
def test_b11_constant_modulator_without_clip_is_additive_hebb(m):
    learner = recurrent(Backpropamine("simple", 0.5, clip=None), "scalar")
    learner.network.parameter("modulator_weight").data.zero_()
    learner.network.parameter("modulator_bias").data.fill_(math.atanh(m))
    hebb = Learner(
        learner.network,
        Unsupervised(),
        Hebb(0.0, SILENT, bounded=False, reduction="positions"),
        SquaredError(),
    )
    for group in learner.plastic:
        alpha = learner.get_parameter(f"rules.{group}.alpha.raw")
        hebb.get_parameter(f"rules.{group}.plasticity.raw").data = m * alpha.data
    xs, ys = normal(6, 2, 3), normal(6, 2, 2, seed=2)
    found, wanted = show(learner, xs, ys), show(hebb, xs, ys)
    assert_close(found["weights"], wanted["weights"], 1e-12)
    assert deviation(found["network"]["hidden"], wanted["network"]["hidden"]) < 1e-12
    for group, traces in found["rule"].items():
        alpha = learner.get_parameter(f"rules.{group}.alpha.raw")
        start = learner.network.weights()[group]
        assert deviation(start + alpha * traces["hebb"], found["weights"][group]) < 1e-12


# --- many episodes ---


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


# --- what the groups see ---


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.Sigmoid()])
def test_observe_gives_what_was_asked_for_and_no_more(activation):
    learner = recurrent(Backpropamine(), "fanout", activation=activation)
    network, state = learner.network, show(learner, normal(2, 3, 3), normal(2, 3, 2))
    shown = presentation(learner, normal(3, 3, seed=5), normal(3, 2))
    everything = dict.fromkeys(network.groups(), frozenset({"gain", "modulator"}))
    seen = network.observe(shown, state["weights"], state["network"], everything)
    assert seen.signals.keys() == {n for n, g in network.groups().items() if g.taught}
    hidden, w = seen.state["hidden"], state["weights"]
    assert torch.equal(seen.output, hidden @ w["output_weight"].mT + w["output_bias"].mT)
    for name, group in network.groups().items():
        if not group.taught:
            continue
        signals = seen.signals[name]
        assert signals.pre.shape == (3, group.n_in)
        assert signals.post.shape == signals.gain.shape == (3, group.n_out)
        assert signals.teaching is None
        slope = {"Tanh": 1 - hidden**2, "Sigmoid": hidden * (1 - hidden)}[type(activation).__name__]
        last = group.position == 1
        wanted = torch.ones(3, 2).double() if last else slope
        assert deviation(signals.gain, wanted) < 1e-15
        assert signals.modulator.shape == ((3, 1) if last else (3, 4))
    bare = network.observe(shown, w, state["network"], {"input_weight": frozenset()}).signals
    assert bare.keys() == {"input_weight"}
    assert bare["input_weight"].gain is bare["input_weight"].modulator is None


def test_a_layered_network_observes_with_slopes_alone():
    learner = Learner(mlp(3, 5, 2), Unsupervised(), Oja(0.1, 0.0), SquaredError())
    network, weights = learner.network, learner.network.weights()
    shown = presentation(learner, normal(4, 3), normal(4, 2))
    needs = {"layer0_weight": frozenset({"gain"}), "layer1_bias": frozenset()}
    seen = network.observe(shown, weights, {}, needs)
    assert seen.state == {}
    assert torch.equal(seen.output, network(shown.x, weights))
    post = seen.signals["layer0_weight"].post
    assert torch.equal(seen.signals["layer0_weight"].gain, 1 - post * post)
    assert seen.signals["layer1_bias"].gain is None
    assert network.provides == {"gain"}


# --- the learner's face ---


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


# --- learning ---


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


# --- an unsupervised layered network ---


def test_layered_networks_learn_unsupervised_too():
    learner = Learner(mlp(3, 5, 2), Unsupervised(), Oja(0.2, SILENT, bounded=False), SquaredError())
    x, y = normal(1, 4, 3), normal(1, 4, 2)
    w = {n: v.detach() for n, v in learner.network.weights().items()}
    found = show(learner, x, y)["weights"]
    hidden = (x[0] @ w["layer0_weight"].T + w["layer0_bias"].T).tanh()
    output = hidden @ w["layer1_weight"].T + w["layer1_bias"].T
    for name, pre, post in (("layer0_weight", x[0], hidden), ("layer1_weight", hidden, output)):
        change = post.T @ pre - (post * post).sum(0)[:, None] * w[name]
        assert deviation(found[name], w[name] + 0.2 * change) < 1e-13
    gradient = meta_gradient(learner, regression(2, 3, 2, 3, 2))
    assert all(float(g.abs().max()) > 0 for n, g in gradient.items() if "mix" not in n)


# --- errors ---


def test_a_rule_that_needs_more_than_the_network_says_is_an_error():
    network = RecurrentNetwork(3, 4, 2)
    with pytest.raises(CompatibilityError, match=r"needs \['modulator'\]"):
        Learner(network, Unsupervised(), Backpropamine())
    with pytest.raises(CompatibilityError, match=r"needs \['teaching'\]"):
        Learner(network, Unsupervised(), Oja())
    with pytest.raises(CompatibilityError, match=r"needs \['modulator'\]"):
        Learner(mlp(3, 2), Unsupervised(), Backpropamine())
    with pytest.raises(CompatibilityError, match="runs through a LayeredNetwork"):
        Learner(network, Backprop(), Oja())


def test_one_stream_at_a_time():
    learner = recurrent(Oja(0.1, 0.0))
    fast = learner.clone()
    fast.adapt(normal(3, 3), normal(3, 2))  # the first presentation says how many streams there are
    with pytest.raises(ShapeError, match="got 2 examples for the activity of 3"):
        fast.adapt(normal(2, 3), normal(2, 2))
    episodes = regression(1, 2, 3, 3, 2, queries=5)
    with pytest.raises(ShapeError, match="3 streams were shown and 5 queries"):
        evaluate(learner, episodes)
    assert evaluate(learner, regression(2, 2, 3, 3, 2, queries=3)).loss.shape == (2,)


def test_wrong_sizes_and_data_are_errors():
    with pytest.raises(ConfigurationError, match="got 3, 0 and 2"):
        RecurrentNetwork(3, 0, 2)
    with pytest.raises(ConfigurationError, match="modulator must be one of"):
        RecurrentNetwork(3, 4, 2, modulator="vector")
    with pytest.raises(UnsupportedLayerError, match="whose slope is known"):
        RecurrentNetwork(3, 4, 2, activation=nn.Softmax(-1))
    learner = recurrent(Oja(0.1, 0.0))
    with pytest.raises(ShapeError, match="must have 3 numbers, got 4"):
        learner(normal(2, 4))
    with pytest.raises(DataError, match="floating point"):
        learner(torch.ones(2, 3, dtype=torch.int64))
    instructed = recurrent(Oja(0.1, 0.0), instruction=True).clone()
    with pytest.raises(CompatibilityError, match=r"call adapt\(x, y\)"):
        instructed.adapt(instructed(normal(1, 3)).square().mean())
    assert instructed(normal(2, 1, 3)).shape == (2, 2)


def test_coefficients_of_ones_own_reach_the_network():
    rule = DifferentiablePlasticity(alpha=Coefficient(0.4, granularity="neuron"))
    learner = recurrent(rule)
    assert learner.get_parameter("rules.recurrent_weight.alpha.raw").shape == (4, 1)
    rates = {id(learner.rules[n].rate) for n in learner.plastic}
    assert len(rates) == 1  # one rate for the whole network
