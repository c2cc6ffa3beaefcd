"""One meta-gradient by several processes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, distributed

from metaplastic.episodes import Episodes
from metaplastic.errors import ConfigurationError
from metaplastic.evaluation import Evaluation
from metaplastic.learner import Learner
from metaplastic.metagradient.base import MetaGradient, Outcome


@dataclass(frozen=True)
class Distributed(MetaGradient):
    """Every process takes its share of the episodes, and all get the gradient of all of them.

    For processes that torchrun started, after ``torch.distributed.init_process_group``: each of
    them draws the same episodes from the same seed, so that their learners stay the same. What a
    learner resamples within an episode is drawn by each process for its own share.

    Args:
        metagradient: how each share's gradient is taken.
    """

    metagradient: MetaGradient

    def gradient(
        self, learner: Learner, episodes: Episodes, *, generator: torch.Generator | None = None
    ) -> Outcome:
        """As of one process. Raises ConfigurationError without a process group."""
        if not (distributed.is_available() and distributed.is_initialized()):
            raise ConfigurationError(
                "Distributed needs a process group: start with torchrun and call "
                "torch.distributed.init_process_group() first."
            )
        rank, world = distributed.get_rank(), distributed.get_world_size()
        mine = list(range(rank, len(episodes), world))
        parameters = [p for p in learner.parameters() if p.requires_grad]
        before = [p.grad for p in parameters]
        for p in parameters:
            p.grad = None
        own = None
        if mine:
            own = self.metagradient.gradient(learner, episodes[mine], generator=generator)
        parts: list[tuple[list[int], Outcome | None]] = [([], None)] * world
        distributed.all_gather_object(parts, (mine, own))
        outcome = _together(parts)
        share = len(own.kept) / max(1, len(outcome.kept)) if own else 0.0
        for p, was in zip(parameters, before, strict=True):
            found = torch.zeros_like(p) if p.grad is None else p.grad * share
            distributed.all_reduce(found)
            p.grad = found if was is None else was + found
        return outcome

    def evaluate(
        self, learner: Learner, episodes: Episodes, *, generator: torch.Generator | None = None
    ) -> Evaluation:
        return self.metagradient.evaluate(learner, episodes, generator=generator)


def _together(parts: list[tuple[list[int], Outcome | None]]) -> Outcome:
    """The outcomes of all shares, by the episodes' places among all."""
    seen = [(places, outcome) for places, outcome in parts if outcome is not None]
    kept = [places[i] for places, outcome in seen for i in outcome.kept]
    order = sorted(range(len(kept)), key=kept.__getitem__)

    def joined(values: list[Tensor | None]) -> Tensor | None:
        found = [v.cpu() for v in values if v is not None]
        return torch.cat(found)[order] if found else None

    loss = joined([outcome.loss for _, outcome in seen])
    diverged = [
        replace(d, episode=places[d.episode]) for places, outcome in seen for d in outcome.diverged
    ]
    return Outcome(
        loss=torch.zeros(0) if loss is None else loss,
        accuracy=joined([outcome.accuracy for _, outcome in seen]),
        kept=tuple(kept[i] for i in order),
        diverged=tuple(sorted(diverged, key=lambda d: d.episode)),
        residual=joined([outcome.residual for _, outcome in seen]),
    )
