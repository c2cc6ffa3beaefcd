"""The numbers of one size: parameters and streams that nothing diverges on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from metaplastic import Backprop, Delta, DirectFeedback, Episodes, Learner, Oja, SquaredError
from metaplastic.rules import Coefficient
from studies.bench.sizes import Size

MIX = 0.5
"""Share of the teaching signal in bounded Oja; not learned."""
RATE = 0.02
"""Initial rate of the delta rule; one for each layer, learned."""


@dataclass(frozen=True)
class Problem:
    """Meta-parameters by layer, and E episodes."""

    size: Size
    weights: tuple[Tensor, ...]
    """(n_out, n_in) each."""
    feedback: tuple[Tensor, ...]
    """(n_out, K) of each hidden layer; none for backpropagation."""
    rates: tuple[Tensor, ...]
    """Raw plasticity (n_out, n_in), whose tanh is P, or the logarithm of the rate, (1, 1)."""
    x: Tensor
    """(E, T, B, d) of unit norm."""
    y: Tensor
    """(E, T, B, K) one-hot labels or targets."""
    query_x: Tensor
    """(E, Q, d)"""
    query_y: Tensor
    """(E, Q, K)"""

    @property
    def parameters(self) -> dict[str, Tensor]:
        """What the meta-gradient is of, by name."""
        return {
            f"{kind}{i}": tensor
            for kind in ("weights", "feedback", "rates")
            for i, tensor in enumerate(getattr(self, kind))
        }

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of it, for a peer in a process of its own."""
        data = {name: getattr(self, name) for name in ("x", "y", "query_x", "query_y")}
        return {**self.parameters, **data}

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Problem:
        """On another device, in another precision."""
        return self._map(lambda t: t.to(device, dtype) if device else t.to(dtype))

    def cut(self, episodes: int, presentations: int) -> Problem:
        """The first episodes, and of each the first presentations."""
        size = replace(self.size, episodes=episodes, presentations=presentations)
        parts = {"x": self.x[:episodes, :presentations], "y": self.y[:episodes, :presentations]}
        parts |= {n: getattr(self, n)[:episodes] for n in ("query_x", "query_y")}
        return replace(self, size=size, **parts)

    def copy(self) -> Problem:
        """The same numbers in memory of their own."""
        return self._map(Tensor.clone)

    def same(self, other: Problem) -> bool:
        """Whether all numbers are equal."""
        mine, theirs = self.tensors, other.tensors
        return all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Problem:
        found = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                found[field.name] = tuple(map(function, value))
            elif isinstance(value, Tensor):
                found[field.name] = function(value)
        return replace(self, **found)


def make_problem(size: Size, seed: int = 0) -> Problem:
    """In double precision on the CPU. Initial plasticities are about 0.1 / n_in."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def unit(*shape: int) -> Tensor:
        return nn.functional.normalize(normal(*shape), dim=-1)

    layers, outputs = size.layers, size.widths[-1]
    weights = tuple(normal(*layer) * (2 / layer[1]) ** 0.5 for layer in layers)
    feedback: tuple[Tensor, ...] = ()
    if size.credit == "backprop":
        rates = tuple(torch.full((1, 1), RATE, dtype=torch.float64).log() for _ in layers)
    else:
        feedback = tuple(normal(n, outputs) * (2 / outputs) ** 0.5 for n, _ in layers[:-1])
        rates = tuple(
            (0.1 / layer[1]) * (1 + 0.1 * normal(*layer).clamp(-3, 3)) for layer in layers
        )

    def targets(*lead: int) -> Tensor:
        if size.regression:
            return normal(*lead, outputs)
        labels = torch.randint(outputs, lead, generator=g)
        return nn.functional.one_hot(labels, outputs).double()

    shown = size.episodes, size.presentations, size.batch
    asked = size.episodes, size.queries
    width = size.widths[0]
    return Problem(
        size, weights, feedback, rates,
        unit(*shown, width), targets(*shown), unit(*asked, width), targets(*asked),
    )  # fmt: skip


def make_episodes(problem: Problem) -> Episodes:
    """The same streams for the library."""
    p = problem
    if p.size.regression:
        return Episodes(p.x, p.y, p.query_x, p.query_y)
    return Episodes(p.x, p.y.argmax(-1), p.query_x, p.query_y.argmax(-1))


def make_learner(problem: Problem) -> Learner:
    """The same meta-parameters for the library."""
    size = problem.size
    chain: list[nn.Module] = []
    for n_out, n_in in size.layers:
        chain += [nn.Linear(n_in, n_out, bias=False), nn.ReLU()]
    objective = SquaredError() if size.regression else None
    if size.credit == "backprop":
        rule, credit = Delta(RATE, learned=True), Backprop()
    else:
        rule = Oja(0.0, mix=Coefficient(MIX, learned=False, role="mixing"))
        credit = DirectFeedback(size.credit)
    learner = Learner(nn.Sequential(*chain[:-1]), credit, rule, objective)
    learner.to(problem.x.device, problem.x.dtype)
    with torch.no_grad():
        for name, parameter in named(learner).items():
            parameter.copy_(problem.parameters[name])
    return learner


def named(learner: Learner) -> Mapping[str, nn.Parameter]:
    """The learner's Parameters under the names of ``Problem.parameters``."""
    order = {"network": "weights", "credit": "feedback", "rules": "rates"}
    found: dict[str, nn.Parameter] = {}
    for part, name in order.items():
        for i, parameter in enumerate(getattr(learner, part).parameters()):
            found[f"{name}{i}"] = parameter
    return found
