"""What an epoch is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

WEIGHTS = ("role:weight", "role:bias")
FEEDBACK = ("role:feedback",)


@dataclass(frozen=True)
class Phase:
    """Some sweeps through the training images."""

    only: Sequence[str]
    """The groups that learn, see ``Learner.assign_grads``."""
    optimizer: Optimizer
    """Phases may share one."""
    sweeps: int = 1
    clip: float | None = 1.0
    """Bound on the norm of the gradient of each Parameter, or of each group of the optimiser."""
    scheduler: LRScheduler | None = None
    """Stepped at the end of each epoch, or after each batch of the phase."""
    stepped: Literal["epoch", "batch"] = "epoch"
    clipped: Literal["parameter", "group"] = "parameter"
    """What ``clip`` bounds."""

    @property
    def feedback(self) -> bool:
        """Whether nothing but feedback learns."""
        return all(pattern in FEEDBACK for pattern in self.only)

    def step(self) -> None:
        """Follow the gradients of one batch."""
        if self.clip is not None:
            for group in self.optimizer.param_groups:
                every = group["params"]
                for some in [every] if self.clipped == "group" else [[one] for one in every]:
                    clip_grad_norm_(some, self.clip)
        self.optimizer.step()
        if self.scheduler is not None and self.stepped == "batch":
            self.scheduler.step()
