"""Made-up images and a small training that tests of reproductions share."""

import torch
from torch import nn

from metaplastic import Delta, Learner
from metaplastic.credit import FeedbackControl
from studies.reproduce.base import Setup, Sizes, Trainee
from studies.reproduce.phase import FEEDBACK, WEIGHTS, Phase
from tasks.images import Images, Part
from tests.helpers import seeded

SIZES = Sizes(images=40, epochs=3, seeds=(0, 1), test=30, validation=20, batch=8)


def made_up(name: str = "mnist", root=None, *, images=None, device="cpu", **_) -> Images:
    """Three classes of 2 x 3 pixels that a linear map can tell apart."""
    g = seeded(7)
    centres = torch.randn(3, 1, 2, 3, generator=g)

    def part(count: int) -> Part:
        y = torch.arange(count) % 3
        return Part(centres[y] + 0.3 * torch.randn(count, 1, 2, 3, generator=g), y)

    return Images(name, part(images or 40), part(20), part(30), 3)


def small(setup: Setup) -> Trainee:
    """Analytic control with feedback that learns, and a rate that falls."""
    g = setup.generator("initial")
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    for parameter in net.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=g)
    rules = {"role:feedback": Delta(1.0, derivative=False), "*": Delta(10.0, derivative=False)}
    credit = FeedbackControl(
        nudge=0.1, weights="learned", initial="random", feedback_learning="forward-noise"
    )
    learner = Learner(net, credit, rules, generator=setup.generator("feedback"))
    forward = torch.optim.Adam(net.parameters(), setup.options["lr"])
    back = torch.optim.Adam(learner.credit.parameters(), 0.01, weight_decay=1.0)
    falling = torch.optim.lr_scheduler.StepLR(forward, 2, 0.1)
    phases = [Phase(FEEDBACK, back), Phase(WEIGHTS, forward, scheduler=falling)]
    probes = {"norm": lambda learner, x, y: float(learner.credit.layer0_feedback.norm())}
    return Trainee(learner, phases, [Phase(FEEDBACK, back, 2)], probes)


def silent(status) -> None:
    del status


def timeless(curve: list) -> list:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in curve]
