"""How the outer loop learns."""

from metaplastic.metagradient.base import Divergence as Divergence
from metaplastic.metagradient.base import MetaGradient as MetaGradient
from metaplastic.metagradient.base import Outcome as Outcome
from metaplastic.metagradient.distributed import Distributed as Distributed
from metaplastic.metagradient.equilibrium import Equilibrium as Equilibrium
from metaplastic.metagradient.equilibrium import Unsettled as Unsettled
from metaplastic.metagradient.evolution import Evolution as Evolution
from metaplastic.metagradient.implicit import Implicit as Implicit
from metaplastic.metagradient.least_control import LeastControl as LeastControl
from metaplastic.metagradient.through_rest import ThroughRest as ThroughRest
from metaplastic.metagradient.unrolled import Unrolled as Unrolled
