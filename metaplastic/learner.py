"""The learner: a network, a credit and rules, with learn2learn's face."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from metaplastic.credit import CreditAssignment
from metaplastic.errors import (
    REMEDY,
    CompatibilityError,
    ConfigurationError,
    DivergenceError,
    ShapeError,
    UnconvergedWarning,
    check_choice,
)
from metaplastic.first_order import constant_copy, first_order_step
from metaplastic.hinge import Apply, Record
from metaplastic.networks import LayeredNetwork, Network
from metaplastic.objectives import CrossEntropy, Objective
from metaplastic.parameters import frozen_to_buffers, groups_by_role
from metaplastic.rules import Coefficient, PlasticityRule, Rules, assign_rules, by_pattern, matching
from metaplastic.signals import GivenError, Origin, Presentation, State, SynapseGroup, Teacher

if TYPE_CHECKING:
    from metaplastic.episodes import Episodes
    from metaplastic.memory import MemoryEstimate


class Learner(nn.Module):
    """Learns online with local plasticity; what evolution would set are its Parameters.

    Use it in three ways: ``clone`` and ``adapt`` inside a learn2learn loop; a MetaGradient over
    Episodes; ``assign_grads`` with any torch optimiser, for training without backpropagation. The
    network's modules are used as they are; a Parameter of theirs that is frozen becomes a buffer.

    Args:
        network: a Network, or an ``nn.Sequential`` of Linear layers and activation functions.
        credit: how the teaching signal reaches the synapses.
        rule: one rule for every weight matrix (biases stay as they are within an episode), or rules
            by pattern, first match wins: ``role:bias``, ``position:last`` (or a number),
            ``name:layer3_*``, ``*``. None, or no match, keeps a group fixed.
        objective: loss and output error; SquaredError() for regression.
        initial: initial weights ``"learned"`` by the outer loop, ``"fixed"``, or ``"resampled"`` in
            every episode.
        generator: draws the feedback weights; seed 0 where none is given.

    Raises:
        CompatibilityError: where the credit cannot run through the network, or a rule needs a
            signal that the credit does not send.
        ConfigurationError: for a pattern that matches nothing, or when nothing is plastic.
    """

    def __init__(
        self,
        network: Network | nn.Sequential,
        credit: CreditAssignment,
        rule: Rules,
        objective: Objective | None = None,
        *,
        initial: Origin = "learned",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if isinstance(network, nn.Sequential):
            network = LayeredNetwork(network)
        if not isinstance(network, credit.protocol):
            raise CompatibilityError(
                f"{type(credit).__name__} runs through a {credit.protocol.__name__}, got a "
                f"{type(network).__name__}."
            )
        self.network = network
        patterns = copy.deepcopy(by_pattern(rule))  # what rules share, they share in here only
        own = assign_rules(patterns, network.groups(), strict=False)
        self.credit = credit.bind(
            network,
            {name: assigned.rule.needs for name, assigned in own.items()},
            generator or torch.Generator().manual_seed(0),
        )
        self.objective = objective or CrossEntropy()
        check_choice(initial=(initial, Origin))
        self.initial = initial
        if initial != "learned":
            for group in network.groups():
                network.parameter(group).requires_grad_(False)
        every = assign_rules(patterns, self.groups())
        self.patterns = {name: assigned.pattern for name, assigned in every.items()}
        """{plastic group: the pattern that gave it its rule}."""
        self.templates = {p: None if r is None else r.describe() for p, r in patterns.items()}
        """{pattern: what its rule was made with}."""
        self.rules = nn.ModuleDict()
        for name, group in self.groups().items():
            if name in every:
                self._check_signals(name, every[name].rule)
                twin = group.twin
                self.rules[name] = self.rules[twin] if twin else every[name].rule.bind(group)
        self.credit.to(self._like())
        self.rules.to(self._like())
        frozen_to_buffers(self)
        self._fast: State | None = None
        self._first_order = False
        self._seen: tuple[Tensor, Tensor] | None = None
        self._adapted = 0
        self._generator: torch.Generator | None = None

    def _check_signals(self, name: str, rule: PlasticityRule) -> None:
        missing = rule.needs - self.credit.provides
        if missing:
            raise CompatibilityError(
                f"{type(rule).__name__} on {name} needs {sorted(missing)}, which "
                f"{type(self.credit).__name__} does not send (it sends "
                f"{sorted(self.credit.provides)}): take another credit or rule."
            )

    # --- what a meta-gradient needs -------------------------------------------------------------

    def groups(self) -> dict[str, SynapseGroup]:
        """All synapse groups by name: the network's, then the credit's."""
        return self.network.groups() | self.credit.groups()

    @property
    def plastic(self) -> frozenset[str]:
        """The groups that change within an episode."""
        return frozenset(self.rules)

    def start(
        self,
        batch: int = 1,
        generator: torch.Generator | None = None,
        drawn: dict[str, Tensor] | None = None,
    ) -> State:
        """The state at the beginning of an episode shown B = ``batch`` examples at a time.

        Every Parameter but those of the trunk and the norms enters here, with its graph; a step
        reads the state alone. What is resampled comes from ``drawn``, or from ``generator``.
        """
        own = self.network.weights() | self.credit.weights()
        weights = {name: w.clone() for name, w in own.items()}  # an optimiser may move its own
        if self.resampled:
            weights |= self.draw(generator) if drawn is None else drawn
        rules = self._rules()
        return {
            "weights": weights,
            "coefficients": {name: rule.coefficients() for name, rule in rules.items()},
            "rule": {name: rule.init(weights[name]) for name, rule in rules.items()},
            **self._start_parts(weights, batch),
        }

    def _start_parts(self, weights: dict[str, Tensor], batch: int) -> State:
        """What depends on the number of examples shown at a time."""
        return {
            "credit": self.credit.start(self.network, weights, batch),
            "network": self.network.start(weights, batch),
        }

    def noise(self, lead: tuple[int, ...], generator: torch.Generator | None) -> Tensor | None:
        """The noise that the credit asks for, (E, T, *) with lead (E, T, B), or None.

        Raises:
            ConfigurationError: where it asks for noise and there is no generator.
        """
        drawn = self.credit.noise(self.network, lead, generator or torch.Generator())
        if drawn is not None and generator is None:
            raise ConfigurationError(
                f"{type(self.credit).__name__} draws noise: pass generator=torch.Generator()."
            )
        return None if drawn is None else drawn.to(self._like())

    @property
    def resampled(self) -> frozenset[str]:
        """The groups whose weights are drawn anew for every episode."""
        names = frozenset(self.network.groups()) if self.initial == "resampled" else frozenset()
        return names | (frozenset(self.credit.groups()) if self.credit.resampled else frozenset())

    def draw(self, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Fresh weights for the resampled groups, {group: (n_out, n_in)}."""
        if generator is None:
            raise ConfigurationError(
                "weights are drawn anew in every episode: pass generator=torch.Generator()."
            )
        fresh = self.network.draw(generator) | self.credit.draw(generator)
        return {name: fresh[name].to(self._like()) for name in fresh if name in self.resampled}

    def step(
        self, state: State, presentation: Presentation, network: Network | None = None
    ) -> State:
        """One presentation: a new state; the one given is left as it was. ``network`` may stand in
        for the learner's own (a copy with constants in it)."""
        if not self.rules and not state["network"]:
            return state
        network = self.network if network is None else network
        return self.credit.present(network, state, presentation, Apply(self._rules()))

    def field(self, state: State, presentation: Presentation) -> dict[str, Tensor]:
        """What one presentation wants of the plastic weights: their change, {group: (n_out, n_in)},
        differentiable in weights and meta-parameters.
        """
        record = Record(self._rules())
        self.credit.present(self.network, state, presentation, record)
        return record.change

    def _rules(self, only: str | Sequence[str] = "*") -> dict[str, PlasticityRule]:
        rules = {n: r for n, r in self.rules.items() if isinstance(r, PlasticityRule)}
        if only == "*":
            return rules
        every = {name: group for name, group in self.groups().items() if name in rules}
        wanted = matching([only] if isinstance(only, str) else only, every)
        pairs = [{name, group.twin} for name, group in every.items() if group.twin]
        wanted = wanted.union(*(pair for pair in pairs if pair & wanted))  # they learn together
        return {name: rule for name, rule in rules.items() if name in wanted}

    # --- learn2learn's face ---------------------------------------------------------------------

    @property
    def module(self) -> Network:
        """The network, under the name that learn2learn's algorithms use."""
        return self.network

    def clone(
        self,
        first_order: bool | None = None,
        generator: torch.Generator | None = None,
        **ignored: Any,
    ) -> Self:
        """A learner with fast weights of its own, and the same Parameters by reference: gradients
        of a loss after ``adapt`` reach the original's ``.grad``. learn2learn's ``allow_unused``
        and ``allow_nograd`` are accepted and have no effect. ``generator`` draws what is
        resampled, and the noise of each ``adapt``.
        """
        own = type(self).__new__(type(self))
        own.__dict__.update(self.__dict__)
        if first_order is not None:
            own._first_order = first_order
        own._fast = self._fast if self._fast is not None else self.start(generator=generator)
        own._seen, own._adapted = None, 0
        own._generator = generator if generator is not None else self._generator
        return own

    def forward(self, x: Tensor) -> Tensor:
        """Output (B, K) of x (B, *), under the fast weights in a clone."""
        state = self._fast if self._fast is not None else self.start(x.shape[0])
        features = self.network.features(x)
        output = self.network(features, state["weights"], state["network"])
        self._seen = (features, output) if self._fast is not None else None
        return output

    def adapt(
        self,
        x: Tensor,
        y: Tensor | None = None,
        first_order: bool | None = None,
        **ignored: Any,
    ) -> None:
        """One presentation to a clone, in either of two forms.

        ``adapt(x, y)``: examples x (B, *) with labels (B,) or targets (B, K).
        ``adapt(loss)``: learn2learn's call, with a scalar loss of this clone's last output; only
        the error *at the output* is taken from it (the loss is read as a mean over the examples,
        unless the objective's scale is ``"batch"``), so it must be computed from the output with
        gradients enabled.

        Raises:
            ConfigurationError: for a learner that is no clone, or a loss without a graph.
            CompatibilityError: when the credit feeds back the target, which a loss does not hold.
            DivergenceError: when a weight is no longer finite; the fast weights stay as they were.
        """
        if self._fast is None:
            raise ConfigurationError("adapt changes a clone's fast weights: call clone() first.")
        if y is None:
            features, teacher = self._read_loss(x)
        else:
            features = self.network.features(x)
            teacher = Teacher(self.objective, self.encode(y, x.shape[:1]))
        first = self._first_order if first_order is None else first_order
        constant = constant_copy(self.network) if first else None
        batch, fast = len(features), self._fast
        if self._adapted == 0:  # only now is it known how many examples come at a time
            fast = {**fast, **self._start_parts(fast["weights"], batch)}
        noise = self.noise((1, 1, batch), self._generator)
        shown = Presentation(features, teacher, noise=None if noise is None else noise[0, 0])
        after = first_order_step(self, fast, shown, constant)
        self._check_finite(after["weights"], f"weights after adaptation {self._adapted}")
        self._warn(fast, after, shown)
        self._fast, self._seen = after, None
        self._adapted += 1

    def _check_finite(self, tensors: Mapping[str, Tensor], what: str) -> None:
        for name in self.groups():
            if name in self.rules and name in tensors and not _finite(tensors[name]):
                raise DivergenceError(f"the {what} diverged in {name}; {REMEDY}.")

    def _warn(self, before: State, after: State, shown: Presentation) -> None:
        """An UnconvergedWarning where examples were lost in this presentation."""
        lost = after["credit"].get("unconverged")
        lost = 0 if lost is None else round(float(lost - before["credit"]["unconverged"]))
        if lost:
            with torch.no_grad():
                advice = self.credit.advice(self.network, before, shown)
            text = f"{lost} of {len(shown.x)} examples changed nothing: {advice}"
            warnings.warn(text, UnconvergedWarning, stacklevel=3)

    def _read_loss(self, loss: Tensor) -> tuple[Tensor, Teacher]:
        if self._seen is None or loss.dim() != 0 or not loss.requires_grad:
            raise ConfigurationError(
                "adapt(loss) needs a scalar loss of this clone's last output, with gradients "
                f"enabled; got a tensor {tuple(loss.shape)} with requires_grad="
                f"{loss.requires_grad}. Call clone(x), build the loss from it, then adapt once; "
                "without gradients call adapt(x, y)."
            )
        features, output = self._seen
        (gradient,) = torch.autograd.grad(loss, output, create_graph=True, allow_unused=True)
        if gradient is None:
            raise ConfigurationError(
                "this loss does not depend on the clone's last output: build it from clone(x) of "
                "the clone that adapts."
            )
        examples = 1 if self.objective.scale == "batch" else output.shape[0]
        return features, GivenError(self.objective, -gradient * examples)

    def memory_estimate(self, episodes: Episodes) -> MemoryEstimate:
        """The memory that a meta-gradient through these episodes needs; see
        ``memory.memory_estimate``, which takes a method with options.
        """
        from metaplastic.memory import memory_estimate

        return memory_estimate(self, episodes)

    # --- training without backpropagation -------------------------------------------------------

    def assign_grads(
        self,
        x: Tensor,
        y: Tensor,
        generator: torch.Generator | None = None,
        *,
        only: str | Sequence[str] = "*",
        observe: Callable[[State], None] | None = None,
    ) -> Tensor:
        """Write minus the change that local plasticity asks for into the ``.grad`` of the plastic
        groups' Parameters, for any torch optimiser to follow; the rules' own rates multiply it.
        Warns with an UnconvergedWarning of examples for which the credit found no signal.

        Args:
            x: examples (B, *).
            y: labels (B,) or targets (B, K).
            generator: draws the noise of a credit that has any, and what is resampled.
            only: the groups that learn, by one or more patterns as of rules, such as
                ``"role:feedback"``, with their twins; the others' ``.grad`` stay as they are, and
                nothing is computed for them alone.
            observe: told the state after the presentation.

        Returns:
            The loss of each example before the change, (B,).

        Raises:
            ConfigurationError: for plastic feedback weights that are no Parameters, and a pattern
                that no plastic group matches.
            DivergenceError: when a change is not finite; every ``.grad`` stays as it was.
        """
        record = Record(self._rules(only))
        with torch.no_grad():
            features = self.network.features(x)
            target = self.encode(y, x.shape[:1])
            state = self.start(x.shape[0], generator)
            teacher = Teacher(self.objective, target)
            noise = self.noise((1, 1, len(features)), generator)
            shown = Presentation(features, teacher, noise=None if noise is None else noise[0, 0])
            after = self.credit.present(self.network, state, shown, record)
            changes = record.change
            self._check_finite(changes, "changes")
            self._warn(state, after, shown)
            if observe is not None:
                observe(after)
            parameters = {name: self._parameter(name) for name in changes}
            for name, change in changes.items():
                parameters[name].grad = -change.reshape(parameters[name].shape)
            output = self.network(features, state["weights"], state["network"])
            return self.objective.loss(output, target)

    def _parameter(self, group: str) -> Tensor:
        if group in self.network.groups():
            return self.network.parameter(group)
        value = self.credit.weights()[group]
        if not isinstance(value, nn.Parameter):
            raise ConfigurationError(
                f"{group} is plastic but no Parameter that an optimiser could move: give "
                f"{type(self.credit).__name__} weights='learned'."
            )
        return value

    # --- meta-parameters ------------------------------------------------------------------------

    def param_groups(self, lr: float = 1e-3, **rates: float) -> list[dict[str, Any]]:
        """Optimiser groups with rates of their own: ``initial`` (weights, trunk and norms),
        ``feedback``, ``plasticity``, ``mixing`` (FLP's beta) and ``control`` (inner rates); a role
        that is not named gets ``lr``, a role without Parameters no group.
        """
        return groups_by_role(self.network, self.credit, self.rules, lr, rates)

    def penalty(self) -> Tensor:
        """What the coefficients' ``l1`` adds to the meta-loss, a scalar. A MetaGradient adds its
        gradient by itself; a loop of your own adds it to its loss.
        """
        parts = [m.penalty() for m in self.modules() if isinstance(m, Coefficient) and m.l1]
        return sum(parts, torch.zeros((), device=self._like().device))

    def encode(self, y: Tensor, lead: torch.Size) -> Tensor:
        """Targets at the output, (*lead, K), in the network's precision and on its device."""
        if y.shape[: len(lead)] != lead:
            raise ShapeError(f"targets must begin with {tuple(lead)}, got {tuple(y.shape)}.")
        target = self.objective.encode(y, self.network.outputs)
        wanted = (*lead, self.network.outputs)
        if target.shape != wanted:
            raise ShapeError(
                f"targets must be labels {tuple(lead)} for CrossEntropy or numbers {wanted} for "
                f"SquaredError, got {tuple(y.shape)}."
            )
        return target.to(self._like())

    def _like(self) -> Tensor:
        """A tensor of the network's precision and device."""
        return next(iter(self.network.weights().values()))


def _finite(values: Tensor) -> bool:
    """Whether all are. A sum is cheap, and finite only if every part is; it may overflow where none
    of them does.
    """
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())
