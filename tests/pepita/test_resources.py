"""Precision of small differences, and the memory of the streaming form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metaplastic import Backprop, CreditAssignment, Delta, InputModulation, Learner
from metaplastic.analysis import LiveBytes
from metaplastic.credit.forward_passes import check_precision
from metaplastic.errors import ConfigurationError
from tests.helpers import deviation, normal, presentation
from tests.pepita.parts import FLAT, chain, field, made


@pytest.mark.parametrize("variant", ["plain", "hebbian", "time-local"])
def test_float32_keeps_the_differences(variant: str) -> None:
    x, y = normal(64, 64), torch.arange(64) % 10
    fine = made(InputModulation(variant=variant), chain(64, 128, 128, 10))
    coarse = Learner(chain(64, 128, 128, 10).float(), fine.credit, FLAT)
    wanted, found = field(fine, x, y), field(coarse, x.float(), y)
    assert coarse.credit.get_buffer("layer0_feedback").dtype == torch.float32
    for name, change in found.items():
        assert deviation(change.double(), wanted[name]) < 1e-4


CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def matmul_precision():
    """Set back afterwards."""
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


def test_tf32_is_refused_on_a_gpu(matmul_precision) -> None:
    for rounded in ("high", "medium"):
        matmul_precision(rounded)
        with pytest.raises(ConfigurationError, match="set_float32_matmul_precision"):
            check_precision(CUDA, torch.float32)
        check_precision(CUDA, torch.float64)
        check_precision(CPU, torch.float32)
    matmul_precision("highest")
    check_precision(CUDA, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype: torch.dtype) -> None:
    learner = Learner(chain().to(dtype), InputModulation(), FLAT)
    with pytest.raises(ConfigurationError, match="half precision"):
        learner.assign_grads(normal(5, 6).to(dtype), torch.arange(5) % 4)


def peak(credit: CreditAssignment, depth: int, rule: Delta) -> int:
    """Of ``assign_grads`` on a chain of 16 units a layer, 256 examples at a time."""
    learner = Learner(chain(*[16] * depth, 4, activation=nn.Tanh), credit, {"*": rule}).double()
    x, y = normal(256, 16), torch.arange(256) % 4
    with LiveBytes() as live:
        learner.assign_grads(x, y)
    return live.peak


def test_streaming_needs_less_memory_than_plain_and_backprop() -> None:
    """On a deep narrow network."""
    flat, depth = Delta(0.1, derivative=False), 24
    lean = peak(InputModulation(streaming=True), depth, flat)
    plain = peak(InputModulation(), depth, flat)
    backprop = peak(Backprop(), depth, Delta(0.1))
    assert lean < 0.9 * plain
    assert lean < 0.9 * backprop


@pytest.mark.parametrize("options", [{"streaming": True}, {"variant": "time-local"}])
def test_a_lean_presentation_keeps_two_layers(options: dict) -> None:
    """Its peak grows with depth by the changes of the weights alone."""
    grows = []
    for depth in (8, 24):
        made_of = Learner(chain(*[16] * depth, 4), InputModulation(**options), FLAT).double()
        x, y = normal(256, 16), torch.arange(256) % 4
        with torch.no_grad():
            state = made_of.start(256)
            given = presentation(made_of, x, y)
            with LiveBytes() as live:
                made_of.step(state, given)
        grows.append(live.peak)
    layer = 256 * 16 * 8
    assert grows[1] - grows[0] < 16 * 2 * 16 * 16 * 8 + layer
