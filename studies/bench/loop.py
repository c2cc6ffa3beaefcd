"""The plain per-episode autograd loop: what everything else is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import linear

from studies.bench.problem import MIX, Problem
from studies.bench.sizes import Size

Tensors = Sequence[Tensor]


def meta_gradient(problem: Problem) -> tuple[float, dict[str, Tensor]]:
    """Mean query loss of the episodes, and its gradient by name; one episode after another."""
    leaves = {n: t.clone().requires_grad_() for n, t in problem.parameters.items()}
    weights, feedback, rates = parts(leaves)
    total = 0.0
    for e in range(problem.size.episodes):
        learned = episode(problem.size, weights, feedback, rates, problem.x[e], problem.y[e])
        loss = query_loss(problem, e, forward(learned, problem.query_x[e])[-1])
        (loss / problem.size.episodes).backward()
        total += float(loss.detach()) / problem.size.episodes
    return total, {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def episode(
    size: Size, weights: Tensors, feedback: Tensors, rates: Tensors, x: Tensor, y: Tensor
) -> Tensors:
    """The weights after the stream x (T, B, d) with targets y (T, B, K)."""
    rates = bounded(size, rates)
    for shown, target in zip(x, y, strict=True):
        told = changes(size, weights, feedback, rates, forward(weights, shown), target)
        weights = [w + change for w, change in zip(weights, told, strict=True)]
    return weights


def forward(weights: Tensors, x: Tensor) -> list[Tensor]:
    """Input and every layer's activity (B, n): ReLU, and none at the output."""
    path = [x]
    for w in weights[:-1]:
        path.append(linear(path[-1], w).relu())
    return [*path, linear(path[-1], weights[-1])]


def changes(
    size: Size, weights: Tensors, feedback: Tensors, rates: Tensors, path: Tensors, target: Tensor
) -> list[Tensor]:
    """What one presentation changes, from the activity along the path; ``rates`` are P or the rate
    itself.
    """
    output = path[-1] if size.regression else path[-1].softmax(-1)
    sent = target if size.credit == "target" else target - output
    if size.credit == "backprop":
        return _delta(weights, rates, path, sent)
    told = [*(linear(sent, b) for b in feedback), sent]
    return [
        _oja(w, p, path[i], path[i + 1], told[i])
        for i, (w, p) in enumerate(zip(weights, rates, strict=True))
    ]


def _oja(weight: Tensor, p: Tensor, pre: Tensor, post: Tensor, teaching: Tensor) -> Tensor:
    """Bounded: P o (<z x^T> - <z^2> W) / (1 + <z^2>)."""
    z = MIX * teaching + (1 - MIX) * post
    energy = z.square().mean(0)
    z = z / (1 + energy) / len(z)
    return p * (z.T @ pre - (energy / (1 + energy)).unsqueeze(1) * weight)


def _delta(weights: Tensors, rates: Tensors, path: Tensors, error: Tensor) -> list[Tensor]:
    """Gradient descent on half the squared error, or on the cross-entropy, mean over B."""
    told = []
    for i in reversed(range(len(weights))):
        told.append((error * (rates[i] / len(error))).T @ path[i])
        if i:
            error = (error @ weights[i]) * (path[i] > 0)
    return told[::-1]


def bounded(size: Size, raw: Tensors) -> list[Tensor]:
    """The plasticity, or the rate, that raw values stand for."""
    return [r.exp() if size.credit == "backprop" else r.tanh() for r in raw]


def query_loss(problem: Problem, e: int, output: Tensor) -> Tensor:
    """Mean cross-entropy or squared error of an episode's queries."""
    target = problem.query_y[e]
    if problem.size.regression:
        return (output - target).square().mean()
    return -(target * output.log_softmax(-1)).sum(-1).mean()


def parts(leaves: dict[str, Tensor]) -> tuple[list[Tensor], ...]:
    """Weights, feedback and rates out of a problem's parameters."""
    kinds = ("weights", "feedback", "rates")
    return tuple([t for n, t in leaves.items() if n.startswith(kind)] for kind in kinds)
