"""Rest points of networks, free and under control, as pure functions of tensors."""

from metaplastic.equilibrium.controlled import Controlled as Controlled
from metaplastic.equilibrium.controlled import Direct as Direct
from metaplastic.equilibrium.controlled import Energy as Energy
from metaplastic.equilibrium.controlled import Inversion as Inversion
from metaplastic.equilibrium.solver import Rest as Rest
from metaplastic.equilibrium.solver import Solver as Solver
from metaplastic.equilibrium.solver import SolverOptions as SolverOptions
from metaplastic.equilibrium.solver import rest as rest
