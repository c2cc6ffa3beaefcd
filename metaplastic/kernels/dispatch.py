"""Which engine takes a learner through its stream, and why."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch

from metaplastic.credit import DirectFeedback
from metaplastic.errors import CompatibilityError, KernelsWarning, check_choice
from metaplastic.kernels.chain import Descent, descent_of
from metaplastic.kernels.stream import Stream, stream_of
from metaplastic.learner import Learner

Engine = Literal["auto", "plain", "compiled", "fused"]
COMPILERS = {"cpu": "numba", "cuda": "triton"}
"""What has to be installed, by kind of device."""


@dataclass(frozen=True)
class Choice:
    """An engine, and why it was taken."""

    engine: Literal["plain", "compiled", "fused"]
    why: str
    kernels: Stream | Descent | None = None
    """The learner as kernels take it, for the fused engine."""

    def __str__(self) -> str:
        return f"{self.engine}: {self.why}."


def explain(learner: Learner, engine: Engine = "auto", *, first_order: bool = False) -> Choice:
    """The engine that a stream of this learner goes through, and why.

    ``"plain"`` shows one presentation after another by PyTorch's operations; ``"compiled"`` does
    so by one function that torch.compile makes of a presentation, of any learner that it can trace;
    ``"fused"`` compiles the whole loop, by Numba on a CPU and by Triton on a GPU. All give the same
    weights and the same meta-gradient. ``"auto"`` takes ``"fused"`` where it knows network, credit
    and rules, else ``"plain"``: ``"compiled"`` takes its time first, and is to be asked for.

    Raises:
        CompatibilityError: for ``"fused"`` where it cannot be.
    """
    check_choice(engine=(engine, Engine))
    if engine == "plain" or engine == "compiled":
        return Choice(engine, "asked for")
    found = "each update takes its weights for constants" if first_order else _known(learner)
    if not isinstance(found, str):
        found = _installed(found, warn=engine == "auto")
    if isinstance(found, Stream):
        return Choice("fused", "every neuron goes through the whole stream by itself", found)
    if isinstance(found, Descent):
        return Choice("fused", "all layers go through the stream together, step by step", found)
    if engine == "fused":
        raise CompatibilityError(
            f"the fused engine cannot run this learner: {found}. Take engine='auto' or 'plain'."
        )
    return Choice("plain", found)


def _known(learner: Learner) -> Stream | Descent | str:
    credit = learner.credit
    waits = not isinstance(credit, DirectFeedback) or credit.signal == "error"
    return descent_of(learner) if waits else stream_of(learner)


def _installed(found: Stream | Descent, warn: bool) -> Stream | Descent | str:
    like = next(iter(found.learner.network.weights().values()))
    if like.dtype not in (torch.float32, torch.float64):
        return f"kernels take single or double precision, and the weights are {like.dtype}"
    compiler = COMPILERS.get(like.device.type)
    if compiler is None:
        return f"there are no kernels for {like.device}"
    if find_spec(compiler) is None:
        if warn:
            warnings.warn(
                f"the inner loop would be faster with {compiler}: pip install {compiler}.",
                KernelsWarning,
                stacklevel=2,
            )
        return f"{compiler} is not installed"
    return found
