"""How a teaching signal reaches each synapse group."""

from metaplastic.credit.backprop import Backprop as Backprop
from metaplastic.credit.base import CreditAssignment as CreditAssignment
from metaplastic.credit.direct_feedback import DirectFeedback as DirectFeedback
