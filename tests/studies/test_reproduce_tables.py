"""The tables and pictures of reproductions."""

import math
from dataclasses import replace

import numpy as np
import pytest

from studies.reproduce.base import Method
from studies.reproduce.figures import CONTROL_PICTURES, NOISE_PICTURE
from studies.reproduce.outcome import Outcome, slowness, summarise
from studies.reproduce.tables import cells, epochs_table, summary_table, sweep_table
from tests.studies.reproductions import small


def line(step: int, validation: float, test: float, **more) -> dict:
    return {
        "step": step,
        "loss": 1.0,
        "unconverged": 0.25,
        "seconds": 2.0 * step,
        "validation_accuracy": validation,
        "test_accuracy": test,
        "test_loss": 0.5,
        "probes": more,
    }


def outcome(method: str, seed: int, test: float, level=None, **more) -> Outcome:
    """The best validation epoch is the first of two equals, not the best on test images."""
    curve = [
        line(0, 0.1, 0.1, row_space_share=0.2, **more),
        line(1, 0.9, test, row_space_share=0.3, **more),
        line(2, 0.9, test + 0.05, row_space_share=0.6, **more),
    ]
    return Outcome("mnist", method, seed, level, curve)


def test_the_table_is_over_seeds_and_paired():
    outcomes = [
        outcome("bp", 0, 0.90),
        outcome("bp", 1, 0.94),
        outcome("dfc", 1, 0.92),
        outcome("dfc", 0, 0.89),
        outcome("dfc", 2, 0.80),
    ]
    bp, dfc = summarise(outcomes, "bp", {"dfc": 97.8})
    assert bp.accuracy == pytest.approx(0.92)
    assert bp.std == pytest.approx(0.04 / 2**0.5)
    assert bp.difference is None
    assert dfc.difference == pytest.approx(-0.015)  # seed 2 has no partner
    assert dfc.seconds == pytest.approx(3.0)
    assert dfc.unconverged == 0.25
    assert dfc.condition == pytest.approx((0.2, 0.6))
    assert cells(dfc)[1:4] == ["87.00 ± 6.24", "-1.50 ± 0.71", "97.80"]
    top, body = summary_table("bp", [bp, dfc])
    assert top[1:3] == ["test accuracy, %", "against bp"]
    assert "diverged" not in top  # nobody did
    assert all(len(one) == len(top) for one in body)


def test_who_has_no_control_is_told_how_stable_its_simulation_was():
    outcomes = [outcome("dfc", seed, 0.9, gain_bound=bound) for seed, bound in ((0, 7.5), (1, 2))]
    (dfc,) = summarise(outcomes, "bp", {})
    assert dfc.warning is not None
    assert "dfc: 25 %" in dfc.warning
    assert "7.5, and simulations are stable below about 5" in dfc.warning
    assert replace(dfc, unconverged=0.0).warning is None
    (bp,) = summarise([outcome("bp", 0, 0.9)], "bp", {})
    assert bp.warning is None


def test_accuracy_after_some_epochs_stands_beside_what_was_published():
    outcomes = [outcome("a", 0, 0.8), outcome("a", 1, 0.9), outcome("b", 0, 0.5)]
    methods = [Method("a", "", small, published_epochs={1: 70.0, 10: 90.0}), Method("b", "", small)]
    top, body = epochs_table((1, 10), methods, outcomes)
    assert top[1:] == ["1", "2"]  # 10 was not reached; 2 is the last
    assert body == [
        ["a", "85.00 ± 7.07", "90.00 ± 7.07"],
        ["a, published", "70.00", "–"],
        ["b", "50.00", "55.00"],
    ]
    assert epochs_table((), methods, outcomes)[1] == []


@pytest.mark.parametrize("half", [0.05, 1.494, 20.0])
def test_slowness_is_that_of_the_curve(half):
    epochs = np.arange(1, 60)
    exact = list(0.5 * epochs / (half + epochs))
    assert slowness(exact) == pytest.approx(half, rel=1e-3)
    assert slowness(exact[:2]) is None
    assert slowness([0.3, 0.3, math.nan]) is None
    bent = [0.30, 0.42, 0.45, 0.49]
    s = slowness(bent)
    assert s is not None

    def misfit(s: float) -> float:
        shape = [t / (s + t) for t in (1, 2, 3, 4)]
        best = sum(a * b for a, b in zip(shape, bent, strict=True)) / sum(a * a for a in shape)
        return sum((best * a - b) ** 2 for a, b in zip(shape, bent, strict=True))

    assert misfit(s) < min(misfit(0.98 * s), misfit(1.02 * s))
    made = [outcome("m", 0, 0.9)]
    assert summarise(made, "m", {})[0].slowness is None
    assert summarise(made, "m", {}, slow=2)[0].slowness is None  # two epochs are too few


def test_sweeps_stand_in_a_table_of_their_own():
    outcomes = [outcome("weak", s, a, v) for v, a in ((0.0, 0.9), (0.1, 0.5)) for s in (0, 1)]
    outcomes.append(Outcome("mnist", "strong", 0, 0.1, [], "it diverged"))
    assert summarise(outcomes, "bp", {}) == []
    top, body = sweep_table(outcomes)
    assert top[1:] == ["0", "0.1"]
    assert body == [["weak", "90.0", "50.0"], ["strong", "–", "–"]]


def test_pictures_take_seeds_that_differ_in_length_and_levels():
    pytest.importorskip("matplotlib")
    probes = {"control_energy": 1.0, "control_to_drive_1": 0.1, "control_to_drive_2": 0.2}
    plain = [outcome(m, s, 0.9, **probes) for m in ("dfc", "strong") for s in (0, 1)]
    cut = replace(plain[-1], curve=plain[-1].curve[:2], diverged="so it is")
    swept = [outcome("weak", 0, 0.9, level) for level in (0.0, 0.01, 0.1)]
    for picture in (*CONTROL_PICTURES, NOISE_PICTURE):
        assert picture.draw([*plain[:-1], cut, *swept]) is not None
        assert picture.draw([Outcome("mnist", "dfc", 0, None, [], "at once")]) is None
