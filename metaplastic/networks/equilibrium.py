"""A network whose output is read at rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from metaplastic.equilibrium import Rest, Solver, SolverOptions, rest
from metaplastic.equilibrium.algebra import rows, solve_regular
from metaplastic.errors import ConfigurationError, DataError, ShapeError
from metaplastic.networks.base import Needs, Network, Observation
from metaplastic.networks.populations import Synapses, WiredField, WiredPoint
from metaplastic.networks.wiring import wire
from metaplastic.signals import LocalSignals, Presentation, State, SynapseGroup


class EquilibriumNetwork(Network):
    r"""Populations of units whose potentials rest where v = g(v), and an output read there.

    Each population's potential is the sum of what its pathways bring: from the features, or from
    the activity of a population (itself, a lower or a higher one), through synapses. All
    potentials together are the state; chains, recurrent networks and deep equilibrium models
    differ in their pathways alone (``equilibrium_chain``, ``equilibrium_rnn``,
    ``equilibrium_block``). A pathway ``"a"`` has the groups ``a_weight`` and ``a_bias``, seen as in
    LayeredNetwork. Every presentation starts anew: nothing is left of it but weights.

    Args:
        units: {name: what stands behind the potential}: an activation function, or an
            ``nn.Sequential`` of one and norms or pooling. The last are the output, with
            ``nn.Identity()``.
        pathways: {name: (source, target, synapses)}: from ``"features"`` or units to units,
            through an ``nn.Linear`` or ``nn.Conv2d``, in an ``nn.Sequential`` behind norms, pooling
            or a flatten of its own, or through nothing (``nn.Identity()``, a skip connection).
        input_shape: shape of one example without the batch axis.
        trunk: any module in front, fixed within an episode yet meta-trained, in eval mode.
        solver: how the rest is sought, see ``equilibrium.SolverOptions``. Undamped sweeps find it
            where the spectral radius of g' is below 1, and are exact in a chain after as many
            sweeps as it has layers.
        gains: factor on the standard deviation of a pathway's weights in ``draw``.

    Norms are those of LayeredNetwork; batch norms run on their running statistics.

    Raises:
        ConfigurationError: for names or shapes that do not fit together.
        UnsupportedLayerError: for a module that cannot be run through.
    """

    provides = frozenset({"gain"})

    def __init__(
        self,
        units: Mapping[str, nn.Module],
        pathways: Mapping[str, tuple[str, str, nn.Module]],
        *,
        input_shape: Sequence[int],
        trunk: nn.Module | None = None,
        solver: SolverOptions | None = None,
        gains: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        wrong = [name for name in (*units, *pathways) if "." in name or not name]
        if wrong:
            raise ConfigurationError(f"names of units and pathways have no dots, got {wrong}.")
        self.units = nn.ModuleDict(dict(units))
        self.pathways = nn.ModuleDict({name: module for name, (_, _, module) in pathways.items()})
        self.trunk = trunk
        if trunk is not None:
            trunk.eval()
        self.input_shape = tuple(input_shape)
        self.wiring = wire(units, pathways, self._feature_shape())
        self.solver = Solver.of(solver)
        self.gains = dict(gains or {})
        self.outputs = self.wiring.outputs
        self._synapses = {
            way.synapses.name: way.synapses for way in self.wiring.pathways if way.synapses
        }

    def _feature_shape(self) -> tuple[int, ...]:
        x = torch.zeros(1, *self.input_shape)
        if self.trunk is not None:
            with torch.no_grad():
                x = self.trunk(x.to(next(self.trunk.parameters(), x))).cpu()
        return tuple(x.shape[1:])

    def train(self, mode: bool = True) -> EquilibriumNetwork:
        super().train(mode)
        if self.trunk is not None:
            self.trunk.eval()
        return self

    @property
    def carriers(self) -> list[str]:
        """The pathways from units to units that have synapses."""
        ways = self.wiring.pathways
        return [w.synapses.name for w in ways if w.source is not None and w.synapses]

    def groups(self) -> dict[str, SynapseGroup]:
        """``position`` counts the populations that the synapses end on."""
        found = {}
        for synapses in self._synapses.values():
            n_out, n_in = synapses.synapses.weight.flatten(1).shape
            place = synapses.index, len(self.wiring.populations), synapses.sites
            weight, bias = synapses.names
            found[weight] = SynapseGroup(weight, n_out, n_in, "weight", *place)
            if synapses.synapses.bias is not None:
                found[bias] = SynapseGroup(bias, n_out, 1, "bias", *place)
        return found

    def weights(self) -> dict[str, Tensor]:
        return {g.name: self.parameter(g.name).reshape(g.n_out, g.n_in) for g in self._all()}

    def parameter(self, group: str) -> Tensor:
        name, _, attribute = group.rpartition("_")
        return getattr(self._synapses[name].synapses, attribute)

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Normal weights of variance 1 / (3 n_in), as PyTorch's own layers begin with (a recurrent
        matrix then has a spectral radius of about 0.6), biases 0.
        """
        found = {}
        for g in self._all():
            drawn = torch.randn(g.n_out, g.n_in, generator=generator, dtype=torch.float64)
            scale = self.gains.get(g.name.rpartition("_")[0], 1.0) * (3 * g.n_in) ** -0.5
            value = scale * drawn if g.role == "weight" else torch.zeros(g.n_out, 1)
            found[g.name] = value.to(torch.get_default_dtype())
        return found

    def features(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.input_shape:
            raise ShapeError(
                f"an example must be {self.input_shape}, got {tuple(x.shape[1:])} in a batch of "
                f"shape {tuple(x.shape)}."
            )
        x = x if self.trunk is None else self.trunk(x)
        if not x.is_floating_point():
            raise DataError(f"examples must be floating point, got {x.dtype}: try x.float() / 255.")
        return x

    def field(self, features: Tensor, weights: dict[str, Tensor]) -> WiredField:
        """dv/dt = g(v) - v for features (B, *)."""
        return WiredField(self.wiring, weights, features)

    def rest(self, field: WiredField, solver: Solver | None = None) -> Rest:
        """Where it rests, from potentials of 0: state (B, S)."""

        def step(state: Tensor) -> Tensor:
            return field.at(state).called

        def newton(state: Tensor, moved: Tensor) -> Tensor:
            slope = rows(field.at(state).transposed, state)
            eye = torch.eye(state.shape[-1], dtype=state.dtype, device=state.device)
            return state + solve_regular(eye - slope, (moved - state).unsqueeze(-1)).squeeze(-1)

        return rest(step, field.still(), solver or self.solver, newton)

    def forward(
        self, features: Tensor, weights: dict[str, Tensor], state: State | None = None
    ) -> Tensor:
        """Output at rest, (B, K); where no rest is found, at the last state."""
        del state
        return self.rest(self.field(features, weights)).state[:, -self.outputs :]

    def observe(
        self, presentation: Presentation, weights: dict[str, Tensor], state: State, needs: Needs
    ) -> Observation:
        field = self.field(presentation.x, weights)
        found = self.rest(field).state
        signals = self.signals(field.at(found), needs, weight=presentation.weight)
        return Observation(found[:, -self.outputs :], signals, state)

    def signals(
        self,
        point: WiredPoint,
        needs: Needs,
        *,
        psi: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> dict[str, LocalSignals]:
        """What the plastic groups see at a state: the activity there as ``pre``, the activity that
        g(v) calls for as ``post``, the slope at v, and as error ``psi`` (B, S) of the postsynaptic
        units; ``weight`` (B, 1).
        """
        found = {}
        for index, way in enumerate(self.wiring.pathways):
            if way.synapses is not None and not set(needs).isdisjoint(way.synapses.names):
                found |= self._seen(point, index, way.synapses, needs, psi, weight)
        return found

    def _seen(
        self,
        point: WiredPoint,
        index: int,
        synapses: Synapses,
        needs: Needs,
        psi: Tensor | None,
        weight: Tensor | None,
    ) -> dict[str, LocalSignals]:
        target = self.wiring.populations[synapses.index]
        post = synapses.to_rows(target.activation(target.of(point.called)))
        slope = target.slope(target.of(point.state), point.rates[synapses.index])
        pre = synapses.unfold(point.before(index)), torch.ones_like(post[:, :1])
        return {
            name: LocalSignals(
                own,
                post,
                synapses.to_rows(target.of(psi))
                if psi is not None and "teaching" in needs[name]
                else None,
                gain=synapses.to_rows(slope) if "gain" in needs[name] else None,
                weight=synapses.per_row(weight),
                sites=synapses.sites,
            )
            for name, own in zip(synapses.names, pre, strict=True)
            if name in needs
        }

    def _all(self) -> list[SynapseGroup]:
        return list(self.groups().values())
