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
    Backprop,
    Coefficient,
    Consolidated,
    CreditAssignment,
    CrossEntropy,
    Delta,
    DirectFeedback,
    DirectRandomTarget,
    Episodes,
    Hebb,
    LayeredNetwork,
    Learner,
    Objective,
    Oja,
    PlasticityRule,
    SquaredError,
    Unrolled,
    evaluate,
)
from metaplastic.errors import CompatibilityError, KernelsWarning
from metaplastic.inner_loop import Rollout, draw
from metaplastic.kernels import dispatch, explain, rows, stream
from metaplastic.signals import Kind
from tests.helpers import (
    assert_close,
    classification,
    mlp,
    normal,
    regression,
    seeded,
    shake,
)

pytest.importorskip("numba", reason="the fused engine on a CPU is compiled by Numba")
PLAIN, FUSED = Unrolled(engine="plain"), Unrolled(engine="fused")
WAYS = 3
RULES: dict[str, Callable[[], PlasticityRule]] = {
    "oja": lambda: Oja(0.1, 0.9),
    "oja of one number a layer, divided by the inputs": lambda: Oja(
        0.1, 0.3, granularity="layer", fan_in=True, multiplier=2.0
    ),
    "oja of one number a neuron": lambda: Oja(
        0.1, Coefficient(0.4, granularity="neuron", bound="sigmoid"), granularity="neuron"
    ),
    "oja as published": lambda: Oja(0.02, 0.5, bounded=False),
    "oja on teaching alone": lambda: Oja(0.1, 1.0),
    "oja without teaching": lambda: Oja(0.1, 0.0),
    "hebb": lambda: Hebb(0.1, 0.7),
    "hebb of one number, mean over examples": lambda: Hebb(
        0.05, 0.7, granularity="network", bounded=False, reduction="examples"
    ),
    "delta": lambda: Delta(0.1, learned=True),
    "delta without slope, a rate for each synapse": lambda: Delta(
        0.1, learned=True, granularity="synapse", derivative=False, reduction="sum"
    ),
}
ACTIVATIONS = (nn.Tanh, nn.ReLU, nn.Sigmoid, nn.Identity)
CREDITS: dict[str, Callable[[], DirectFeedback]] = {
    "one layer": lambda: DirectFeedback("target"),
    "deep, rectified, fed back": lambda: DirectFeedback(
        "target", depth=2, width=4, rectify=True, bias=True, output="feedback"
    ),
    "resampled": lambda: DirectFeedback("target", weights="resampled"),
}


def learner(
    rule: PlasticityRule,
    credit: DirectFeedback | None = None,
    activation: type[nn.Module] = nn.Tanh,
    noise: float = 0.3,
    **options: Any,
) -> Learner:
    network = LayeredNetwork(mlp(5, 6, 4, WAYS, activation=activation))
    made = Learner(network, credit or DirectFeedback("target"), {"role:weight": rule}, **options)
    return shake(made, plasticity=noise, mixing=0.2, control=0.1, feedback=0.2)


def gradients(
    learner: Learner, episodes: Episodes, method: Unrolled, seed: int | None = None
) -> dict[str, Tensor]:
    """The loss and the meta-gradient of a copy, by name."""
    own = copy.deepcopy(learner)
    outcome = method.gradient(own, episodes, generator=None if seed is None else seeded(seed))
    assert not outcome.diverged
    grads = {n: p.grad for n, p in own.named_parameters() if p.grad is not None}
    return {"loss": outcome.loss, **grads}


def assert_same(learner: Learner, episodes: Episodes, seed: int | None = None) -> None:
    """To 1e-10 in every gradient, with nothing given mutated."""
    tensors = [getattr(episodes, n) for n in ("support_x", "support_y", "query_x")]
    before = [t.clone() for t in tensors] + [p.clone() for p in learner.parameters()]
    wanted = gradients(learner, episodes, PLAIN, seed)
    found = gradients(learner, episodes, FUSED, seed)
    assert_close(found, wanted, 1e-10)
    assert any(bool(value.any()) for name, value in wanted.items() if name != "loss")
    for old, new in zip(before, [*tensors, *learner.parameters()], strict=True):
        assert torch.equal(old, new)


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


# --- learning from the own error ---

ERRORS: dict[str, Callable[[], CreditAssignment]] = {
    "clamped": lambda: DirectFeedback("error"),
    "fed back": lambda: DirectFeedback("error", output="feedback"),
    "resampled": lambda: DirectFeedback("error", weights="resampled"),
    "backprop": Backprop,
}
OBJECTIVES = (CrossEntropy(), SquaredError(), CrossEntropy(scale="batch"))


def own_error(
    rule: PlasticityRule,
    credit: CreditAssignment,
    objective: Objective | None = None,
    activation: type[nn.Module] = nn.Tanh,
    **options: Any,
) -> Learner:
    network = LayeredNetwork(mlp(5, 6, 4, WAYS, activation=activation))
    made = Learner(network, credit, {"role:weight": rule}, objective, **options)
    return shake(made, plasticity=0.1, mixing=0.2, control=0.1, feedback=0.2)


def episodes_for(
    objective: Objective | None, episodes: int, presentations: int, batch: int
) -> Episodes:
    if isinstance(objective, SquaredError):
        return regression(episodes, presentations, batch, 5, WAYS)
    return classification(episodes, presentations, batch, 5, WAYS)


@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("credit", ERRORS)
def test_errors_by_every_way(credit: str, objective: Objective, batch: int) -> None:
    """Six examples are neither one nor a whole number of fours."""
    for rule in (Oja(0.05, 0.8), Delta(0.1, learned=True)):
        made = own_error(rule, ERRORS[credit](), objective)
        seed = 1 if credit == "resampled" else None
        assert_same(made, episodes_for(objective, 2, 7, batch), seed)


@pytest.mark.parametrize("credit", ["clamped", "backprop"])
@pytest.mark.parametrize("name", RULES)
def test_every_rule_on_errors(name: str, credit: str) -> None:
    assert_same(own_error(RULES[name](), ERRORS[credit]()), classification(2, 5, 2, 5, WAYS))


@pytest.mark.parametrize("credit", ["clamped", "backprop"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_function_on_errors(activation: type[nn.Module], credit: str) -> None:
    made = own_error(Delta(0.1, learned=True), ERRORS[credit](), activation=activation)
    assert_same(made, classification(2, 5, 3, 5, WAYS))


@pytest.mark.parametrize("credit", ["clamped", "backprop"])
@pytest.mark.parametrize("episodes", [1, 3])
@pytest.mark.parametrize("presentations", [1, 7, 100])
def test_every_length_on_errors(presentations: int, episodes: int, credit: str) -> None:
    made = own_error(Delta(0.02, learned=True), ERRORS[credit]())
    assert_same(made, classification(episodes, presentations, 1, 5, WAYS))


@pytest.mark.parametrize("credit", ["clamped", "backprop"])
def test_padding_on_errors(credit: str) -> None:
    weight = torch.ones(2, 5, 3)
    weight[0, 1, 2] = weight[1, 3] = 0
    shown = replace(classification(2, 5, 3, 5, WAYS), support_weight=weight)
    for scale in ("example", "batch"):
        made = own_error(Oja(0.05, 0.8), ERRORS[credit](), CrossEntropy(scale=scale))
        assert_same(made, shown)


def test_upper_layers_alone_behind_a_trunk() -> None:
    """Online-aware meta-learning: the lower layers stay as they are within an episode."""
    network = LayeredNetwork(
        mlp(6, 5, 5, 4, WAYS), trunk=nn.Linear(5, 6).double(), input_shape=(5,)
    )
    rules = {"name:layer0_*": None, "name:layer1_*": None, "role:weight": Delta(0.1, learned=True)}
    made = Learner(network, Backprop(), rules, initial="learned")
    assert_same(shake(made, initial=0.1), classification(3, 6, 2, 5, WAYS))


def test_single_precision_over_a_long_stream_of_errors() -> None:
    chain = nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 5))
    for i, p in enumerate(chain.parameters()):
        p.data = 0.3 * normal(*p.shape, seed=i).float()
    for credit in (DirectFeedback("error"), Backprop()):
        own = copy.deepcopy(chain)
        made = Learner(LayeredNetwork(own), credit, {"role:weight": Delta(0.005, learned=True)})
        shown = classification(1, 600, 1, 24, 5).to(torch.device("cpu"), torch.float32)
        found = gradients(made, shown, FUSED)
        wanted = gradients(copy.deepcopy(made).double(), shown, PLAIN)
        assert_close({n: g.double() for n, g in found.items()}, wanted, 1e-4)


# --- the choice ---

REFUSED: dict[str, tuple[Callable[[], Learner], str]] = {
    "another credit": (
        lambda: learner(Oja(0.1, 0.9), DirectRandomTarget()),
        "DirectRandomTarget waits",
    ),
    "deep feedback of errors": (
        lambda: own_error(Oja(0.1), DirectFeedback("error", depth=2, width=3)),
        "one linear layer",
    ),
    "errors that are constants": (
        lambda: own_error(Oja(0.1), DirectFeedback("error", detach_error=True)),
        "for a constant",
    ),
    "errors through a frozen layer": (
        lambda: Learner(
            mlp(5, 4, 4, WAYS), Backprop(), {"name:layer0_weight": Delta(0.1), "*": None}
        ),
        "above the lowest plastic one",
    ),
    "errors through a norm": (
        lambda: Learner(
            nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, WAYS)),
            Backprop(),
            {"role:weight": Delta(0.1)},
        ),
        "between the plastic layers",
    ),
    "another rule": (lambda: learner(Consolidated(Oja(0.1, 0.9))), "Consolidated behind Tanh"),
    "a decay": (lambda: learner(Delta(0.1, decay=0.1)), "Delta without decay"),
    "another activation": (lambda: learner(Oja(0.1), activation=nn.SiLU), "Oja behind SiLU"),
    "plastic biases": (
        lambda: Learner(mlp(5, 4, WAYS), DirectFeedback("target"), {"*": Oja(0.1)}),
        "layer0_bias is plastic",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_run_is_plain_or_refused_with_the_reason(name: str) -> None:
    make, reason = REFUSED[name]
    made = make()
    choice = explain(made)
    assert choice.engine == "plain"
    assert reason in str(choice)
    with pytest.raises(CompatibilityError, match=reason):
        explain(made, "fused")


def test_first_order_is_plain() -> None:
    made, shown = learner(Oja(0.1, 0.9)), classification(1, 3, 1, 5, WAYS)
    assert explain(made, first_order=True).engine == "plain"
    with pytest.raises(CompatibilityError, match="constants"):
        Unrolled(engine="fused", first_order=True).gradient(made, shown)


def test_without_the_compiler_a_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    made = learner(Oja(0.1, 0.9))
    with pytest.warns(KernelsWarning, match="pip install numba"):
        assert explain(made).engine == "plain"
    with pytest.raises(CompatibilityError, match="numba is not installed"):
        explain(made, "fused")


def test_meta_training_takes_the_fused_engine_where_it_can() -> None:
    made = learner(Oja(0.1, 0.9), objective=CrossEntropy())
    assert str(explain(made)).startswith("fused: every neuron goes through")
    assert "step by step" in str(explain(own_error(Delta(0.1), Backprop())))
    assert Unrolled().engine == "auto"
