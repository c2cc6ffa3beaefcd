"""The named learner that modulates its input."""

from __future__ import annotations

from typing import Any

from metaplastic import Delta, Episodes, InputModulation, Learner, SquaredError, Unrolled
from metaplastic.recipes import recipe
from tests.helpers import deviation, mlp, normal, presentation, seeded


def made(**options: Any) -> Learner:
    named = recipe("pepita")
    return named.build(mlp(4, 6, 5, 3), SquaredError(), named.configure(options), seeded(3))


def test_it_is_input_modulation_under_the_flat_delta_rule() -> None:
    found = made(rate=0.3, scale=2.0)
    rule = Delta(0.3, learned=True, derivative=False)
    credit = InputModulation("learned", 2.0, sign=-1)
    plain = Learner(mlp(4, 6, 5, 3), credit, rule, SquaredError(), generator=seeded(3))
    x, y = normal(2, 4), normal(2, 3, seed=1)
    wanted = plain.field(plain.start(2), presentation(plain, x, y))
    changes = found.field(found.start(2), presentation(found, x, y))
    assert changes.keys() == wanted.keys()
    assert all(deviation(changes[n], wanted[n]) < 1e-14 and bool(wanted[n].any()) for n in wanted)


def test_the_outer_loop_trains_weights_projection_and_rates_at_their_own_rates() -> None:
    learner = made(rate=0.3)
    options = recipe("pepita").configure({"feedback_rate": 0.02, "control_rate": 0.03})
    rates = {group["lr"] for group in options.param_groups(learner)}
    assert {1e-3, 0.02, 0.03} <= rates
    shown = Episodes(normal(2, 3, 1, 4), normal(2, 3, 1, 3), normal(2, 2, 4), normal(2, 2, 3))
    Unrolled().gradient(learner, shown)
    assert all(bool(p.grad.any()) for p in learner.parameters() if p.grad is not None)
    names = {name for name, _ in learner.named_parameters()}
    assert {"credit.layer0_feedback", "rules.layer0_weight.rate.raw"} <= names


def test_fixed_feedback_and_a_fixed_rate_are_not_trained() -> None:
    names = {n for n, _ in made(feedback="fixed", learned=False).named_parameters()}
    assert not any(n.startswith(("credit", "rules")) for n in names)
