"""The fused engine gives the weights and the meta-gradient of the plain one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaplastic import (
    DirectFeedback,
    Hebb,
    LayeredNetwork,
    Learner,
    Oja,
    SquaredError,
    Unrolled,
    evaluate,
)
from metaplastic.inner_loop import Rollout, draw
from metaplastic.kernels import rows, stream
from metaplastic.signals import Kind
from tests.helpers import assert_close, classification, mlp, normal, regression, seeded, shake
from tests.kernels.fused import (
    ACTIVATIONS,
    FUSED,
    PLAIN,
    RULES,
    WAYS,
    assert_same,
    gradients,
    learner,
)

pytest.importorskip("numba", reason="the fused engine on a CPU is compiled by Numba")

CREDITS: dict[str, Callable[[], DirectFeedback]] = {
    "one layer": lambda: DirectFeedback("target"),
    "deep, rectified, fed back": lambda: DirectFeedback(
        "target", depth=2, width=4, rectify=True, bias=True, output="feedback"
    ),
    "resampled": lambda: DirectFeedback("target", weights="resampled"),
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", RULES)
def test_every_rule(name: str, batch: int) -> None:
    made = learner(RULES[name](), noise=0.03 if "published" in name else 0.3)
    assert_same(made, classification(3, 7, batch, 5, WAYS))


@pytest.mark.parametrize("rule", ["oja", "delta"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_function(activation: type[nn.Module], rule: str) -> None:
    made = learner(RULES[rule](), activation=activation)
    assert_same(made, classification(2, 5, 2, 5, WAYS))


@pytest.mark.parametrize("credit", CREDITS)
def test_every_feedback(credit: str) -> None:
    seed = 1 if credit == "resampled" else None
    assert_same(learner(Oja(0.1, 0.9), CREDITS[credit]()), classification(3, 6, 2, 5, WAYS), seed)


@pytest.mark.parametrize("episodes", [1, 3])
@pytest.mark.parametrize("presentations", [1, 7, 100])
def test_every_length(presentations: int, episodes: int) -> None:
    """100 presentations are more than are kept together."""
    made = learner(Oja(0.05, 0.9), noise=0.03)
    assert_same(made, classification(episodes, presentations, 1, 5, WAYS))


def test_initial_weights_of_every_episode() -> None:
    made = learner(Oja(0.1, 0.9), initial="resampled")
    assert_same(made, classification(3, 6, 2, 5, WAYS), seed=2)


def test_padding() -> None:
    shown = classification(2, 5, 3, 5, WAYS)
    weight = torch.ones(2, 5, 3)
    weight[0, 1, 2] = weight[1, 3] = 0
    for name in ("oja", "delta", "oja as published"):
        assert_same(learner(RULES[name]()), replace(shown, support_weight=weight))


def test_what_stands_between_the_layers() -> None:
    """Frozen layers of any kind, a trunk, norms, and no bias."""
    chain = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 6), nn.Tanh(), nn.LayerNorm(6),
        nn.Linear(6, 5, bias=False), nn.SiLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, WAYS),
    ).double()  # fmt: skip
    for i, p in enumerate(chain.parameters()):
        p.data = 0.5 * normal(*p.shape, seed=i)
    trunk = nn.Conv2d(1, 2, 1).double()
    network = LayeredNetwork(chain, trunk=trunk, input_shape=(1, 4, 4))
    rules = {"name:layer0_*": None, "name:layer2_*": None, "role:weight": Oja(0.1, 0.8)}
    made = shake(Learner(network, DirectFeedback("target"), rules), plasticity=0.2)
    assert_same(made, classification(2, 6, 2, (1, 4, 4), WAYS))


@pytest.mark.parametrize("signal", ["error", "target"])
def test_the_same_bits_wherever_the_memory_is(signal: Kind) -> None:
    """Small arrays close to each other go another way through compiled loops than far ones."""
    chain = mlp(4, 32, 32, 1).float()
    made = Learner(
        LayeredNetwork(chain),
        DirectFeedback(signal),
        {"role:weight": Oja(0.1, 0.9)},
        SquaredError(),
    )
    shown = regression(3, 6, 8, 4, 1).to(torch.device("cpu"), torch.float32)
    sizes = torch.randint(1, 5000, (100,), generator=seeded()).tolist()
    first = gradients(made, shown, FUSED)
    for i in range(50):
        between = [torch.empty(size) for size in sizes[: i % 30]]
        for name, value in gradients(made, shown, FUSED).items():
            assert torch.equal(value, first[name]), (name, len(between))


def test_only_the_shown_classes_of_a_wide_head_go_through_the_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chain = mlp(5, 6, 9)
    rules = {"position:last": Oja(0.6, 1.0), "role:weight": Oja(0.1, 0.9)}
    made = Learner(LayeredNetwork(chain), DirectFeedback("target"), {"role:bias": None, **rules})
    shake(made, plasticity=0.3, feedback=0.2)
    shown = classification(2, 7, 1, 5, 3)
    shown = replace(shown, support_y=4 * shown.support_y % 9)
    sizes, scan = [], stream.scan

    def listening(how: Any, weight: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(weight.shape[1])
        return scan(how, weight, *rest)

    monkeypatch.setattr(stream, "scan", listening)
    assert_same(made, shown)
    assert sizes == [6, 3]


def test_regression() -> None:
    made = learner(Oja(0.1, 0.9), objective=SquaredError())
    assert_same(made, regression(2, 6, 3, 5, WAYS))


def test_evaluation_between_tasks() -> None:
    shown = classification(3, 6, 2, 5, WAYS, queries=6)
    tasks = torch.arange(3).repeat_interleave(2).expand(3, 6)
    shown = replace(shown, support_task=tasks, query_task=tasks)
    made = learner(Oja(0.1, 0.9))
    plain, fused = (evaluate(made, shown, engine=e) for e in ("plain", "fused"))
    names = ("loss", "task_loss", "forgetting")
    found, wanted = ({n: getattr(e, n) for n in names} for e in (fused, plain))
    assert_close(found, wanted, 1e-12)


def test_truncation_and_segments() -> None:
    made, shown = learner(Oja(0.1, 0.9)), classification(2, 9, 1, 5, WAYS)
    for options in ({"truncate": 4}, {"checkpoint_every": 2}, {"batching": "loop"}):
        wanted = gradients(made, shown, Unrolled(engine="plain", **options))  # type: ignore[arg-type]
        found = gradients(made, shown, Unrolled(engine="fused", **options))  # type: ignore[arg-type]
        assert_close(found, wanted, 1e-10)


def test_single_precision_over_a_long_stream() -> None:
    chain = nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 5))
    for i, p in enumerate(chain.parameters()):
        p.data = 0.3 * normal(*p.shape, seed=i).float()
    made = Learner(LayeredNetwork(chain), DirectFeedback("target"), {"role:weight": Oja(0.02, 0.9)})
    shown = classification(1, 600, 1, 24, 5).to(torch.device("cpu"), torch.float32)
    found = gradients(made, shown, FUSED)
    wanted = gradients(copy.deepcopy(made).double(), shown, PLAIN)
    assert_close({n: g.double() for n, g in found.items()}, wanted, 1e-4)


@pytest.mark.parametrize("episodes", [1, 3])
def test_threads_agree_bit_for_bit(episodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "ALONE", 0)
    made, shown = learner(Oja(0.1, 0.9)), classification(episodes, 9, 2, 5, WAYS)
    found, threads = [], torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            found.append(gradients(made, shown, FUSED))
        finally:
            torch.set_num_threads(threads)
    for name, value in found[0].items():
        assert all(torch.equal(value, other[name]) for other in found[1:])


def test_weights_after_the_stream() -> None:
    made, shown = learner(Hebb(0.1, 0.9)), classification(2, 7, 1, 5, WAYS)
    rollouts = [
        Rollout(made, shown, draw(made, shown, None), engine=engine)
        for engine in ("fused", "plain")
    ]
    for rollout in rollouts:
        rollout.advance(0, shown.presentations)
    found, wanted = (rollout.moving["weights"] for rollout in rollouts)
    assert_close(found, wanted, 1e-12)


def test_an_episode_that_diverges_is_left_out() -> None:
    made = learner(Oja(0.01, 0.5, bounded=False), activation=nn.ReLU, noise=0.01)
    shown = classification(3, 10, 1, 5, WAYS)
    shown.support_x[1] *= 1e6
    wanted, found = (m.gradient(copy.deepcopy(made), shown) for m in (PLAIN, FUSED))
    assert [d.episode for d in found.diverged] == [d.episode for d in wanted.diverged] == [1]
    assert_close({"loss": found.loss}, {"loss": wanted.loss}, 1e-10)
