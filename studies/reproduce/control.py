"""What the papers on feedback control share: the network, the baselines, and how weights and
feedback are trained by turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from metaplastic.credit import Backprop, CreditAssignment, DirectFeedback, FeedbackControl
from metaplastic.learner import Learner
from metaplastic.rules import Delta
from metaplastic.rules.base import PlasticityRule
from studies.reproduce.base import Method, Setup, Sizes, Sweep, Trainee
from studies.reproduce.images import PaperPart
from studies.reproduce.phase import FEEDBACK, WEIGHTS, Phase
from studies.reproduce.probes import control_probes, gradient_angle

HIDDEN = (256, 256, 256)
BP: dict[str, Any] = {"lr": 2.98e-4, "eps": 5.8e-8, "betas": (0.99, 0.99)}
"""The published rates of backpropagation."""
FALLING: dict[str, Any] = {"lr": 2e-3, "cosine": True}
"""Of short trainings; found on validation images, for bp, dfa and dfc-ssa alike."""


def mnist(
    methods: Callable[[str], Sequence[Method]],
    full: Sizes,
    sweep: Callable[[str], Sweep | None] = lambda preset: None,
) -> PaperPart:
    """The part of either paper, whose sizes differ in the published one alone."""
    sizes = {
        "smoke": Sizes(images=256, epochs=2, seeds=(0, 1), test=1000, validation=500),
        "quick": Sizes(images=5000, epochs=3, seeds=(0, 1)),
        "acceptance": Sizes(images=20_000, epochs=10, seeds=(0, 1, 2)),
        "full": full,
    }
    return PaperPart("mnist", methods, sizes, sweep=sweep)


def mlp(setup: Setup) -> nn.Sequential:
    """Tanh layers of width 256 and a linear output; weights by Xavier's normal distribution, biases
    0.
    """
    widths = [math.prod(setup.shape), *HIDDEN, setup.classes]
    generator = setup.generator("initial")
    modules: list[nn.Module] = [nn.Flatten()]
    for i in range(len(widths) - 1):
        layer = nn.Linear(widths[i], widths[i + 1])
        nn.init.xavier_normal_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
        modules += [layer, nn.Tanh()]
    return nn.Sequential(*modules[:-1])


def adam(parameters: Any, options: Mapping[str, Any], prefix: str = "") -> Adam:
    """Adam with the options ``lr``, ``betas``, ``eps`` and ``decay`` (L2), each under a prefix."""
    return Adam(parameters, **adam_options(options, prefix))


def adam_options(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The same as keywords."""
    return {
        "lr": options[f"{prefix}lr"],
        "betas": tuple(options.get(f"{prefix}betas", (0.9, 0.999))),
        "eps": options.get(f"{prefix}eps", 1e-8),
        "weight_decay": options.get(f"{prefix}decay", 0.0),
    }


def falling(setup: Setup, optimizer: Adam) -> LRScheduler | None:
    """Rates that fall to 0 along a cosine over the epochs, with the option ``cosine``."""
    if not setup.options.get("cosine"):
        return None
    return CosineAnnealingLR(optimizer, setup.sizes.epochs)


def backprop(setup: Setup) -> Trainee:
    """Gradient descent."""
    return _baseline(setup, Backprop())


def direct_feedback(setup: Setup) -> Trainee:
    """Direct feedback alignment."""
    return _baseline(setup, DirectFeedback(weights="fixed", scale=xavier_scale(setup)))


def _baseline(setup: Setup, credit: CreditAssignment) -> Trainee:
    learner = Learner(
        mlp(setup),
        credit,
        {"role:weight": Delta(1.0), "role:bias": Delta(1.0)},
        generator=setup.generator("feedback"),
    )
    optimizer = adam(learner.network.parameters(), setup.options)
    phase = Phase(WEIGHTS, optimizer, scheduler=falling(setup, optimizer))
    return Trainee(learner, [phase], probes={"gradient_angle": gradient_angle})


def controlled(setup: Setup, credit: FeedbackControl, rate: float) -> Trainee:
    """Learning under control. Feedback that learns does so in sweeps of its own, ``before`` the
    training, then one before and ``extra`` behind each sweep of the weights; in a single phase it
    learns together with them.

    Args:
        setup: its options hold those of Adam for weights (``lr``, ...) and for feedback
            (``feedback_lr``, ..., and ``first_lr`` for what comes before), ``before`` and
            ``extra``.
        credit: the controller.
        rate: of the rule.
    """
    options = setup.options
    taught = credit.feedback_learning != "none"
    rule = Delta(rate, derivative=False)
    rules: dict[str, PlasticityRule | None] = dict.fromkeys(WEIGHTS, rule)
    if taught:
        rules[FEEDBACK[0]] = Delta(1.0, derivative=False)
    learner = Learner(mlp(setup), credit, rules, generator=setup.generator("feedback"))
    probes = control_probes(len(HIDDEN) + 1)
    weights = list(learner.network.parameters())
    if not taught:
        optimizer = adam(weights, options)
        phase = Phase(WEIGHTS, optimizer, scheduler=falling(setup, optimizer))
        return Trainee(learner, [phase], probes=probes)
    feedback = list(learner.credit.parameters())
    first = Adam(feedback, **{**adam_options(options, "feedback_"), "lr": options["first_lr"]})
    before = [Phase(FEEDBACK, first, options["before"], clip=None)] if options["before"] else []
    if credit.feedback_learning == "single-phase":
        groups = [
            {"params": weights, **adam_options(options)},
            {"params": feedback, **adam_options(options, "feedback_")},
        ]
        both = Adam(groups)
        phase = Phase((*WEIGHTS, *FEEDBACK), both, scheduler=falling(setup, both))
        return Trainee(learner, [phase], before, probes)
    forward, own = adam(weights, options), adam(feedback, options, "feedback_")
    slower = falling(setup, own)
    # Unclipped: what noise tells is mostly noise, and a bound on it would shrink Q layer by layer.
    phases = [
        Phase(FEEDBACK, own, clip=None, scheduler=slower),
        Phase(WEIGHTS, forward, scheduler=falling(setup, forward)),
    ]
    if options["extra"]:
        phases.append(Phase(FEEDBACK, own, options["extra"], None, slower))
    return Trainee(learner, phases, before, probes)


def given(setup: Setup, *names: str) -> dict[str, Any]:
    """What a controller takes from the options: its numbers by ``names``, those of a simulation,
    and feedback that is fixed, or learned with the option ``learning``.
    """
    options = setup.options
    taught = "learning" in options
    names = (*names, "tau", "dt", "steps", "every")
    return {
        **{name: options[name] for name in names if name in options},
        "chunk": 10,
        "disturbance": setup.level or 0.0,
        "weights": "learned" if taught else "fixed",
        "initial": "random" if taught else "weight-product",
        "scale": xavier_scale(setup),
        "feedback_learning": options.get("learning", "none"),
        "noise": options.get("noise"),
    }


def xavier_scale(setup: Setup) -> float:
    """The factor that gives random feedback from the output Xavier's standard deviation."""
    return math.sqrt(setup.classes / (HIDDEN[0] + setup.classes))
