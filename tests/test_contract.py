"""What every network, credit and rule must do, over a table of combinations, on every device.

To add a method, add a row.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from metaplastic import (
    Backprop,
    CreditAssignment,
    CrossEntropy,
    Delta,
    DirectFeedback,
    Episodes,
    Hebb,
    LayeredNetwork,
    Learner,
    LocalSignals,
    Oja,
    PlasticityRule,
    SquaredError,
    SynapseGroup,
    Unrolled,
)
from metaplastic.signals import Presentation, State, Teacher

CREDITS: dict[str, Callable[[], CreditAssignment]] = {
    "backprop": Backprop,
    "direct-error": DirectFeedback,
    "direct-target": lambda: DirectFeedback("target"),
    "direct-deep": lambda: DirectFeedback(
        depth=2, width=4, rectify=True, bias=True, output="feedback"
    ),
    "dfa": lambda: DirectFeedback(weights="fixed"),
    "dfa-resampled": lambda: DirectFeedback(weights="resampled"),
}
RULES: dict[str, Callable[[], PlasticityRule]] = {
    "hebb": lambda: Hebb(0.02, granularity="neuron"),
    "oja": lambda: Oja(0.02),
    "oja-faithful": lambda: Oja(0.003, bounded=False, granularity="layer"),
    "oja-network": lambda: Oja(0.02, granularity="network"),
    "delta": lambda: Delta(0.02, learned=True),
    "delta-flat": lambda: Delta(0.02, derivative=False, reduction="positions"),
}


def mlp(outputs: int) -> LayeredNetwork:
    return LayeredNetwork(
        nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, outputs))
    )


def conv(outputs: int) -> LayeredNetwork:
    trunk = nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.ZeroPad2d(1), nn.Conv2d(1, 2, 1))
    chain = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(18, outputs)
    )
    return LayeredNetwork(chain, trunk=trunk, input_shape=(6,))


NETWORKS = {"mlp": mlp, "conv": conv}


def make(network: str, credit: str, rule: str, classes: bool, device: str) -> Learner:
    torch.manual_seed(1)
    learner = Learner(
        NETWORKS[network](3),
        CREDITS[credit](),
        {"*": RULES[rule]()},
        CrossEntropy() if classes else SquaredError(),
    )
    return learner.to(device, torch.float64)


def episodes(count: int, classes: bool, seed: int = 0) -> Episodes:
    g = torch.Generator().manual_seed(seed)

    def y(*lead: int) -> Tensor:
        if classes:
            return torch.randint(0, 3, lead, generator=g)
        return torch.randn(*lead, 3, generator=g, dtype=torch.float64)

    def x(*lead: int) -> Tensor:
        return torch.randn(*lead, 6, generator=g, dtype=torch.float64)

    return Episodes(x(count, 4, 2), y(count, 4, 2), x(count, 3), y(count, 3))


def meta_gradient(learner: Learner, shown: Episodes, **options) -> dict[str, Tensor]:
    learner.zero_grad()
    outcome = Unrolled(**options).gradient(
        learner, shown, generator=torch.Generator().manual_seed(5)
    )
    assert not outcome.diverged
    return {name: p.grad.clone() for name, p in learner.named_parameters()}


def flat(state: State) -> list[Tensor]:
    leaves: list[Tensor] = []
    for value in state.values():
        leaves += flat(value) if isinstance(value, dict) else [value]
    return leaves


devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
networks = pytest.mark.parametrize("network", NETWORKS)
credits = pytest.mark.parametrize("credit", CREDITS)
rules = pytest.mark.parametrize("rule", RULES)


@devices
@networks
@credits
@rules
def test_a_step_is_pure_local_and_free_of_autograd(
    network: str, credit: str, rule: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make(network, credit, rule, classes=True, device=device)
    x = torch.randn(3, 6, dtype=torch.float64, device=device)
    target = learner.encode(torch.tensor([0, 2, 1], device=device), x.shape[:1])
    given = Presentation(learner.network.features(x), Teacher(learner.objective, target))
    state = learner.start(3, torch.Generator().manual_seed(0))
    before = [t.clone() for t in flat(state)]
    after = learner.step(state, given)

    def refuse(*arguments, **options):
        raise AssertionError("a local rule called autograd")

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    monkeypatch.setattr(torch.Tensor, "backward", refuse)
    with torch.inference_mode():
        again = learner.step(learner.start(3, torch.Generator().manual_seed(0)), given)
    assert after.keys() == state.keys()
    for was, is_now, old in zip(before, flat(state), flat(after), strict=True):
        assert torch.equal(was, is_now)
        assert old.shape == was.shape
        assert old.dtype == torch.float64
        assert old.device == was.device
    for a, b in zip(flat(after), flat(again), strict=True):
        assert torch.equal(a, b)
    moved = [
        n for n in learner.plastic if not torch.equal(after["weights"][n], state["weights"][n])
    ]
    assert set(moved) == set(learner.plastic)


@devices
@networks
@credits
@rules
def test_all_ways_through_the_loop_give_one_gradient(
    network: str, credit: str, rule: str, device: str
) -> None:
    learner = make(network, credit, rule, classes=True, device=device)
    shown = episodes(3, classes=True)
    plain = meta_gradient(learner, shown, batching="loop")
    for options in (
        {"batching": "vmap"},
        {"batching": "vmap", "checkpoint_every": 3},
        {"batching": "loop", "checkpoint_every": 1},
        {"truncate": 4},
    ):
        other = meta_gradient(learner, shown, **options)
        for name in plain:
            torch.testing.assert_close(other[name], plain[name], rtol=1e-12, atol=1e-15)


@networks
@credits
@rules
@pytest.mark.parametrize("classes", [True, False])
def test_meta_gradient_against_central_differences(
    network: str, credit: str, rule: str, classes: bool
) -> None:
    learner = make(network, credit, rule, classes, "cpu")
    shown = episodes(2, classes, seed=3)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():  # off the kinks where feedback biases of 0 meet silent feedback units
        for name, p in learner.named_parameters():
            if name.endswith("_bias"):
                p += 0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    gradient = meta_gradient(learner, shown)
    direction = {
        n: torch.randn(p.shape, generator=generator, dtype=torch.float64)
        for n, p in learner.named_parameters()
    }
    start = {n: p.detach().clone() for n, p in learner.named_parameters()}

    def loss(step: float) -> float:
        with torch.no_grad():
            for name, p in learner.named_parameters():
                p.copy_(start[name] + step * direction[name])
        outcome = Unrolled().gradient(learner, shown, generator=torch.Generator().manual_seed(5))
        return float(outcome.loss.mean())

    slope = sum(float((gradient[n] * direction[n]).sum()) for n in gradient)
    errors = [abs((loss(h) - loss(-h)) / (2 * h) - slope) for h in (1e-4, 1e-5, 1e-6)]
    assert min(errors) < 1e-6 * max(abs(slope), 1e-2)


@rules
@pytest.mark.parametrize("optional", [True, False])
def test_a_rule_sees_its_own_synapse_alone(rule: str, optional: bool) -> None:
    """Changing every other unit's signals and weights leaves a synapse's change bitwise as it was,
    whether or not signals that the rule did not ask for are there."""
    group = SynapseGroup("layer0_weight", 4, 3)
    bound = RULES[rule]().bind(group).double()
    g = torch.Generator().manual_seed(0)

    def signals(keep: tuple[int, int] | None) -> tuple[Tensor, LocalSignals]:
        g.manual_seed(0)
        rows = {"pre": 3, "post": 4, "teaching": 4, "gain": 4}
        values = {
            n: torch.randn(2, size, generator=g, dtype=torch.float64) for n, size in rows.items()
        }
        weight = torch.randn(4, 3, generator=g, dtype=torch.float64)
        if keep is not None:
            i, j = keep
            for name, value in values.items():
                k = j if name == "pre" else i
                values[name] = value + 5.0
                values[name][:, k] = value[:, k]
            kept = weight[i, j].clone()
            weight = weight * 3 + 1
            weight[i, j] = kept
        if optional:
            values["modulator"] = torch.randn(2, 1, generator=g, dtype=torch.float64)
        wanted = {"pre", "post", "modulator"} | bound.needs
        return weight, LocalSignals(**{n: v for n, v in values.items() if n in wanted})

    coefficients = bound.coefficients()
    weight, seen = signals(None)
    plain, _ = bound.update(weight, seen, bound.init(weight), coefficients)
    for i in range(4):
        for j in range(3):
            weight, seen = signals((i, j))
            other, _ = bound.update(weight, seen, bound.init(weight), coefficients)
            assert torch.allclose(other[i, j], plain[i, j], rtol=1e-15, atol=0)
            assert not torch.allclose(other, plain)
