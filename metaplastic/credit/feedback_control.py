"""Deep feedback control."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from metaplastic.control import (
    Chain,
    Constants,
    Goal,
    Moment,
    Units,
    analytic,
    diverges,
    gain_bound,
    jacobian,
    moments,
    newton,
    ornstein_uhlenbeck,
)
from metaplastic.control.steady import sent
from metaplastic.credit.control_options import Difference, Mode, check_numbers
from metaplastic.credit.control_signals import Shown, control_signals, sampled
from metaplastic.credit.controller_feedback import ControllerFeedback, Initial
from metaplastic.credit.feedback_learning import (
    FeedbackLearning,
    HighPass,
    NoiseOptions,
    sizes,
)
from metaplastic.errors import ConfigurationError, check_choice
from metaplastic.networks import LayeredNetwork, Network
from metaplastic.signals import Learn, LocalSignals, Origin, Presentation, State


class FeedbackControl(ControllerFeedback):
    r"""A controller drives the output to a target through feedback to every layer, and each layer
    learns to do without it (deep feedback control, Meulemans et al. 2021).

    The target is the feed-forward output moved a little, r_L^* = r_L^- + nudge * error. The control
    is u = u_int + k_p e with e = r_L^* - r_L and du_int/dt = e - leak * u (the leak acts on all of
    u), and layer i gets Q_i u: tau dv_i/dt = -v_i + W_i r_{i-1} + b_i + Q_i u. Synapses see the
    controlled rate r_{i-1}; phi(W_i r_{i-1} + b_i), what it calls for by itself; and phi(v_i) as
    target. ``Delta(rate, derivative=False)`` is the published rule. Examples for which no control
    is found change nothing, count as examples, and are counted in ``state["credit"]``.

    The feedback groups ``layer0_feedback`` (n_i, K) reach from the lowest plastic layer to the
    last, whose feedback begins as the identity. These layers must be Linear with nothing but
    activation functions between them.

    Args:
        mode: ``"analytic"``, the steady state of the linearised network, then one pass;
            ``"steady"``, that of the network itself, by Newton's method; ``"dynamic"``, a
            simulation by forward Euler steps (twice, first to see which examples diverge).
        nudge, leak, gain: of the target and of the controller, gain is k_p: a number, or a
            Coefficient of your own (role ``"control"``), evaluated once for an episode.
        tau: time constant of the potentials; smaller than dt counts as dt.
        dt: length of a simulation step. Keep ``control.gain_bound`` below about 5.
        steps: number of simulated moments, the feed-forward state among them.
        apical: time constant of the apical compartments, None for instantaneous ones.
        proactive, instant: see ``control.Constants``.
        average: learn all along the simulation, the transient included, or from its last moment.
        every: learn from every so many of these moments; neighbours differ little.
        chunk: moments that are told at once, B x chunk rows of which each counts as an example of
            its own (rules with reduction ``"sum"`` need chunk=1). More of them are faster, and more
            exact in single precision, in more memory.
        iterations, halvings, tolerance: see ``control.newton``.
        difference: ``"rate"``, phi(v_i) and phi(W_i r_{i-1} + b_i), or ``"voltage"``, the
            potentials themselves. The gain is phi' at the feed-forward potential.
        disturbance: strength of Ornstein-Uhlenbeck noise in all layers while the controller works
            (mode ``"dynamic"``), with the time constant ``tau_noise`` of ``noise``.
        weights: feedback weights ``"fixed"``, ``"learned"`` by the outer loop or ``"resampled"``.
        initial: ``"weight-product"``, W_{i+1}^T ... W_L^T of the network when the learner is made,
            or ``"random"`` (what is resampled must be).
        scale: factor on the standard deviation sqrt(2 / K) of random ones.
        feedback_learning: what feedback synapses with a rule, ``"role:feedback"`` (such as
            ``Delta(rate, derivative=False, decay=...)``), learn from. ``"forward-noise"``: one
            noisy pass, whose mean is J_i^T; ``"noise-phase"``: the controller's work against noise;
            both before the presentation itself. ``"single-phase"``: noise in the simulation itself
            (mode ``"dynamic"``, Meulemans et al. 2022).
        noise: its options, see NoiseOptions.

    Raises:
        ConfigurationError: for options out of range or that contradict each other.
    """

    provides = frozenset({"teaching", "gain"})

    def __init__(
        self,
        mode: Mode = "analytic",
        *,
        nudge: float | nn.Module = 0.1,
        leak: float | nn.Module = 1e-3,
        gain: float | nn.Module = 2.0,
        tau: float = 0.2,
        dt: float = 0.02,
        steps: int = 500,
        apical: float | None = None,
        proactive: bool = True,
        instant: bool = True,
        average: bool = True,
        every: int = 1,
        chunk: int = 1,
        iterations: int = 8,
        halvings: int = 3,
        tolerance: float = 1e-5,
        difference: Difference = "rate",
        disturbance: float = 0.0,
        weights: Origin = "fixed",
        initial: Initial = "weight-product",
        scale: float = 1.0,
        feedback_learning: FeedbackLearning = "none",
        noise: NoiseOptions | None = None,
    ) -> None:
        super().__init__(weights, scale, initial, feedback_learning, noise, steps, chunk)
        check_choice(mode=(mode, Mode), difference=(difference, Difference))
        self.nudge, self.leak, self.gain = nudge, leak, gain
        check_numbers(nudge=nudge, leak=leak, gain=gain)
        if not (dt > 0 and tau > 0 and steps >= 2 and min(every, chunk, iterations) >= 1):
            raise ConfigurationError(
                "dt and tau are above 0, steps at least 2, every, chunk and iterations at least 1; "
                f"got dt={dt}, tau={tau}, steps={steps}, every={every}, chunk={chunk}, "
                f"iterations={iterations}."
            )
        if apical is not None and not apical >= dt:
            raise ConfigurationError(f"apical is at least dt={dt}, or None; got {apical}.")
        single = feedback_learning == "single-phase"
        if single and not (mode == "dynamic" and average):
            raise ConfigurationError(
                "feedback_learning='single-phase' learns along the simulation: it needs "
                f"mode='dynamic' and average=True, got mode={mode!r}, average={average}."
            )
        if disturbance < 0 or (disturbance and (single or mode != "dynamic")):
            raise ConfigurationError(
                "a disturbance is from 0, needs mode='dynamic', and is the noise itself ("
                "noise={'sigma': ...}) under feedback_learning='single-phase'; got disturbance="
                f"{disturbance}, mode={mode!r}, feedback_learning={feedback_learning!r}."
            )
        self.disturbance = disturbance
        if self.simulates_noise and self.noisy.tau_noise < dt:
            raise ConfigurationError(
                f"tau_noise is at least dt={dt} for noise in a simulation; got "
                f"{self.noisy.tau_noise}."
            )
        self.mode, self.average, self.every = mode, average, every
        self.tau, self.dt, self.apical = tau, dt, apical
        self.proactive, self.instant = proactive, instant
        self.iterations, self.halvings, self.tolerance = iterations, halvings, tolerance
        self.difference = difference

    @property
    def simulates_noise(self) -> bool:
        return super().simulates_noise or self.disturbance > 0

    def numbers(self) -> dict[str, float | nn.Module]:
        """What may be a Coefficient."""
        return {"nudge": self.nudge, "leak": self.leak, "gain": self.gain}

    def start(self, network: Network, weights: dict[str, Tensor], batch: int) -> State:
        """The controller's numbers, (1, 1) each, and ``unconverged``: the examples so far for which
        no control was found.
        """
        like = next(iter(weights.values()))
        values = {
            name: number() if isinstance(number, nn.Module) else like.new_full((1, 1), number)
            for name, number in self.numbers().items()
        }
        return {**values, "unconverged": like.new_zeros(())}

    def goal(self, presentation: Presentation, units: Units, numbers: State) -> Goal:
        """What the output is steered to."""
        return Goal(units.output + numbers["nudge"] * presentation.teacher.error(units.output))

    def present(
        self, network: Network, state: State, presentation: Presentation, learn: Learn
    ) -> State:
        assert isinstance(network, LayeredNetwork)
        lowest = self._lowest(network)
        chain, still = Chain.of(network, state["weights"], presentation.x, lowest)
        state = self._teach_feedback(chain, still, state, presentation, learn)
        single = self.feedback_learning == "single-phase"
        if learn.needs.keys() <= self._groups.keys() and not single:
            return state
        goal = self.goal(presentation, still, state["credit"])
        shown = Shown(network, presentation, chain, still, goal)
        present = self._in_time if self.mode == "dynamic" else self._at_rest
        state, found = present(shown, state, learn)
        lost = (~found).to(still.output)
        lost = lost if presentation.weight is None else lost * presentation.weight
        credit = {**state["credit"], "unconverged": state["credit"]["unconverged"] + lost.sum()}
        return {**state, "credit": credit}

    def advice(self, network: Network, state: State, presentation: Presentation) -> str:
        """The largest gain bound of the examples, where there is a simulation; see
        ``control.gain_bound``.
        """
        if self.mode != "dynamic":
            return (
                "no steady state of the controller was found for them. Raise leak or iterations, "
                "or bring the feedback closer to the transposed Jacobian (feedback_learning, "
                "initial='weight-product')."
            )
        assert isinstance(network, LayeredNetwork)
        feedback, gain = self._feedback(state), float(state["credit"]["gain"])
        chain, still = Chain.of(network, state["weights"], presentation.x, self._lowest(network))
        bound = gain_bound(jacobian(chain, still), feedback, gain, self.dt, self.tau)
        return (
            "their controller did not come closer to the target. k_p |lambda|max(J Q) dt / tau is "
            f"up to {float(bound.max()):.3g}, and simulations are stable below about 5: lower dt, "
            "gain or the feedback weights, raise tau; below that bound raise leak, or bring the "
            "feedback closer to the transposed Jacobian; errors that the nudge brings down to the "
            "rounding of the output are lost too: raise nudge, or compute in float64."
        )

    def _at_rest(self, shown: Shown, state: State, learn: Learn) -> tuple[State, Tensor]:
        feedback, leak = self._feedback(state), state["credit"]["leak"]
        if self.mode == "analytic":
            error = shown.goal.error(shown.still.output)
            steady = analytic(shown.chain, shown.still, feedback, error, leak)
        else:
            steady = newton(
                shown.chain,
                feedback,
                shown.goal,
                leak,
                iterations=self.iterations,
                halvings=self.halvings,
                tolerance=self.tolerance,
            )
        seen = shown.chain.run(sent(steady.control, feedback))
        return learn(state, self._signals(shown, [seen], learn)), steady.found

    def _in_time(self, shown: Shown, state: State, learn: Learn) -> tuple[State, Tensor]:
        feedback, numbers = self._feedback(state), state["credit"]
        constants = Constants(
            numbers["leak"],
            numbers["gain"],
            self.dt,
            self.tau,
            self.apical,
            self.proactive,
            self.instant,
        )
        presentation, chain, goal, still = shown.presentation, shown.chain, shown.goal, shown.still

        def run(running: Tensor | None) -> Iterator[Moment]:
            noisy = self.simulates_noise and running is not None
            noise = self._simulated_noise(chain, presentation) if noisy else None
            return moments(chain, feedback, goal, constants, still, self.steps, noise, running)

        with torch.no_grad():  # without noise, which may be larger than the error
            (last,) = deque(run(None), maxlen=1)
            found = ~diverges(last, goal, goal.error(still.output))
        if not self.average:
            (last,) = deque(run(found), maxlen=1)
            return learn(state, self._signals(shown, [last.units], learn)), found
        return self._along(run(found), shown, state, learn), found

    def _simulated_noise(
        self, chain: Chain, presentation: Presentation
    ) -> Iterator[tuple[Tensor, ...]]:
        layers = len(chain.layers)
        sigmas = [self.disturbance] * layers if self.disturbance else self.noisy.sigmas(layers)
        xi = self.given_noise(presentation)[:, self._noisy_moments() :]
        return ornstein_uhlenbeck(xi, sizes(chain), sigmas, self.dt, self.noisy.tau_noise)

    def _along(self, moments: Iterator[Moment], shown: Shown, state: State, learn: Learn) -> State:
        """Learn along a simulation."""
        high_pass = HighPass(min(1.0, self.dt / self.noisy.tau_filter))
        scales = self.noisy.layer_scales(len(shown.chain.layers), max(self.tau, self.dt))
        count, followed = (-(-n // self.every) for n in (self.steps, self.steps - 1))
        weight = shown.presentation.weight
        for stretch in sampled(moments, self.every, self.chunk, high_pass):
            signals = self._signals(shown, [sample.moment.units for sample in stretch], learn)
            state = learn(state, signals, len(stretch) / count)
            if self.feedback_learning == "single-phase":
                state = self._tell_control(state, learn, stretch, scales, weight, followed)
        return state

    def _signals(self, shown: Shown, seen: list[Units], learn: Learn) -> dict[str, LocalSignals]:
        rates = self.difference == "rate"
        return control_signals(shown, seen, learn.needs, rates=rates)
