"""The GPU kernels, neuron by neuron, against a plain loop that autograd differentiates.

On a CPU they run in Triton's interpreter: see tests/kernels/gpu.py.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metaplastic.kernels.neuron import DELTA, OJA, RELU, SIGMOID, TANH, Neuron
from tests.helpers import seeded
from tests.kernels.gpu import ACTIVATIONS, NEURONS, assemble, assert_equal, change, interpret

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton, which is not installed"
)

N, D = 2, 5
SIZES = [  # episodes, presentations, examples, segment, shared
    (1, 1, 1, 1, False),
    (1, 1, 3, 10, True),
    (1, 7, 1, 3, False),
    (1, 7, 3, 1, True),
    (1, 7, 3, 10, False),
    (3, 1, 1, 3, True),
    (3, 1, 3, 1, False),
    (3, 7, 1, 1, True),
    (3, 7, 1, 10, False),
    (3, 7, 3, 3, True),
]


@dataclass(frozen=True)
class Case:
    """A layer and its stream."""

    neuron: Neuron
    episodes: int = 3
    presentations: int = 7
    examples: int = 3
    segment: int = 3
    shared: bool = False
    """All episodes start from the same weights, with the same coefficients and shares."""
    alike: bool = False
    """All synapses of a neuron have the same plasticity."""
    with_post: bool = True
    want_x: bool = True
    dtype: torch.dtype = torch.float64


@dataclass(frozen=True)
class Layer:
    """What the kernels take, and the gradients that come from above."""

    own: dict[str, Tensor]
    streams: dict[str, Tensor]
    grad_final: Tensor
    grad_post: Tensor | None


def layer(case: Case, device: str) -> Layer:
    """Random numbers; the last example of some presentations is padding."""
    g = seeded(7)
    E, T, B = case.episodes, case.presentations, case.examples
    each = 1 if case.shared else E

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        drawn = scale * torch.randn(shape, generator=g, dtype=torch.float64)
        return drawn.to(device=device, dtype=case.dtype)

    mix = normal(each, N).sigmoid()
    mix[0] = torch.tensor([0.0, 0.8])
    mix[-1, -1] = 1.0 if case.segment == 1 else 0.3
    share = torch.rand(each, T, B, generator=g, dtype=torch.float64) + 0.2
    share[:, ::2, B - 1 :] *= float(B == 1)
    own = {
        "weight": normal(each, N, D),
        "plasticity": normal(each, N, 1 if case.alike else D, scale=0.2),
        "mix": mix,
        "bias": normal(each, N),
        "share": share.to(device=device, dtype=case.dtype),
    }
    streams = {"x": normal(E, T, B, D, scale=0.5), "teaching": normal(E, T, B, N)}
    grad_post = normal(E, T, B, N) if case.with_post else None
    return Layer(own, streams, normal(E, N, D), grad_post)


def plain(case: Case, made: Layer) -> dict[str, Tensor]:
    """Everything that the kernels give, in float64."""
    neuron, E = case.neuron, case.episodes
    leaves = {
        name: tensor.double().expand(E, *tensor.shape[1:]).clone().requires_grad_()
        for name, tensor in (made.own | made.streams).items()
    }
    finals, kept, posts = [], [], []
    for e in range(E):
        w, p, mix, bias, share, x, teaching = (tensor[e] for tensor in leaves.values())
        for t in range(case.presentations):
            if t % case.segment == 0:
                kept.append(w)
            potentials = x[t] @ w.T + bias
            posts.append(ACTIVATIONS[neuron.activation](potentials))
            at = e * case.presentations + t
            asked = change(neuron, w, mix, x[t], potentials, posts[at], teaching[t], share[t])
            w = w + p * asked
        finals.append(w)
    final = torch.stack(finals)
    post = torch.stack(posts).reshape(E, case.presentations, case.examples, N)
    value = (final * made.grad_final.double()).sum()
    if made.grad_post is not None:
        value = value + (post * made.grad_post.double()).sum()
    wanted = {name: leaf for name, leaf in leaves.items() if name != "share"}
    gradients = torch.autograd.grad(value, list(wanted.values()), materialize_grads=True)
    outcome = dict(zip(wanted, gradients, strict=True))
    checkpoints = torch.stack(kept).reshape(E, -1, N, D)
    return outcome | {"final": final, "post": post, "checkpoints": checkpoints}


def compiled(case: Case, made: Layer) -> dict[str, Tensor]:
    """The same from the kernels."""
    from metaplastic.kernels import gpu_rows

    given = made.own | made.streams
    final, post, kept = gpu_rows.forward(case.neuron, **given, segment=case.segment, keep=True)
    assert kept is not None
    gradients = gpu_rows.backward(
        case.neuron,
        **{name: given[name] for name in ("plasticity", "mix", "share", "x", "teaching")},
        segment=case.segment,
        checkpoints=kept,
        post=post,
        grad_final=made.grad_final,
        grad_post=made.grad_post,
        want_x=case.want_x,
    )
    names = ("weight", "plasticity", "mix", "bias", "teaching", "x")
    outcome = dict(zip(names, gradients, strict=True))
    assert (outcome["x"] is not None) == case.want_x
    asked = {name: gradient for name, gradient in outcome.items() if gradient is not None}
    return asked | {"final": final, "post": post, "checkpoints": kept}


def check(case: Case, device: str) -> None:
    made = layer(case, device)
    tensors = [*made.own.values(), *made.streams.values(), made.grad_final, made.grad_post]
    before = [None if tensor is None else tensor.clone() for tensor in tensors]
    outcome, expected = compiled(case, made), plain(case, made)
    assert_equal(outcome, expected, case.dtype, case)
    for tensor, old in zip(tensors, before, strict=True):
        assert tensor is old is None or torch.equal(tensor, old)


def check_neurons(device: str) -> None:
    for neuron in NEURONS:
        check(Case(neuron, episodes=1, presentations=3, examples=2, segment=2), device)


def check_shapes(device: str) -> None:
    for k, size in enumerate(SIZES):
        check(Case(NEURONS[7 * k % len(NEURONS)], *size), device)


def check_options(device: str) -> None:
    """What is not asked for, and more rows or examples than are held at once."""
    from metaplastic.kernels import gpu_rows

    neuron = Neuron(SIGMOID, OJA, bounded=True, multiplier=0.7)
    delta = Neuron(TANH, DELTA, target=True, derivative=True)
    case = Case(neuron, episodes=2, presentations=4)
    check(replace(case, with_post=False), device)
    check(replace(case, want_x=False, alike=True), device)
    made = layer(case, device)
    final, post, kept = gpu_rows.forward(neuron, **made.own, **made.streams, segment=3, keep=False)
    expected = plain(case, made)
    torch.testing.assert_close(final, expected["final"])
    torch.testing.assert_close(post, expected["post"])
    assert kept is None
    tile, programs = gpu_rows.TILE, gpu_rows.PROGRAMS
    try:
        for gpu_rows.TILE, gpu_rows.PROGRAMS in ((1, 2), (16, 3)):
            check(case, device)
            check(replace(case, neuron=delta), device)
    finally:
        gpu_rows.TILE, gpu_rows.PROGRAMS = tile, programs


def check_single_precision(device: str) -> None:
    for neuron in (
        Neuron(TANH, OJA, bounded=True),
        Neuron(SIGMOID, DELTA, target=True, derivative=True),
    ):
        check(Case(neuron, 1, 40, 1, 7, dtype=torch.float32), device)


CHECKS = {
    "neurons": check_neurons,
    "shapes": check_shapes,
    "options": check_options,
    "single-precision": check_single_precision,
}


@pytest.mark.parametrize("name", CHECKS)
def test_as_a_plain_loop_in_the_interpreter(name: str) -> None:
    interpret("tests.kernels.test_gpu_rows", name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiles_for_a_gpu_that_is_not_there(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metaplastic.kernels import gpu_row_programs

    neuron = Neuron(TANH, DELTA, target=True, derivative=True)
    if dtype == torch.float32:
        neuron = Neuron(RELU, OJA, bounded=True, multiplier=0.7)
    case = Case(neuron, dtype=dtype)
    made = layer(case, "cpu")
    assemble(gpu_row_programs, lambda: compiled(case, made), tmp_path, monkeypatch)


@pytest.mark.gpu
def test_as_a_plain_loop_on_a_gpu() -> None:
    """Fewer neurons than in the interpreter: each is compiled anew."""
    for k, neuron in enumerate(NEURONS[::5]):
        check(Case(neuron, episodes=1 + k % 3, examples=1 + 2 * (k % 2)), "cuda")
    check_options("cuda")
    check_single_precision("cuda")


if __name__ == "__main__":
    CHECKS[sys.argv[1]]("cpu")
