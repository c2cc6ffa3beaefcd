"""The ways to one meta-gradient, each a row of the table."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib import import_module
from io import StringIO

from torch import Tensor

from metaplastic import Unrolled
from metaplastic.errors import CompatibilityError
from metaplastic.kernels import explain
from studies.bench import hosts, loop
from studies.bench.problem import Problem, make_episodes, make_learner, named

Found = tuple[float, dict[str, Tensor]]
"""The mean query loss, and its gradient by name."""
Call = Callable[[], Found]


class LeftOut(Exception):
    """Why a row is not there for one size; no error: the tables say it."""


@dataclass(frozen=True)
class Row:
    """One way, prepared for a problem by ``prepare``, which raises LeftOut where it cannot."""

    about: str
    prepare: Callable[[Problem], Call]
    together: bool = False
    """Whether it keeps a graph of all episodes at once."""
    graph: bool = True
    """Whether it keeps a graph of every presentation at all."""


def _loop(problem: Problem) -> Call:
    return lambda: loop.meta_gradient(problem)


def _unrolled(problem: Problem, method: Unrolled) -> Call:
    learner, episodes = make_learner(problem), make_episodes(problem)

    def call() -> Found:
        learner.zero_grad(set_to_none=True)
        outcome = method.gradient(learner, episodes)
        if outcome.diverged:
            raise RuntimeError(f"{problem.size.name}: {outcome.diverged[0]}")
        found = {n: p.grad for n, p in named(learner).items() if p.grad is not None}
        return float(outcome.loss.mean()), found

    return call


def _plain(problem: Problem) -> Call:
    return _unrolled(problem, Unrolled(engine="plain"))


def _vmap(problem: Problem) -> Call:
    if problem.size.episodes == 1:
        raise LeftOut("one episode: nothing to batch over")
    return _unrolled(problem, Unrolled(engine="plain", batching="vmap"))


def _compiled(problem: Problem) -> Call:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise LeftOut(f"there is no C++ compiler {compiler} (environment variable CXX)")
    return _unrolled(problem, Unrolled(engine="compiled"))


def _fused(problem: Problem) -> Call:
    try:
        explain(make_learner(problem), "fused")
    except CompatibilityError as reason:
        raise LeftOut(str(reason)) from reason
    return _unrolled(problem, Unrolled(engine="fused"))


def _host(name: str, version: str, function: Callable[[Problem], Found]) -> Callable[..., Call]:
    def prepare(problem: Problem) -> Call:
        try:
            with redirect_stderr(StringIO()):  # Gym, which learn2learn imports, says that it is old
                import_module(name)
        except ImportError:
            raise LeftOut(f"{name} is not installed: pip install {name}=={version}") from None
        return lambda: function(problem)

    return prepare


LOOP, FUSED, JAX = "loop", "fused", "jax"
ROWS: dict[str, Row] = {
    LOOP: Row("plain PyTorch, one episode after another", _loop),
    "plain": Row("Unrolled(engine='plain')", _plain),
    "vmap": Row("Unrolled(engine='plain', batching='vmap')", _vmap, together=True),
    "compiled": Row("Unrolled(engine='compiled')", _compiled),
    FUSED: Row("Unrolled(engine='fused')", _fused, graph=False),
    "higher": Row(
        "higher's monkeypatch and update_params", _host("higher", "0.2.1", hosts.with_higher)
    ),
    "learn2learn": Row(
        "learn2learn's clone_module and update_module",
        _host("learn2learn", "0.2.0", hosts.with_learn2learn),
    ),
}
"""Those of this process; ``jax`` has one of its own."""
PEERS = {
    **{name: row.about for name, row in ROWS.items() if name != LOOP},
    JAX: "jit, scan and the best of its checkpoints (needs `make peers`)",
}
"""What the loop can be compared with."""
