"""PEPITA on MNIST and CIFAR-10 (Dellaferrera & Kreiman 2022), beside other ways of credit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR

from metaplastic.credit import (
    Backprop,
    CreditAssignment,
    DirectFeedback,
    DirectRandomTarget,
    FeedbackAlignment,
    InputModulation,
)
from metaplastic.learner import Learner
from metaplastic.networks import LayeredNetwork
from metaplastic.networks.base import he_scale
from metaplastic.rules import Delta
from metaplastic.rules.base import PlasticityRule
from studies.reproduce.base import Method, Setup, Sizes, Trainee
from studies.reproduce.figures_angles import MODULATION_PICTURES
from studies.reproduce.images import PaperPart
from studies.reproduce.paper import Paper
from studies.reproduce.phase import FEEDBACK, WEIGHTS, Phase
from studies.reproduce.probes import hidden_angle, projection_angle
from studies.reproduce.training import Probe

HIDDEN, CHANNELS, KERNEL = 1024, 32, 5
MOMENTUM = 0.9
FALLS = [60, 90]
"""The epochs after which rates are a tenth of what they were."""
RATES = {
    "mnist-fc": {"lr": 0.03, "pepita": 0.1, "drtp": 1e-3, "local": 1e-3},
    "mnist-conv": {"lr": 0.01, "pepita": 0.01, "drtp": 1e-3},
    "cifar10-fc": {"lr": 0.003, "pepita": 0.01, "drtp": 1e-4, "local": 1e-4},
    "cifar10-conv": {"lr": 1e-3, "pepita": 1e-3, "drtp": 1e-4},
}
"""PEPITA's are the published ones, but for the last part. ``lr`` is for the others: in the fully
connected parts the best of those tried on validation images, after five epochs of bp, fa and dfa;
in the convolutional ones PEPITA's. Random targets and time-local learning bear less."""
MIRROR: dict[str, Any] = {"rate": 0.1, "decay": 0.5, "before": 1}


def network(setup: Setup) -> LayeredNetwork:
    """One hidden layer of ReLUs, fully connected or a convolution with pooling, without biases;
    weights uniform with variance 2 / fan-in.
    """
    channels, height, width = setup.shape
    if setup.options["network"] == "conv":
        pooled = ((height - KERNEL + 1) // 2) * ((width - KERNEL + 1) // 2)
        first: list[nn.Module] = [
            nn.Conv2d(channels, CHANNELS, KERNEL, bias=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        ]
        last = nn.Linear(CHANNELS * pooled, setup.classes, bias=False)
    else:
        hidden = nn.Linear(math.prod(setup.shape), HIDDEN, bias=False)
        first = [nn.Flatten(), hidden, nn.ReLU()]
        last = nn.Linear(HIDDEN, setup.classes, bias=False)
    chain = nn.Sequential(*first, last)
    generator = setup.generator("initial")
    for weight in chain.parameters():
        limit = math.sqrt(3.0) * he_scale(weight[0].numel())
        nn.init.uniform_(weight, -limit, limit, generator=generator)
    return LayeredNetwork(chain, input_shape=setup.shape)


def trained(setup: Setup, learner: Learner, probes: Mapping[str, Probe]) -> Trainee:
    """By stochastic gradient descent with momentum and a rate that falls; feedback that learns does
    so at the rate of its rule, ``before`` the training and along with the weights.
    """
    options, only = setup.options, [WEIGHTS[0]]
    groups: list[dict[str, Any]] = [{"params": list(learner.network.parameters())}]
    before = []
    if feedback := list(learner.credit.parameters()):
        only.append(FEEDBACK[0])
        groups.append({"params": feedback, "lr": 1.0, "momentum": 0.0})
        before = [Phase(FEEDBACK, SGD(feedback, 1.0), options["mirror"]["before"], clip=None)]
    optimizer = SGD(groups, options["lr"], momentum=options["momentum"])
    scheduler = MultiStepLR(optimizer, options["falls"])
    phase = Phase(only, optimizer, clip=None, scheduler=scheduler)
    return Trainee(learner, [phase], before, {**probes, "hidden_angle": hidden_angle})


def baseline(setup: Setup) -> Trainee:
    """Of the option ``credit``. Feedback has the variance of forward weights into the layer's
    units, 2 / their number.
    """
    own = network(setup)
    direct = math.sqrt(setup.classes / own.layers[0].units)
    credits: dict[str, CreditAssignment] = {
        "bp": Backprop(),
        "fa": FeedbackAlignment(),
        "dfa": DirectFeedback(weights="fixed", scale=direct),
        "drtp": DirectRandomTarget(scale=direct),
    }
    rules: dict[str, PlasticityRule | None] = {WEIGHTS[0]: Delta(1.0)}
    credit = credits[setup.options["credit"]]
    return trained(setup, Learner(own, credit, rules, generator=setup.generator("feedback")), {})


def modulation(setup: Setup) -> Trainee:
    """PEPITA and its variants."""
    options = setup.options
    mirror = options.get("mirror")
    credit = InputModulation(
        "learned" if mirror else "fixed",
        variant=options["variant"],
        feedback="mirror" if mirror else "projection",
        sign=options["sign"],
        output=options["output"],
        keep=options["keep"],
    )
    rule = Delta(options["rate"], derivative=False, reduction=options["reduction"])
    rules: dict[str, PlasticityRule | None] = {WEIGHTS[0]: rule}
    if mirror:
        decay = mirror["rate"] * mirror["decay"]
        rules[FEEDBACK[0]] = Delta(mirror["rate"], derivative=False, decay=decay)
    learner = Learner(network(setup), credit, rules, generator=setup.generator("feedback"))
    probes = {"projection_angle": projection_angle} if options["network"] == "fc" else {}
    return trained(setup, learner, probes)


BASELINES = {
    "bp": "backpropagation; without dropout, as all baselines",
    "fa": "feedback alignment",
    "dfa": "direct feedback alignment, which with one fully connected hidden layer is feedback "
    "alignment with other random numbers",
    "drtp": "direct random target projection, at a smaller rate",
}


def methods(part: str, preset: str) -> Sequence[Method]:
    """Every method of a part; the variants of PEPITA are left out where time is short."""
    rates, kind = RATES[part], part.rsplit("-", 1)[1]
    common = {"network": kind, "lr": rates["lr"], "momentum": MOMENTUM, "falls": FALLS}
    found = [
        Method(
            name,
            about,
            baseline,
            {**common, "credit": name, "lr": rates.get(name, rates["lr"])},
        )
        for name, about in BASELINES.items()
    ]
    plain = {**common, "lr": rates["pepita"], "variant": "plain", "sign": 1, "rate": 1.0}
    if kind == "conv":
        # As published: no dropout, the last layer learns from the error of the clean pass.
        own = {"output": "clean", "keep": 1.0, "reduction": "positions"}
        return [*found, Method("pepita", PEPITA, modulation, {**plain, **own})]
    plain |= {"output": "modulated", "keep": 0.9, "reduction": "examples"}
    known = PUBLISHED.get(part, {})
    local = {"variant": "time-local", "rate": rates["local"], "lr": 1.0}
    found.append(Method("pepita", PEPITA, modulation, plain, known.get(100), known))
    if preset == "acceptance":
        return found
    return [
        *found,
        Method(
            "pepita-hebbian",
            "PEPITA as the difference of two Hebbian terms, one of each pass",
            modulation,
            {**plain, "variant": "hebbian"},
        ),
        Method(
            "pepita-time-local",
            "the same, the first term learned before the second pass; at a small constant rate and "
            "without momentum",
            modulation,
            {**plain, **local, "momentum": 0.0, "falls": []},
        ),
        Method(
            "pepita-mirror",
            "PEPITA with factors of F that learn the forward weights from noise, in one sweep "
            "before the training and all along",
            modulation,
            {**plain, "sign": -1, "mirror": MIRROR},
        ),
    ]


PEPITA = "the error modulates the input of a second forward pass"
PUBLISHED = {"cifar10-fc": {1: 35.12, 10: 45.05, 20: 48.61, 100: 52.58}}
SMOKE = Sizes(images=256, epochs=2, seeds=(0,), test=500, validation=250, batch=64)
FULL = {"mnist": 55_000, "cifar10": 45_000}


def _sizes(data: str) -> dict[str, Sizes]:
    """Of a fully connected network."""
    return {
        "smoke": SMOKE,
        "quick": Sizes(images=10_000, epochs=3, seeds=(0,), batch=64),
        "acceptance": Sizes(images=FULL[data], epochs=20, seeds=(0, 1), batch=64),
        "full": Sizes(images=FULL[data], epochs=100, seeds=(0, 1, 2), batch=64),
    }


def _conv_sizes(data: str) -> dict[str, Sizes]:
    return {
        "smoke": SMOKE,
        "acceptance": Sizes(images=10_000, epochs=5, seeds=(0,), batch=50),
        "full": Sizes(images=FULL[data], epochs=100, seeds=(0, 1, 2), batch=50),
    }


def _part(name: str) -> PaperPart:
    data, kind = name.rsplit("-", 1)
    sizes = _sizes(data) if kind == "fc" else _conv_sizes(data)
    return PaperPart(data, partial(methods, name), sizes, scaling="unit")


PAPER = Paper(
    name="pepita",
    title="Error-driven input modulation: solving the credit assignment problem without a backward "
    "pass",
    source="Dellaferrera & Kreiman 2022",
    about="PEPITA on MNIST and CIFAR-10, fully connected and convolutional",
    parts={name: _part(name) for name in RATES},
    pictures=MODULATION_PICTURES,
    published_note="Published: one run of the authors' notebook, 100 epochs of all 50,000 training "
    "images.",
    shown_epochs=(1, 10, 20, 100),
    slowness=FALLS[0],
)
