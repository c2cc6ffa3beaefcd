"""The inner loop compiled: the same weights and the same meta-gradient, sooner."""

from metaplastic.kernels.dispatch import Choice, Engine, explain

__all__ = ["Choice", "Engine", "explain"]
