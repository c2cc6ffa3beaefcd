"""Presentation by presentation through the whole stream, compiled for a GPU by Triton.

Where the error at the output is what is taught, one program takes one episode with all its layers
through all presentations: its threads wait for each other between layers, programs never do, and
nothing is launched for a presentation. The adjoint starts anew from kept weights every ``segment``
presentations and never runs a rule backwards, which would lose all digits in single precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from metaplastic.kernels import gpu_step_programs
from metaplastic.kernels.gpu_layout import Adjoint, Layer
from metaplastic.kernels.gpu_rows import of_neurons, of_synapses, step
from metaplastic.kernels.steps import Chain, Passed, Synapses

TILE = 4096
"""At most so many products of examples, neurons and inputs are summed at once."""
INPUTS = 128
"""At most so many inputs of them."""
PROGRAMS = 160
"""Programs of the adjoint that run together, each with the history of a segment of its own: about
as many as a large GPU has multiprocessors."""


class How(NamedTuple):
    """What the programs are compiled for, beside their tiles; see Chain."""

    codes: tuple[tuple[int, ...], ...]
    multipliers: tuple[float, ...]
    descends: bool
    classes: bool
    fed: int
    """How many layers, of the lowest ones, get the error by feedback of their own; where the last
    does not, its teaching signal is the error itself."""


class Blocks(NamedTuple):
    """Sizes of the tiles."""

    b: int
    """Examples."""
    n: int
    """Neurons."""
    d: int
    """Inputs."""
    k: int
    """All outputs."""


def forward_steps(
    chain: Chain,
    layers: Sequence[Synapses],
    x: Tensor,
    target: Tensor,
    scale: Tensor,
    segment: int,
    keep: bool,
) -> Passed:
    """The whole stream presentation by presentation, see ``steps.scan``; scale (E or 1, T)."""
    E, T, B, _ = x.shape
    how, pieces = _how(chain), triton.cdiv(T, segment)
    sizes = [layer.weight.shape[1:] for layer in layers]
    final = [
        layer.weight.expand(E, n, d).clone(memory_format=torch.contiguous_format)
        for layer, (n, d) in zip(layers, sizes, strict=True)
    ]
    kept = tuple(x.new_empty(E, pieces, n, d) for n, d in sizes) if keep else None
    post = [x.new_empty(E, T, B, n) for n, _ in sizes]
    taught, error = _taught(how, post)
    rooms = [(x.new_empty(E, B, n), x.new_empty(E, n)) for n, _ in sizes]
    told = _told(layers, final, [x.contiguous(), *post], taught, rooms)
    with torch.cuda.device_of(x):
        gpu_step_programs.forward[(E,)](
            told, kept, target.contiguous(), scale.expand(E, T).contiguous(), error, T, B, segment,
            **_settings(how, sizes, B),
        )  # fmt: skip
    return Passed(final, list(kept or ()), post, [r.mT for r in taught], error)


def backward_steps(
    chain: Chain,
    layers: Sequence[Synapses],
    x: Tensor,
    target: Tensor,
    scale: Tensor,
    segment: int,
    passed: Passed,
    g_final: Sequence[Tensor],
    with_x: bool,
) -> tuple[list[Synapses], Tensor | None]:
    """The gradients of what the layers were given, each episode's own, and of x where asked."""
    E, T, B, _ = x.shape
    how, programs = _how(chain), min(E, PROGRAMS)
    sizes = [layer.weight.shape[1:] for layer in layers]
    K = target.shape[-1]
    found = [
        Synapses(
            g.clone(memory_format=torch.contiguous_format),
            x.new_zeros(E, n, d),
            x.new_zeros(E, n),
            x.new_zeros(E, n),
            torch.zeros_like(layer.share),
            x.new_zeros(E, *layer.feedback.shape[1:]),
        )
        for g, layer, (n, d) in zip(g_final, layers, sizes, strict=True)
    ]
    history = [x.new_empty(programs, segment, n, d) for n, d in sizes]
    rooms = [
        (x.new_empty(programs, segment, B, n), x.new_empty(programs, segment, n)) for n, _ in sizes
    ]
    activity = [x.contiguous(), *(y.contiguous() for y in passed.post)]
    taught = [r.mT.contiguous() for r in passed.teaching]
    adjoints = tuple(
        Adjoint(
            g.weight, g.plasticity, g.mix, g.bias, g.feedback,
            *(x.new_empty(programs, B, n) for _ in range(3)),
        )
        for g, (n, _) in zip(found, sizes, strict=True)
    )  # fmt: skip
    # Where the last layer's teaching signal is the error, so are their gradients.
    g_error = x.new_empty(programs, B, K) if how.fed == len(layers) else adjoints[-1].teaching
    g_x = torch.empty_like(activity[0]) if with_x else None
    told = _told(layers, history, activity, taught, rooms)
    kept = tuple(w.contiguous() for w in passed.kept)
    given = (target.contiguous(), scale.expand(E, T).contiguous(), passed.error.contiguous())
    with torch.cuda.device_of(x):
        for first in range(0, E, programs):
            gpu_step_programs.backward[(min(programs, E - first),)](
                told, adjoints, kept, *given, g_error, g_x, first, T, B, segment,
                **_settings(how, sizes, B),
            )  # fmt: skip
    own = [
        g._replace(plasticity=of_neurons(g.plasticity, layer.plasticity))
        for g, layer in zip(found, layers, strict=True)
    ]
    return own, g_x


def _how(chain: Chain) -> How:
    count = len(chain.neurons)
    return How(
        codes=tuple(neuron.code for neuron in chain.neurons),
        multipliers=tuple(float(neuron.multiplier) for neuron in chain.neurons),
        descends=chain.descends,
        classes=chain.classes,
        fed=0 if chain.descends else count - chain.clamped,
    )


def _taught(how: How, post: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Room for the teaching signals, (E, T, B, n) by layer, and for the error, which is the last of
    them where nothing is fed back to the last layer.
    """
    taught = [torch.empty_like(y) for y in post]
    return taught, torch.empty_like(post[-1]) if how.fed == len(post) else taught[-1]


def _told(
    layers: Sequence[Synapses],
    weights: Sequence[Tensor],
    activity: Sequence[Tensor],
    taught: Sequence[Tensor],
    rooms: Sequence[tuple[Tensor, Tensor]],
) -> tuple[Layer, ...]:
    """The layers as the programs take them; what is small is copied for each episode."""
    E, T, B, _ = activity[0].shape
    told = []
    for at, layer in enumerate(layers):
        n, d = layer.weight.shape[1:]
        plasticity = of_synapses(layer.plasticity, d)
        told.append(
            Layer(
                n=n,
                d=d,
                weight=weights[at],
                plasticity=plasticity,
                plasticity_step=step(plasticity),
                mix=layer.mix.expand(E, n).contiguous(),
                bias=layer.bias.expand(E, n).contiguous(),
                share=layer.share.expand(E, T, B).contiguous(),
                feedback=layer.feedback.contiguous(),
                feedback_step=step(layer.feedback),
                x=activity[at],
                post=activity[at + 1],
                teaching=taught[at],
                a=rooms[at][0],
                c=rooms[at][1],
            )
        )
    return tuple(told)


def _settings(how: How, sizes: Sequence[torch.Size], examples: int) -> dict[str, Any]:
    """What the programs are compiled for."""
    outputs = sizes[-1][0]
    block_d = min(INPUTS, triton.next_power_of_2(max(d for _, d in sizes)))
    block_b = min(triton.next_power_of_2(examples), max(1, TILE // (8 * block_d)))
    block_n = min(
        triton.next_power_of_2(max(n for n, _ in sizes)), max(1, TILE // (block_b * block_d))
    )
    return {
        "HOW": how,
        "BLOCKS": Blocks(block_b, block_n, block_d, triton.next_power_of_2(outputs)),
        "enable_fp_fusion": True,
        "num_warps": min(16, max(1, block_b * block_n * block_d // 256)),
    }
