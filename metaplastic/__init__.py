"""Meta-learned local plasticity for PyTorch."""

from metaplastic.credit import Backprop, CreditAssignment, DirectFeedback
from metaplastic.episodes import Episodes
from metaplastic.evaluation import Evaluation, evaluate
from metaplastic.learner import Learner
from metaplastic.metagradient import Divergence, MetaGradient, Outcome, Unrolled
from metaplastic.networks import LayeredNetwork, Network
from metaplastic.objectives import CrossEntropy, Objective, SquaredError
from metaplastic.rules import Coefficient, Delta, Hebb, Oja, PlasticityRule
from metaplastic.sampling import LabelledPool
from metaplastic.signals import LocalSignals, Presentation, SynapseGroup, Teacher
from metaplastic.training import MetaTraining, StepReport

__all__ = [
    "Backprop",
    "Coefficient",
    "CreditAssignment",
    "CrossEntropy",
    "Delta",
    "DirectFeedback",
    "Divergence",
    "Episodes",
    "Evaluation",
    "Hebb",
    "LabelledPool",
    "LayeredNetwork",
    "Learner",
    "LocalSignals",
    "MetaGradient",
    "MetaTraining",
    "Network",
    "Objective",
    "Oja",
    "Outcome",
    "PlasticityRule",
    "Presentation",
    "SquaredError",
    "StepReport",
    "SynapseGroup",
    "Teacher",
    "Unrolled",
    "evaluate",
]
