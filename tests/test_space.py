"""Dimensions of a search: parameters stand for values, and every learner's space fits it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metaplastic.errors import ConfigurationError
from metaplastic.recipes import RECIPES
from metaplastic.recipes.space import (
    Choice,
    Dimension,
    Log,
    OneMinus,
    PowerOfTwo,
    Real,
    Space,
    parameters,
)
from studies.presets import TABLE

EVERY = [
    Real(-2.0, 3.5),
    Real(0.0, 1.0),
    Log(1e-10, 1e-5),
    Log(1e-4, 0.1),
    OneMinus(0.5, 0.99),
    OneMinus(0.0, 0.999999),
    PowerOfTwo(1, 1024),
    PowerOfTwo(8, 8),
    Choice(("layer", "synapse", None, 3, True)),
]
NUMBERS = [d for d in EVERY if isinstance(d, Real | Log | OneMinus)]
FINITE = {"allow_nan": False, "allow_infinity": False}


def suggested(dimension: Dimension, parameter) -> object:
    """What a real Optuna trial with this parameter makes of the dimension."""
    return dimension.suggest(optuna.trial.FixedTrial({"x": parameter}), "x")


def ends(low: float, high: float) -> list[float]:
    return sorted((low, high))


@st.composite
def dimensions(draw) -> Dimension:
    kind = draw(st.sampled_from([Real, Log, OneMinus, PowerOfTwo, Choice]))
    if kind is Real:
        number = st.floats(-1e6, 1e6, **FINITE)
        return Real(*ends(draw(number), draw(number)))
    if kind is Log:
        number = st.floats(1e-12, 1e6, **FINITE)
        return Log(*ends(draw(number), draw(number)))
    if kind is OneMinus:
        number = st.floats(0.1, 1 - 1e-6, **FINITE)
        return OneMinus(*ends(draw(number), draw(number)))
    if kind is PowerOfTwo:
        low, high = ends(draw(st.integers(0, 20)), draw(st.integers(0, 20)))
        return PowerOfTwo(2 ** int(low), 2 ** int(high))
    values = st.one_of(st.none(), st.text(max_size=3), st.integers(2, 9))
    return Choice(tuple(draw(st.lists(values, min_size=1, max_size=5, unique=True))))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), dimensions())
def test_the_value_of_a_parameter_has_that_parameter(data, dimension):
    parameter = data.draw(st.sampled_from(dimension.grid(7)))
    again = dimension.parameter(suggested(dimension, parameter))  # type: ignore[arg-type]
    # One minus itself is exact to the rounding of numbers about 1.
    assert again == parameter or math.isclose(again, parameter, rel_tol=1e-12, abs_tol=3e-16)  # type: ignore[arg-type]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
@pytest.mark.parametrize("dimension", NUMBERS, ids=str)
def test_a_value_inside_comes_back(dimension, data):
    value = data.draw(st.floats(dimension.low, dimension.high))
    found = suggested(dimension, dimension.parameter(value))
    assert math.isclose(found, value, rel_tol=1e-12, abs_tol=3e-16)


@pytest.mark.parametrize("dimension", EVERY, ids=str)
@pytest.mark.parametrize("points", [1, 2, 4, 50])
def test_a_grid_lies_inside_what_a_trial_may_draw(dimension, points):
    grid = dimension.grid(points)
    assert 1 <= len(grid) <= points
    assert len(set(grid)) == len(grid) or isinstance(dimension, Real | Log | OneMinus)
    study = optuna.create_study(
        storage=optuna.storages.InMemoryStorage(), sampler=optuna.samplers.RandomSampler(seed=0)
    )
    values = []
    for parameter in grid:
        trial = study.ask()
        dimension.suggest(trial, "x")
        distribution = trial.distributions["x"]
        assert distribution._contains(distribution.to_internal_repr(parameter))
        values.append(suggested(dimension, parameter))
    if isinstance(dimension, Choice):
        assert values == list(dimension.values[:points])
    elif points > 1 and dimension.low < dimension.high:
        assert min(values) == pytest.approx(dimension.low, rel=1e-9, abs=1e-12)
        assert max(values) == pytest.approx(dimension.high, rel=1e-9)


def test_logarithms_are_spread_by_orders_of_magnitude():
    assert Log(1e-4, 0.1).grid(4) == pytest.approx([1e-4, 1e-3, 1e-2, 0.1], rel=1e-12)
    assert Real(0.0, 1.0).grid(5) == [0.0, 0.25, 0.5, 0.75, 1.0]
    shares = [suggested(OneMinus(0.9, 0.999), p) for p in OneMinus(0.9, 0.999).grid(3)]
    assert shares == pytest.approx([0.999, 0.99, 0.9])
    assert PowerOfTwo(4, 32).grid(10) == [2, 3, 4, 5]
    assert [suggested(PowerOfTwo(4, 32), p) for p in (2, 5)] == [4, 32]


@pytest.mark.parametrize(
    ("dimension", "value"),
    [
        (Real(0.0, 1.0), 1.1),
        (Real(0.0, 1.0), math.nan),
        (Real(0.0, 1.0), True),
        (Real(0.0, 1.0), None),
        (Real(0.0, 1.0), "0.5"),
        (Log(1e-4, 0.1), 0.0),
        (Log(1e-4, 0.1), 0.2),
        (OneMinus(0.5, 0.99), 1.0),
        (PowerOfTwo(4, 32), 12),
        (PowerOfTwo(4, 32), 64),
        (Choice(("a", "b")), "c"),
    ],
)
def test_a_value_outside_is_refused_by_name(dimension, value):
    with pytest.raises(ConfigurationError, match="does not hold") as raised:
        dimension.parameter(value)
    assert str(dimension) in str(raised.value)
    assert repr(value) in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (Real, (1.0, 0.0)),
        (Real, (0.0, math.inf)),
        (Log, (0.0, 1.0)),
        (Log, (2.0, 1.0)),
        (OneMinus, (0.5, 1.0)),
        (PowerOfTwo, (3, 8)),
        (PowerOfTwo, (8, 4)),
        (PowerOfTwo, (0, 4)),
        (Choice, ((),)),
    ],
)
def test_a_dimension_without_values_is_refused(kind, arguments):
    with pytest.raises(ConfigurationError, match=kind.__name__):
        kind(*arguments)


@pytest.mark.parametrize("dimension", EVERY, ids=str)
def test_a_description_is_plain_and_tells_dimensions_apart(dimension):
    described = dimension.describe()
    assert json.loads(json.dumps(described)) == described
    assert [d for d in EVERY if d.describe() == described] == [dimension]


def test_options_outside_are_left_out():
    space: Space = {"a": Log(1e-3, 1.0), "b": Real(0.0, 1.0), "c": Choice((1, 2))}
    assert parameters(space, {"a": 0.1, "b": 7.0, "c": 2, "d": 5}) == {"a": 0.1, "c": 2}


@pytest.mark.parametrize("named", RECIPES.values(), ids=lambda named: named.name)
def test_every_learner_declares_options_that_it_has(named):
    known = asdict(named.options)
    assert named.space
    assert set(named.space) <= set(known)
    for option, dimension in named.space.items():
        for parameter in dimension.grid(2):
            value = suggested(dimension, parameter)
            default = known[option]
            assert default is None or type(value) is type(default)
            named.configure({option: value})


@pytest.mark.parametrize("named", RECIPES.values(), ids=lambda named: named.name)
def test_every_default_lies_inside_the_space(named):
    rows = [row for (_, learner), row in TABLE.items() if learner in ("*", named.name)]
    settings = [{}, *(size.options for row in rows for size in row.values())]
    if named.published is not None:
        settings.append(asdict(named.published))
    for values in settings:
        options = asdict(named.configure(values))
        found = parameters(named.space, options)
        assert set(found) == set(named.space), values
        for option, parameter in found.items():
            assert suggested(named.space[option], parameter) == pytest.approx(
                options[option], rel=1e-12
            )
