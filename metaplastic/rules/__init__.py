"""What a synapse does with what reaches it."""

from metaplastic.rules.abcd import ABCD as ABCD
from metaplastic.rules.assignment import Rules as Rules
from metaplastic.rules.assignment import assign_rules as assign_rules
from metaplastic.rules.assignment import by_pattern as by_pattern
from metaplastic.rules.assignment import matching as matching
from metaplastic.rules.base import PlasticityRule as PlasticityRule
from metaplastic.rules.coefficient import Coefficient as Coefficient
from metaplastic.rules.consolidation import Consolidated as Consolidated
from metaplastic.rules.delta import Delta as Delta
from metaplastic.rules.differentiable import Backpropamine as Backpropamine
from metaplastic.rules.differentiable import DifferentiablePlasticity as DifferentiablePlasticity
from metaplastic.rules.eligibility import Eligibility as Eligibility
from metaplastic.rules.hebbian import Hebb as Hebb
from metaplastic.rules.hebbian import Oja as Oja
from metaplastic.rules.polynomial import Polynomial as Polynomial
from metaplastic.rules.pool import Pool as Pool
from metaplastic.rules.subspace import OjaSubspace as OjaSubspace
from metaplastic.rules.subspace import Sanger as Sanger
