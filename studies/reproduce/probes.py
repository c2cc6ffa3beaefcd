"""What is measured of a learner on a few images while it is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metaplastic.analysis import feedback_alignment, update_angles
from metaplastic.control import (
    Chain,
    Goal,
    Units,
    control_energy,
    control_to_drive,
    gain_bound,
    jacobian,
    newton,
    row_space_share,
)
from metaplastic.credit import FeedbackControl, InputModulation
from metaplastic.episodes import Episodes
from metaplastic.learner import Learner
from metaplastic.networks import LayeredNetwork
from metaplastic.seeds import evaluation_stream
from metaplastic.signals import Presentation, Teacher
from studies.reproduce.training import Probe


@dataclass(frozen=True)
class Controlled:
    """A network and its controller at some images."""

    credit: FeedbackControl
    chain: Chain
    still: Units
    feedback: tuple[Tensor, ...]
    goal: Goal
    leak: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, learner: Learner, x: Tensor, y: Tensor) -> Controlled:
        """Of a learner whose credit is FeedbackControl."""
        network, credit = learner.network, learner.credit
        assert isinstance(network, LayeredNetwork)
        assert isinstance(credit, FeedbackControl)
        state = learner.start(len(x))
        teacher = Teacher(learner.objective, learner.encode(y, x.shape[:1]))
        shown = Presentation(network.features(x), teacher)
        feedback = tuple(credit.weights().values())
        lowest = len(network.layers) - len(feedback)
        chain, still = Chain.of(network, state["weights"], shown.x, lowest)
        goal = credit.goal(shown, still, state["credit"])
        return cls(credit, chain, still, feedback, goal, state["credit"]["leak"])

    def control(self) -> Tensor:
        """U at the steady state, (B, K); 0 where there is none."""
        return newton(
            self.chain,
            self.feedback,
            self.goal,
            self.leak,
            iterations=self.credit.iterations,
            halvings=self.credit.halvings,
            tolerance=self.credit.tolerance,
        ).control


def _of_control(measure: Callable[[Controlled], Tensor]) -> Probe:
    @torch.no_grad()
    def probe(learner: Learner, x: Tensor, y: Tensor) -> float:
        return float(measure(Controlled.of(learner, x, y)).mean())

    return probe


def _condition(seen: Controlled) -> Tensor:
    return row_space_share(jacobian(seen.chain, seen.still), seen.feedback)


def _energy(seen: Controlled) -> Tensor:
    return control_energy(seen.control(), seen.feedback)


def _ratio(layer: int) -> Callable[[Controlled], Tensor]:
    def measure(seen: Controlled) -> Tensor:
        return control_to_drive(seen.control(), seen.feedback, seen.still.basal)[layer]

    return measure


def _bound(seen: Controlled) -> Tensor:
    credit = seen.credit
    gain = credit.gain if isinstance(credit.gain, float | int) else 0.0
    jacobians = jacobian(seen.chain, seen.still)
    return gain_bound(jacobians, seen.feedback, gain, credit.dt, credit.tau)


def _spread(seen: Controlled) -> Tensor:
    norms = torch.stack([r.norm(dim=-1) for r in (seen.chain.inlet, *seen.still.rate[:-1])])
    return norms.std(0, correction=0) / norms.mean(0)


def gradient_angle(learner: Learner, x: Tensor, y: Tensor) -> float:
    """Between what the weights of a layer are told and minus the loss gradient, in degrees, mean
    over the layers.
    """
    return float(torch.stack(_angles(learner, x, y)).mean())


def hidden_angle(learner: Learner, x: Tensor, y: Tensor) -> float:
    """The same without the last layer."""
    return float(torch.stack(_angles(learner, x, y)[:-1]).mean())


def _angles(learner: Learner, x: Tensor, y: Tensor) -> list[Tensor]:
    shown = Episodes(x[None, None], y[None, None], x[None, :1], y[None, :1])
    angles = update_angles(learner, shown, evaluation_stream()).degrees
    return [angle for name, angle in angles.items() if name.endswith("_weight")]


@torch.no_grad()
def projection_angle(learner: Learner, x: Tensor, y: Tensor) -> float:
    """Between the feedback of an InputModulation to the input, as its sign sends a wanted change of
    the output there, and W_1^T .. W_L^T in a network of Linear layers; in degrees.
    """
    del x, y
    assert isinstance(learner.credit, InputModulation)
    (angle,) = feedback_alignment(learner).values()
    return angle


def control_probes(layers: int) -> Mapping[str, Probe]:
    """Of a FeedbackControl in a network of so many layers: the share of the feedback in the row
    space of J, the energy H of the steady control, its size beside each layer's drive, the
    stability bound, how much the norms of the rates differ (std over layers / mean), and the angle
    to the gradient.
    """
    return {
        "row_space_share": _of_control(_condition),
        "control_energy": _of_control(_energy),
        **{f"control_to_drive_{i + 1}": _of_control(_ratio(i)) for i in range(layers)},
        "gain_bound": _of_control(_bound),
        "norm_spread": _of_control(_spread),
        "gradient_angle": gradient_angle,
    }
