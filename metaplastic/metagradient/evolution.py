"""Evolution strategies: a meta-gradient from losses alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metaplastic.episodes import Episodes
from metaplastic.errors import ConfigurationError, check_choice
from metaplastic.evaluation import query_scores
from metaplastic.inner_loop import CACHE_BYTES, Batching, Draws, Rollout, chunks, draw
from metaplastic.learner import Learner
from metaplastic.metagradient.base import MetaGradient, Outcome, accumulate, locate

Shaping = Literal["ranks", "none"]
DEVICE_BYTES = 2**28
"""Parameters and plastic weights of the individuals that a GPU runs at once."""


@dataclass(frozen=True)
class Evolution(MetaGradient):
    r"""Evolution strategies with antithetic pairs (Salimans et al. 2017), for rules and losses
    without a gradient.

    With eps_k standard normal over all trained Parameters theta, and L the mean query loss,
    g = 1 / (2 n sigma) sum_k (L(theta + sigma eps_k) - L(theta - sigma eps_k)) eps_k
    estimates the gradient of L smoothed by noise of width sigma; where L is linear or quadratic
    that is the gradient of L itself. All 2n individuals see the same episodes and the same draws;
    L includes the coefficients' ``l1``. Noise is kept as one seed for each pair, so that memory
    does not grow with n.

    An episode that diverges at theta is left out for everyone. One that diverges at an individual
    makes that individual the worst under ``"ranks"``; under ``"none"`` its pair is left out of the
    sum and of n.

    Args:
        pairs: n.
        sigma: standard deviation of the perturbation of every trained Parameter.
        shaping: what stands for L: ``"ranks"``, the rank among the 2n losses scaled to mean 0 and
            standard deviation 1, which no outlier moves far and which forgets the size of the
            loss, or ``"none"``, the loss itself.
        batching: many individuals and episodes at once (``"vmap"``), one after another
            (``"loop"``), or by size and device (``"auto"``).
        limit: a query loss above it counts as diverged.

    Raises:
        ConfigurationError: for ``pairs`` below 1 or a ``sigma`` that is not positive, and by
            ``gradient`` without a generator.
    """

    pairs: int = 50
    sigma: float = 0.1
    shaping: Shaping = "ranks"
    batching: Batching = "auto"
    limit: float = 1e8

    def __post_init__(self) -> None:
        check_choice(shaping=(self.shaping, Shaping), batching=(self.batching, Batching))
        if self.pairs < 1:
            raise ConfigurationError(f"pairs counts antithetic pairs, from 1; got {self.pairs}.")
        if not 0.0 < self.sigma < math.inf:
            raise ConfigurationError(f"sigma must be positive and finite; got {self.sigma}.")

    @torch.no_grad()
    def gradient(
        self, learner: Learner, episodes: Episodes, *, generator: torch.Generator | None = None
    ) -> Outcome:
        if generator is None:
            raise ConfigurationError("Evolution draws noise: pass generator=torch.Generator().")
        draws = draw(learner, episodes, generator)
        seeds = self.seeds(generator)
        outcome = self._unperturbed(learner, episodes, draws)
        named = {name: p for name, p in learner.named_parameters() if p.requires_grad}
        if not outcome.kept or not named:
            accumulate(list(named.values()), [torch.zeros_like(p) for p in named.values()])
            return outcome
        episodes, draws = episodes[outcome.kept], draws[outcome.kept]
        parts = chunks(learner, episodes, self.batching)

        def losses(individuals: list[Tensor]) -> Tensor:
            perturbed = dict(zip(named, individuals, strict=True))
            loss, penalty = _run(learner, episodes, draws, perturbed, parts)
            return torch.where(self._fine(loss).all(1), loss.mean(1) + penalty, torch.inf)

        parameters = list(named.values())
        together = self._together(learner, parameters, len(episodes))
        accumulate(parameters, self.estimate(losses, parameters, seeds, together))
        return outcome

    def seeds(self, generator: torch.Generator) -> list[int]:
        """One seed for the noise of each pair."""
        top = torch.iinfo(torch.int64).max
        return torch.randint(top, (self.pairs,), generator=generator).tolist()

    @torch.no_grad()
    def estimate(
        self,
        losses: Callable[[list[Tensor]], Tensor],
        parameters: Sequence[Tensor],
        seeds: Sequence[int],
        together: int = 1,
    ) -> list[Tensor]:
        """The estimate g for any function, one tensor for each of ``parameters``.

        Args:
            losses: the losses (P,) of P individuals, given each of ``parameters`` with a leading
                axis P; what is not finite has diverged.
            parameters: theta.
            seeds: as from ``seeds``, one for each pair.
            together: the largest P.
        """
        plus, minus = [], []
        for first in range(0, len(seeds), together):
            each = [self.noise(seed, parameters) for seed in seeds[first : first + together]]
            steps = [self.sigma * torch.stack(e) for e in zip(*each, strict=True)]
            both = list(zip(parameters, steps, strict=True))
            plus.append(losses([p + step for p, step in both]))
            minus.append(losses([p - step for p, step in both]))
        shares = self._shares(_table(plus), _table(minus)).tolist()
        total = [torch.zeros_like(p) for p in parameters]
        for seed, share in zip(seeds, shares, strict=True):
            noise = self.noise(seed, parameters)
            total = [t + share * e for t, e in zip(total, noise, strict=True)]
        return total

    def noise(self, seed: int, parameters: Sequence[Tensor]) -> list[Tensor]:
        """The noise eps of one pair, the same at every call and on every device."""
        generator = torch.Generator().manual_seed(seed)
        return [
            torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for p in parameters
        ]

    def _shares(self, plus: Tensor, minus: Tensor) -> Tensor:
        """What each pair's noise is multiplied by, (n,), given the losses of both sides."""
        if self.shaping == "ranks":
            plus, minus = _standard_ranks(torch.cat([plus, minus])).chunk(2)
        kept = plus.isfinite() & minus.isfinite()
        difference = torch.where(kept, plus - minus, 0.0)
        return difference / (2 * self.sigma * max(1, int(kept.sum())))

    def _unperturbed(self, learner: Learner, episodes: Episodes, draws: Draws) -> Outcome:
        """Scores of the learner as it is."""
        parts = chunks(learner, episodes, self.batching)
        loss, accuracy = _scores(learner, episodes, draws, parts)
        fine = self._fine(loss)
        kept, lost = (which.nonzero().flatten().tolist() for which in (fine, ~fine))
        return Outcome(
            loss=loss[kept],
            accuracy=None if accuracy is None or not kept else accuracy[kept],
            kept=tuple(kept),
            diverged=tuple(locate(learner, episodes, draws, i) for i in lost),
        )

    def _fine(self, loss: Tensor) -> Tensor:
        return loss.isfinite() & (loss < self.limit)

    def _together(self, learner: Learner, parameters: Sequence[Tensor], episodes: int) -> int:
        """How many individuals run at once: those whose Parameters, and plastic weights in all
        episodes, fit the cache of a CPU or ``DEVICE_BYTES`` of a GPU.
        """
        if self.batching != "auto":
            return self.pairs if self.batching == "vmap" else 1
        weights = learner.network.weights()
        plastic = sum(weights[name].nbytes for name in learner.plastic & weights.keys())
        each = sum(p.nbytes for p in parameters) + episodes * plastic
        on_cpu = all(p.device.type == "cpu" for p in parameters)
        return max(1, (CACHE_BYTES if on_cpu else DEVICE_BYTES) // each)


def _scores(
    learner: Learner, episodes: Episodes, draws: Draws, parts: list[list[int]]
) -> tuple[Tensor, Tensor | None]:
    """Query loss and accuracy after the stream, (E,)."""
    losses, accuracies = [], []
    for part in parts:
        rollout = Rollout(learner, episodes[part], draws[part])
        rollout.advance(0, episodes.presentations)
        loss, accuracy = query_scores(rollout)
        losses.append(loss)
        accuracies += [] if accuracy is None else [accuracy]
    return torch.cat(losses), torch.cat(accuracies) if accuracies else None


class _Individual(nn.Module):
    """A learner as a function of its Parameters."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(
        self, episodes: Episodes, draws: Draws, parts: list[list[int]]
    ) -> tuple[Tensor, Tensor]:
        """Query loss after the stream, (E,), and the penalty on the coefficients, ()."""
        return _scores(self.learner, episodes, draws, parts)[0], self.learner.penalty()


def _run(
    learner: Learner,
    episodes: Episodes,
    draws: Draws,
    individuals: dict[str, Tensor],
    parts: list[list[int]],
) -> tuple[Tensor, Tensor]:
    """Query losses (P, E) and penalties (P,) of P individuals, given their Parameters with a
    leading axis P; the learner's own stay as they are.
    """
    module = _Individual(learner)
    names = {id(p): name for name, p in learner.named_parameters()}
    # Every place of a Parameter once: functional_call's own way with ties does not put a module
    # that stands in two places, such as a coefficient of the whole network, back as it was.
    places = {
        f"{path}.{name}": names[id(p)]
        for path, part in module.named_modules()
        for name, p in part.named_parameters(recurse=False)
        if names[id(p)] in individuals
    }

    def one(parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        named = {place: parameters[name] for place, name in places.items()}
        return functional_call(module, named, (episodes, draws, parts), tie_weights=False)

    if len(next(iter(individuals.values()))) > 1:
        return vmap(one)(individuals)
    loss, penalty = one({name: value[0] for name, value in individuals.items()})
    return loss.unsqueeze(0), penalty.unsqueeze(0)


def _table(losses: list[Tensor]) -> Tensor:
    """All losses in one tensor, in double precision on the CPU."""
    return torch.cat([loss.detach().double().cpu() for loss in losses])


def _standard_ranks(losses: Tensor) -> Tensor:
    """Ranks of mean 0 and standard deviation 1, 0 if all tie; equals share theirs, and what is not
    finite comes last.
    """
    _, place, size = torch.where(losses.isfinite(), losses, torch.inf).unique(
        return_inverse=True, return_counts=True
    )
    rank = (size.cumsum(0) - 0.5 * (size + 1)).to(losses)[place]
    centred = rank - 0.5 * (len(losses) - 1)
    spread = centred.square().mean().sqrt()
    return centred / torch.where(spread > 0, spread, 1.0)
