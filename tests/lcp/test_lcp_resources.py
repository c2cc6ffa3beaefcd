"""What the inner loop keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from metaplastic import Episodes, Implicit, Learner, LeastControl, MetaGradient, Unrolled
from metaplastic.analysis import LiveBytes
from tests.helpers import regression
from tests.lcp.parts import bilevel, local_field


def peak(method: MetaGradient, learner: Learner, episodes: Episodes) -> int:
    with LiveBytes() as live:
        method.gradient(learner, episodes)
    return live.peak


@pytest.mark.parametrize("steps", [50, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "method",
    [
        LeastControl("inversion", 0.05, rate=0.3),
        LeastControl("direct", 0.05, rate=0.3),
        LeastControl("contrastive", 0.05, rate=0.3),
        Implicit(rate=0.3),
    ],
    ids=["inversion", "direct", "contrastive", "implicit"],
)
def test_lcp_t19_memory_does_not_grow_with_the_inner_steps(method, steps):
    q = bilevel()

    def most(steps: int) -> int:
        return peak(replace(method, steps=steps, tolerance=1e9), q.learner, q.episodes)

    few, many = most(10), most(steps)
    assert few > 12 * 12 * 8  # the inputs, float64
    assert abs(many - few) < 0.01 * few


def test_lcp_t19_the_unrolled_one_grows_with_them():
    learner = local_field()
    short, long, longer = (
        peak(Unrolled(), learner, regression(2, count, 2, 2, 2)) for count in (10, 20, 30)
    )
    assert longer - long == pytest.approx(long - short, rel=0.05)
    assert longer > 2 * short
