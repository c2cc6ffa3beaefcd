"""Feedback controllers of a layered network, as pure functions of tensors."""

from metaplastic.control.chain import Chain as Chain
from metaplastic.control.chain import Units as Units
from metaplastic.control.goal import Goal as Goal
from metaplastic.control.jacobian import jacobian as jacobian
from metaplastic.control.jacobian import through_feedback as through_feedback
from metaplastic.control.metrics import control_angle as control_angle
from metaplastic.control.metrics import control_energy as control_energy
from metaplastic.control.metrics import control_to_drive as control_to_drive
from metaplastic.control.metrics import gain_bound as gain_bound
from metaplastic.control.metrics import row_space_share as row_space_share
from metaplastic.control.noise import euler_maruyama as euler_maruyama
from metaplastic.control.noise import ornstein_uhlenbeck as ornstein_uhlenbeck
from metaplastic.control.simulate import Constants as Constants
from metaplastic.control.simulate import Moment as Moment
from metaplastic.control.simulate import diverges as diverges
from metaplastic.control.simulate import moments as moments
from metaplastic.control.steady import Steady as Steady
from metaplastic.control.steady import analytic as analytic
from metaplastic.control.steady import newton as newton
