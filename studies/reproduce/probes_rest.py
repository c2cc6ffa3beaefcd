"""What is measured of a network at rest on a few images while it is trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metaplastic.analysis import degrees_between
from metaplastic.control import row_space_share
from metaplastic.credit import EquilibriumControl
from metaplastic.equilibrium import Controlled, Inversion, Rest, SolverOptions, rest
from metaplastic.hinge import Record
from metaplastic.learner import Learner
from metaplastic.networks import EquilibriumNetwork
from metaplastic.networks.populations import WiredField
from metaplastic.rules import Delta, PlasticityRule
from metaplastic.signals import Presentation, Teacher

EXACT: SolverOptions = {"method": "anderson", "memory": 2, "tolerance": 1e-5, "sweeps": 400}
"""Of the gradient that angles are measured to."""
FEW = 16
"""Images whose optimal feedback is made, a matrix for each."""


@dataclass(frozen=True)
class Seen:
    """An EquilibriumNetwork and its control at some images."""

    network: EquilibriumNetwork
    credit: EquilibriumControl
    weights: dict[str, Tensor]
    shown: Presentation

    @classmethod
    def of(cls, learner: Learner, x: Tensor, y: Tensor) -> Seen:
        """Of a learner whose credit is EquilibriumControl."""
        network, credit = learner.network, learner.credit
        assert isinstance(network, EquilibriumNetwork)
        assert isinstance(credit, EquilibriumControl)
        return cls(network, credit, learner.start(len(x))["weights"], presentation(learner, x, y))

    @property
    def field(self) -> WiredField:
        """The network's own."""
        return self.network.field(self.shown.x, self.weights)

    def rest(self) -> Rest:
        """Potentials and psi / s under control, (B, 2 S)."""
        gradient = self.credit.psi == "recurrent-backprop"
        problem = Controlled(
            self.field,
            self.shown.teacher.error,
            0.0 if gradient else self.credit.strength,
            self.credit.feedback(self.network, self.weights),
        )
        return rest(problem.step, problem.start(self.field.still()), self.credit.solver)


def presentation(learner: Learner, x: Tensor, y: Tensor) -> Presentation:
    """What x (B, *) with labels y (B,) shows."""
    teacher = Teacher(learner.objective, learner.encode(y, x.shape[:1]))
    return Presentation(learner.network.features(x), teacher)


@torch.no_grad()
def rest_angle(learner: Learner, x: Tensor, y: Tensor) -> float:
    """Between what the weights of a pathway are told and minus the gradient of the loss at the free
    rest, in degrees, mean over the pathways.
    """
    gradient = EquilibriumControl("recurrent-backprop", solver=EXACT)
    rule = Delta(1.0, derivative=False)
    reference = Learner(learner.network, gradient, rule, learner.objective).to(x)
    told, wanted = told_weights(learner, x, y), told_weights(reference, x, y)
    return float(torch.stack([degrees_between(told[n], wanted[n]) for n in wanted]).mean())


def told_weights(learner: Learner, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The changes that weights are told, {group: (n_out, n_in)}."""
    weights = [n for n, g in learner.network.groups().items() if g.role == "weight"]
    rules = {n: r for n, r in learner.rules.items() if isinstance(r, PlasticityRule)}
    record = Record({n: rules[n] for n in weights})
    learner.credit.present(
        learner.network, learner.start(len(x)), presentation(learner, x, y), record
    )
    return record.change


@torch.no_grad()
def control_size(learner: Learner, x: Tensor, y: Tensor) -> float:
    """|psi|^2 / 2, mean over the images that come to rest."""
    seen = Seen.of(learner, x, y)
    found = seen.rest()
    psi = seen.credit.strength * found.state.chunk(2, dim=-1)[1]
    sizes = 0.5 * psi.square().sum(-1, keepdim=True)
    return float(sizes[found.found].mean())


@torch.no_grad()
def sweeps(learner: Learner, x: Tensor, y: Tensor) -> float:
    """How many sweeps an image takes to its rest under control, mean; for the energy those that it
    begins with.
    """
    return float(Seen.of(learner, x, y).rest().sweeps.mean())


@torch.no_grad()
def twin_angle(learner: Learner, x: Tensor, y: Tensor) -> float:
    """Between feedback matrices and the forward weights that they stand for, in degrees, mean."""
    del x, y
    weights = learner.network.weights()
    own, groups = learner.credit.weights(), learner.credit.groups()
    angles = [degrees_between(own[n], weights[str(g.twin)]) for n, g in groups.items()]
    return float(torch.stack(angles).mean())


@torch.no_grad()
def feedback_share(learner: Learner, x: Tensor, y: Tensor) -> float:
    """The share of linear feedback Q, its identity at the output included, in the columns of the
    optimal one, (1 - g')^-T D^T at the free rest, mean over the first images.
    """
    seen = Seen.of(learner, x[:FEW], y[:FEW])
    field = seen.field
    point = field.at(seen.network.rest(field).state)
    best = Inversion().reach(point, field.outputs)
    own = seen.credit.feedback(seen.network, seen.weights).reach(point, field.outputs)
    return float(row_space_share([best.mT], [own[0]]).mean())
