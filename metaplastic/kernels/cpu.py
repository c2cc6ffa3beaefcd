"""The compiled kernels of a CPU, told in tensors.

What a rule makes of a presentation is, for every family here, the change

    P o (sum_b a_b x_b - c w)

of a row w of weights, with a (B,) and c from signals of its neuron alone: see Hebb, Oja and Delta.

Neuron by neuron (``forward``): where the teaching signal does not depend on the output, a neuron's
weights through all presentations follow from its inputs alone; the loop over presentations is the
innermost one, and a row of weights never leaves the cache.

Presentation by presentation (``forward_steps``): where it does, all layers go through the stream
together, and errors come straight from the output or down through the transposed weights.

The adjoints start anew from kept weights every ``segment`` presentations and never run a rule
backwards, which would lose all digits in single precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from metaplastic.kernels import cpu_rows, cpu_steps
from metaplastic.kernels.neuron import Neuron
from metaplastic.kernels.rows import blocks, parts
from metaplastic.kernels.steps import Chain, Passed, Synapses

ROWS: Any = cpu_rows  # whose arguments come in sequences
STEPS: Any = cpu_steps
LINE = 16
"""Numbers in a line of the cache, or two: rows that begin with one are read in whole vectors."""
GROUP = 4
"""Neurons that go through the stream together: while one waits for its sum, others are at work."""


def forward(
    neuron: Neuron,
    weight: Tensor,
    plasticity: Tensor,
    mix: Tensor,
    bias: Tensor,
    share: Tensor,
    x: Tensor,
    teaching: Tensor,
    segment: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weights after the stream (E, n, d), activity (E, T, B, n), and where ``keep`` says so the
    weights at every ``segment`` presentations, (E, S, n, d) in whole lines; see ``rows.scan``.
    """
    episodes, presentations, examples, n_in = x.shape
    n_out = weight.shape[1]
    x, weight, plasticity = _line(x), _line(weight), _lines(plasticity, n_in)
    d = x.shape[-1]
    final, post = x.new_empty(episodes, n_out, d), x.new_empty(*x.shape[:3], n_out)
    kept = x.new_empty(episodes, -(-presentations // segment) if keep else 0, n_out, d)
    given = _arrays(
        weight, plasticity, mix, bias, share, x, _by_neuron(teaching), final, kept, post
    )
    count = blocks(episodes)
    multiplier = given[5].dtype.type(neuron.multiplier)

    def task(first: int, last: int) -> None:
        many, one = (GROUP, examples), (GROUP if examples > 1 else 1, d)
        room = [x.new_empty(*s) for s in (many, (examples,), many, (GROUP,), one)]
        ROWS.forward_rows(
            neuron.code, multiplier, segment, count, first, last, keep, *given, *_arrays(*room)
        )

    parts(episodes * count, x.numel() * n_out, task)
    return final[..., :n_in], post, kept if keep else None


def backward(
    neuron: Neuron,
    plasticity: Tensor,
    mix: Tensor,
    share: Tensor,
    x: Tensor,
    teaching: Tensor,
    segment: int,
    kept: Tensor,
    post: Tensor,
    g_final: Tensor,
    g_post: Tensor | None,
    with_x: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients of weights and plasticity (E, n, d), mix and bias (E, n), teaching signal
    (E, T, B, n) and, where ``with_x`` says so, x (E, T, B, d).
    """
    episodes, _, examples, n_in = x.shape
    n_out, count = g_final.shape[1], blocks(episodes)
    x, gw, plasticity = _line(x), _line(g_final), _lines(plasticity, n_in)
    if gw is g_final:
        gw = g_final.clone()
    d = x.shape[-1]
    gp = x.new_empty(episodes, n_out, plasticity.shape[-1])
    g_mix, g_bias = x.new_zeros(episodes, n_out), x.new_zeros(episodes, n_out)
    taught = _by_neuron(teaching)
    g_taught = torch.empty_like(taught)
    gx = x.new_zeros(count, *x.shape) if with_x else x.new_zeros(1, 1, 1, 1, 1)
    incoming = g_post if g_post is not None else x.new_zeros(1, 1, 1, 1)
    given = _arrays(
        plasticity, mix, share, x, taught, kept, post, incoming,
        gw, gp, g_mix, g_bias, g_taught, gx,
    )  # fmt: skip
    multiplier = given[3].dtype.type(neuron.multiplier)

    def task(first: int, last: int) -> None:
        many, several = (GROUP, examples), examples > 1
        shapes = (
            (segment + 1, GROUP, d), (segment if several else 1, GROUP, d), (segment, *many),
            (segment, GROUP), many, many, many, (GROUP if several else 1, d), (examples,),
        )  # fmt: skip
        ROWS.backward_rows(
            neuron.code, multiplier, segment, count, first, last, g_post is not None, with_x,
            *given, *_arrays(*(x.new_empty(*s) for s in shapes)),
        )  # fmt: skip

    parts(episodes * count, x.numel() * n_out, task)
    total = (gx[0] if count == 1 else gx.sum(0))[..., :n_in] if with_x else None
    return gw[..., :n_in], gp[..., :n_in], g_mix, g_bias, g_taught.mT, total


def _by_neuron(teaching: Tensor) -> Tensor:
    """(E, T, B, n) as (E, T, n, B)."""
    return teaching.mT.contiguous()


def forward_steps(
    chain: Chain,
    layers: Sequence[Synapses],
    x: Tensor,
    target: Tensor,
    scale: Tensor,
    segment: int,
    keep: bool,
) -> Passed:
    """The whole stream presentation by presentation, see ``steps.scan``; scale (E or 1, T).
    Activity and kept weights come in rows of whole lines, with zeros at their ends.
    """
    episodes, presentations, examples, _ = x.shape
    lead = (episodes, presentations)
    pieces = -(-presentations // segment) if keep else 0
    widths = [layer.weight.shape[2] for layer in layers]
    layers, x = _in_lines(layers), _line(x)
    sizes = [layer.weight.shape[1:] for layer in layers]
    seen = [*(d for _, d in sizes[1:]), sizes[-1][0]]
    passed = Passed(
        final=[x.new_empty(episodes, n, d) for n, d in sizes],
        kept=[x.new_empty(episodes, pieces, n, d) for n, d in sizes],
        post=[x.new_zeros(*lead, examples, n) for n in seen],
        teaching=[x.new_empty(*lead, n, examples) for n, _ in sizes],
        error=x.new_empty(*lead, examples, sizes[-1][0]),
    )
    told = _told(chain, layers)
    given = [_tuple(getattr(layer, f) for layer in layers) for f in Synapses._fields]
    filled = [_tuple(t) for t in (passed.final, passed.kept, passed.post, passed.teaching)]

    def task(first: int, last: int) -> None:
        room = [
            _tuple(x.new_empty(n, examples) for n, _ in sizes),
            _tuple(x.new_empty(examples, d) for _, d in sizes),
            *_arrays(x.new_empty(examples)),
            _tuple(x.new_empty(n) for n, _ in sizes),
            _tuple(x.new_empty(n, d) if examples > 1 else x.new_empty(1, d) for n, d in sizes),
        ]
        for e in range(first, last):
            STEPS.forward_steps(
                *told, segment, e, keep, *given, *_arrays(scale, x, target), *filled,
                *_arrays(passed.error), *room,
            )  # fmt: skip

    parts(episodes, _work(x, sizes), task)
    own = [final[..., :d] for final, d in zip(passed.final, widths, strict=True)]
    return replace(passed, final=own)


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
    episodes, _, examples, _ = x.shape
    widths = [layer.weight.shape[2] for layer in layers]
    layers, x = _in_lines(layers), _line(x)
    sizes = [layer.weight.shape[1:] for layer in layers]
    found = [
        Synapses(
            _line(g.clone()),
            x.new_zeros(episodes, n, layer.plasticity.shape[2]),
            x.new_zeros(episodes, n),
            x.new_zeros(episodes, n),
            torch.zeros_like(layer.share),
            x.new_zeros(episodes, *layer.feedback.shape[1:]),
        )
        for g, layer, (n, _) in zip(g_final, layers, sizes, strict=True)
    ]
    gx = torch.zeros_like(x) if with_x else x.new_zeros(1, 1, 1, 1)
    told = _told(chain, layers)
    given = [
        _tuple(getattr(layer, f) for layer in layers) for f in Synapses._fields[1:] if f != "bias"
    ]
    seen = [_tuple(t) for t in (passed.kept, passed.post, passed.teaching)]
    order = ("weight", "plasticity", "mix", "bias", "feedback")
    filled = [_tuple(getattr(g, f) for g in found) for f in order]

    def task(first: int, last: int) -> None:
        def by_layer(shape: str, *lead: int) -> tuple[Any, ...]:
            shapes = {
                "nd": [(n, d) for n, d in sizes],
                "wanted": [(n, d) if examples > 1 else (1, d) for n, d in sizes],
                "nb": [(n, examples) for n, _ in sizes],
                "bd": [(examples, d) for _, d in sizes],
                "n": [(n,) for n, _ in sizes],
            }
            make = x.new_zeros if shape == "bd" else x.new_empty  # nothing fills the ends of lines
            return _tuple(make(*lead, *own) for own in shapes[shape])

        room = [
            by_layer("nd", segment + 1),
            by_layer("wanted", segment if examples > 1 else 1),
            by_layer("nb", segment),
            by_layer("n", segment),
            *(by_layer(s) for s in ("nb", "nb", "nb", "nb", "nb", "bd", "bd", "wanted")),
            *_arrays(x.new_empty(examples, target.shape[-1]), x.new_empty(examples)),
        ]
        for e in range(first, last):
            STEPS.backward_steps(
                *told, segment, e, with_x, *given, *_arrays(scale, x, target), *seen,
                *_arrays(passed.error), *filled, *_arrays(gx), *room,
            )  # fmt: skip

    parts(episodes, _work(x, sizes), task)
    own = [
        g._replace(weight=g.weight[..., :d], plasticity=g.plasticity[..., :d])
        for g, d in zip(found, widths, strict=True)
    ]
    return own, gx[..., : widths[0]] if with_x else None


def _line(tensor: Tensor) -> Tensor:
    """Rows in whole lines, with zeros at their ends."""
    missing = -tensor.shape[-1] % LINE
    return functional.pad(tensor, (0, missing)) if missing else tensor


def _lines(plasticity: Tensor, n_in: int) -> Tensor:
    """The same of plasticity, but where it is one number for each neuron."""
    return _line(plasticity) if plasticity.shape[-1] == n_in else plasticity


def _in_lines(layers: Iterable[Synapses]) -> list[Synapses]:
    return [
        layer._replace(
            weight=_line(layer.weight),
            plasticity=_lines(layer.plasticity, layer.weight.shape[-1]),
        )
        for layer in layers
    ]


def _told(chain: Chain, layers: Sequence[Synapses]) -> list[Any]:
    """Codes, multipliers, and how errors arise and arrive."""
    kind = layers[0].weight.detach().numpy().dtype.type
    codes = tuple(n.code for n in chain.neurons)
    multipliers = tuple(kind(n.multiplier) for n in chain.neurons)
    return [codes, multipliers, chain.descends, chain.clamped, chain.classes]


def _work(x: Tensor, sizes: Sequence[torch.Size]) -> int:
    return x[..., 0].numel() * sum(n * d for n, d in sizes)


def _tuple(tensors: Iterable[Tensor]) -> tuple[Any, ...]:
    return tuple(_arrays(*tensors))


def _arrays(*tensors: Tensor) -> list[Any]:
    return [t.detach().numpy() for t in tensors]
