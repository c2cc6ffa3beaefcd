"""Memory estimates, and gradients under a budget."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

from metaplastic import (
    Backprop,
    CreditAssignment,
    Delta,
    DirectFeedback,
    Episodes,
    FeedbackAlignment,
    LayeredNetwork,
    Learner,
    MemoryEstimate,
    Oja,
    Unrolled,
    memory_estimate,
)
from metaplastic.analysis import LiveBytes
from metaplastic.errors import ConfigurationError, MemoryBudgetError
from tests.helpers import assert_close, classification, mlp, seeded

WAYS = 3
SMALL, LARGE = (5, 6, 4, WAYS), (30, 20, WAYS)
fused = pytest.mark.skipif(find_spec("numba") is None, reason="needs numba")
TARGET: Callable[[], CreditAssignment] = lambda: DirectFeedback("target")  # noqa: E731
CREDITS: dict[str, Callable[[], CreditAssignment]] = {
    "target": TARGET,
    "deep": lambda: DirectFeedback("target", depth=2, width=7, rectify=True, bias=True),
    "error": lambda: DirectFeedback("error"),
    "backprop": Backprop,
}


def learner(
    sizes: tuple[int, ...] = SMALL, credit: CreditAssignment | None = None, **options: str
) -> Learner:
    network = LayeredNetwork(mlp(*sizes))
    return Learner(network, credit or TARGET(), {"role:weight": Oja(0.01, 0.9)}, **options)  # type: ignore[arg-type]


def shown(sizes: tuple[int, ...], episodes: int, presentations: int, batch: int = 1) -> Episodes:
    return classification(episodes, presentations, batch, sizes[0], WAYS)


def gradient(made: Learner, episodes: Episodes, method: Unrolled) -> tuple[dict[str, Tensor], int]:
    """The meta-gradient by name, and the peak of live bytes."""
    own = copy.deepcopy(made)
    with LiveBytes() as live:
        outcome = method.gradient(own, episodes, generator=seeded(1))
    found = {n: p.grad for n, p in own.named_parameters() if p.grad is not None}
    return {"loss": outcome.loss, **found}, live.peak


def assert_near(made: Learner, episodes: Episodes, method: Unrolled, low: float, high: float):
    found = memory_estimate(made, episodes, method).bytes
    _, peak = gradient(made, episodes, method)
    assert low * peak < found < high * peak, f"{found} for {peak}"


@pytest.mark.parametrize("every", [None, 1, 4])
@pytest.mark.parametrize("presentations", [1, 15])
def test_plain_against_live_bytes(presentations: int, every: int | None) -> None:
    for sizes, episodes, batch in ((SMALL, 1, 3), (SMALL, 4, 1), (LARGE, 3, 2)):
        method = Unrolled(engine="plain", batching="vmap", checkpoint_every=every)
        tensors = shown(sizes, episodes, presentations, batch)
        assert_near(learner(sizes), tensors, method, 0.85, 1.3)


OTHERS: dict[str, tuple[Callable[[], Learner], Unrolled]] = {
    "one by one": (learner, Unrolled(batching="loop")),
    "truncated and checkpointed": (learner, Unrolled(truncate=9, checkpoint_every=3)),
    "first order": (learner, Unrolled(first_order=True)),
    "resampled": (lambda: learner(initial="resampled"), Unrolled(batching="vmap")),
    "feedback alignment": (lambda: learner(credit=FeedbackAlignment()), Unrolled()),
    "a trunk": (
        lambda: Learner(
            LayeredNetwork(mlp(6, 4, WAYS), trunk=nn.Linear(5, 6).double(), input_shape=(5,)),
            Backprop(),
            {"role:weight": Delta(0.01)},
        ),
        Unrolled(batching="vmap"),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_option(name: str) -> None:
    build, method = OTHERS[name]
    assert_near(build(), shown(SMALL, 3, 12, 2), replace(method, engine="plain"), 0.75, 1.4)


def test_linear_in_presentations_and_in_episodes() -> None:
    made, method = learner(), Unrolled(engine="plain", batching="vmap")
    for sizes in ([(2, 10), (2, 20), (2, 30)], [(2, 10), (3, 10), (4, 10)]):
        a, b, c = (memory_estimate(made, shown(SMALL, *size), method).bytes for size in sizes)
        assert c - b == b - a > 0


# --- the fused engine ---


@fused
@pytest.mark.parametrize("presentations", [10, 150])
@pytest.mark.parametrize("credit", CREDITS)
def test_fused_against_live_bytes(
    credit: str, presentations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what other threads allocate is not counted
    for name in ("kernels.rows.ALONE", "memory.ALONE"):
        monkeypatch.setattr(f"metaplastic.{name}", 2**60)
    for sizes in (SMALL, LARGE):
        for episodes, batch in ((1, 3), (6, 1)):
            tensors = shown(sizes, episodes, presentations, batch)
            made = learner(sizes, CREDITS[credit]())
            for method in (Unrolled(engine="fused"), Unrolled(engine="fused", checkpoint_every=7)):
                assert_near(made, tensors, method, 0.75, 1.45)


@fused
def test_fused_behind_a_frozen_layer_and_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("kernels.rows.ALONE", "memory.ALONE"):
        monkeypatch.setattr(f"metaplastic.{name}", 2**60)
    rules = {"name:layer0_*": None, "role:weight": Delta(0.01)}
    for credit in CREDITS.values():
        made = Learner(LayeredNetwork(mlp(*SMALL)), credit(), rules)
        for options in ({}, {"truncate": 20}):
            method = Unrolled(engine="fused", **options)  # type: ignore[arg-type]
            assert_near(made, shown(SMALL, 3, 70, 2), method, 0.7, 1.5)


# --- under a budget ---


def budgets(made: Learner, episodes: Episodes, method: Unrolled) -> dict[str, int]:
    """Of everything, of a third, and of the least that was told to be enough."""
    whole = memory_estimate(made, episodes, method).bytes
    with pytest.raises(MemoryBudgetError) as told:
        memory_estimate(made, episodes, replace(method, memory=1))
    least = int(str(told.value).split("needs ")[1].split()[0])
    return {"whole": whole, "third": max(whole // 3, least), "least": least}


def test_the_gradient_under_a_budget_is_the_same() -> None:
    made, episodes = learner(LARGE), shown(LARGE, 2, 30)
    plain = Unrolled(engine="plain", batching="vmap")
    wanted, _ = gradient(made, episodes, plain)
    chosen = {}
    for name, budget in budgets(made, episodes, plain).items():
        method = replace(plain, memory=budget)
        found, peak = gradient(made, episodes, method)
        assert_close(found, wanted, 1e-12)
        assert peak <= 1.1 * budget
        chosen[name] = memory_estimate(made, episodes, method).checkpoint_every
    assert chosen["whole"] is None
    assert chosen["third"] is not None
    assert chosen["least"] is not None


def test_the_best_checkpoint_needs_least_in_truth() -> None:
    """Near the root of T times state over presentation."""
    made, episodes = learner(LARGE), shown(LARGE, 1, 30)
    plain = Unrolled(engine="plain")
    least = budgets(made, episodes, plain)["least"]
    best = memory_estimate(made, episodes, replace(plain, memory=least)).checkpoint_every
    peaks = {
        k: gradient(made, episodes, replace(plain, checkpoint_every=k))[1] for k in (1, 2, 4, 6, 10)
    }
    _, peak = gradient(made, episodes, replace(plain, checkpoint_every=best))
    assert peak <= 1.05 * min(peaks.values())


@pytest.mark.parametrize("engine", ["plain", pytest.param("fused", marks=fused)])
def test_fewer_episodes_run_at_once(engine: str) -> None:
    made, episodes = learner(), shown(SMALL, 2, 24)
    method = Unrolled(engine=engine)  # type: ignore[arg-type]
    wanted, _ = gradient(made, episodes, method)
    least = budgets(made, episodes, method)["least"]
    small = replace(method, memory=least)
    assert memory_estimate(made, episodes, small).episodes == 1
    found, peak = gradient(made, episodes, small)
    assert_close(found, wanted, 1e-12)
    assert peak <= 1.1 * least
    with pytest.raises(MemoryBudgetError, match="batching='loop'"):
        replace(small, batching="vmap").gradient(made, episodes)
    assert memory_estimate(made, episodes, replace(small, batching="loop")).bytes <= least


def test_what_cannot_fit() -> None:
    made, episodes = learner(), shown(SMALL, 2, 10)
    says = r"needs \d+ bytes at least and memory=1000\. .* MB .*shorter streams"
    with pytest.raises(MemoryBudgetError, match=says) as told:
        Unrolled(memory=1000).gradient(made, episodes)
    assert isinstance(told.value, MemoryError)
    assert all(p.grad is None for p in made.parameters())


def test_options_that_make_no_sense() -> None:
    with pytest.raises(ConfigurationError, match="memory counts bytes, from 1; got 0"):
        Unrolled(memory=0)
    with pytest.raises(ConfigurationError, match="chooses checkpoint_every by itself"):
        Unrolled(memory=1000, checkpoint_every=3)


def test_a_plan_is_kept_while_learner_and_shapes_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    import metaplastic.memory

    calls, own = [], metaplastic.memory.memory_estimate

    def counted(*arguments: object) -> MemoryEstimate:
        calls.append(1)
        return own(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(metaplastic.memory, "memory_estimate", counted)
    made, method = learner(), Unrolled(memory=10**9)
    for expected, who, length in ((1, made, 5), (1, made, 5), (2, made, 6), (3, learner(), 6)):
        method.gradient(who, shown(SMALL, 2, length))
        assert len(calls) == expected
    assert pickle.loads(pickle.dumps(method)) == method == copy.deepcopy(method)


def test_nothing_is_mutated_and_a_learner_tells_its_own() -> None:
    made, episodes = learner(initial="resampled"), shown(SMALL, 3, 5, 2)
    given = [t for t in vars(episodes).values() if t is not None]
    before = [t.clone() for t in [*given, *made.state_dict().values()]]
    random = torch.get_rng_state()
    found = made.memory_estimate(episodes)
    assert found == memory_estimate(made, episodes, Unrolled())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in made.parameters())
    for old, new in zip(before, [*given, *made.state_dict().values()], strict=True):
        assert torch.equal(old, new)


def test_it_reads_in_megabytes() -> None:
    found = MemoryEstimate("plain", 4, 10, {"stream": 1_500_000, "states": 2_000_000})
    assert found.bytes == 3_500_000
    said = "3.5 MB (plain, episodes at once: 4, checkpoint_every=10): stream 1.5, states 2"
    assert str(found) == said
