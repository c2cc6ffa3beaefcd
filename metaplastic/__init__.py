"""Meta-learned local plasticity for PyTorch."""

from metaplastic.credit import (
    Backprop,
    CreditAssignment,
    DirectFeedback,
    DirectRandomTarget,
    FeedbackAlignment,
    FeedbackControl,
    KolenPollack,
    LayerwiseFeedback,
    Neuromodulation,
    SignSymmetry,
    StrongFeedbackControl,
    Unsupervised,
    WeightMirror,
)
from metaplastic.episodes import Episodes
from metaplastic.evaluation import Evaluation, evaluate
from metaplastic.learner import Learner
from metaplastic.metagradient import Divergence, Evolution, MetaGradient, Outcome, Unrolled
from metaplastic.networks import LayeredNetwork, Network, RecurrentNetwork
from metaplastic.objectives import CrossEntropy, Objective, SquaredError
from metaplastic.portable import TransferReport, load_into, load_rule, save_rule, transfer
from metaplastic.rules import (
    ABCD,
    Backpropamine,
    Coefficient,
    Delta,
    DifferentiablePlasticity,
    Eligibility,
    Hebb,
    Oja,
    OjaSubspace,
    PlasticityRule,
    Polynomial,
    Pool,
    Sanger,
)
from metaplastic.sampling import LabelledPool
from metaplastic.signals import LocalSignals, Presentation, SynapseGroup, Teacher
from metaplastic.training import MetaTraining, StepReport

__all__ = [
    "ABCD",
    "Backprop",
    "Backpropamine",
    "Coefficient",
    "CreditAssignment",
    "CrossEntropy",
    "Delta",
    "DifferentiablePlasticity",
    "DirectFeedback",
    "DirectRandomTarget",
    "Divergence",
    "Eligibility",
    "Episodes",
    "Evaluation",
    "Evolution",
    "FeedbackAlignment",
    "FeedbackControl",
    "Hebb",
    "KolenPollack",
    "LabelledPool",
    "LayeredNetwork",
    "LayerwiseFeedback",
    "Learner",
    "LocalSignals",
    "MetaGradient",
    "MetaTraining",
    "Network",
    "Neuromodulation",
    "Objective",
    "Oja",
    "OjaSubspace",
    "Outcome",
    "PlasticityRule",
    "Polynomial",
    "Pool",
    "Presentation",
    "RecurrentNetwork",
    "Sanger",
    "SignSymmetry",
    "SquaredError",
    "StepReport",
    "StrongFeedbackControl",
    "SynapseGroup",
    "Teacher",
    "TransferReport",
    "Unrolled",
    "Unsupervised",
    "WeightMirror",
    "evaluate",
    "load_into",
    "load_rule",
    "save_rule",
    "transfer",
]
