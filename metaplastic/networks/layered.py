"""A chain of Linear and Conv2d layers, seen as synapses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from metaplastic.errors import ConfigurationError, DataError, ShapeError, UnsupportedLayerError
from metaplastic.networks.base import Needs, Network, Observation, he_normal
from metaplastic.networks.layer import Layer, LayerActivity, shape_after, unit_shape
from metaplastic.networks.transforms import SLOPES, Flatten, Transform, transform, without_inplace
from metaplastic.signals import Kind, LocalSignals, Presentation, State, SynapseGroup


class LayeredNetwork(Network):
    """An ``nn.Sequential`` of Linear and Conv2d layers as plastic synapses behind a fixed trunk.

    Every Linear and Conv2d layer is a synapse group (``layer0_weight``, a convolution by its
    unfolded patches) and so is its bias (``layer0_bias``). The activation function that follows
    synapses directly gives the layer's activity; everything else up to the next synapses (norm,
    pooling, flatten, further activation functions) is a fixed transform. The modules are used as
    they are, not copied.

    Args:
        layers: the chain; nested ``nn.Sequential`` are opened. It ends in a Linear layer, with at
            most an activation function behind it.
        trunk: any module in front, fixed within an episode yet meta-trained. It always runs in eval
            mode: batch norm on its running statistics, dropout off.
        input_shape: shape of one example without the batch axis; needed where the chain holds a
            Conv2d, else only checked.
        batch_norm: ``"running"`` or ``"batch"`` statistics, to be declared where the chain holds a
            batch norm.

    Raises:
        UnsupportedLayerError: for a layer that cannot be run through.
        ConfigurationError: for a missing ``input_shape`` or batch-norm policy.
    """

    def __init__(
        self,
        layers: nn.Sequential,
        *,
        trunk: nn.Module | None = None,
        input_shape: Sequence[int] | None = None,
        batch_norm: str | None = None,
    ) -> None:
        super().__init__()
        self.body = layers
        self.trunk = trunk
        if trunk is not None:
            trunk.eval()
        self.input_shape = None if input_shape is None else tuple(input_shape)
        self._inlet, self.layers = self._parse(list(_opened(layers)), batch_norm)
        last = self.layers[-1]
        if not isinstance(last.synapses, nn.Linear) or last.transforms:
            raise UnsupportedLayerError(
                "the chain must end in a Linear layer with at most an activation function behind "
                f"it, got {layers[-1]}; put pooling and norms in front of the last Linear."
            )
        self.outputs = last.synapses.out_features

    def _parse(
        self, modules: list[nn.Module], batch_norm: str | None
    ) -> tuple[tuple[Transform, ...], tuple[Layer, ...]]:
        starts = [i for i, m in enumerate(modules) if isinstance(m, nn.Linear | nn.Conv2d)]
        if not starts:
            raise UnsupportedLayerError("the chain holds no Linear or Conv2d layer to learn in.")
        inlet = tuple(transform(m, batch_norm) for m in modules[: starts[0]])
        if any(t.mixes_examples for t in inlet):
            raise ConfigurationError(
                "batch statistics in front of the first synapses would mix episodes, whose "
                "features are computed together: declare batch_norm='running' there, or take "
                "another norm."
            )
        shape = self._feature_shape(modules, inlet)
        layers = []
        for index, (start, stop) in enumerate(
            zip(starts, [*starts[1:], len(modules)], strict=True)
        ):
            synapses = modules[start]
            rest = modules[start + 1 : stop]
            activation: nn.Module = nn.Identity()
            if rest and type(rest[0]) in SLOPES:
                activation = without_inplace(rest.pop(0))
            transforms = tuple(transform(m, batch_norm) for m in rest)
            units = unit_shape(synapses, shape, index)
            assert isinstance(synapses, nn.Linear | nn.Conv2d)
            layers.append(Layer(index, synapses, activation, transforms, shape, units))
            shape = shape_after(transforms, units)
        return inlet, tuple(layers)

    def _feature_shape(
        self, modules: list[nn.Module], inlet: tuple[Transform, ...]
    ) -> tuple[int, ...]:
        if self.input_shape is not None:
            x = torch.zeros(1, *self.input_shape)
            if self.trunk is not None:
                like = next(self.trunk.parameters(), x)
                with torch.no_grad():
                    x = self.trunk(x.to(like)).cpu()
            return shape_after(inlet, tuple(x.shape[1:]))
        first = next(m for m in modules if isinstance(m, nn.Linear | nn.Conv2d))
        if any(isinstance(m, nn.Conv2d) for m in modules):
            raise ConfigurationError(
                "a chain with Conv2d layers needs input_shape=(channels, height, width) of one "
                "example, to know how many positions each layer has."
            )
        return (first.in_features,)  # type: ignore[return-value] - no Conv2d is left here

    def train(self, mode: bool = True) -> LayeredNetwork:
        super().train(mode)
        if self.trunk is not None:
            self.trunk.eval()
        return self

    def groups(self) -> dict[str, SynapseGroup]:
        found = {}
        for layer in self.layers:
            n_out, n_in = layer.synapses.weight.flatten(1).shape
            place = (layer.index, len(self.layers), layer.sites)
            weight = SynapseGroup(f"{layer.name}_weight", n_out, n_in, "weight", *place)
            found[weight.name] = weight
            if layer.synapses.bias is not None:
                bias = SynapseGroup(f"{layer.name}_bias", n_out, 1, "bias", *place)
                found[bias.name] = bias
        return found

    def parameter(self, group: str) -> Tensor:
        layer, _, attribute = group.removeprefix("layer").partition("_")
        return getattr(self.layers[int(layer)].synapses, attribute)

    def weights(self) -> dict[str, Tensor]:
        return {g.name: self.parameter(g.name).reshape(g.n_out, g.n_in) for g in self._all()}

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """He-normal weights, biases 0."""
        return {
            g.name: torch.zeros(g.n_out, 1)
            if g.role == "bias"
            else he_normal((g.n_out, g.n_in), generator)
            for g in self._all()
        }

    def features(self, x: Tensor) -> Tensor:
        if self.input_shape is not None and tuple(x.shape[1:]) != self.input_shape:
            raise ShapeError(
                f"an example must be {self.input_shape}, got {tuple(x.shape[1:])} in a batch of "
                f"shape {tuple(x.shape)}."
            )
        x = x if self.trunk is None else self.trunk(x)
        for step in self._inlet:
            x = step(x)
        if not x.is_floating_point():
            raise DataError(f"examples must be floating point, got {x.dtype}: try x.float() / 255.")
        if tuple(x.shape[1:]) != self.layers[0].in_shape:
            raise ShapeError(
                f"{self.layers[0].synapses} takes {self.layers[0].in_shape}, got "
                f"{tuple(x.shape[1:])} in a batch of shape {tuple(x.shape)}."
            )
        return x

    def run(
        self, features: Tensor, weights: dict[str, Tensor]
    ) -> tuple[Tensor, tuple[LayerActivity, ...]]:
        """One forward pass: output (B, K) and the activity of every layer."""
        x, activities = features, []
        for layer in self.layers:
            activities.append(_through(layer, x, weights))
            x = activities[-1].path[-1]
        return x, tuple(activities)

    def forward(
        self, features: Tensor, weights: dict[str, Tensor], state: State | None = None
    ) -> Tensor:
        del state
        x = features
        for layer in self.layers:  # no activity is kept
            x = layer.forward(x, weights)
        return x

    provides = frozenset({"gain"})

    def observe(
        self, presentation: Presentation, weights: dict[str, Tensor], state: State, needs: Needs
    ) -> Observation:
        output, activities = self.run(presentation.x, weights)
        signals = {}
        for layer, activity in zip(self.layers, activities, strict=True):
            signals |= self.signals(layer, activity, needs, weight=presentation.weight)
        return Observation(output, signals, state)

    def backward(self, index: int, error: Tensor, activity: LayerActivity) -> Tensor:
        """Error at the input of layer ``index``, (B, *), arrives at the activity of the layer
        below, whose ``activity`` is given: (N, n_out).
        """
        below = self.layers[index - 1]
        for i in reversed(range(len(below.transforms))):
            error = below.transforms[i].transpose(
                activity.path[i], activity.path[i + 1], error.reshape(activity.path[i + 1].shape)
            )
        return below.to_rows(error)

    def slope_below(self, index: int, activities: tuple[LayerActivity, ...]) -> Tensor | None:
        """Slopes of the activation function of the units that layer ``index`` sees, (B, *); None
        for inputs and where something with a slope of its own stands between.
        """
        below = self.layers[index - 1]
        if index == 0 or not all(isinstance(t, Flatten) for t in below.transforms):
            return None
        slope = below.to_units(below.gain(activities[index - 1]))
        return slope.reshape(-1, *self.layers[index].in_shape)

    def signals(
        self,
        layer: Layer,
        activity: LayerActivity,
        needs: Needs,
        *,
        teaching: Tensor | None = None,
        kind: Kind = "error",
        pre_teaching: Tensor | None = None,
        modulator: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> dict[str, LocalSignals]:
        """What the plastic groups of one layer see; ``teaching`` (N, n_out), ``pre_teaching``
        (N, n_in), ``modulator`` (B, 1), ``weight`` (B, 1). The presynaptic unit of a bias, which is
        always 1, has no error.
        """
        found = {}
        weight, modulator = layer.per_row(weight), layer.per_row(modulator)
        ones = torch.ones_like(activity.post[:, :1])
        ends = (activity.pre, pre_teaching), (ones, torch.zeros_like(ones))
        for name, (pre, error) in zip(layer.names, ends, strict=True):
            asked = needs.get(name)
            if asked is None:
                continue
            found[name] = LocalSignals(
                pre=pre,
                post=activity.post,
                teaching=teaching if "teaching" in asked else None,
                kind=kind,
                gain=layer.gain(activity) if "gain" in asked else None,
                pre_teaching=error if "pre_teaching" in asked else None,
                modulator=modulator if "modulator" in asked else None,
                weight=weight,
                sites=layer.sites,
            )
        return found

    def _all(self) -> Iterator[SynapseGroup]:
        return iter(self.groups().values())


def _through(layer: Layer, x: Tensor, weights: dict[str, Tensor]) -> LayerActivity:
    pre = layer.unfold(x)
    potential = layer.potential(pre, weights)
    post = layer.activation(potential)
    return LayerActivity(pre, potential, post, layer.path(post))


def _opened(layers: nn.Sequential) -> Iterator[nn.Module]:
    for module in layers:
        if isinstance(module, nn.Sequential):
            yield from _opened(module)
        else:
            yield module
