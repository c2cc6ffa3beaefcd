"""What feedback control wants of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metaplastic import Delta, Learner
from metaplastic.credit import Backprop, CreditAssignment, FeedbackControl, StrongFeedbackControl
from tests.dfc.learners import TIMES, X, Y, apart, field, flat, learner
from tests.dfc.parts import degrees
from tests.helpers import presentation


def by_hand(made: Learner, x: Tensor, y: Tensor, nudge: float, leak: float) -> dict[str, Tensor]:
    """The analytic update of one example, by its definition, with autograd's Jacobian."""
    weights = {n: w.detach() for n, w in made.network.weights().items()}
    weights |= {n: w.detach() for n, w in made.credit.weights().items()}
    ends = ("weight", "bias", "feedback")
    w, b, q = ([weights[f"layer{i}_{end}"] for i in range(3)] for end in ends)

    def run(*added: Tensor) -> tuple[Tensor, list, list, list]:
        r, pres, bases, rates = x, [], [], []
        for i in range(3):
            pres.append(r)
            bases.append(w[i] @ r + b[i][:, 0])
            v = bases[-1] + added[i]
            r = v if i == 2 else v.tanh()
            rates.append(r)
        return r, pres, bases, rates

    zeros = [torch.zeros(len(m)).double() for m in w]
    jacobians = torch.autograd.functional.jacobian(lambda *a: run(*a)[0], tuple(zeros))
    loop = sum(j @ m for j, m in zip(jacobians, q, strict=True)) + leak * torch.eye(3).double()
    u = torch.linalg.solve(loop, nudge * (y - run(*zeros)[0]))
    _, pres, bases, rates = run(*(m @ u for m in q))
    change = {}
    for i in range(3):
        alone = bases[i] if i == 2 else bases[i].tanh()
        change[f"layer{i}_weight"] = torch.outer(rates[i] - alone, pres[i])
        change[f"layer{i}_bias"] = (rates[i] - alone).unsqueeze(1)
    return change


def test_the_update_is_that_of_its_definition() -> None:
    made = learner(FeedbackControl(nudge=0.3, leak=0.01))
    found = field(made, X, Y)
    each = [by_hand(made, x, y, 0.3, 0.01) for x, y in zip(X, Y, strict=True)]
    wanted = {n: torch.stack([e[n] for e in each]).mean(0) for n in found}
    assert apart(found, wanted) < 1e-12


def test_voltages_times_slope_are_rates_to_first_order() -> None:
    nudge = 1e-5
    rates = field(learner(FeedbackControl(nudge=nudge)), X, Y)
    gain = {"*": Delta(1.0)}
    voltages = field(learner(FeedbackControl(nudge=nudge, difference="voltage"), gain), X, Y)
    assert apart(voltages, rates) < 1e-4
    plain = field(learner(FeedbackControl(nudge=nudge, difference="voltage")), X, Y)
    assert apart(plain, rates) > 1e-2


def test_small_nudges_of_a_strong_leak_are_gradient_descent() -> None:
    """Q u = J^T error / a as a grows, and J^T error times slopes is the gradient of the loss."""
    made = learner(FeedbackControl(nudge=1e-4, leak=1e5), activation=nn.Identity)
    wanted = field(learner(Backprop(), activation=nn.Identity), X, Y)
    found = {n: c * 1e9 for n, c in field(made, X, Y).items()}
    assert apart(found, wanted) < 1e-3


def test_newton_is_where_the_simulation_ends() -> None:
    steady = field(learner(FeedbackControl("steady", nudge=0.5)), X, Y)
    last = field(learner(FeedbackControl("dynamic", nudge=0.5, average=False, steps=4000)), X, Y)
    assert apart(steady, last) < 1e-8


def test_dfc_t09_the_time_average_tends_to_the_steady_state() -> None:
    steady = field(learner(FeedbackControl("steady")), X, Y)
    off = [
        apart(field(learner(FeedbackControl("dynamic", steps=s, chunk=50)), X, Y), steady)
        for s in (1000, 2000, 4000)
    ]
    assert off[0] / off[1] == pytest.approx(2, rel=0.2)
    assert off[1] / off[2] == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize("credit", [
    FeedbackControl(), FeedbackControl("steady"), FeedbackControl(steps=20, **TIMES),
    StrongFeedbackControl(), StrongFeedbackControl(steps=20, **TIMES),
])  # fmt: skip
def test_dfc_t10_a_batch_is_the_mean_of_its_examples(credit: CreditAssignment) -> None:
    made = learner(credit)
    whole = field(made, X, Y)
    order = [2, 0, 3, 1]
    assert apart(field(made, X[order], Y[order]), whole) < 1e-12
    each = [field(made, X[i : i + 1], Y[i : i + 1]) for i in range(4)]
    mean = {n: torch.stack([e[n] for e in each]).mean(0) for n in whole}
    assert apart(mean, whole) < 1e-12
    with torch.no_grad():
        done = made(X)
    assert all(not bool(change.any()) for change in field(made, X, done).values())


@pytest.mark.parametrize("chunk", [1, 4, 7, 50])
@pytest.mark.parametrize("batch", [1, 3])
def test_stretches_of_a_simulation_add_up(chunk: int, batch: int) -> None:
    """To the mean over all moments, the first included, whatever their length."""
    x, y = X[:batch], Y[:batch]
    made = learner(FeedbackControl("dynamic", steps=20, chunk=chunk, nudge=0.5))
    sums: dict[str, Tensor] = {}
    for steps in range(2, 21):
        short = FeedbackControl("dynamic", steps=steps, average=False, nudge=0.5)
        last = field(learner(short), x, y)
        sums = {n: sums.get(n, 0) + last[n] / 20 for n in last}
    assert apart(field(made, x, y), sums) < 1e-12


@pytest.mark.parametrize("every", [2, 3, 19, 50])
def test_every_so_many_moments_are_learned_from(every: int) -> None:
    made = learner(FeedbackControl("dynamic", steps=20, every=every, chunk=4, nudge=0.5))
    sums: dict[str, Tensor] = {}
    taken = range(0, 20, every)
    for k in taken[1:]:  # nothing is learned from the first
        short = FeedbackControl("dynamic", steps=k + 1, average=False, nudge=0.5)
        last = field(learner(short), X, Y)
        sums = {n: sums.get(n, 0) + last[n] / len(taken) for n in last}
    found = field(made, X, Y)
    if sums:
        assert apart(found, sums) < 1e-12
    else:
        assert not any(bool(c.any()) for c in found.values())


def test_learning_does_not_disturb_the_simulation_it_is_told_of() -> None:
    """It goes on with the weights that it began with: a step is the change at first weights."""
    made = learner(FeedbackControl("dynamic", steps=20, nudge=0.5))
    state = made.start(4)
    after = made.step(state, presentation(made, X, Y))["weights"]
    for name, change in field(made, X, Y).items():
        assert torch.allclose(after[name], state["weights"][name] + change, atol=1e-14, rtol=0)


def test_decay_is_one_presentations_decay() -> None:
    made = learner(FeedbackControl("dynamic", steps=20), {"*": Delta(1e-9, decay=0.01)})
    after = made.step(made.start(4), presentation(made, X, Y))["weights"]
    for name, before in made.start(4)["weights"].items():
        if name in made.plastic:
            assert torch.allclose(after[name], before * (1 - 0.01 / 20) ** 20, atol=1e-7)


@pytest.mark.parametrize("mode", ["steady", "dynamic"])
def test_dfc_t20_the_weak_limit_of_strong_control(mode) -> None:
    options = {"leak": 0.01, "dt": 0.02, "tau": 0.2, "steps": 30, "iterations": 8, "halvings": 3}
    weak = learner(FeedbackControl(mode, nudge=0.1, **options))
    strong = learner(StrongFeedbackControl(mode, **options))
    with torch.no_grad():
        output = weak(X)
    nudged = output + torch.full((1, 1), 0.1, dtype=torch.float64) * (Y - output)
    found, wanted = field(strong, X, nudged), field(weak, X, Y)
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)


def test_dfc_t20_half_the_nudge_is_half_the_change() -> None:
    errors = []
    for nudge in (0.1, 0.05):
        whole = field(learner(FeedbackControl("steady", nudge=nudge)), X, Y)
        half = field(learner(FeedbackControl("steady", nudge=nudge / 2)), X, Y)
        errors.append(apart({n: 2 * c for n, c in half.items()}, whole))
    assert errors[0] < 0.1
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.3)


def test_dfc_t22_single_precision_agrees() -> None:
    options = {"leak": 1e-3, "nudge": 0.5}
    double = field(learner(FeedbackControl(**options)), X, Y)
    made = learner(FeedbackControl(**options)).float()
    single = {n: c.double() for n, c in field(made, X.float(), Y.float()).items()}
    assert apart(single, double) < 1e-4
    assert degrees(flat(single), flat(double)) < 0.5
