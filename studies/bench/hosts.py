"""The loop inside other libraries, with the fast weights in their hands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from studies.bench.loop import bounded, changes, parts, query_loss
from studies.bench.problem import Problem

Found = tuple[float, dict[str, Tensor]]


class Chain(nn.Module):
    """The network as a module; ``forward`` gives the activity along the path."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for w in weights:
            layer = nn.Linear(w.shape[1], w.shape[0], bias=False)
            layer.weight = nn.Parameter(w.clone())
            self.layers.append(layer)

    def forward(self, x: Tensor) -> list[Tensor]:
        path = [x]
        for i, layer in enumerate(self.layers):
            x = layer(x)
            x = x.relu() if i < len(self.layers) - 1 else x
            path.append(x)
        return path


def with_higher(problem: Problem) -> Found:
    """A patched copy for each episode, whose parameters are set by ``update_params``: its
    optimisers differentiate a loss, which a local rule does not have.
    """
    import higher

    def begin(chain: Chain) -> tuple[Callable[[Tensor], list[Tensor]], Any]:
        patched: Any = higher.patch.monkeypatch(chain, copy_initial_weights=False)

        def move(weights: list[Tensor], told: list[Tensor]) -> None:
            patched.update_params([w + change for w, change in zip(weights, told, strict=True)])

        return patched, (lambda: list(patched.fast_params), move)

    return _found(problem, begin)


def with_learn2learn(problem: Problem) -> Found:
    """A clone for each episode, moved by ``update_module``, as its MAML does."""
    from learn2learn import clone_module, update_module

    def begin(chain: Chain) -> tuple[Callable[[Tensor], list[Tensor]], Any]:
        clone: Any = clone_module(chain)

        def weights() -> list[Tensor]:
            return [layer.weight for layer in clone.layers]

        return clone, (weights, lambda _, told: update_module(clone, updates=told))

    return _found(problem, begin)


def _found(problem: Problem, begin: Callable[[Chain], tuple[Callable[..., Any], Any]]) -> Found:
    leaves = {n: t.clone().requires_grad_() for n, t in problem.parameters.items()}
    _, feedback, rates = parts(leaves)
    chain, size, total = Chain(problem.weights), problem.size, 0.0
    for e in range(size.episodes):
        model, (weights, move) = begin(chain)
        own = bounded(size, rates)
        for x, target in zip(problem.x[e], problem.y[e], strict=True):
            before = weights()
            move(before, changes(size, before, feedback, own, model(x), target))
        loss = query_loss(problem, e, model(problem.query_x[e])[-1])
        (loss / size.episodes).backward()
        total += float(loss.detach()) / size.episodes
    found = {n: t.grad for n, t in leaves.items() if t.grad is not None}
    found |= {f"weights{i}": p.grad for i, p in enumerate(chain.parameters()) if p.grad is not None}
    return total, found
