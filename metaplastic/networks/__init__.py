"""What is computed, and which synapses are there."""

from metaplastic.networks.base import Network as Network
from metaplastic.networks.base import Observation as Observation
from metaplastic.networks.layer import LayerActivity as LayerActivity
from metaplastic.networks.layered import LayeredNetwork as LayeredNetwork
from metaplastic.networks.recurrent import RecurrentNetwork as RecurrentNetwork
