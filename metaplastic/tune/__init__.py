"""Hyper-parameter searches with Optuna (extra ``tune``).

Nothing here touches Optuna's global state: studies and storages are passed in.
"""

from metaplastic.tune.problem import Problem as Problem
from metaplastic.tune.problem import Score as Score
from metaplastic.tune.samplers import make_pruner as make_pruner
from metaplastic.tune.samplers import make_sampler as make_sampler
from metaplastic.tune.search import finished as finished
from metaplastic.tune.search import search as search
from metaplastic.tune.storage import open_storage as open_storage
from metaplastic.tune.study import open_study as open_study
