"""The GPU kernels, neuron by neuron, against a plain loop that autograd differentiates.

On a CPU they run in Triton's interpreter, which must be chosen before Triton is imported: hence in
a process of its own, `python -m tests.kernels.test_gpu_rows CHECK`.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metaplastic.kernels.neuron import DELTA, HEBB, IDENTITY, OJA, RELU, SIGMOID, TANH, Neuron
from tests.helpers import seeded
from tools.check_wheel import ROOT

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton, which is not installed"
)

N, D = 2, 5
ACTIVATIONS: dict[int, Callable[[Tensor], Tensor]] = {
    IDENTITY: lambda u: u,
    RELU: torch.relu,
    TANH: torch.tanh,
    SIGMOID: torch.sigmoid,
}
SLOPES: dict[int, Callable[[Tensor], Tensor]] = {
    IDENTITY: torch.ones_like,
    RELU: lambda u: (u > 0).to(u.dtype),
    TANH: lambda u: torch.cosh(u) ** -2,
    SIGMOID: lambda u: torch.sigmoid(u) * torch.sigmoid(-u),
}
NEURONS = [
    Neuron(activation, family, **options, multiplier=0.7 if family != DELTA else 1.0)
    for activation in ACTIVATIONS
    for family, *flags in [
        (HEBB, "bounded"),
        (HEBB,),
        (OJA, "bounded"),
        (OJA,),
        (DELTA,),
        (DELTA, "target"),
        (DELTA, "derivative"),
        (DELTA, "target", "derivative"),
    ]
    for options in [dict.fromkeys(flags, True)]
]
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
        "plasticity": normal(each, N, D, scale=0.2),
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
            changes = torch.zeros_like(w)
            energy = torch.zeros_like(bias)
            for b in range(case.examples):
                y, r, s = posts[-1][b], teaching[t, b], share[t, b]
                if neuron.family == DELTA:
                    sent = r - y if neuron.target else r
                    if neuron.derivative:
                        sent = sent * SLOPES[neuron.activation](potentials[b])
                else:
                    sent = mix * r + (1 - mix) * y
                    energy = energy + s * sent**2
                changes = changes + s * torch.outer(sent, x[t, b])
            if neuron.family == OJA:
                changes = changes - energy[:, None] * w
            if neuron.family != DELTA:
                changes = neuron.multiplier * changes
            if neuron.bounded:
                changes = changes / (1 + energy[:, None])
            w = w + p * changes
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
    limit = 1e-10 if case.dtype == torch.float64 else 1e-4
    for name, found in outcome.items():
        assert found.dtype == case.dtype, name
        scale = expected[name].abs().max().clamp(min=1)
        torch.testing.assert_close(
            found.double() / scale,
            expected[name] / scale,
            rtol=0,
            atol=limit,
            msg=lambda text, name=name: f"{name} of {case}: {text}",
        )
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
    check(replace(case, want_x=False), device)
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
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.test_gpu_rows", name],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_compiles_for_a_gpu_that_is_not_there(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter does not check types."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from metaplastic.kernels import gpu_row_programs, gpu_rows

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    neuron = Neuron(TANH, DELTA, target=True, derivative=True)
    if dtype == "fp32":
        neuron = Neuron(RELU, OJA, bounded=True, multiplier=0.7)
    settings = gpu_rows._settings(neuron, 3, D)
    for kernel in (gpu_row_programs.forward, gpu_row_programs.backward):
        signature: dict[str, str] = {}
        constants: dict[str, Any] = {}
        for name in kernel.arg_names:
            if name in settings:
                signature[name], constants[name] = "constexpr", settings[name]
            elif name in {"T", "B", "n", "d", "segment", "first"} or name.endswith("_step"):
                signature[name] = "i32"
            else:
                signature[name] = f"*{dtype}"
        options = {name: settings[name] for name in settings.keys() - constants.keys()}
        source = ASTSource(kernel, signature, constants)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert made.asm["cubin"]


@pytest.mark.gpu
def test_as_a_plain_loop_on_a_gpu() -> None:
    """Fewer neurons than in the interpreter: each is compiled anew."""
    for k, neuron in enumerate(NEURONS[::5]):
        check(Case(neuron, episodes=1 + k % 3, examples=1 + 2 * (k % 2)), "cuda")
    check_options("cuda")
    check_single_precision("cuda")


if __name__ == "__main__":
    CHECKS[sys.argv[1]]("cpu")
