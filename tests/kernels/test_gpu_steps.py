"""The GPU kernels, step by step, against a plain loop that autograd differentiates.

On a CPU they run in Triton's interpreter: see tests/kernels/gpu.py.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metaplastic import Backprop, Delta, DirectFeedback, LayeredNetwork, Learner, Oja, Unrolled
from metaplastic.kernels.neuron import DELTA, HEBB, IDENTITY, OJA, RELU, SIGMOID, TANH, Neuron
from metaplastic.kernels.steps import Chain, Passed, Synapses
from tests.helpers import assert_close, classification, mlp, seeded, shake
from tests.kernels.gpu import ACTIVATIONS, NEURONS, assemble, assert_equal, change, interpret

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton, which is not installed"
)

WIDTHS = (3, 4, 3, 5)
"""From the output down."""
WAYS = {"clamped": (False, True), "fed back": (False, False), "backprop": (True, True)}
"""How errors come: whether they descend, and whether the output gets its own."""
PAIRS = [(NEURONS[7 * k % 32], NEURONS[(7 * k + 13) % 32]) for k in range(0, 32, 2)]
"""Each neuron once."""
MIXED = (
    Neuron(SIGMOID, OJA, bounded=True, multiplier=0.7),
    Neuron(TANH, DELTA, derivative=True),
    Neuron(IDENTITY, HEBB),
)
DELTAS = (
    Neuron(TANH, DELTA, derivative=True),
    Neuron(RELU, DELTA, target=True),
    Neuron(IDENTITY, DELTA, derivative=True),
)


@dataclass(frozen=True)
class Case:
    """A chain and its stream."""

    neurons: tuple[Neuron, ...]
    way: str
    classes: bool = True
    episodes: int = 1
    presentations: int = 3
    examples: int = 2
    segment: int = 2
    shared: bool = False
    """All episodes start from the same weights, with the same coefficients and shares."""
    alike: bool = False
    """All synapses of a neuron have the same plasticity."""
    with_x: bool = True
    dtype: torch.dtype = torch.float64
    widths: tuple[int, ...] = WIDTHS

    @property
    def chain(self) -> Chain:
        descends, clamped = WAYS[self.way]
        return Chain(self.neurons, descends, clamped, self.classes, self.segment)


@dataclass(frozen=True)
class Given:
    """What the kernels take, and the gradients that come from above."""

    layers: list[Synapses]
    x: Tensor
    target: Tensor
    scale: Tensor
    g_final: list[Tensor]

    def tensors(self) -> list[Tensor]:
        own = [tensor for layer in self.layers for tensor in layer]
        return [*own, self.x, self.target, self.scale, *self.g_final]


def given(case: Case, device: str) -> Given:
    """Random numbers; the last example of some presentations is padding."""
    g = seeded(5)
    E, T, B = case.episodes, case.presentations, case.examples
    each, K = 1 if case.shared else E, case.widths[0]

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        drawn = scale * torch.randn(shape, generator=g, dtype=torch.float64)
        return drawn.to(device=device, dtype=case.dtype)

    layers = []
    for at in range(len(case.neurons), 0, -1):
        d, n = case.widths[at], case.widths[at - 1]
        mix = normal(each, n).sigmoid()
        mix[0, 0], mix[-1, -1] = 0.0, 1.0
        share = torch.rand(each, T, B, generator=g, dtype=torch.float64) + 0.2
        share[:, 1::2, B - 1 :] *= float(B == 1)
        layers.append(
            Synapses(
                weight=normal(each, n, d, scale=0.7),
                plasticity=normal(each, n, 1 if case.alike else d, scale=0.2),
                mix=mix,
                bias=normal(each, n, scale=0.5),
                share=share.to(device=device, dtype=case.dtype),
                feedback=normal(each, n, K),
            )
        )
    target = normal(E, T, B, K)
    if case.classes:
        target = nn.functional.one_hot(target.argmax(-1), K).to(case.dtype)
    return Given(
        layers,
        normal(E, T, B, case.widths[len(layers)], scale=0.7),
        target,
        1.0 + normal(each, T).abs(),
        [normal(E, *layer.weight.shape[1:]) for layer in layers],
    )


def plain(case: Case, made: Given) -> dict[str, Tensor]:
    """Final weights and all gradients, in float64. Errors are the gradients that autograd finds."""
    descends, clamped = WAYS[case.way]
    E = case.episodes
    leaves = {
        f"{field}{at}": tensor.double().expand(E, *tensor.shape[1:]).clone().requires_grad_()
        for at, layer in enumerate(made.layers)
        for field, tensor in zip(Synapses._fields, layer, strict=True)
    }
    leaves["x"] = made.x.double().clone().requires_grad_()
    target, scale = made.target.double(), made.scale.double().expand(E, -1)
    outcome, value = {}, torch.zeros((), dtype=torch.float64, device=made.x.device)
    for e in range(E):
        own = {name: leaf[e] for name, leaf in leaves.items()}
        weights = [own[f"weight{at}"] for at in range(len(case.neurons))]
        for t in range(case.presentations):
            seen, potentials = [own["x"][t]], []
            for at, neuron in enumerate(case.neurons):
                potentials.append(seen[-1] @ weights[at].T + own[f"bias{at}"])
                seen.append(ACTIVATIONS[neuron.activation](potentials[-1]))
            gain = -0.5 * (target[e, t] - seen[-1]) ** 2
            if case.classes:
                gain = target[e, t] * seen[-1].log_softmax(-1)
            taught = list(
                torch.autograd.grad((scale[e, t] * gain).sum(), seen[1:], create_graph=True)
            )
            error = taught[-1]
            if not descends:
                fed = [error @ own[f"feedback{at}"].T for at in range(len(weights))]
                taught = [*fed[:-1], error] if clamped else fed
            for at, neuron in enumerate(case.neurons):
                asked = change(
                    neuron, weights[at], own[f"mix{at}"], seen[at], potentials[at], seen[at + 1],
                    taught[at], own[f"share{at}"][t],
                )  # fmt: skip
                weights[at] = weights[at] + own[f"plasticity{at}"] * asked
        for at, w in enumerate(weights):
            outcome[f"final{at}", e] = w
            value = value + (w * made.g_final[at][e].double()).sum()
    wanted = {name: leaf for name, leaf in leaves.items() if not name.startswith("share")}
    gradients = torch.autograd.grad(
        value, list(wanted.values()), allow_unused=True, materialize_grads=True
    )
    finals = {
        f"final{at}": torch.stack([outcome[f"final{at}", e] for e in range(E)])
        for at in range(len(case.neurons))
    }
    return dict(zip(wanted, gradients, strict=True)) | finals


def compiled(case: Case, made: Given) -> dict[str, Tensor]:
    """The same from the kernels."""
    from metaplastic.kernels import gpu_steps

    told = (case.chain, made.layers, made.x, made.target, made.scale, case.segment)
    passed = gpu_steps.forward_steps(*told, True)
    assert_shapes(case, passed)
    found, g_x = gpu_steps.backward_steps(*told, passed, made.g_final, case.with_x)
    assert (g_x is not None) == case.with_x
    outcome = {
        f"{field}{at}": tensor
        for at, layer in enumerate(found)
        for field, tensor in zip(Synapses._fields, layer, strict=True)
        if field != "share"
    }
    if g_x is not None:
        outcome["x"] = g_x
    return outcome | {f"final{at}": w for at, w in enumerate(passed.final)}


def assert_shapes(case: Case, passed: Passed) -> None:
    """As ``Passed`` says."""
    lead, B = (case.episodes, case.presentations), case.examples
    pieces = -(-case.presentations // case.segment)
    for at, w in enumerate(passed.final):
        assert passed.kept[at].shape == (case.episodes, pieces, *w.shape[1:])
        assert passed.post[at].shape == (*lead, B, w.shape[1])
        assert passed.teaching[at].shape == (*lead, w.shape[1], B)
    assert passed.error.shape == (*lead, B, case.widths[0])


def check(case: Case, device: str) -> None:
    made = given(case, device)
    before = [tensor.clone() for tensor in made.tensors()]
    assert_equal(compiled(case, made), plain(case, made), case.dtype, case)
    for tensor, old in zip(made.tensors(), before, strict=True):
        assert torch.equal(tensor, old)


def check_neurons(device: str) -> None:
    for k, pair in enumerate(PAIRS):
        check(Case(pair, list(WAYS)[k % 3], classes=k % 2 == 0, presentations=1), device)


def check_shapes(device: str) -> None:
    cases = [  # layers, way, episodes, presentations, examples, segment, shared, alike
        (1, "clamped", 1, 7, 1, 3, True, False),
        (1, "fed back", 3, 1, 3, 1, False, True),
        (1, "backprop", 1, 1, 1, 10, False, False),
        (2, "backprop", 1, 4, 1, 10, True, True),
        (2, "clamped", 3, 1, 1, 1, True, False),
        (3, "backprop", 2, 1, 1, 3, False, False),
        (3, "fed back", 1, 3, 3, 2, True, False),
    ]
    for k, (layers, way, *sizes) in enumerate(cases):
        neurons = (MIXED if k % 2 else DELTAS)[-layers:]
        check(Case(neurons, way, k % 2 == 0, *sizes), device)  # type: ignore[arg-type]
    check(Case(DELTAS[1:], "backprop", presentations=4, examples=1, dtype=torch.float32), device)


def check_options(device: str) -> None:
    """One output, what is not asked for, and more than is held at once."""
    from metaplastic.kernels import gpu_steps

    check(Case(DELTAS[1:], "backprop", classes=False, widths=(1, 4, 3), examples=1), device)
    case = Case(MIXED[:2], "backprop", presentations=1)
    check(replace(case, with_x=False, examples=1), device)
    made = given(case, device)
    passed = gpu_steps.forward_steps(
        case.chain, made.layers, made.x, made.target, made.scale, 2, False
    )
    assert passed.kept == []
    expected = plain(case, made)
    for at, w in enumerate(passed.final):
        torch.testing.assert_close(w, expected[f"final{at}"])
    names = ("TILE", "INPUTS", "PROGRAMS")
    limits = [getattr(gpu_steps, name) for name in names]
    try:
        for way, E, B, tiles in (("backprop", 1, 2, (4, 2, 2)), ("fed back", 2, 3, (32, 2, 1))):
            for name, value in zip(names, tiles, strict=True):
                setattr(gpu_steps, name, value)
            check(replace(case, way=way, episodes=E, examples=B), device)
    finally:
        for name, value in zip(names, limits, strict=True):
            setattr(gpu_steps, name, value)


def check_learners(device: str) -> None:
    """A frozen layer below asks for the gradient of what the chain sees."""
    from metaplastic.kernels import gpu_steps, steps

    if device == "cpu":
        steps.backend = lambda x: gpu_steps  # type: ignore[assignment]
    for credit in (Backprop(), DirectFeedback("error")):
        rules = {"name:layer0_*": None, "role:weight": Delta(0.1, learned=True)}
        if isinstance(credit, DirectFeedback):
            rules |= {"role:weight": Oja(0.1, 0.8)}
        learner = Learner(LayeredNetwork(mlp(5, 4, 4, 3)), credit, rules, initial="learned")
        shake(learner, initial=0.1, plasticity=0.1, feedback=0.2)
        learner.to(device)
        episodes = classification(2, 2, 1, 5, 3).to(torch.device(device), torch.float64)
        wanted, found = ({}, {})
        for engine, into in (("plain", wanted), ("fused", found)):
            learner.zero_grad()
            into["loss"] = Unrolled(engine=engine).gradient(learner, episodes).loss
            into |= {n: p.grad for n, p in learner.named_parameters() if p.grad is not None}
        assert wanted["network.body.0.weight"].any()
        assert_close(found, wanted, 1e-10)


CHECKS = {
    "neurons": check_neurons,
    "shapes": check_shapes,
    "options": check_options,
    "learners": check_learners,
}


@pytest.mark.parametrize("name", CHECKS)
def test_as_a_plain_loop_in_the_interpreter(name: str) -> None:
    interpret("tests.kernels.test_gpu_steps", name)


@pytest.mark.parametrize(
    ("way", "dtype"), [("backprop", torch.float32), ("fed back", torch.float64)]
)
def test_compiles_for_a_gpu_that_is_not_there(
    way: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One output is a constant."""
    from metaplastic.kernels import gpu_step_programs

    neurons = MIXED[1:] if way == "backprop" else MIXED[:1]
    case = Case(neurons, way, classes=False, dtype=dtype, widths=(1, 3, 5))
    made = given(case, "cpu")
    assemble(gpu_step_programs, lambda: compiled(case, made), tmp_path, monkeypatch)


@pytest.mark.gpu
def test_as_a_plain_loop_on_a_gpu() -> None:
    """Fewer chains than in the interpreter: each is compiled anew."""
    check_options("cuda")
    check_shapes("cuda")
    check_learners("cuda")


if __name__ == "__main__":
    CHECKS[sys.argv[1]]("cpu")
