"""Recurrent plastic networks against loops over numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from metaplastic import Learner
from metaplastic.networks import RecurrentNetwork
from tests.helpers import assert_close, deviation, normal, show
from tests.recurrent.parts import FORMS, RATE, cases, recurrent
from tests.rules.scalar import Synapse


def oracle(
    learner: Learner, form: str, xs: Tensor, ys: Tensor, queries: Tensor
) -> tuple[dict[str, list[list[float]]], list[list[float]], list[list[float]]]:
    """Weights and activity after the stream, and the outputs on queries, in Python numbers."""
    network = learner.network
    assert isinstance(network, RecurrentNetwork)
    w = {n: v.detach().tolist() for n, v in network.weights().items()}
    coefficients = {n: r.coefficients() for n, r in learner.rules.items()}  # type: ignore[operator]
    kind = FORMS[form][0]().__dict__.get("form", "eligibility")
    synapses = {}
    for name, values in coefficients.items():
        alpha = values.get("alpha", torch.zeros(1, 1)).detach().expand(len(w[name]), -1)
        synapses[name] = [
            [
                Synapse(
                    kind,
                    alpha=float(alpha[i, j % alpha.shape[1]]),
                    rate=RATE,
                    **FORMS[form][1],
                )
                for j in range(len(w[name][0]))
            ]
            for i in range(len(w[name]))
        ]

    def layer(matrix: str, bias: str | None, x: list[float]) -> list[float]:
        return [
            sum(a * b for a, b in zip(row, x, strict=True)) + (w[bias][i][0] if bias else 0.0)
            for i, row in enumerate(w[matrix])
        ]

    def step(drive: list[float], h: list[float]) -> list[float]:
        fed = zip(
            layer("input_weight", "hidden_bias", drive),
            layer("recurrent_weight", None, h),
            strict=True,
        )
        return [math.tanh(a + b) for a, b in fed]

    h = [[0.0] * 4 for _ in range(xs.shape[1])]
    for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
        drive = [a + b if network.instruction else a for a, b in zip(x, y, strict=True)]
        new = [step(d, a) for d, a in zip(drive, h, strict=True)]
        out = [layer("output_weight", "output_bias", a) for a in new]
        m, fan = [0.0 for _ in new], [[0.0] * 4 for _ in new]
        if network.modulator is not None:
            m = [math.tanh(layer("modulator_weight", "modulator_bias", a)[0]) for a in new]
            fan = [[value] * 4 for value in m]
        if network.modulator == "fanout":
            fan = [layer("fanout_weight", "fanout_bias", [value]) for value in m]
        ones = [[1.0] for _ in new]
        ends = {
            "input_weight": (drive, new, fan),
            "recurrent_weight": (h, new, fan),
            "hidden_bias": (ones, new, fan),
            "output_weight": (new, out, [[v] * 2 for v in m]),
            "output_bias": (ones, out, [[v] * 2 for v in m]),
        }
        for name, matrix in synapses.items():
            pre, post, third = ends[name]
            for i, row in enumerate(matrix):
                for j, synapse in enumerate(row):
                    w[name][i][j] += synapse.change(
                        [r[i] for r in post], [r[j] for r in pre], [r[i] for r in third]
                    )
        h = new
    blank = [0.0] * (2 if network.instruction else 0)
    answers = [
        layer("output_weight", "output_bias", step([*q, *blank], h[0])) for q in queries.tolist()
    ]
    return w, h, answers


@cases
@pytest.mark.parametrize("instruction", [False, True])
@pytest.mark.parametrize("pattern", ["role:weight", "name:recurrent_weight", "*"])
def test_the_network_equals_a_loop_over_numbers(form, modulator, instruction, pattern):
    learner = recurrent(FORMS[form][0](), modulator, instruction=instruction, pattern=pattern)
    xs, ys, queries = normal(3, 1, 3), normal(3, 1, 2, seed=2), normal(5, 3, seed=3)
    w, h, answers = oracle(learner, form, xs, ys, queries)
    state = show(learner, xs, ys)
    wanted = {n: torch.tensor(v, dtype=torch.float64) for n, v in w.items()}
    assert_close(state["weights"], wanted, 1e-13)
    assert deviation(state["network"]["hidden"], torch.tensor(h, dtype=torch.float64)) < 1e-13
    output = learner.network(queries, state["weights"], state["network"])
    assert deviation(output, torch.tensor(answers, dtype=torch.float64)) < 1e-13
    moved = {n for n in w if not torch.equal(state["weights"][n], learner.network.weights()[n])}
    assert moved == learner.plastic


@cases
def test_streams_side_by_side_share_their_synapses(form, modulator):
    """Three streams at once: activities of their own, changes from the mean over them."""
    learner = recurrent(FORMS[form][0](), modulator, instruction=True)
    xs, ys = normal(3, 3, 3), normal(3, 3, 2, seed=2)
    w, h, _ = oracle(learner, form, xs, ys, normal(1, 3))
    state = show(learner, xs, ys)
    wanted = {n: torch.tensor(v, dtype=torch.float64) for n, v in w.items()}
    assert_close(state["weights"], wanted, 1e-13)
    assert deviation(state["network"]["hidden"], torch.tensor(h, dtype=torch.float64)) < 1e-13
