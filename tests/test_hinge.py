"""What is done with signals that come in several pieces."""

from __future__ import annotations

import pytest
import torch

from metaplastic.hinge import Apply, Record
from metaplastic.rules import Delta
from metaplastic.signals import LocalSignals, SynapseGroup
from tests.helpers import normal


@pytest.mark.parametrize("kind", [Apply, Record])
def test_pieces_add_up_to_their_shares(kind: type[Apply]) -> None:
    """Three stretches of one presentation, by their shares, are the mean over all of their rows."""
    rule = (
        Delta(0.3, derivative=False, reduction="positions").bind(SynapseGroup("w", 2, 3)).double()
    )
    weight, pre, teaching = normal(2, 3), normal(6, 3, seed=1), normal(6, 2, seed=2)
    start = {
        "weights": {"w": weight},
        "coefficients": {"w": rule.coefficients()},
        "rule": {"w": {}},
    }
    stretches = ((0, 1), (1, 3), (3, 6))
    learn, state = kind({"w": rule}), start
    for first, last in stretches:
        seen = LocalSignals(pre[first:last], torch.zeros(last - first, 2), teaching[first:last])
        state = learn(state, {"w": seen}, share=(last - first) / 6)
    wanted = 0.3 * teaching.mT @ pre / 6
    torch.testing.assert_close(state["weights"]["w"] - weight, wanted, rtol=1e-12, atol=1e-14)
    assert start["weights"]["w"] is weight
    if isinstance(learn, Record):
        torch.testing.assert_close(learn.change["w"], wanted, rtol=1e-12, atol=1e-14)
