"""One seed, independent streams."""

from __future__ import annotations

import numpy as np
import torch

STREAMS = ("initial", "feedback", "episodes", "noise")
EVALUATION_SEED = 20_200_616
"""Evaluation episodes come from a stream of their own, so that every training seed and every method
meets the same ones."""


def generator(sequence: np.random.SeedSequence) -> torch.Generator:
    """A CPU generator seeded by a numpy SeedSequence."""
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0]) >> 1)


def streams(seed: int) -> dict[str, torch.Generator]:
    """Independent CPU generators by name: ``initial`` weights, ``feedback``, ``episodes`` and
    ``noise`` (also what is resampled).
    """
    children = np.random.SeedSequence(seed).spawn(len(STREAMS))
    return {name: generator(child) for name, child in zip(STREAMS, children, strict=True)}


def evaluation_stream(index: int = 0) -> torch.Generator:
    """The generator of the ``index``-th set of evaluation episodes, whatever the training seed."""
    return generator(np.random.SeedSequence((EVALUATION_SEED, index)))
