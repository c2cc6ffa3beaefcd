"""What is computed, and which synapses are there."""

from metaplastic.networks.base import Network as Network
from metaplastic.networks.base import Observation as Observation
from metaplastic.networks.equilibrium import EquilibriumNetwork as EquilibriumNetwork
from metaplastic.networks.equilibrium_models import equilibrium_block as equilibrium_block
from metaplastic.networks.equilibrium_models import equilibrium_chain as equilibrium_chain
from metaplastic.networks.equilibrium_models import equilibrium_rnn as equilibrium_rnn
from metaplastic.networks.layer import LayerActivity as LayerActivity
from metaplastic.networks.layered import LayeredNetwork as LayeredNetwork
from metaplastic.networks.recurrent import RecurrentNetwork as RecurrentNetwork
