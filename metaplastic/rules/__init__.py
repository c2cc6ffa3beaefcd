"""What a synapse does with what reaches it."""

from metaplastic.rules.assignment import assign_rules as assign_rules
from metaplastic.rules.base import PlasticityRule as PlasticityRule
from metaplastic.rules.coefficient import Coefficient as Coefficient
from metaplastic.rules.delta import Delta as Delta
from metaplastic.rules.hebbian import Hebb as Hebb
from metaplastic.rules.hebbian import Oja as Oja
