"""How the feedback of a controller learns from noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from torch import Tensor

from metaplastic.control import (
    Chain,
    Constants,
    Goal,
    Moment,
    Units,
    euler_maruyama,
    moments,
)
from metaplastic.control.noise import split
from metaplastic.credit.base import Needs
from metaplastic.errors import ConfigurationError
from metaplastic.signals import LocalSignals

FeedbackLearning = Literal["none", "forward-noise", "noise-phase", "single-phase"]
SIGMA_FLOOR = 0.01
"""The smallest standard deviation that updates are divided by."""


class NoiseOptions(TypedDict, total=False):
    """Of the noise that feedback learns from."""

    sigma: float
    """Strength of the noise in hidden layers, above 0."""
    sigma_output: float
    """The same in the last layer; by default ``sigma``."""
    leak: float
    """Of the controller in a noise phase, as are the next five."""
    gain: float
    dt: float
    tau: float
    apical: float | None
    steps: int
    tau_noise: float
    """Time constant of the noise in a simulation under a target."""
    tau_filter: float
    """Time constant of the high-pass filter on the control there."""


DEFAULTS: NoiseOptions = {
    "sigma": 0.01,
    "leak": 0.25,
    "gain": 0.1,
    "dt": 0.002,
    "tau": 0.01,
    "apical": 0.3,
    "steps": 50,
    "tau_noise": 0.05,
    "tau_filter": 0.5,
}


@dataclass(frozen=True)
class Noise:
    """The options, complete and checked."""

    sigma: float
    sigma_output: float
    leak: float
    gain: float
    dt: float
    tau: float
    apical: float | None
    steps: int
    tau_noise: float
    tau_filter: float

    @classmethod
    def of(cls, given: NoiseOptions | None) -> Noise:
        """With the defaults for what is not given.

        Raises:
            ConfigurationError: for an option that there is not, or a number out of range.
        """
        given = given or {}
        unknown = sorted(given.keys() - NoiseOptions.__annotations__.keys())
        if unknown:
            known = ", ".join(NoiseOptions.__annotations__)
            raise ConfigurationError(f"noise options are {known}; got {unknown}.")
        options = {**DEFAULTS, **given}
        options.setdefault("sigma_output", options["sigma"])
        made = cls(**options)  # type: ignore[arg-type] - a TypedDict merged is a dict of objects
        positive = ("sigma", "dt", "tau", "tau_noise", "tau_filter")
        wrong = {n: getattr(made, n) for n in positive if not getattr(made, n) > 0}
        if wrong or made.steps < 2 or made.sigma_output < 0:
            raise ConfigurationError(
                f"of the noise options {', '.join(positive)} are above 0, sigma_output is from 0 "
                f"and steps at least 2; got {wrong or given}."
            )
        if made.tau_noise < made.dt or (made.apical is not None and made.apical < made.dt):
            raise ConfigurationError(
                f"tau_noise and apical are at least dt={made.dt}; got {made.tau_noise} and "
                f"{made.apical}."
            )
        return made

    def sigmas(self, layers: int) -> list[float]:
        """Strength of the noise in each layer."""
        return [self.sigma] * (layers - 1) + [self.sigma_output]

    def scales(self, layers: int) -> list[float]:
        """1 / sigma_i^2, with a floor under sigma_i."""
        return [max(s, SIGMA_FLOOR) ** -2 for s in self.sigmas(layers)]

    def layer_scales(self, layers: int, tau: float) -> list[float]:
        """(1 + tau / tau_noise)^(L - i) / sigma_i^2 for potentials of time constant ``tau``, which
        makes up for what the noise of a layer loses on its way through those above.
        """
        loss = 1 + tau / self.tau_noise
        return [loss ** (layers - 1 - i) * scale for i, scale in enumerate(self.scales(layers))]


def sizes(chain: Chain) -> list[int]:
    """n_i of the controlled layers."""
    return [layer.units for layer in chain.layers]


def feedback_signals(
    names: Sequence[str],
    needs: Needs,
    pre: Tensor,
    post: Sequence[Tensor],
    factors: Sequence[float],
    weight: Tensor | None,
) -> dict[str, LocalSignals]:
    """What feedback synapses see: ``pre`` (N, K), and ``post`` (N, n_i), which times a factor is
    their teaching signal as well; weight (N, 1).
    """
    return {
        name: LocalSignals(
            pre,
            own,
            factor * own if "teaching" in needs[name] else None,
            gain=torch.ones_like(own) if "gain" in needs[name] else None,
            weight=weight,
        )
        for name, own, factor in zip(names, post, factors, strict=True)
        if name in needs
    }


def from_forward_noise(
    chain: Chain, units: Units, xi: Tensor, noise: Noise
) -> tuple[Tensor, tuple[Tensor, ...], list[float]]:
    """Pre, post and factors of one noisy forward pass: the mean of post pre^T / sigma^2 is J_i^T
    (Meulemans et al. 2021); xi (B, S) normal.
    """
    layers = len(chain.layers)
    added = split(xi, sizes(chain), noise.sigmas(layers))
    return chain.run(added).output - units.output, added, noise.scales(layers)


def noise_phase(
    chain: Chain, units: Units, feedback: Sequence[Tensor], xi: Tensor, noise: Noise
) -> Iterator[Moment]:
    """The controller holds the output at its feed-forward value against noise (Meulemans et al.
    2021); xi (B, steps - 1, S) normal.
    """
    like = units.output
    constants = Constants(
        like.new_full((1, 1), noise.leak),
        like.new_full((1, 1), noise.gain),
        noise.dt,
        noise.tau,
        noise.apical,
    )
    layers = len(chain.layers)
    white = euler_maruyama(xi, sizes(chain), noise.sigmas(layers), noise.dt, noise.apical)
    return moments(chain, feedback, Goal(like), constants, units, noise.steps, white)


def from_control(
    moments: Sequence[Moment], controls: Sequence[Tensor], scales: Sequence[float]
) -> tuple[Tensor, tuple[Tensor, ...], list[float]]:
    """Pre, post and factors of some moments, -v_fb[k] u[k+1]^T / sigma^2, the rows of all one after
    another; ``controls`` are the u[k+1], filtered or not.
    """
    layers = range(len(scales))
    apical = tuple(torch.cat([moment.apical[i] for moment in moments]) for i in layers)
    return torch.cat(list(controls)), apical, [-s for s in scales]


class HighPass:
    """u minus its running mean with time constant ``tau``, from the first control on."""

    def __init__(self, share: float) -> None:
        self.share = share
        self._mean: Tensor | None = None

    def __call__(self, control: Tensor) -> Tensor:
        """(B, K) -> (B, K), moment after moment."""
        mean = control if self._mean is None else self._mean
        self._mean = self.share * control + (1 - self.share) * mean
        return control - self._mean
