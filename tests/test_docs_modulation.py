"""The page about two forward passes: its example runs and learns."""

from __future__ import annotations

from typing import Any

import torch

from tests.helpers import page_examples


def test_the_network_learns_with_two_forward_passes() -> None:
    names: dict[str, Any] = {}
    ((_, code),) = page_examples("modulation.md")
    exec(compile(code, "docs/modulation.md", "exec"), names)
    assert float(names["accuracy"]) > 0.9
    learner = names["learner"]
    assert torch.is_grad_enabled()
    assert all(p.grad is None or p.grad.grad_fn is None for p in learner.parameters())
