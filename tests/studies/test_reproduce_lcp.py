"""The reproduction of least control at rest: its networks, how they are trained, and the probes."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from metaplastic import EquilibriumNetwork, Learner
from metaplastic.credit import EquilibriumControl
from metaplastic.equilibrium import Inversion
from metaplastic.networks import equilibrium_rnn
from studies.reproduce.base import Method, Setup, Sizes, Trainee
from studies.reproduce.figures_rest import REST_PICTURES
from studies.reproduce.lcp import BATCH, NAMES, methods
from studies.reproduce.outcome import Outcome
from studies.reproduce.probes_rest import control_size, feedback_share, rest_angle, twin_angle
from studies.reproduce.training import Training
from tasks.images import Images, Part
from tests.helpers import deviation, normal, seeded
from tests.studies.conftest import read

SIZES = Sizes(images=40, epochs=3, seeds=(0,), test=20, validation=20, batch=8)
SMALL = {
    "mnist-ff": {"hidden": [6, 5]},
    "mnist-rnn": {"hidden": 6},
    "cifar10-ff": {"channels": [3, 4, 4], "hidden": 6},
    "cifar10-rnn": {"sizes": {"channels": 4, "inner": 4, "groups": 2, "pool": 8}},
}
EXACT = {"method": "anderson", "tolerance": 1e-13, "sweeps": 600}
ALL = [(part, name) for part, names in NAMES.items() for name in names]
MNIST = ["mnist-ff", "mnist-rnn"]


def shape_of(part: str) -> tuple[int, ...]:
    return (1, 3, 3) if part in MNIST else (2, 16, 16)


def published(part: str, name: str) -> Method:
    (method,) = (method for method in methods(part, "full") if method.name == name)
    return method


def made(part: str, name: str, **options) -> Trainee:
    method = published(part, name)
    own = {**method.options, **SMALL[part], **options}
    return method.build(Setup(shape_of(part), 4, 0, SIZES, own))


def examples(part: str, count: int = 8) -> tuple[Tensor, Tensor]:
    y = torch.arange(count) % 4
    centres = normal(4, *shape_of(part), seed=3)
    return (centres[y] + 0.3 * normal(count, *shape_of(part), seed=4)).float(), y


STRENGTH = {"mnist-ff": 10.0, "mnist-rnn": 1.0}
"""Of the control of a batch."""


def training(part: str, trainee: Trainee, count: int = 40) -> Training:
    x, y = examples(part, count)
    data = Images("made up", Part(x, y), Part(x[:20], y[:20]), Part(x[:20], y[:20]), 4)
    return Training(trainee.learner, data, trainee.phases, batch=8)


def at_rest(learner: Learner) -> EquilibriumNetwork:
    assert isinstance(learner.network, EquilibriumNetwork)
    return learner.network


def plain_loss(part: str, network: EquilibriumNetwork, x: Tensor, y: Tensor) -> Tensor:
    """By hand, with a graph."""
    p, x = network.weights(), x.flatten(1)

    def layer(name: str, v: Tensor) -> Tensor:
        bias = p.get(f"{name}_bias")
        return v @ p[f"{name}_weight"].mT + (0 if bias is None else bias.mT)

    if part == "mnist-ff":
        output = layer("layer2", layer("layer1", layer("layer0", x).tanh()).tanh())
    else:
        v = layer("input", x)
        for _ in range(300):
            v = layer("input", x) + layer("recurrent", v.tanh())
        output = layer("output", v.tanh())
    return nn.functional.cross_entropy(output, y)


# --- the size of the update ---


@pytest.mark.parametrize(("name", "weak"), [("lcp-di", 1e-6), ("lcp-ebd", 1e-3)])
@pytest.mark.parametrize("part", MNIST)
def test_a_weak_update_is_the_strength_of_a_batch_times_the_mean_gradient(
    part: str, name: str, weak: float
) -> None:
    """Published is the sum over 64 examples, each under a control of 10 / 64 here (a tenth of it in
    recurrent networks); with a thousandth, about a thousandth of that sum times the gradient of the
    mean loss is left.
    """
    method = published(part, name)
    strong = method.options["controller"]
    assert strong["integral"] / strong["leak"] == pytest.approx(STRENGTH[part] / BATCH)
    controller = {**strong, "integral": weak * strong["integral"]}
    exact = {**EXACT, "damping": 0.5, "tolerance": 1e-10} if name == "lcp-ebd" else EXACT
    learner = made(part, name, controller=controller, solver=exact, free=EXACT).learner.double()
    x, y = examples(part, BATCH)
    learner.assign_grads(x.double(), y)
    parameters = list(learner.network.parameters())
    loss = plain_loss(part, at_rest(learner), x.double(), y)
    for parameter, wanted in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        assert parameter.grad is not None
        assert deviation(parameter.grad, STRENGTH[part] * weak * wanted) < 5 * weak + 1e-6


@pytest.mark.parametrize("part", MNIST)
def test_the_reference_is_the_mean_gradient_from_the_same_first_weights(part: str) -> None:
    learner = made(part, NAMES[part][0], solver=EXACT, free=EXACT).learner.double()
    other = at_rest(made(part, "lcp-di").learner.double())
    x, y = examples(part, 6)
    learner.assign_grads(x.double(), y)
    loss = plain_loss(part, other, x.double(), y)
    wanted = torch.autograd.grad(loss, list(other.parameters()))
    for parameter, gradient in zip(learner.network.parameters(), wanted, strict=True):
        assert parameter.grad is not None
        assert deviation(parameter.grad, gradient) < 1e-7


@pytest.mark.parametrize("part", NAMES)
def test_methods_begin_with_the_same_weights(part: str) -> None:
    first, *others = [made(part, name).learner.network.weights() for name in NAMES[part]]
    for weights in others:
        assert all(torch.equal(value, first[name]) for name, value in weights.items())


def test_networks_have_the_published_size() -> None:
    def count(part: str, shape: tuple[int, ...]) -> int:
        method = published(part, "lcp-di")
        network = method.build(Setup(shape, 10, 0, SIZES, method.options)).learner.network
        return sum(p.numel() for p in network.parameters())

    assert count("mnist-ff", (1, 28, 28)) == 269_322
    assert count("mnist-rnn", (1, 28, 28)) == 269_322 - 256  # one bias does for input and loop
    assert count("cifar10-ff", (3, 32, 32)) == 10_071_562


def test_a_recurrent_network_flattens_images() -> None:
    flat, shaped = (equilibrium_rnn(n, 5, 3, generator=seeded(1)) for n in (8, (2, 2, 2)))
    x = normal(4, 2, 2, 2).float()
    assert flat.groups() == shaped.groups()
    outputs = [n(n.features(v), n.weights()) for n, v in ((flat, x.flatten(1)), (shaped, x))]
    assert torch.equal(*outputs)


# --- steps ---


@pytest.mark.parametrize("part", MNIST)
def test_kolen_pollack_differences_lose_their_share_at_every_step(part: str) -> None:
    trainee = made(part, "lcp-kp", feedback={"norm": 1.0, "shrink": 0.01}, clip=None)
    learner, (phase,) = trainee.learner.double(), trainee.phases
    x, y = examples(part)

    def apart() -> dict[str, Tensor]:
        weights, groups = learner.network.weights(), learner.credit.groups()
        own = learner.credit.weights()
        return {n: (own[n] - weights[str(g.twin)]).detach() for n, g in groups.items()}

    for value in learner.credit.weights().values():
        assert float(value.detach().norm()) == pytest.approx(1.0, rel=1e-5)
    first = apart()
    for _ in range(3):
        learner.assign_grads(x.double(), y, only=phase.only)
        phase.step()
    for name, now in apart().items():
        assert deviation(now, 0.99**3 * first[name]) < 1e-9


def test_what_shrinks_does_so_whatever_the_rate() -> None:
    shrink = {"norm": 1.0, "shrink": 0.01}
    trainee = made("mnist-ff", "lcp-kp", feedback=shrink, lr=0.0)
    learner, (phase,) = trainee.learner, trainee.phases
    before = {n: p.detach().clone() for n, p in learner.named_parameters()}
    learner.assign_grads(*examples("mnist-ff"), only=phase.only)
    phase.step()
    for name, parameter in learner.named_parameters():
        entry = name.startswith("network.pathways.layer0")
        wanted = before[name] if entry else 0.99 * before[name]
        assert torch.allclose(parameter, wanted, rtol=1e-6), name


def test_published_shares_are_in_the_options() -> None:
    found = {
        part: published(part, "lcp-kp").options["feedback"]["shrink"]
        for part, names in NAMES.items()
        if "lcp-kp" in names
    }
    assert found == {"mnist-ff": 1e-6, "mnist-rnn": 1e-6, "cifar10-ff": 1e-5}


def test_rates_fall_along_a_cosine_batch_by_batch_and_go_on() -> None:
    trainee = made("mnist-ff", "lcp-lf")
    rates: list[list[float]] = []
    (phase,) = trainee.phases

    def spied(optimizer: torch.optim.Optimizer, *_) -> None:
        rates.append([group["lr"] for group in optimizer.param_groups])

    phase.optimizer.register_step_pre_hook(spied)
    training("mnist-ff", trainee).run(3, lambda status: None)
    assert len(rates) == 15
    for k, (own, feedback) in enumerate(rates):
        share = 0.1 + 0.9 * (1 + math.cos(math.pi * k / 15)) / 2
        assert (own, feedback) == pytest.approx((1e-3 * share, 1e-3 * share))
    assert phase.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)


@pytest.mark.parametrize("name", ["lcp-kp", "lcp-lf"])
def test_a_resumed_training_is_the_uninterrupted_one(name: str, tmp_path) -> None:
    whole, begun, resumed = (training("mnist-ff", made("mnist-ff", name)) for _ in range(3))
    whole.run(3, lambda status: None)
    begun.run(1, lambda status: None)
    begun.save(tmp_path / "checkpoint.pt")
    resumed.resume(tmp_path / "checkpoint.pt")
    resumed.run(3, lambda status: None)
    for key, value in whole.learner.state_dict().items():
        assert torch.equal(value, resumed.learner.state_dict()[key]), key
    for one, other in zip(whole.curve, resumed.curve, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_network_and_feedback_are_bounded_apart() -> None:
    trainee = made("mnist-rnn", "lcp-kp")
    learner, (phase,) = trainee.learner, trainee.phases
    assert (phase.clip, phase.clipped) == (10.0, "group")
    learner.assign_grads(*examples("mnist-rnn"), only=phase.only)
    groups = [list(learner.network.parameters()), list(learner.credit.parameters())]
    factors = (1000.0, 0.001)
    before = []
    for some, factor in zip(groups, factors, strict=True):
        for parameter in some:
            assert parameter.grad is not None
            parameter.grad *= factor
        before.append([p.grad.clone() for p in some])  # type: ignore[union-attr]
    phase.step()
    for some, first in zip(groups, before, strict=True):
        norm = math.sqrt(sum(float(g.square().sum()) for g in first))
        for parameter, gradient in zip(some, first, strict=True):
            assert deviation(parameter.grad, gradient * min(1.0, 10 / norm)) < 1e-5  # type: ignore[arg-type]


@pytest.mark.parametrize(("part", "name"), ALL)
def test_every_method_learns(part: str, name: str) -> None:
    wide = {"mnist-ff": {"hidden": [16, 16]}, "mnist-rnn": {"hidden": 16}}.get(part, {})
    trainee = made(part, name, **wide, **({"lr": 0.02} if part in MNIST else {}))
    run = training(part, trainee, 120 if part in MNIST else 24)
    run.run(2 if part in MNIST else 1, lambda status: None)
    first, last = run.curve[0], run.curve[-1]
    assert last["test_loss"] < first["test_loss"]
    if part in MNIST:
        assert last["test_accuracy"] > 0.7
    assert last["unconverged"] < 0.1
    x, y = examples(part)
    assert all(math.isfinite(probe(trainee.learner, x, y)) for probe in trainee.probes.values())
    norms = [n for n, _ in trainee.learner.named_parameters() if ".units." in n]
    assert not norms


# --- probes ---


def test_the_angle_is_that_to_the_gradient() -> None:
    x, y = examples("mnist-rnn")
    assert rest_angle(made("mnist-rnn", "rbp").learner, x, y) < 0.1
    weak = {"integral": 1e-5, "leak": 0.1}
    assert rest_angle(made("mnist-rnn", "lcp-di", controller=weak).learner, x, y) < 0.2
    strong = {"integral": 10.0, "leak": 0.1}
    assert rest_angle(made("mnist-rnn", "lcp-di", controller=strong).learner, x, y) > 5
    linear = made("mnist-rnn", "lcp-lf").learner
    for value in linear.credit.parameters():
        value.data *= 0
    found = rest_angle(linear, x, y)  # nothing is told to the hidden units
    assert math.isnan(found)


def test_the_size_is_that_of_the_control() -> None:
    learner = made("mnist-rnn", "lcp-di", solver=EXACT).learner.double()
    x, y = examples("mnist-rnn")
    x = x.double()
    credit, network = learner.credit, at_rest(learner)
    assert isinstance(credit, EquilibriumControl)
    beta = STRENGTH["mnist-rnn"] / BATCH
    field = network.field(x, network.weights())
    v = torch.zeros(8, network.wiring.size, dtype=torch.float64)
    psi = torch.zeros_like(v)
    hot = nn.functional.one_hot(y, 4).double()
    with torch.no_grad():
        for _ in range(400):  # damped, by hand
            point = field.at(v)
            back = point.transposed(psi)
            error = beta * (hot - v[:, -4:].softmax(-1))
            v, psi = (
                v + 0.5 * (point.called + psi - v),
                psi + 0.5 * (torch.cat([back[:, :-4], error], -1) - psi),
            )
    assert control_size(learner, x, y) == pytest.approx(float(psi.square().sum(-1).mean() / 2))


def test_the_feedback_probes_know_their_optimum() -> None:
    x, y = examples("mnist-rnn")
    learner = made("mnist-rnn", "lcp-kp").learner
    assert twin_angle(learner, x, y) > 45
    for name, group in learner.credit.groups().items():
        own = learner.credit.weights()[name]
        own.data.copy_(2 * learner.network.weights()[str(group.twin)])
    assert twin_angle(learner, x, y) < 0.1

    linear = made("mnist-rnn", "lcp-lf").learner
    assert feedback_share(linear, x, y) < 0.95
    network = at_rest(linear)
    field = network.field(network.features(x[:1]), network.weights())
    best = Inversion().reach(field.at(network.rest(field).state), 4)[0]
    linear.credit.weights()["hidden_feedback"].data.copy_(best[:-4])
    assert feedback_share(linear, x[:1], y[:1]) == pytest.approx(1.0, abs=1e-5)


def test_pictures_show_the_probes() -> None:
    pytest.importorskip("matplotlib")
    probes = ("gradient_angle", "sweeps", "control_size", "twin_angle", "row_space_share")
    line = {"validation_accuracy": 0.5, "test_accuracy": 0.5, "probes": dict.fromkeys(probes, 0.5)}
    drawn = [Outcome("mnist-ff", "lcp-di", 0, None, [{**line, "step": i} for i in range(3)])]
    bare = [replace(drawn[0], curve=[{**one, "probes": {}} for one in drawn[0].curve])]
    assert len({picture.name for picture in REST_PICTURES}) == len(REST_PICTURES)
    for picture in REST_PICTURES:
        assert picture.draw(drawn) is not None
        assert (picture.draw(bare) is None) == (picture.name != "curves")


# --- the command ---


@pytest.mark.skipif(
    "METAPLASTIC_DATA" not in os.environ, reason="needs MNIST: METAPLASTIC_DATA is unset"
)
def test_the_command_runs_two_methods_and_goes_on(command, tmp_path) -> None:
    words = ("reproduce", "lcp", "--preset", "smoke", "--parts", "mnist-ff", "--out", tmp_path)
    done = command(*words, "--methods", "bp", "--workers", 1)
    assert done.code == 0, done.err
    kept = (tmp_path / "runs" / "mnist-ff-bp-0" / "curve.jsonl").read_text()
    done = command(*words, "--methods", "bp,lcp-di", "--workers", 1)
    assert done.code == 0, done.err
    assert (tmp_path / "runs" / "mnist-ff-bp-0" / "curve.jsonl").read_text() == kept
    rows = read(tmp_path)["rows"]
    assert [(row["task"], row["learner"]) for row in rows] == [
        ("mnist-ff", "bp"),
        ("mnist-ff", "lcp-di"),
    ]
    assert abs(rows[0]["accuracy"] - rows[1]["accuracy"]) < 0.1
    assert (tmp_path / "mnist-ff-angle.png").is_file()
