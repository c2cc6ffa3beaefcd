"""The named learners of deep feedback control, and their outer loop."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from metaplastic import (
    Coefficient,
    CrossEntropy,
    Delta,
    Episodes,
    LayeredNetwork,
    Learner,
    Objective,
    SquaredError,
    Unrolled,
)
from metaplastic.credit import FeedbackControl
from metaplastic.errors import ConfigurationError
from metaplastic.inner_loop import Rollout, draw
from metaplastic.recipes import recipe
from tests.helpers import (
    classification,
    deviation,
    final_weights,
    heard,
    meta_gradient,
    mlp,
    presentation,
    regression,
    seeded,
    shake,
    slope_error,
    unit_direction,
)

SIZES = (5, 7, 6, 3)
NAMES = ("dfc", "strong-dfc")


def named(
    name: str,
    objective: Objective | None = None,
    sizes: tuple[int, ...] = SIZES,
    activation: type[nn.Module] = nn.Tanh,
    **options,
) -> Learner:
    """A named learner on a chain in float64, with some of its options."""
    known = recipe(name)
    network = LayeredNetwork(mlp(*sizes, activation=activation))
    chosen = known.configure(options)
    return known.build(network, objective or SquaredError(), chosen, seeded(1)).double()


def simulated() -> Learner:
    """The simulation, with the same numbers learned and the gain too."""
    numbers = {
        name: Coefficient(value, bound="exp", role="control")
        for name, value in (("leak", 0.1), ("nudge", 0.5), ("gain", 1.5))
    }
    options = {"steps": 6, "dt": 0.02, "tau": 0.1, "weights": "learned"}
    credit = FeedbackControl("dynamic", **options, **numbers)
    rule = Delta(0.5, learned=True, derivative=False)
    return Learner(mlp(*SIZES), credit, rule, SquaredError()).double()


def shown(objective: Objective, batch: int = 2) -> Episodes:
    """E = 2 episodes of T = 3 presentations."""
    if isinstance(objective, CrossEntropy):
        return classification(2, 3, batch, SIZES[0], SIZES[-1])
    return regression(2, 3, batch, SIZES[0], SIZES[-1])


LEARNERS: dict[str, Callable[[], Learner]] = {
    "analytic": lambda: named("dfc", rate=0.5, leak=0.3, learned_nudge=True),
    "analytic-labels": lambda: named("dfc", CrossEntropy(), rate=0.5, learned_nudge=True),
    "analytic-slope": lambda: named("dfc", rate=0.5, learned_nudge=True, derivative=True),
    "steady": lambda: named("dfc", mode="steady", rate=0.5, leak=0.3, learned_nudge=True),
    "steady-labels": lambda: named(
        "dfc", CrossEntropy(), mode="steady", rate=0.5, learned_nudge=True
    ),
    "dynamic": simulated,
    "strong": lambda: named("strong-dfc", rate=0.5, leak=0.3),
    "strong-labels": lambda: named("strong-dfc", CrossEntropy(), rate=0.5),
}


@pytest.mark.parametrize("which", LEARNERS)
def test_the_meta_gradient_of_everything_that_is_learned(which: str) -> None:
    """Against central differences, one kind of Parameter at a time."""
    made = shake(LEARNERS[which](), feedback=0.1)
    episodes = shown(made.objective)
    found = meta_gradient(made, episodes)
    patterns = ["leak", "rate", "feedback", "network"]
    patterns += ["nudge"] * (not which.startswith("strong")) + ["gain"] * (which == "dynamic")
    for pattern in patterns:
        along = unit_direction(made, 3, pattern)
        assert along, pattern
        assert all(bool(found[name].any()) for name in along), pattern
        assert slope_error(made, episodes, along, found) < 1e-6, pattern
    covered = {name for pattern in patterns for name in unit_direction(made, 3, pattern)}
    assert covered == set(found)


@pytest.mark.parametrize("name", NAMES)
def test_the_meta_gradient_behind_rectifiers(name: str) -> None:
    made = shake(named(name, CrossEntropy(), activation=nn.ReLU, rate=0.3), feedback=0.1)
    episodes = shown(made.objective)
    found = meta_gradient(made, episodes)
    for pattern in ("leak", "rate", "feedback", "network"):
        assert slope_error(made, episodes, unit_direction(made, 5, pattern), found) < 1e-5, pattern


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [1, 3])
def test_episodes_together_are_episodes_one_by_one(name: str, batch: int) -> None:
    made = named(name, CrossEntropy(), activation=nn.ReLU)
    episodes = shown(made.objective, batch)
    together = meta_gradient(made, episodes, Unrolled(batching="vmap"))
    together = {n: g.clone() for n, g in together.items()}
    for one_by_one in (Unrolled(batching="loop"), Unrolled(batching="vmap", checkpoint_every=2)):
        found = meta_gradient(made, episodes, one_by_one)
        for n, wanted in together.items():
            assert deviation(found[n], wanted) < 1e-10, n


@pytest.mark.parametrize(("activation", "derivative"), [
    (nn.Tanh, False), (nn.ReLU, False), (nn.ReLU, True), (nn.Tanh, True),
])  # fmt: skip
@pytest.mark.parametrize("mode", ["analytic", "steady"])
def test_under_a_strong_leak_it_is_gradient_descent(mode: str, activation, derivative) -> None:
    """Control is then the error over the leak, and the feedback that of backpropagation as long as
    the weights are the first ones. The slope enters through the difference; a second time only a
    rectifier does not mind.
    """
    leak = 1e7
    options = {"activation": activation, "sizes": (5, 7, 3)}
    numbers = {"nudge": 0.5, "rate": 0.1 * leak, "leak": leak}
    made = named("dfc", CrossEntropy(), mode=mode, derivative=derivative, **numbers, **options)
    other = named("oml", CrossEntropy(), rate=0.5 * 0.1, **options)
    episodes = classification(2, 1, 3, 5, 3)
    found, wanted = final_weights(made, episodes), final_weights(other, episodes)
    first = other.network.weights()
    apart = {name: float((found[name] - w).abs().max()) for name, w in wanted.items()}
    assert all(bool((w != first[name]).any()) for name, w in wanted.items())
    assert apart.pop("layer1_weight") < 1e-6
    (hidden,) = apart.values()
    assert (hidden < 1e-6) == (activation is nn.ReLU or not derivative), hidden


def test_without_a_leak_the_label_is_reached() -> None:
    made = named("strong-dfc", leak=1e-9, iterations=20)
    episodes = regression(1, 1, 2, 5, 3)
    x, wanted = episodes.support_x[0, 0], episodes.support_y[0, 0]
    teaching = heard(made, presentation(made, x, wanted))["layer2_weight"].teaching
    assert teaching is not None
    torch.testing.assert_close(teaching, wanted, rtol=0, atol=1e-6)


def test_options_reach_the_parts() -> None:
    made = named("dfc", mode="steady", leak=0.2, nudge=0.4, iterations=5, halvings=1, rate=0.07)
    credit = made.credit
    assert isinstance(credit, FeedbackControl)
    assert (credit.mode, credit.iterations, credit.halvings) == ("steady", 5, 1)
    state = made.start()
    assert state["credit"]["leak"].item() == pytest.approx(0.2)
    assert state["credit"]["nudge"].item() == pytest.approx(0.4)
    assert state["coefficients"]["layer0_weight"]["rate"].item() == pytest.approx(0.07)
    strong = named("strong-dfc", CrossEntropy(), leak=0.2, probability=0.8)
    assert strong.start()["credit"]["leak"].item() == pytest.approx(0.2)
    assert strong.credit.describe()["probability"] == 0.8
    with pytest.raises(ConfigurationError, match="mode"):
        named("dfc", mode="settled")


def parameters(made: Learner, role: str) -> int:
    groups = {group["name"]: group["params"] for group in made.param_groups()}
    return len(groups.get(role, []))


@pytest.mark.parametrize(("name", "options", "control"), [
    ("dfc", {}, 4),
    ("dfc", {"learned_nudge": True}, 5),
    ("dfc", {"learned_leak": False}, 3),
    ("dfc", {"learned": False}, 1),
    ("strong-dfc", {}, 4),
    ("strong-dfc", {"learned_leak": False, "learned": False}, 0),
])  # fmt: skip
def test_what_the_outer_loop_trains(name: str, options: dict, control: int) -> None:
    """A rate for each of three layers, the leak where it is learned, and a Q for each layer."""
    made = named(name, **options)
    assert parameters(made, "control") == control
    assert parameters(made, "feedback") == 3
    assert parameters(made, "initial") == 6
    assert made.plastic == {f"layer{i}_weight" for i in range(3)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("objective", [SquaredError(), CrossEntropy()], ids=["error", "labels"])
def test_the_defaults_find_every_control(name: str, objective: Objective) -> None:
    """Behind rectifiers, from random weights, along a stream; its input stays as it was."""
    made = named(name, objective, (6, 32, 32, 4), nn.ReLU).float()
    make = classification if isinstance(objective, CrossEntropy) else regression
    episodes = make(6, 20, 2, 6, 4)
    given = copy.deepcopy(episodes)
    outcome = Unrolled().gradient(made, episodes)
    assert outcome.diverged == ()
    rollout = Rollout(made, episodes, draw(made, episodes, seeded()))
    with torch.no_grad():
        rollout.advance(0, episodes.presentations)
    assert float(rollout.moving["credit"]["unconverged"].sum()) == 0
    assert torch.equal(episodes.support_x, given.support_x)
    assert torch.equal(episodes.support_y, given.support_y)
