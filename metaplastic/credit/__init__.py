"""How a teaching signal reaches each synapse group."""

from metaplastic.credit.alignment import FeedbackAlignment as FeedbackAlignment
from metaplastic.credit.alignment import KolenPollack as KolenPollack
from metaplastic.credit.alignment import WeightMirror as WeightMirror
from metaplastic.credit.backprop import Backprop as Backprop
from metaplastic.credit.base import CreditAssignment as CreditAssignment
from metaplastic.credit.direct_feedback import DirectFeedback as DirectFeedback
from metaplastic.credit.equilibrium_control import EquilibriumControl as EquilibriumControl
from metaplastic.credit.feedback_control import FeedbackControl as FeedbackControl
from metaplastic.credit.input_modulation import InputModulation as InputModulation
from metaplastic.credit.layerwise import LayerwiseFeedback as LayerwiseFeedback
from metaplastic.credit.neuromodulation import Neuromodulation as Neuromodulation
from metaplastic.credit.random_target import DirectRandomTarget as DirectRandomTarget
from metaplastic.credit.sign_symmetry import SignSymmetry as SignSymmetry
from metaplastic.credit.strong_control import StrongFeedbackControl as StrongFeedbackControl
from metaplastic.credit.unsupervised import Unsupervised as Unsupervised
