"""Least control of networks at rest."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from metaplastic.credit.control_options import check_numbers
from metaplastic.credit.equilibrium_feedback import EquilibriumFeedback, NoisePhase, Psi
from metaplastic.credit.feedback_learning import NoiseOptions
from metaplastic.credit.through_time import through_time
from metaplastic.equilibrium import Controlled, Energy, Rest, Solver, SolverOptions, rest
from metaplastic.errors import ConfigurationError, check_choice
from metaplastic.networks import EquilibriumNetwork, Network
from metaplastic.networks.populations import WiredField
from metaplastic.objectives import SquaredError
from metaplastic.signals import Learn, Origin, Presentation, State, Teacher

Start = Literal["zero", "free", "inversion"]


class EquilibriumControl(EquilibriumFeedback):
    r"""The least control psi that brings a network at rest to where the controller of its output
    rests too, as the error of every unit (the least-control principle, Meulemans et al. 2022).

    v = g(v) + psi, where psi follows from the output error e by u = beta e with
    beta = integral / leak + proportional, for each example by itself (settings for the mean loss of
    a batch of 64 are divided by 64). Synapses see the controlled activity, and psi of their
    postsynaptic units: ``Delta(rate, derivative=False)`` changes weights by rate * psi pre^T, and
    under weak control that is beta times the step along the gradient. ``post`` is the activity that
    g(v) calls for, the gain is the slope at v. Examples that find no rest change nothing, count as
    examples, and are counted in ``state["credit"]``.

    Args:
        psi: ``"inversion"``, g'^T psi + D^T u by dynamics, which is the least control;
            ``"kolen-pollack"``, the same through matrices of its own, ``output_feedback`` beside
            ``output_weight``, that share the rule of the forward weights (with a decay the
            difference dies out); ``"linear"``, Q u through ``hidden_feedback`` (n, K) to the
            population ``hidden``; ``"energy"``, v - g(v) at a minimum of |v - g(v)|^2 / 2 + beta L;
            ``"recurrent-backprop"``, what inversion tends to under weak control, divided by beta
            (Almeida 1987; Pineda 1987), the gradient; ``"backprop"``, the gradient through the
            ``sweeps`` of the solver (by default 20).
        integral, leak, proportional: of the controller; the leak acts on the integral alone. A leak
            of 0 is hard control, to an error of 0, under SquaredError.
        solver: of the controlled rest, see ``equilibrium.SolverOptions``, by default Anderson;
            the free rest is sought by the network's own. Plain sweeps need damping, and Newton
            steps weak control.
        start: potentials that it begins with: ``"zero"``, ``"free"`` rest, or (psi ``"energy"``)
            those of ``"inversion"``.
        weights: feedback weights ``"fixed"``, ``"learned"`` by the outer loop or ``"resampled"``.
        scale: factor on their standard deviation sqrt(2 / n_in); recurrent feedback needs a
            spectral radius, about 1.4 times that, below 1.
        feedback_learning: ``"noise-phase"`` lets linear feedback with a rule, ``"role:feedback"``
            (such as ``Delta(rate, derivative=False, decay=...)``), learn from the controller's work
            against noise around the rest point, see ``fluctuations``.
        noise: its options, see NoiseOptions.

    Raises:
        ConfigurationError: for options out of range or that contradict each other.
    """

    provides = frozenset({"teaching", "gain"})

    def __init__(
        self,
        psi: Psi = "inversion",
        *,
        integral: float = 1 / 64,
        leak: float = 0.1,
        proportional: float = 0.0,
        solver: SolverOptions | None = None,
        start: Start = "zero",
        weights: Origin = "fixed",
        scale: float = 0.5,
        feedback_learning: NoisePhase = "none",
        noise: NoiseOptions | None = None,
    ) -> None:
        super().__init__(psi, weights, scale, feedback_learning, noise)
        check_choice(start=(start, Start))
        check_numbers(integral=integral, leak=leak, proportional=proportional)
        if integral + (proportional if leak else 0.0) == 0:
            raise ConfigurationError(
                "a controller needs integral above 0, or leak and proportional; got "
                f"integral={integral}, leak={leak}, proportional={proportional}."
            )
        if psi == "energy" and leak == 0:
            raise ConfigurationError("psi='energy' weighs control and loss: it needs leak above 0.")
        if start == "inversion" and psi != "energy":
            raise ConfigurationError(f"start='inversion' is for psi='energy', got psi={psi!r}.")
        self.beta = float("inf") if leak == 0 else integral / leak + proportional
        self.strength = 1.0 if leak == 0 else self.beta / (1 + self.beta)
        own: SolverOptions = {"sweeps": 20} if psi == "backprop" else {"method": "anderson"}
        if solver is not None:
            own.update(solver)
        self.solver, self.begin = Solver.of(own), start

    def start(self, network: Network, weights: dict[str, Tensor], batch: int) -> State:
        """``unconverged``: the examples so far that found no rest."""
        return {"unconverged": next(iter(weights.values())).new_zeros(())}

    def advice(self, network: Network, state: State, presentation: Presentation) -> str:
        return (
            "they found no rest under control. Lower the solver's damping, raise its sweeps or "
            "take method 'anderson' or 'newton'; make the control weaker (lower integral, higher "
            "leak) or the feedback (scale)."
        )

    def present(
        self, network: Network, state: State, presentation: Presentation, learn: Learn
    ) -> State:
        assert isinstance(network, EquilibriumNetwork)
        field = network.field(presentation.x, state["weights"])
        if self.psi == "backprop":
            sweeps = self.solver.sweeps
            return learn(state, through_time(network, field, presentation, learn.needs, sweeps))
        if self.strength == 1.0:
            _check_reachable(presentation.teacher)
        found, potential, psi = self._rest(network, field, presentation, state)
        point, weight = field.at(potential), presentation.weight
        seen = network.signals(point, learn.needs, psi=psi, weight=weight)
        twins = {n: g.twin for n, g in self._groups.items() if n in learn.needs}
        seen |= {name: seen[str(twin)] for name, twin in twins.items() if twin}
        seen |= self.fluctuating(field, state, potential, psi, found, presentation, learn.needs)
        state = learn(state, seen)
        lost = (~found).to(psi)
        lost = lost if weight is None else lost * weight
        credit = {**state["credit"], "unconverged": state["credit"]["unconverged"] + lost.sum()}
        return {**state, "credit": credit}

    def _rest(
        self,
        network: EquilibriumNetwork,
        field: WiredField,
        presentation: Presentation,
        state: State,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Whether a rest was found (B, 1), potentials and psi there, (B, S), 0 where it was not."""
        gradient = self.psi == "recurrent-backprop"
        controlled = Controlled(
            field,
            presentation.teacher.error,
            0.0 if gradient else self.strength,
            self.feedback(network, state["weights"]),
        )
        with torch.no_grad():
            begin = field.still() if self.begin == "zero" else network.rest(field).state
        if self.psi == "energy":
            found = self._minimum(controlled, begin)
            potential = found.state
            psi = potential - field.at(potential).called
        else:
            found = self._inverted(controlled, begin)
            potential, psi = found.state.chunk(2, dim=-1)
            psi = psi if gradient else self.strength * psi
        still = torch.zeros_like(psi)
        settled = found.found
        return settled, torch.where(settled, potential, still), torch.where(settled, psi, still)

    def _inverted(self, controlled: Controlled, begin: Tensor) -> Rest:
        return rest(controlled.step, controlled.start(begin), self.solver, controlled.newton)

    def _minimum(self, controlled: Controlled, begin: Tensor) -> Rest:
        if self.begin == "inversion":
            with torch.no_grad():
                begin = self._inverted(controlled, begin).state.chunk(2, dim=-1)[0]
        energy = Energy(controlled)
        return rest(energy.step, begin, self.solver, energy.newton, scale=self.strength)


def _check_reachable(teacher: Teacher) -> None:
    """Hard control needs a target that the output can have."""
    if not isinstance(teacher.objective, SquaredError):
        raise ConfigurationError(
            f"leak=0 controls the output to an error of 0, which "
            f"{type(teacher.objective).__name__} has nowhere: take a leak above 0, or "
            "SquaredError()."
        )
    _ = teacher.target  # raises where only an error is known
