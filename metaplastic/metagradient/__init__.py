"""How the outer loop learns."""

from metaplastic.metagradient.base import Divergence as Divergence
from metaplastic.metagradient.base import MetaGradient as MetaGradient
from metaplastic.metagradient.base import Outcome as Outcome
from metaplastic.metagradient.evolution import Evolution as Evolution
from metaplastic.metagradient.unrolled import Unrolled as Unrolled
