"""The page about control: its examples run, and do what it says."""

from __future__ import annotations

from typing import Any

import torch

from metaplastic.control import Chain, jacobian, row_space_share
from tests.helpers import page_examples

EXAMPLES = page_examples("control.md")


def test_the_network_trains_without_backpropagation_and_its_feedback_aligns() -> None:
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    (code,) = (code for section, code in EXAMPLES if section.startswith("Training"))
    exec(compile(code, "docs/control.md", "exec"), names)
    assert float(names["accuracy"]) > 0.97
    learner = names["learner"]
    weights = {name: w.detach() for name, w in learner.start()["weights"].items()}
    chain, units = Chain.of(learner.network, weights, names["x"][:50])
    j = jacobian(chain, units)

    def share(feedback: dict[str, torch.Tensor]) -> float:
        return float(row_space_share(j, tuple(feedback.values())).mean())

    drawn = learner.credit.draw(torch.Generator().manual_seed(0))
    assert share({n: weights[n] for n in drawn}) > 1.5 * share(drawn)


def test_an_inner_loop_under_control_has_a_meta_gradient() -> None:
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    code = "\n".join(code for _, code in EXAMPLES)
    exec(compile(code, "docs/control.md", "exec"), names)
    learner = names["learner"]
    assert {n for n, _ in learner.credit.named_parameters()} >= {"leak.raw", "layer0_feedback"}
    for name, parameter in learner.named_parameters():
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name
