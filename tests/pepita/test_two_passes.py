"""The changes themselves: by hand, their locality, limits, masks and symmetries."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from metaplastic import Delta, InputModulation, LayeredNetwork, Learner, Presentation
from metaplastic.objectives import CrossEntropy
from metaplastic.signals import GivenError, Teacher
from metaplastic.testing.oracles import copied, without_autograd
from tests.helpers import assert_close, deviation, heard, mlp, normal
from tests.pepita.parts import (
    FLAT,
    SIZES,
    X,
    Y,
    by_hand,
    chain,
    field,
    made,
    projected,
    set_projection,
    shown,
)

OPTIONS: dict[str, dict] = {
    "plain": {},
    "aligning": {"sign": -1},
    "clean pre": {"pre": "clean"},
    "clean error": {"output": "clean"},
    "clean": {"output": "clean", "pre": "clean"},
    "signs": {"error_sign": True},
    "dropout": {"keep": 0.6},
    "factors": {"feedback": "factors"},
    "streaming": {"streaming": True, "keep": 0.6},
    "hebbian": {"variant": "hebbian", "keep": 0.6},
    "hebbian streaming": {"variant": "hebbian", "streaming": True},
}
HIDDEN = ("layer0_weight", "layer1_weight")


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 2),
        ({"streaming": True}, 3),
        ({"variant": "hebbian"}, 2),
        ({"variant": "time-local"}, 2),
    ],
)
def test_pepita_t01_no_autograd_and_no_third_pass(options: dict, count: int) -> None:
    network = nn.Sequential(*chain(), nn.Identity())
    calls = [0] * len(network)
    for i, module in enumerate(network):
        module.register_forward_hook(lambda *a, i=i: calls.__setitem__(i, calls[i] + 1))
    network.requires_grad_(False)
    learner = made(InputModulation(**options), network)
    with without_autograd():
        state = learner.start(len(X))
        after = learner.step(state, shown(learner, X, Y))
    assert calls[1::2] == [count] * 3  # the activation functions, one behind each layer
    assert all(w.grad_fn is None for w in after["weights"].values())
    for name in learner.plastic:
        assert not torch.equal(after["weights"][name], state["weights"][name])


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("options", OPTIONS)
def test_pepita_t02_the_published_formula_by_loops(options: str, batch: int) -> None:
    learner = made(InputModulation(scale=20.0, **OPTIONS[options]))
    given = shown(learner, X[:batch], Y[:batch])
    before = copied({"x": given.x, "weights": learner.start()["weights"]})
    with torch.no_grad():
        found = learner.field(learner.start(batch), given)
    credit = learner.credit
    assert isinstance(credit, InputModulation)
    wanted = by_hand(learner, given, projected(learner), credit)
    for change, w in zip(found.values(), wanted, strict=True):
        assert float((change - w).abs().max()) < 1e-12
    assert torch.equal(given.x, before["x"])
    small = Learner(chain(), InputModulation(scale=20.0, **OPTIONS[options]), FLAT).float()
    single = replace(given, x=given.x.float(), noise=_float(given.noise))
    single = replace(single, teacher=Teacher(CrossEntropy(), given.teacher.target.float()))
    with torch.no_grad():
        rounded = small.field(small.start(batch), single)
    for change, w in zip(rounded.values(), wanted, strict=True):
        assert deviation(change.double(), w) < 1e-5


def _float(noise: Tensor | None) -> Tensor | None:
    return None if noise is None else noise.float()


def test_pepita_t02_one_layer_is_the_delta_rule_at_the_modulated_input() -> None:
    learner = made(InputModulation(scale=20.0), chain(6, 4))
    (found,) = field(learner).values()
    (weight,) = learner.network.weights().values()
    target = torch.eye(4).double()[Y]
    modulated = X + ((X @ weight.mT).softmax(-1) - target) @ projected(learner).mT
    error = target - (modulated @ weight.mT).softmax(-1)
    assert deviation(found, error.mT @ modulated / 5) < 1e-13


@pytest.mark.parametrize("streaming", [False, True])
def test_pepita_t02_biases_have_a_presynaptic_unit_of_1(streaming: bool) -> None:
    network = mlp(*SIZES, activation=nn.ReLU)
    learner = made(InputModulation(scale=20.0, streaming=streaming), network)
    found, target = field(learner), torch.eye(4).double()[Y]
    w = [p.detach() for p in network.parameters()]

    def run(x: Tensor) -> list[Tensor]:
        h = (x @ w[0].mT + w[1]).relu()
        g = (h @ w[2].mT + w[3]).relu()
        return [x, h, g, (g @ w[4].mT + w[5]).softmax(-1)]

    clean = run(X)
    moved = run(X + (clean[-1] - target) @ projected(learner).mT)
    for i in range(3):
        error = target - moved[-1] if i == 2 else moved[i + 1] - clean[i + 1]
        assert deviation(found[f"layer{i}_bias"], error.mean(0)[:, None]) < 1e-12
        assert deviation(found[f"layer{i}_weight"], error.mT @ moved[i] / 5) < 1e-12


def test_pepita_t03_a_layer_reads_four_activities() -> None:
    """Its change is a function of what it hears, whatever the other weights and its own are."""
    learner = made(InputModulation(scale=5.0, keep=0.8))
    given = shown(learner, X, Y)
    seen = heard(learner, given)
    wanted = field(learner)
    other = made(InputModulation(scale=5.0), chain(seed=1))
    weights = other.start()["weights"]
    for name in HIDDEN:
        rule, s = learner.rules[name], seen[name]
        assert isinstance(rule, Delta)
        assert (s.kind, s.modulator, s.pre_teaching, s.gain) == ("target", None, None, None)
        change, _ = rule.update(weights[name], s, {}, learner.start()["coefficients"][name])
        assert torch.equal(change.detach(), wanted[name])
        assert s.teaching is not None
        assert deviation(change, (s.teaching - s.post).mT @ s.pre / len(X)) < 1e-14


def test_pepita_t03_weights_above_do_not_matter_where_the_error_is_held() -> None:
    learner = made(InputModulation())
    given = GivenError(CrossEntropy(), normal(5, 4, seed=2))
    state = learner.start(5)
    found = []
    for factor in (1.0, -3.0):
        changed = {n: factor * state["weights"][n] for n in ("layer1_weight", "layer2_weight")}
        at = {**state, "weights": state["weights"] | changed}
        found.append(learner.field(at, Presentation(X, given)))
    assert torch.equal(found[0]["layer0_weight"], found[1]["layer0_weight"])
    assert not torch.equal(found[0]["layer1_weight"], found[1]["layer1_weight"])


class Step(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)


def test_pepita_t03_no_slope_is_evaluated() -> None:
    """Step functions, which have none, learn."""
    network = LayeredNetwork(chain())
    *hidden, last = network.layers
    network.layers = (*(replace(layer, activation=Step()) for layer in hidden), last)
    learner = made(InputModulation(scale=300.0), network)
    assert all(bool(change.any()) for change in field(learner).values())


def test_pepita_t04_without_projection_only_the_delta_rule_is_left() -> None:
    network = chain()
    learner = set_projection(made(InputModulation(), network), torch.zeros(6, 4))
    found = field(learner)
    assert all(not found[name].any() for name in HIDDEN)
    loss = nn.functional.cross_entropy(network(X), Y)
    (gradient,) = torch.autograd.grad(loss, list(network.parameters())[-1:])
    assert deviation(found["layer2_weight"], -gradient) < 1e-10


@pytest.mark.parametrize("options", [{}, {"streaming": True}, {"keep": 0.7}])
def test_pepita_t04_without_error_nothing_changes(options: dict) -> None:
    learner = made(InputModulation(**options))
    given = shown(learner, X, Y)

    class Pleased(Teacher):
        def error(self, output: Tensor) -> Tensor:
            wanted.append(self.link(output))
            return wanted[0] - self.link(output)

    wanted: list[Tensor] = []
    pleased = replace(given, teacher=Pleased(CrossEntropy(), given.teacher.target))
    with torch.no_grad():
        found = learner.field(learner.start(5), pleased)
    assert len(wanted) == 2
    assert torch.equal(*wanted)
    assert all(not change.any() for change in found.values())


def _linear_response(learner: Learner, h: Tensor, f: Tensor) -> list[Tensor]:
    """J_l F e of each hidden layer, the ReLUs held as they are in the clean pass."""
    *hidden, last = [w.detach() for w in learner.network.weights().values()]
    patterns = []
    for weight in hidden:
        v = h @ weight.mT
        patterns.append((v > 0).double())
        h = v.relu()
    moved = ((h @ last.mT).softmax(-1) - torch.eye(len(last)).double()[Y]) @ f.mT
    found = []
    for weight, on in zip(hidden, patterns, strict=True):
        moved = moved @ weight.mT * on
        found.append(moved)
    return found


def test_pepita_t05_to_first_order_the_input_moves_every_layer_linearly() -> None:
    x = normal(5, 64, seed=8)
    learner = made(InputModulation(), chain(64, 32, 32, 4))
    start = projected(learner)
    for scale, bound in ((1e-5, 1e-6), (1.0, 0.3)):
        f = scale * start
        seen = heard(set_projection(learner, f), shown(learner, x, Y))
        for name, wanted in zip(HIDDEN, _linear_response(learner, x, f), strict=True):
            s = seen[name]
            assert s.teaching is not None
            moved = (s.teaching - s.post).detach()
            assert float((moved - wanted).norm() / wanted.norm()) < bound
            # adaptive feedback alignment: the response times the clean activity below
            change = field(learner, x)[name]
            assert deviation(change, moved.mT @ s.pre.detach() / 5) < 1e-13
        first = _linear_response(learner, x, f)[0].mT @ x / 5
        found = field(learner, x)["layer0_weight"]
        assert float((found * first).sum() / (found.norm() * first.norm())) > 0.99


def test_pepita_t05_linear_networks_respond_exactly_and_oddly() -> None:
    network = chain(activation=nn.Identity)
    learner = made(InputModulation(scale=30.0), network)
    seen = heard(learner, shown(learner, X, Y))
    weights = [w.detach() for w in learner.network.weights().values()]
    e = (X @ weights[0].mT @ weights[1].mT @ weights[2].mT).softmax(-1) - torch.eye(4).double()[Y]
    moved = e @ projected(learner).mT
    for name, weight in zip(HIDDEN, weights[:2], strict=True):
        moved = moved @ weight.mT
        s = seen[name]
        assert s.teaching is not None
        assert deviation((s.teaching - s.post), moved) < 1e-12
    sums = []
    for size in (1.0, 0.1):
        f = size * projected(made(InputModulation()))
        sides = [field(set_projection(made(InputModulation()), s * f)) for s in (1, -1)]
        sums.append(float((sides[0]["layer0_weight"] + sides[1]["layer0_weight"]).norm()))
    assert sums[1] < 0.02 * sums[0]


def test_pepita_t06_dropped_units_take_no_part() -> None:
    """With one example: no row of their own, no column above; as the sign of the other mask."""
    learner = made(InputModulation(scale=20.0, keep=0.5))
    given = shown(learner, X[:1], Y[:1])
    assert given.noise is not None
    assert given.noise.shape == (1, 12)
    dropped = given.noise[0] >= 0.5
    assert 0 < int(dropped.sum()) < 12
    with torch.no_grad():
        found = learner.field(learner.start(1), given)
    first, second = dropped.split([5, 7])
    assert not found["layer0_weight"][first].any()
    assert not found["layer1_weight"][second].any()
    assert not found["layer1_weight"][:, first].any()
    assert not found["layer2_weight"][:, second].any()
    assert found["layer1_weight"].any()


@pytest.mark.parametrize("options", [{}, {"streaming": True}])
def test_pepita_t06_both_passes_share_their_masks(options: dict) -> None:
    """Without a projection two passes are the same, unless they are masked otherwise."""
    learner = set_projection(made(InputModulation(keep=0.5, **options)), torch.zeros(6, 4))
    found = field(learner)
    assert all(not found[name].any() for name in HIDDEN)
    assert found["layer2_weight"].any()
    seen = heard(learner, shown(learner, X, Y))["layer0_weight"]
    others = heard(learner, shown(learner, X, Y, seed=4))["layer0_weight"]
    assert not torch.equal(others.post, seen.post)


def test_pepita_t06_slopes_are_masked_too() -> None:
    learner = made(InputModulation(keep=0.5), mlp(*SIZES), {"*": Delta(1.0)})
    plain = made(InputModulation(), mlp(*SIZES), {"*": Delta(1.0)})
    given = shown(learner, X, Y)
    assert given.noise is not None
    mask = (given.noise[:, :5] < 0.5).double() / 0.5
    seen, clean = heard(learner, given)["layer0_bias"], heard(plain, given)["layer0_bias"]
    assert seen.gain is not None
    assert clean.gain is not None
    assert deviation(seen.gain, clean.gain * mask) < 1e-15
    assert deviation(seen.post, clean.post * mask) < 1e-15


def test_pepita_t15_permutations_and_duplicates() -> None:
    learner = made(InputModulation(scale=10.0))
    wanted = field(learner)
    order = torch.tensor([3, 0, 4, 1, 2])
    weights = {n: w.detach() for n, w in learner.network.weights().items()}
    swapped = chain()
    swapped[0].weight.data = weights["layer0_weight"][order]
    swapped[2].weight.data = weights["layer1_weight"][:, order]
    found = field(made(InputModulation(scale=10.0), swapped))
    moved = wanted | {
        "layer0_weight": wanted["layer0_weight"][order],
        "layer1_weight": wanted["layer1_weight"][:, order],
    }
    assert_close(found, moved, 1e-13)
    assert_close(field(learner, X[order], Y[order]), wanted, 1e-12)
    assert_close(field(learner, X.repeat(2, 1), Y.repeat(2)), wanted, 1e-12)
