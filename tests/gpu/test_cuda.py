"""The same numbers on a CUDA device as on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from metaplastic import (
    Backprop,
    CrossEntropy,
    Delta,
    DirectFeedback,
    Episodes,
    LayeredNetwork,
    Learner,
    Oja,
    SquaredError,
    Unrolled,
)
from metaplastic.evaluation import evaluate
from metaplastic.training import MetaTraining
from tests.helpers import (
    assert_close,
    classification,
    final_weights,
    meta_gradient,
    mlp,
    normal,
    regression,
    seeded,
    shake,
)

DEVICE = "cuda"
pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """No TF32, which keeps ten bits only."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def flp() -> tuple[Learner, Episodes]:
    """Regression, every layer plastic, error fed back through two rectified layers."""
    credit = DirectFeedback("error", depth=2, width=9, rectify=True, bias=True, output="feedback")
    learner = Learner(mlp(5, 17, 16, 2), credit, Oja(0.0, bounded=False), SquaredError())
    shake(learner, 1, plasticity=0.01, mixing=0.2, feedback=0.2)
    return learner, regression(3, 8, 4, 5, 2)


def convolutional() -> tuple[Learner, Episodes]:
    """Plastic convolutions with norms and pools, the label as teaching signal."""
    chain = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.ReLU(),
        nn.GroupNorm(1, 5),
        nn.MaxPool2d(3, 2, padding=1),
        nn.Conv2d(5, 4, 2, stride=2, dilation=2),
        nn.Tanh(),
        nn.BatchNorm2d(4),
        nn.AvgPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).double()
    for i, parameter in enumerate(chain.parameters()):
        parameter.data = 0.4 * normal(*parameter.shape, seed=i) + 0.5 * (parameter.dim() == 1)
    network = LayeredNetwork(chain, input_shape=(2, 9, 9), batch_norm="running")
    learner = Learner(network, DirectFeedback("target", bias=True), {"*": Oja(0.0)})
    shake(learner, 1, plasticity=0.2, mixing=0.2, feedback=0.2)
    return learner, classification(3, 5, 2, (2, 9, 9), 3)


def backpropagated() -> tuple[Learner, Episodes]:
    """The convolutional chain under backpropagation."""
    learner, episodes = convolutional()
    return Learner(learner.network, Backprop(), {"*": Delta(0.125, learned=True)}), episodes


def oml() -> tuple[Learner, Episodes]:
    """A convolutional trunk, and two layers that learn by gradient descent."""
    trunk = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.BatchNorm2d(3), nn.Flatten()).double()
    for i, parameter in enumerate(trunk.parameters()):
        parameter.data = 0.4 * normal(*parameter.shape, seed=50 + i)
    network = LayeredNetwork(mlp(27, 16, 4), trunk=trunk, input_shape=(1, 5, 5))
    learner = Learner(network, Backprop(), Delta(0.125, granularity="synapse", learned=True))
    return learner.double(), classification(3, 6, 1, (1, 5, 5), 4)


def resampled() -> tuple[Learner, Episodes]:
    """Initial weights and feedback drawn in every episode, on the CPU."""
    credit = DirectFeedback("target", weights="resampled")
    learner = Learner(mlp(4, 9, 3), credit, Oja(0.1), CrossEntropy(), initial="resampled")
    return shake(learner, 1, plasticity=0.2), classification(3, 6, 2, 4, 3)


BUILD: dict[str, Callable[[], tuple[Learner, Episodes]]] = {
    f.__name__: f for f in (flp, convolutional, backpropagated, oml, resampled)
}
METHODS = {
    "at once": Unrolled(),
    "one by one": Unrolled(batching="loop"),
    "checkpointed": Unrolled(checkpoint_every=2),
    "first order": Unrolled(first_order=True),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", BUILD)
def test_meta_gradient_equals_that_of_the_cpu(name, method):
    """Whether the episodes are on the device already or not."""
    learner, episodes = BUILD[name]()
    wanted = meta_gradient(learner, episodes, METHODS[method], seeded(1))
    twin = copy.deepcopy(learner).to(DEVICE)
    for given in (episodes, episodes.to(DEVICE)):
        found = meta_gradient(twin, given, METHODS[method], seeded(1))
        assert {g.device.type for g in found.values()} == {DEVICE}
        assert_close({n: g.cpu() for n, g in found.items()}, wanted, 1e-10)


@pytest.mark.parametrize("name", BUILD)
def test_single_precision_is_near(name):
    learner, episodes = BUILD[name]()
    wanted = meta_gradient(learner, episodes, generator=seeded(1))
    found = meta_gradient(learner.float().to(DEVICE), episodes, generator=seeded(1))
    assert_close({n: g.cpu().double() for n, g in found.items()}, wanted, 1e-3)


@pytest.mark.parametrize("name", BUILD)
def test_scores_and_final_weights_equal_those_of_the_cpu(name):
    learner, episodes = BUILD[name]()
    wanted = evaluate(learner, episodes, generator=seeded(1))
    weights = final_weights(learner, episodes)
    learner.to(DEVICE)
    found = evaluate(learner, episodes, generator=seeded(1))
    assert torch.allclose(found.loss, wanted.loss, rtol=1e-10)
    moved = {n: w.cpu() for n, w in final_weights(learner, episodes).items()}
    assert_close(moved, weights, 1e-10)


def test_clone_adapt_and_assign_grads_run_on_the_device():
    learner, episodes = BUILD["convolutional"]()
    x, y = episodes.support_x[0, 0], episodes.support_y[0, 0]
    outputs, slopes = [], []
    for device in ("cpu", DEVICE):
        learner.to(device)
        fast = learner.clone()
        fast.adapt(x.to(device), y.to(device))
        outputs.append(fast(x.to(device)).detach().cpu())
        learner.assign_grads(x.to(device), y.to(device))
        slopes.append({n: learner.network.parameter(n).grad.cpu() for n in learner.plastic})
    assert torch.allclose(outputs[1], outputs[0], rtol=1e-10)
    assert_close(slopes[1], slopes[0], 1e-10)


def test_a_network_that_is_on_the_device_makes_a_learner_there():
    chain = nn.Sequential(
        nn.Conv2d(1, 2, 2),
        nn.BatchNorm2d(2, affine=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    network = LayeredNetwork(chain.to(DEVICE), input_shape=(1, 3, 3), batch_norm="running")
    learner = Learner(network, DirectFeedback(bias=True), Oja(0.1))
    assert {p.device.type for p in learner.parameters()} == {DEVICE}
    outcome = Unrolled().gradient(learner, classification(2, 2, 2, (1, 3, 3), 3))
    assert outcome.kept == (0, 1)


def test_training_goes_on_from_a_checkpoint_on_either_device(tmp_path):
    """Four steps on the CPU = two on the device, saved, and two more on the CPU."""
    _, episodes = BUILD["flp"]()
    runs = []
    for devices in (("cpu", "cpu"), (DEVICE, "cpu"), ("cpu", DEVICE)):
        learner, _ = BUILD["flp"]()
        for part, device in enumerate(devices):
            learner = BUILD["flp"]()[0].to(device)
            training = MetaTraining(learner, lambda g: episodes)
            if part:
                training.resume(tmp_path / "c.pt")
            list(training.run(2 * part + 2))
            training.save(tmp_path / "c.pt")
        runs.append({n: p.detach().cpu() for n, p in learner.named_parameters()})
    assert_close(runs[1], runs[0], 1e-8)
    assert_close(runs[2], runs[0], 1e-8)


def test_a_diverged_episode_is_found_on_the_device():
    learner, episodes = BUILD["flp"]()
    spoiled = copy.deepcopy(episodes)
    spoiled.support_y[1] *= 1e200
    cpu = Unrolled().gradient(learner, spoiled)
    found = Unrolled().gradient(learner.to(DEVICE), spoiled)
    assert found.kept == cpu.kept == (0, 2)
    assert found.diverged == cpu.diverged
