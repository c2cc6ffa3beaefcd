"""The words that the four axes speak: what a synapse may see, and what an episode shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from metaplastic.errors import CompatibilityError
from metaplastic.objectives import Objective

Kind = Literal["error", "target"]
Reduction = Literal["sum", "examples", "positions"]
Origin = Literal["learned", "fixed", "resampled"]
"""Where weights come from: the outer loop, one draw, or a draw in every episode."""
State = dict[str, Any]
"""Everything that one episode changes or fixes, tensors only, the same structure before and after:
``weights`` {group: (n_out, n_in)}, ``coefficients`` {group: {name: tensor}}, ``rule`` {group:
traces}, ``credit`` and ``network`` {name: tensor}. A step reads parameters from here alone."""


@dataclass(frozen=True)
class SynapseGroup:
    """One matrix of synapses: which units it joins and where it stands.

    ``role`` is ``"weight"``, ``"bias"`` (one presynaptic unit, always 1), ``"feedback"`` or
    ``"modulator"`` (weights from which a network computes its own third factor, never plastic);
    ``position`` counts layers from 0 of ``layers``; ``sites`` is the number of places at which the
    same synapses are used for one example (the positions of a convolution). ``taught`` says that
    the credit sends it signals, so that a rule can make it plastic.
    """

    name: str
    n_out: int
    n_in: int
    role: str = "weight"
    position: int = 0
    layers: int = 1
    sites: int = 1
    taught: bool = True
    twin: str | None = None
    """The group whose rule and coefficients it shares, such as the forward weights that a feedback
    matrix is to align with."""


@dataclass(frozen=True)
class LocalSignals:
    """All that one synapse group may see. N = B examples x sites, rows in that order.

    Optional signals are None where nobody asked for them. ``teaching`` arrives as it was
    transported, never mixed with ``post``; its ``kind`` says how to read it: the wanted change of
    ``post`` (``"error"``, positive means more) or the wanted ``post`` itself (``"target"``).
    """

    pre: Tensor
    """(N, n_in) presynaptic activity."""
    post: Tensor
    """(N, n_out) postsynaptic activity without teaching."""
    teaching: Tensor | None = None
    """(N, n_out) teaching signal."""
    kind: Kind = "error"
    gain: Tensor | None = None
    """(N, n_out) slope of the activation function at the potential."""
    pre_teaching: Tensor | None = None
    """(N, n_in) the error at the presynaptic units' potentials: what their own synapses get as
    ``teaching * gain`` where nothing stands between the layers."""
    modulator: Tensor | None = None
    """(N, 1) or (N, n_out) third factor."""
    weight: Tensor | None = None
    """(N, 1) weight of each row; 0 is padding, which leaves no trace."""
    sites: int = 1

    @property
    def error(self) -> Tensor:
        """(N, n_out) wanted change of ``post``, whatever the kind."""
        if self.teaching is None:
            raise CompatibilityError(
                "this rule reads the teaching signal, which nobody sent: add 'teaching' to its "
                "`needs`, or use a credit that sends one."
            )
        return self.teaching if self.kind == "error" else self.teaching - self.post

    def correlate(self, post: Tensor, pre: Tensor, reduction: Reduction) -> Tensor:
        """Post x pre over the rows, (N, a) and (N, b) -> (a, b): their sum, or that divided by the
        number of examples or of rows (``"positions"``); padding is not counted.
        """
        return self.share(post, reduction).mT @ pre

    def average(self, post: Tensor, reduction: Reduction) -> Tensor:
        """The same of one factor alone, (N, a) -> (a, 1)."""
        return self.share(post, reduction).sum(0).unsqueeze(-1)

    def share(self, post: Tensor, reduction: Reduction) -> Tensor:
        """Each row's share of the reduction, (N, a): what is left to do is the sum over rows."""
        if self.weight is not None:
            post = post * self.weight
        if reduction == "sum":
            return post
        if self.weight is None:
            rows = post.shape[0] if reduction == "positions" else post.shape[0] / self.sites
            return post if rows == 1 else post / rows
        rows = self.weight.sum().clamp(min=1.0)
        return post / (rows if reduction == "positions" else rows / self.sites)


class Teacher:
    """Answers what a credit asks while an example is shown: the error at *any* output, which may
    exist only during the presentation, and the target itself.

    ``target`` (B, K) as encoded by the objective; ``weight`` (B, 1) of each example, or None.
    """

    def __init__(self, objective: Objective, target: Tensor, weight: Tensor | None = None) -> None:
        self.objective = objective
        self._target, self._weight = target, weight

    @property
    def target(self) -> Tensor:
        """(B, K) wanted output."""
        return self._target

    def error(self, output: Tensor) -> Tensor:
        """(B, K) wanted change of ``output`` (B, K)."""
        return self.objective.error(output, self.target, self._weight)

    def link(self, output: Tensor) -> Tensor:
        """(B, K) ``output`` in the target's units."""
        return self.objective.link(output)


class GivenError(Teacher):
    """A teacher that knows one error only, (B, K), such as the one read off a scalar loss."""

    def __init__(self, objective: Objective, error: Tensor) -> None:
        super().__init__(objective, error)
        self._error = error

    @property
    def target(self) -> Tensor:
        raise CompatibilityError(
            "adapt(loss) reads only the output error from the loss, and this credit feeds back the "
            "target: call adapt(x, y), or use the error as its signal."
        )

    def error(self, output: Tensor) -> Tensor:
        del output
        return self._error


@dataclass(frozen=True)
class Presentation:
    """What is shown at one step: ``x`` (B, *) features, the teacher, the weight of each example
    (B, 1) or None, and the noise that the credit asked for (drawn outside), or None.
    """

    x: Tensor
    teacher: Teacher
    weight: Tensor | None = None
    noise: Tensor | None = None


class Learn(Protocol):
    """The one hinge: what is done with the signals. Applies the rules in the inner loop, records
    in ``assign_grads`` and in analyses.
    """

    @property
    def needs(self) -> dict[str, frozenset[str]]:
        """The plastic groups and the optional signals that each one's rule asked for."""
        ...

    def __call__(self, state: State, signals: dict[str, LocalSignals], share: float = 1.0) -> State:
        """Learn from some groups' signals. ``share`` is the part of a presentation that this call
        stands for, where a credit tells its signals in several pieces, such as stretches of a
        simulation: each change is multiplied by it.
        """
        ...
