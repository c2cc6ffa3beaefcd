"""A differentiable optimiser for higher that steps by local plasticity. Higher itself is imported
when the first optimiser is made.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from metaplastic.adapters.higher_loop import InnerLoop, plastic_parameters
from metaplastic.errors import ConfigurationError
from metaplastic.learner import Learner


class PlasticOptimizer(torch.optim.Optimizer):
    """Stands where the inner optimiser of ``higher.innerloop_ctx`` stands; making one registers its
    type with higher.

    The model handed to higher beside it is the learner, or the ``nn.Sequential`` that the learner's
    network was made from, if there is no trunk. ``diffopt.step(loss)`` is one presentation: it
    reads the error *at the output of the last* ``fmodel(x)`` from the loss (a mean over the
    examples, unless the objective's scale is ``"batch"``), differentiates nothing else, and moves
    the plastic weights by their rules. Feedback, coefficients and all weights at the start of the
    episode keep their graph to the learner's Parameters; higher's ``copy_initial_weights=True``
    cuts it for those of the model, ``track_higher_grads=False`` for all.

    ``diffopt.step(loss, target=y)`` also shows the target, labels (B,) or numbers (B, K), to a
    credit that feeds it back. Higher's ``override`` and ``grad_callback`` act on hyperparameters
    and gradients that are not there, and are refused.

    Args:
        learner: a learner, not a clone of one.
        generator: draws, in every episode, what is resampled and the noise that the credit asks
            for; a CPU generator, needed in these two cases only.

    Raises:
        ConfigurationError: for what is no learner, or without higher. The optimiser that higher
            makes raises it for another model, and for a loss that is no scalar of the last output.
        CompatibilityError: by ``step``, when the credit feeds back a target that is not given.
        DivergenceError: by ``step``, for a weight that is no longer finite; the fast weights stay
            as they were.
    """

    def __init__(self, learner: Learner, *, generator: torch.Generator | None = None) -> None:
        if not isinstance(learner, Learner) or learner._fast is not None:
            raise ConfigurationError(
                "PlasticOptimizer takes a Learner that is no clone, and finds what is plastic "
                f"there; got {type(learner).__name__}."
            )
        _register(type(self))
        self.learner, self.generator = learner, generator
        super().__init__([{"params": list(plastic_parameters(learner).values())}], {})

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Refused: the steps are those of the ``diffopt`` that higher makes from this.

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError(
            "PlasticOptimizer works inside higher.innerloop_ctx, as diffopt.step(loss). Without "
            "higher: learner.clone() and adapt, or learner.assign_grads with any torch optimiser."
        )


def _register(kind: type[PlasticOptimizer]) -> None:
    try:
        import higher
    except ImportError as error:
        raise ConfigurationError(
            "PlasticOptimizer needs higher, which is not installed: pip install higher==0.2.1."
        ) from error
    higher.register_optim(kind, _differentiable())  # type: ignore[arg-type] - annotated by instance


@functools.cache
def _differentiable() -> type:
    """The optimiser that higher makes from a PlasticOptimizer."""
    import higher

    class DifferentiablePlastic(higher.optim.DifferentiableOptimizer):
        """Steps by local plasticity; see PlasticOptimizer."""

        def __init__(
            self,
            other: PlasticOptimizer,
            reference_params: Iterable[Tensor],
            fmodel: Any = None,
            device: torch.device | None = None,
            override: Any = None,
            grad_callback: Any = None,
            track_higher_grads: bool = True,
        ) -> None:
            _refuse(override=override, grad_callback=grad_callback)
            parameters = list(reference_params)
            self._loop = InnerLoop(
                other.learner, other.generator, parameters, fmodel, device, track_higher_grads
            )
            super().__init__(
                other, parameters, fmodel, device, track_higher_grads=track_higher_grads
            )

        def step(
            self,
            loss: Tensor,
            params: Iterable[Tensor] | None = None,
            override: Any = None,
            grad_callback: Any = None,
            target: Tensor | None = None,
            **unknown: Any,
        ) -> list[Tensor]:
            """One presentation; the new fast weights of the module."""
            _refuse(override=override, grad_callback=grad_callback, **unknown)
            return self._loop.step(loss, params, target)

        def _update(self, grouped_grads: Any, **kwargs: Any) -> None:
            raise ConfigurationError("local plasticity has no gradients to update from: use step.")

    return DifferentiablePlastic


def _refuse(**options: Any) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ConfigurationError(
            f"{', '.join(given)} cannot be used with PlasticOptimizer: a local rule has neither "
            "optimiser settings nor gradients. Rates belong to the rules, as coefficients."
        )
