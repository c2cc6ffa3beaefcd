"""What the tests of the GPU kernels share: neurons that autograd differentiates, and ways to run
kernels without a GPU.

On a CPU kernels run in Triton's interpreter, which must be chosen before Triton is imported: hence
in a process of its own, `python -m tests.kernels.MODULE CHECK`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from metaplastic.kernels.neuron import DELTA, HEBB, IDENTITY, OJA, RELU, SIGMOID, TANH, Neuron
from tools.check_wheel import ROOT

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


def change(
    neuron: Neuron,
    w: Tensor,
    mix: Tensor,
    x: Tensor,
    potentials: Tensor,
    post: Tensor,
    teaching: Tensor,
    share: Tensor,
) -> Tensor:
    """What a presentation asks of the weights (N, D), before plasticity: x (B, D), mix (N,),
    potentials, activity and teaching signal (B, N), share (B,).
    """
    changes, energy = torch.zeros_like(w), torch.zeros_like(mix)
    for b in range(len(x)):
        y, r, s = post[b], teaching[b], share[b]
        if neuron.family == DELTA:
            sent = r - y if neuron.target else r
            if neuron.derivative:
                sent = sent * SLOPES[neuron.activation](potentials[b])
        else:
            sent = mix * r + (1 - mix) * y
            energy = energy + s * sent**2
        changes = changes + s * torch.outer(sent, x[b])
    if neuron.family == OJA:
        changes = changes - energy[:, None] * w
    if neuron.family != DELTA:
        changes = neuron.multiplier * changes
    return changes / (1 + energy[:, None]) if neuron.bounded else changes


def assert_equal(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], dtype: torch.dtype, case: object
) -> None:
    """To 1e-10 in double precision, in the scale of the largest."""
    for name, value in found.items():
        assert value.dtype == dtype, name
        scale = expected[name].abs().max().clamp(min=1)
        torch.testing.assert_close(
            value.double() / scale,
            expected[name] / scale,
            rtol=0,
            atol=1e-10 if dtype == torch.float64 else 1e-4,
            msg=lambda text, name=name: f"{name} of {case}: {text}",
        )


def interpret(module: str, check: str) -> None:
    """Runs the check of a module of tests in Triton's interpreter."""
    done = subprocess.run(
        [sys.executable, "-m", module, check],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Launches:
    """In place of a kernel: takes down what it is launched with."""

    def __getitem__(self, grid: tuple[int]) -> Launches:
        del grid
        return self

    def __call__(self, *told: Any, **settings: Any) -> None:
        self.told, self.settings = told, settings


def assemble(
    programs: ModuleType, run: Callable[[], object], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``run`` launches of forward and backward programs, for a GPU of compute capability 9.0
    that need not be there. The interpreter does not check types.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    launches = {name: Launches() for name in ("forward", "backward")}
    kernels = {name: getattr(programs, name) for name in launches}
    for name, launch in launches.items():
        monkeypatch.setattr(programs, name, launch)
    run()
    for name, launch in launches.items():
        kernel, settings = kernels[name], launch.settings
        signature: dict[str, Any] = {}
        constants: dict[Any, Any] = {}
        told = dict(zip(kernel.arg_names, launch.told, strict=False))
        for place, argument in enumerate(kernel.arg_names):
            if argument in settings:
                signature[argument], constants[place,] = "constexpr", settings[argument]
            else:
                signature[argument] = _type(told[argument], (place,), constants)
        options = {n: value for n, value in settings.items() if n not in signature}
        source = ASTSource(kernel, signature, constants)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert made.asm["cubin"]


def _type(value: Any, place: tuple[int, ...], constants: dict[Any, Any]) -> Any:
    """In Triton's words; None and 1 are constants, as at a launch."""
    if isinstance(value, tuple):
        parts = [_type(part, (*place, i), constants) for i, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, Tensor):
        return {torch.float32: "*fp32", torch.float64: "*fp64"}[value.dtype]
    if value is None or value == 1:
        constants[place] = value
        return "constexpr"
    return "i32"
