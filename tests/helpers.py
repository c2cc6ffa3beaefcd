"""Builders and oracles that several test files share."""

from __future__ import annotations

import re
from itertools import pairwise

import torch
from torch import Tensor, nn

from metaplastic import Episodes, Learner, MetaGradient, Unrolled
from metaplastic.evaluation import evaluate
from metaplastic.hinge import Apply
from metaplastic.inner_loop import Rollout, draw
from metaplastic.parameters import ROLES
from metaplastic.signals import LocalSignals, Presentation, State, Teacher
from metaplastic.testing.oracles import assert_close as assert_close
from metaplastic.testing.oracles import central_difference, seeded
from tools.check_wheel import ROOT

STEPS = (3e-5, 1e-5, 1e-6)
"""Widths tried for a central difference: the best one is free of kinks and of cancellation."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def mlp(
    *sizes: int, activation: type[nn.Module] = nn.Tanh, bias: bool = True, seed: int = 0
) -> nn.Sequential:
    """Linear layers with an activation function between them, weights of variance 1 / n_in."""
    chain: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        chain += [nn.Linear(n_in, n_out, bias=bias), activation()]
    network = nn.Sequential(*chain[:-1]).double()
    for i, parameter in enumerate(network.parameters()):
        parameter.data = 0.3 * normal(*parameter.shape, seed=100 * seed + i)
        if parameter.dim() == 2:
            parameter.data *= (0.09 * parameter.shape[1]) ** -0.5
    return network


def raw(learner: Learner, group: str, name: str) -> nn.Parameter:
    """The Parameter behind a learned coefficient of a group's rule."""
    return learner.get_parameter(f"rules.{group}.{name}.raw")


def shake(learner: Learner, seed: int = 0, **scales: float) -> Learner:
    """In float64, with normal noise on the Parameters of the roles named in ``scales``."""
    learner.double()
    for group in learner.param_groups():
        g = seeded(10 * seed + ROLES.index(group["name"]))
        for p in group["params"]:
            noise = torch.randn(p.shape, generator=g, dtype=torch.float64)
            p.data += scales.get(group["name"], 0.0) * noise
    return learner


def regression(
    episodes: int,
    presentations: int,
    batch: int,
    features: int,
    outputs: int,
    *,
    queries: int = 5,
    seed: int = 0,
) -> Episodes:
    return Episodes(
        normal(episodes, presentations, batch, features, seed=seed),
        normal(episodes, presentations, batch, outputs, seed=seed + 1),
        normal(episodes, queries, features, seed=seed + 2),
        normal(episodes, queries, outputs, seed=seed + 3),
    )


def classification(
    episodes: int,
    presentations: int,
    batch: int,
    shape: int | tuple[int, ...],
    ways: int,
    *,
    queries: int = 5,
    seed: int = 0,
) -> Episodes:
    shape = (shape,) if isinstance(shape, int) else shape
    g = seeded(seed + 1)
    return Episodes(
        normal(episodes, presentations, batch, *shape, seed=seed),
        torch.randint(ways, (episodes, presentations, batch), generator=g),
        normal(episodes, queries, *shape, seed=seed + 2),
        torch.randint(ways, (episodes, queries), generator=g),
    )


def presentation(learner: Learner, x: Tensor, y: Tensor) -> Presentation:
    """What ``adapt(x, y)`` shows."""
    teacher = Teacher(learner.objective, learner.encode(y, x.shape[:1]))
    return Presentation(learner.network.features(x), teacher)


def show(learner: Learner, xs: Tensor, ys: Tensor, state: State | None = None) -> State:
    """The state after T presentations, xs (T, B, *)."""
    state = learner.start(xs.shape[1]) if state is None else state
    for x, y in zip(xs, ys, strict=True):
        state = learner.step(state, presentation(learner, x, y))
    return state


class Hear(Apply):
    """The learn of the inner loop, keeping what was sent: ``calls`` in order, ``heard`` by name."""

    def __init__(self, learner: Learner) -> None:
        super().__init__(dict(learner.rules.items()))  # type: ignore[arg-type]
        self.calls: list[dict[str, LocalSignals]] = []

    def __call__(self, state: State, signals: dict[str, LocalSignals], share: float = 1.0) -> State:
        self.calls.append(signals)
        return super().__call__(state, signals, share)

    @property
    def heard(self) -> dict[str, LocalSignals]:
        return {name: seen for signals in self.calls for name, seen in signals.items()}


def heard(
    learner: Learner, shown: Presentation, state: State | None = None
) -> dict[str, LocalSignals]:
    """What every plastic group sees in one presentation."""
    state = learner.start(shown.x.shape[0]) if state is None else state
    hear = Hear(learner)
    learner.credit.present(learner.network, state, shown, hear)
    return hear.heard


def final_weights(learner: Learner, episodes: Episodes) -> dict[str, Tensor]:
    """Weights of the plastic groups after the stream, {group: (E, n_out, n_in)}, all at once."""
    rollout = Rollout(learner, episodes, draw(learner, episodes, seeded()))
    with torch.no_grad():
        rollout.advance(0, episodes.presentations)
    return rollout.moving["weights"]


def meta_gradient(
    learner: Learner,
    episodes: Episodes,
    method: MetaGradient | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """The gradient that a method adds to the (empty) ``.grad`` of every Parameter, by name."""
    learner.zero_grad(set_to_none=True)
    outcome = (method or Unrolled()).gradient(learner, episodes, generator=generator)
    assert outcome.diverged == ()
    return gradients(learner)


def gradients(learner: Learner) -> dict[str, Tensor]:
    """The ``.grad`` of every Parameter, by name; each must have one."""
    found = {}
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad
    return found


def deviation(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest entry wanted."""
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    found, wanted = found.detach(), wanted.detach()
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-300))


def unit_direction(learner: Learner, seed: int, pattern: str = "") -> dict[str, Tensor]:
    """A random direction of length 1 over the Parameters whose name holds a regular expression."""
    g = seeded(seed)
    found = {
        name: torch.randn(p.shape, generator=g, dtype=p.dtype)
        for name, p in learner.named_parameters()
        if re.search(pattern, name)
    }
    length = sum(float(d.square().sum()) for d in found.values()) ** 0.5
    return {name: d / length for name, d in found.items()}


def query_loss(learner: Learner, episodes: Episodes, seed: int | None = None) -> float:
    generator = None if seed is None else seeded(seed)
    return float(evaluate(learner, episodes, generator=generator).loss.mean())


def slope_error(
    learner: Learner,
    episodes: Episodes,
    direction: dict[str, Tensor],
    gradient: dict[str, Tensor],
    seed: int | None = None,
) -> float:
    """Relative error of a meta-gradient along a direction, against central differences; ``seed`` of
    what chance decides in the episodes.
    """
    analytic = float(sum((gradient[n] * d).sum() for n, d in direction.items()))

    def error(h: float) -> float:
        numeric = central_difference(
            learner, direction, h, lambda: query_loss(learner, episodes, seed)
        )
        return abs(numeric - analytic) / max(abs(analytic), 1e-12)

    return min(error(h) for h in STEPS)


def page_examples(name: str) -> list[tuple[str, str]]:
    """The python blocks of a page of docs/, each with the section that it stands in."""
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    parts = re.findall(r"^## (.+?)$|^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    section, found = "", []
    for title, code in parts:
        section = title or section
        if code:
            found.append((section, code))
    return found
