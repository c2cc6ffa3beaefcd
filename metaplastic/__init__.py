"""Meta-learned local plasticity for PyTorch."""

from metaplastic.credit import Backprop as Backprop
from metaplastic.credit import CreditAssignment as CreditAssignment
from metaplastic.credit import DirectFeedback as DirectFeedback
from metaplastic.episodes import Episodes as Episodes
from metaplastic.learner import Learner as Learner
from metaplastic.metagradient import Divergence as Divergence
from metaplastic.metagradient import MetaGradient as MetaGradient
from metaplastic.metagradient import Outcome as Outcome
from metaplastic.metagradient import Unrolled as Unrolled
from metaplastic.networks import LayeredNetwork as LayeredNetwork
from metaplastic.networks import Network as Network
from metaplastic.objectives import CrossEntropy as CrossEntropy
from metaplastic.objectives import Objective as Objective
from metaplastic.objectives import SquaredError as SquaredError
from metaplastic.rules import Coefficient as Coefficient
from metaplastic.rules import Delta as Delta
from metaplastic.rules import Hebb as Hebb
from metaplastic.rules import Oja as Oja
from metaplastic.rules import PlasticityRule as PlasticityRule
from metaplastic.signals import LocalSignals as LocalSignals
from metaplastic.signals import Presentation as Presentation
from metaplastic.signals import SynapseGroup as SynapseGroup
from metaplastic.signals import Teacher as Teacher
