"""What is refused: each a typed error that names the thing, what was expected and what to do."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metaplastic import (
    Backprop,
    Coefficient,
    CrossEntropy,
    Delta,
    DirectFeedback,
    Episodes,
    Hebb,
    Learner,
    LocalSignals,
    Oja,
    SquaredError,
    Unrolled,
    errors,
)
from metaplastic.errors import (
    CompatibilityError,
    ConfigurationError,
    DataError,
    LabelError,
    MetaplasticError,
    ShapeError,
    UnknownNameError,
)
from metaplastic.evaluation import evaluate
from metaplastic.recipes import RECIPES, recipe
from tests.helpers import classification, mlp, normal, regression, seeded, shake

CLASSES = classification(2, 3, 2, 4, 3)
VALUES = regression(2, 3, 2, 4, 3)


def learner(objective=None) -> Learner:
    return shake(Learner(mlp(4, 5, 3), DirectFeedback(), Oja(0.1), objective or CrossEntropy()))


# --- episodes ---


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("support_x", normal(2, 3, 4), r"support_x must be \(E, T, B.*\(2, 3, 4\).*B = 1"),
        ("support_x", normal(2, 0, 2, 4), r"support_x .*no empty axis.*\(2, 0, 2, 4\)"),
        ("support_x", normal(0, 3, 2, 4), r"support_x .*no empty axis"),
        ("support_x", normal(2, 3, 2, 5), r"query_x \(2, 5, 4\).*support_x \(2, 3, 2, 5\)"),
        ("query_x", normal(2, 4), r"query_x must be \(E, Q.*\(2, 4\)"),
        ("query_x", normal(2, 0, 4), "query_x .*no empty axis"),
        ("query_x", normal(3, 5, 4), r"query_x \(3, 5, 4\) must have the episodes"),
        ("support_y", torch.zeros(2, 3).long(), r"support_y must be \(2, 3, 2\), got \(2, 3\)"),
        ("query_y", torch.zeros(2, 4).long(), r"query_y must be \(2, 5\), got \(2, 4\)"),
        ("support_task", torch.zeros(2, 3, 2).long(), r"support_task must be \(2, 3\)"),
        ("query_task", torch.zeros(5).long(), r"query_task must be \(2, 5\)"),
        ("support_weight", torch.ones(2, 3), r"support_weight must be \(2, 3, 2\)"),
        ("query_weight", torch.ones(2, 5, 1), r"query_weight must be \(2, 5\)"),
    ],
)
def test_episodes_of_the_wrong_shape(field, value, says):
    with pytest.raises(ShapeError, match=says):
        replace(CLASSES, **{field: value})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("field", ["support_x", "query_x", "support_y", "query_y"])
def test_data_that_is_not_finite(field, bad):
    value = getattr(VALUES, field).clone()
    place = tuple(n - 1 for n in value.shape)
    value[place] = bad
    index = ", ".join(map(str, place))
    with pytest.raises(DataError, match=rf"{field} holds a NaN .*\[{index}\]: clean the data"):
        replace(VALUES, **{field: value})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("field", ["support_weight", "query_weight"])
def test_weights_that_are_not_finite_or_negative(field, bad):
    value = torch.ones(2, 3, 2) if field == "support_weight" else torch.ones(2, 5)
    value[-1, -1] = bad
    with pytest.raises(DataError, match=field):
        replace(VALUES, **{field: value})


def test_an_episode_without_a_single_query_that_counts():
    """Its loss would be a perfect 0."""
    weight = torch.ones(2, 5)
    weight[1] = 0.0
    with pytest.raises(DataError, match="query_weight"):
        replace(VALUES, query_weight=weight)


def test_no_episodes_at_all():
    with pytest.raises(ShapeError, match="no empty axis"):
        CLASSES[[]]
    with pytest.raises(ShapeError, match="no empty axis"):
        CLASSES[2:]


# --- what is shown, and the targets ---


def show(call: str, x: Tensor, y: Tensor) -> object:
    """Show a batch by one of the ways in."""
    one = learner()
    if call == "adapt":
        return one.clone().adapt(x, y)
    if call == "assign_grads":
        return one.assign_grads(x, y)
    episodes = Episodes(x[None, None], y[None, None], x[None], y[None])
    return evaluate(one, episodes) if call == "evaluate" else Unrolled().gradient(one, episodes)


@pytest.mark.parametrize("call", ["gradient", "evaluate", "adapt", "assign_grads"])
@pytest.mark.parametrize(
    ("x", "y", "kind", "says"),
    [
        ((2, 5), torch.tensor([0, 1]), ShapeError, r"\(4,\).*\(5,\)"),
        ((2, 2, 2), torch.tensor([0, 1]), ShapeError, r"\(4,\).*\(2, 2\)"),
        ((2, 4), torch.tensor([0, 3]), LabelError, r"labels must lie in 0\.\.2.*0\.\.3"),
        ((2, 4), torch.tensor([-1, 2]), LabelError, r"labels must lie in 0\.\.2.*-1\.\.2"),
        ((2, 4), torch.tensor([0.0, 1.0]), LabelError, "integer labels.*long"),
        ((2, 4), torch.tensor([True, False]), LabelError, "integer labels"),
        ((2, 4), torch.tensor([[0], [1]]), ShapeError, r"\(2, 1\)"),
        ((2, 4), torch.tensor([[0, 1, 2], [1, 0, 2]]), ShapeError, r"\(2, 3\)"),
    ],
)
def test_examples_and_labels_that_do_not_fit(call, x, y, kind, says):
    """The same error from every way in; episodes put axes in front of the shapes."""
    if call in ("gradient", "evaluate"):
        says = says.replace(r"\(2, ", r"\(.*2, ")
    with pytest.raises(kind, match=says):
        show(call, normal(*x), y)


@pytest.mark.parametrize(
    "y",
    [
        normal(2, 2),
        normal(2),
        normal(2, 1, 3),
        torch.zeros(2, 3).long(),
        torch.tensor([0, 1]),
    ],
    ids=["other width", "no width", "an axis too many", "integers", "labels"],
)
def test_regression_targets_that_do_not_fit(y):
    with pytest.raises(ShapeError, match=r"SquaredError needs floating|targets"):
        learner(SquaredError()).clone().adapt(normal(2, 4), y)


@pytest.mark.parametrize("objective", [CrossEntropy(), SquaredError()])
def test_more_or_fewer_targets_than_examples(objective):
    y = torch.tensor([0, 1, 2]) if isinstance(objective, CrossEntropy) else normal(3, 3)
    with pytest.raises(ShapeError, match=r"targets must begin with \(2,\), got \(3"):
        learner(objective).clone().adapt(normal(2, 4), y)


def test_pixels_in_integers_are_refused_with_the_remedy():
    x = torch.randint(255, (2, 3, 2, 4), generator=seeded()).byte()
    episodes = Episodes(x, CLASSES.support_y, x[:, :, 0], torch.zeros(2, 3).long())
    with pytest.raises(MetaplasticError, match=r"uint8.*float"):
        Unrolled().gradient(learner(), episodes)
    with pytest.raises(MetaplasticError, match=r"uint8.*float"):
        learner().clone().adapt(x[0, 0], torch.tensor([0, 1]))


def test_a_learner_shown_nothing_of_the_right_kind_changes_nothing():
    """What raised has left no trace."""
    one = learner()
    fast = one.clone()
    before = fast(normal(2, 4))
    for x, y in ((normal(2, 5), torch.tensor([0, 1])), (normal(2, 4), torch.tensor([0, 7]))):
        with pytest.raises(MetaplasticError):
            fast.adapt(x, y)
        with pytest.raises(MetaplasticError):
            one.assign_grads(x, y)
    assert torch.equal(fast(normal(2, 4)), before)
    assert all(p.grad is None for p in one.parameters())


# --- options ---


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"value": 1.5, "bound": "tanh"}, r"'tanh' lies in \[-1.0, 1.0\], got 1.5"),
        ({"value": -0.1, "bound": "sigmoid"}, r"'sigmoid' lies in \[0.0, 1.0\]"),
        ({"value": -1.0, "bound": "exp"}, r"'exp' lies in \[0.0, inf\]"),
        ({"value": float("nan")}, "got nan"),
    ],
)
def test_coefficients_out_of_their_range(options, says):
    with pytest.raises(ConfigurationError, match=says):
        Coefficient(**options)


@pytest.mark.parametrize("family", [Oja, Hebb])
def test_bounded_rules_out_of_their_range(family):
    with pytest.raises(ConfigurationError, match="tanh"):
        family(2.0)
    with pytest.raises(ConfigurationError, match="sigmoid"):
        family(0.1, 1.5)
    assert family(2.0, 1.5, bounded=False).plasticity.value == 2.0


def test_coefficients_at_the_end_of_their_range_are_fixed():
    for value, bound in ((1.0, "sigmoid"), (0.0, "sigmoid"), (-1.0, "tanh"), (0.0, "exp")):
        one = Coefficient(value, bound=bound)
        assert list(one.parameters()) == []
        assert float(one()) == value
    for value, bound in ((0.3, "sigmoid"), (-0.5, "tanh"), (3.0, "exp"), (-7.0, "none")):
        one = Coefficient(value, bound=bound)
        assert len(list(one.parameters())) == 1
        assert float(one().detach()) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: DirectFeedback(depth=2), "depth > 1 needs width"),
        (lambda: DirectFeedback(depth=0), "depth must be at least 1"),
        (lambda: Unrolled(checkpoint_every=0), "checkpoint_every counts presentations"),
        (lambda: Unrolled(truncate=-1), "truncate counts presentations"),
        (lambda: recipe("flp").configure({"plasticty": 0.1}), "no option plasticty; it has"),
    ],
)
def test_options_that_make_no_sense(build, says):
    with pytest.raises(ConfigurationError, match=says):
        build()


SLIPS: dict[str, Callable[[], object]] = {
    "signal": lambda: DirectFeedback("label"),
    "feedback weights": lambda: DirectFeedback(weights="random"),
    "output": lambda: DirectFeedback(output="clamped"),
    "granularity": lambda: Coefficient(granularity="synapses"),
    "bound": lambda: Coefficient(bound="relu"),
    "reduction of Oja": lambda: Oja(reduction="mean"),
    "reduction of Delta": lambda: Delta(reduction="mean"),
    "scale": lambda: CrossEntropy(scale="mean"),
    "batching": lambda: Unrolled(batching="map"),
    "initial": lambda: Learner(mlp(4, 3), Backprop(), Delta(), initial="random"),
}


@pytest.mark.parametrize("option", SLIPS)
def test_words_that_are_not_options(option):
    """A slip of the pen is not taken for another option."""
    with pytest.raises((ConfigurationError, UnknownNameError)):
        SLIPS[option]()


def test_unknown_learners_suggest_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown learner 'flpp'\. Did you mean 'flp'\?"):
        recipe("flpp")
    with pytest.raises(KeyError, match=r"Known: .*maml"):
        recipe("zzz")
    assert all(recipe(name).name == name for name in RECIPES)


def test_signals_that_nobody_sent():
    signals = LocalSignals(normal(2, 3), normal(2, 4))
    with pytest.raises(CompatibilityError, match="teaching signal, which nobody sent"):
        Delta().update(normal(4, 3), signals, {}, {"rate": torch.ones(1, 1)})


# --- the errors themselves ---

INSTANCES: dict[str, Any] = {
    name: kind("learner", "a", ["b"]) if kind is UnknownNameError else kind("what went wrong")
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, MetaplasticError)
}
BUILTIN = {
    "ConfigurationError": ValueError,
    "ShapeError": ValueError,
    "MemoryBudgetError": MemoryError,
    "DataError": ValueError,
    "LabelError": DataError,
    "MissingDataError": FileNotFoundError,
    "UnsupportedLayerError": TypeError,
    "CompatibilityError": TypeError,
    "DivergenceError": ArithmeticError,
    "CheckpointError": RuntimeError,
    "UnknownNameError": KeyError,
}


@pytest.mark.parametrize("name", INSTANCES)
def test_errors_are_of_the_library_and_of_the_builtin_kind(name):
    assert isinstance(INSTANCES[name], MetaplasticError)
    if name in BUILTIN:
        assert isinstance(INSTANCES[name], BUILTIN[name])


@pytest.mark.parametrize("name", INSTANCES)
def test_errors_survive_the_way_from_a_worker_process(name):
    twin = pickle.loads(pickle.dumps(INSTANCES[name]))
    assert type(twin) is type(INSTANCES[name])
    assert str(twin) == str(INSTANCES[name])
