"""Named learners: what each one is made of, and its options, a frozen dataclass."""

from __future__ import annotations

from metaplastic.errors import UnknownNameError
from metaplastic.recipes import alignment, control, families, flp, gradient, modulation, rest
from metaplastic.recipes.base import DeltaOptions as DeltaOptions
from metaplastic.recipes.base import Options as Options
from metaplastic.recipes.base import Recipe as Recipe
from metaplastic.recipes.flp import FLPOptions as FLPOptions
from metaplastic.recipes.rest import RestOptions as RestOptions

_FILES = (flp, gradient, alignment, control, modulation, rest, families)

RECIPES: dict[str, Recipe] = {known.name: known for file in _FILES for known in file.RECIPES}
"""Every named learner."""


def recipe(name: str) -> Recipe:
    """The recipe of a named learner; UnknownNameError suggests the nearest."""
    if name not in RECIPES:
        raise UnknownNameError("learner", name, RECIPES)
    return RECIPES[name]
