"""Small networks at rest, and the same in plain torch."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from metaplastic import Delta, EquilibriumControl, EquilibriumNetwork, Learner, Objective
from metaplastic.equilibrium import SolverOptions
from metaplastic.networks import equilibrium_rnn
from metaplastic.rules import Rules
from metaplastic.signals import State
from tests.helpers import heard, normal, presentation, seeded

TIGHT: SolverOptions = {"method": "anderson", "tolerance": 1e-15, "sweeps": 500}
LEAK = 0.1
GRADIENT = Delta(1.0, derivative=False)
N, OUT = 4, 3
HARD = float("inf")
KINDS = ("inversion", "kolen-pollack", "energy")
"""The ways to the least control."""
X, Y = normal(7, 5, seed=1), normal(7, OUT, seed=2)
LABELS = torch.randint(OUT, (7,), generator=seeded(3))


def rnn(seed: int = 0, *, size: float = 0.3) -> EquilibriumNetwork:
    """5-4-3 units in float64, every Parameter at random, at rest to rounding."""
    network = equilibrium_rnn(5, N, OUT, solver={"method": "newton", "tolerance": 1e-15}).double()
    for i, parameter in enumerate(network.parameters()):
        parameter.data = size * normal(*parameter.shape, seed=10 * seed + i)
    return network


def controlled(
    network: EquilibriumNetwork,
    psi: str = "inversion",
    beta: float = 1.0,
    *,
    objective: Objective | None = None,
    rule: Rules | None = None,
    **options,
) -> Learner:
    """Control of strength beta (hard where it is inf); the rule asks for minus the gradient."""
    hard = beta == HARD
    options = {"solver": TIGHT, **({"weights": "learned"} if "pollack" in psi else {}), **options}
    credit = EquilibriumControl(
        psi, integral=1.0 if hard else beta * LEAK, leak=0.0 if hard else LEAK, **options
    )
    rules = {"*": GRADIENT} if rule is None else rule
    return Learner(copy.deepcopy(network), credit, rules, objective).double()


def given(kind: str, beta: float, objective: Objective | None = None) -> Learner:
    """A learner of one of the KINDS; Kolen-Pollack feedback is the transpose."""
    extra = {"start": "inversion"} if kind == "energy" else {}
    learner = controlled(rnn(), kind, beta, objective=objective, **extra)
    if kind == "kolen-pollack":
        set_feedback(learner, transposable(learner))
    return learner


def weights_of(learner: Learner) -> dict[str, Tensor]:
    """The network's own, without a graph."""
    return {n: w.detach() for n, w in learner.network.weights().items()}


def set_feedback(learner: Learner, values: dict[str, Tensor]) -> None:
    """Give fixed feedback weights other values."""
    for name, value in values.items():
        learner.credit.weights()[name].data.copy_(value)


def transposable(learner: Learner) -> dict[str, Tensor]:
    """For Kolen-Pollack feedback, the forward weights."""
    weights = weights_of(learner)
    return {n: weights[str(g.twin)] for n, g in learner.credit.groups().items()}


class Plain:
    """v = W_in x + b + W_rec tanh(v), output = W_out tanh(v) + b_out; state (v, output)."""

    def __init__(self, weights: dict[str, Tensor], x: Tensor) -> None:
        self.weights = weights
        self.drive = x @ weights["input_weight"].mT + weights["input_bias"].mT

    def g(self, state: Tensor) -> Tensor:
        w, rate = self.weights, state[:, :-OUT].tanh()
        hidden = self.drive + rate @ w["recurrent_weight"].mT
        return torch.cat([hidden, rate @ w["output_weight"].mT + w["output_bias"].mT], -1)

    def rest(self, sweeps: int = 400) -> Tensor:
        state = torch.zeros(len(self.drive), self.drive.shape[1] + OUT, dtype=torch.float64)
        for _ in range(sweeps):
            state = self.g(state)
        return state

    def jacobian(self, state: Tensor) -> Tensor:
        """g', (B, S, S), from the equations."""
        w = self.weights
        joined = torch.cat([w["recurrent_weight"], w["output_weight"]])
        slope = 1 - state[:, :-OUT].tanh().square()
        left = joined * slope.unsqueeze(1)
        return torch.cat([left, left.new_zeros(len(state), left.shape[1], OUT)], -1)


def seen(learner: Learner, x: Tensor, y: Tensor, state: State | None = None):
    """Controlled state (v, output) and psi, (B, S) each, read off what the biases and the output
    weights are sent.
    """
    found = heard(learner, presentation(learner, x, y), state)
    psi = torch.cat([found[f"{n}_bias"].error for n in ("input", "output")], -1)
    v = found["output_weight"].pre.atanh()
    output = found["output_bias"].post + psi[:, -OUT:]
    return torch.cat([v, output], -1).detach(), psi.detach()


def grads(learner: Learner, x: Tensor, y: Tensor, **options) -> dict[str, Tensor]:
    """What ``assign_grads`` writes, {parameter of the network: gradient}."""
    learner.zero_grad(set_to_none=True)
    learner.assign_grads(x, y, **options)
    return {n: p.grad.clone() for n, p in learner.network.named_parameters()}


def loss_gradient(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*network.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
