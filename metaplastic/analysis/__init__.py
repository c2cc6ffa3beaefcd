"""What a learner's updates are like: direction, interference, feedback, memory."""

from metaplastic.analysis.angles import UpdateAngles as UpdateAngles
from metaplastic.analysis.angles import degrees_between as degrees_between
from metaplastic.analysis.angles import descent as descent
from metaplastic.analysis.angles import update_angles as update_angles
from metaplastic.analysis.feedback import feedback_alignment as feedback_alignment
from metaplastic.analysis.interference import ForgettingMatrix as ForgettingMatrix
from metaplastic.analysis.interference import Interference as Interference
from metaplastic.analysis.interference import forgetting_matrix as forgetting_matrix
from metaplastic.analysis.interference import interference as interference
from metaplastic.analysis.memory import LiveBytes as LiveBytes
